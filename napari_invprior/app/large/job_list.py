"""The jobs that are known, of this session and of earlier ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

COLUMNS = ("state", "blocks", "begun", "job")
TEXTS = {"unfinished": "can go on", "unreadable": "damaged"}


class JobList(QTableWidget):
    """One line per job, the latest first.

    Signals
    -------
    picked
        Another line was chosen.
    """

    picked = Signal()

    def __init__(self) -> None:
        super().__init__(0, len(COLUMNS))
        self.setHorizontalHeaderLabels(COLUMNS)
        self.verticalHeader().hide()
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        header = self.horizontalHeader()
        for column in range(len(COLUMNS) - 1):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.ResizeToContents)
        header.setStretchLastSection(True)
        self.setMinimumHeight(90)
        self.setToolTip("Jobs of this and of earlier sessions; each lies in a folder of its own.")
        self.itemSelectionChanged.connect(self.picked)
        self._jobs: list[Any] = []

    def show_jobs(self, jobs: list[Any]) -> None:
        """Show what is known now; the chosen job stays chosen."""
        chosen = self.chosen
        self._jobs = jobs
        self.blockSignals(True)
        self.setRowCount(len(jobs))
        for line, job in enumerate(jobs):
            failed = f" · {job.failed} failed" if job.failed else ""
            begun = job.created[:16].replace("T", " ")
            texts = (
                TEXTS.get(job.state, job.state), f"{job.done} of {job.total}{failed}", begun,
                f"{job.title} in {job.folder.name}",
            )
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                item.setToolTip(str(job.folder))
                item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEditable)
                self.setItem(line, column, item)
            if chosen is not None and job.folder == chosen.folder:
                self.selectRow(line)
        self.blockSignals(False)
        self.picked.emit()

    @property
    def chosen(self) -> Any:
        """The job of the chosen line, or None."""
        lines = self.selectionModel().selectedRows()
        if not lines or lines[0].row() >= len(self._jobs):
            return None
        return self._jobs[lines[0].row()]

    def choose(self, folder: Path) -> None:
        """Choose a job by its folder."""
        for line, job in enumerate(self._jobs):
            if job.folder == folder:
                self.selectRow(line)
