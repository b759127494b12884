"""The dock "Large volumes": the workbench's problem, block by block, from disk to disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import napari
from napari.utils.notifications import show_error
from qtpy.QtWidgets import QCheckBox, QFileDialog, QLabel, QLineEdit, QSpinBox, QVBoxLayout, QWidget

from napari_invprior.app import preferences
from napari_invprior.app.docks.beside_workbench import BenchDock
from napari_invprior.app.large.block_map import BlockMap
from napari_invprior.app.large.job_list import JobList
from napari_invprior.app.large.run import LargeRun, plan
from napari_invprior.app.viewer.results import add_results
from napari_invprior.app.widgets.controls import FAULT, GOOD, Line, Sentence, push, row
from napari_invprior.app.widgets.forms import LABEL_WIDTH
from napari_invprior.app.widgets.words import clock, duration, figures
from napari_invprior.app.workbench.dock import WIDTH
from napari_invprior.app.workbench.prior_panel import progress_bar, show_progress
from napari_invprior.blocks import catalogue
from napari_invprior.errors import InvPriorError
from napari_invprior.jobs import Blocks, Planned, Progress
from napari_invprior.parameters import validate
from napari_invprior.recipes.blocking import BlockParameters

LIST_EVERY = 3.0
"""Seconds between two looks at all jobs while one runs."""

STAGES = {"train": "training", "weight": "choosing the weight", "blocks": "blocks",
          "reconstruct": "measuring how far a border is felt"}


class LargeVolumes(BenchDock):
    """Jobs that memory has no room for, and those of earlier sessions.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__(napari_viewer)
        self.setObjectName("Inverse priors large volumes")
        self.run = LargeRun(self.viewer, self)
        self._planned: Planned | None = None
        self._listed = 0.0
        self._said_missing = ""
        self._messages: list[str] = []
        self._lay_out()
        self._connect()
        self._show_jobs()
        self._update()

    # ---- layout

    def _lay_out(self) -> None:
        self.problem = Line("The data, physics, prior and solver of the workbench.", 2)
        self.folder = QLineEdit()
        self.folder.setPlaceholderText("new or empty folder for the result")
        self.folder.setToolTip("Everything of the job goes here: result, plan and journal.")
        self.browse = push("…", "Choose the folder.", self._ask_folder)
        self.edge = QLineEdit()
        self.edge.setPlaceholderText("by memory")
        self.edge.setToolTip("Edge of a block of the result, px; empty: by the free memory.")
        self.edge.setMaximumWidth(84)
        self.halo = QLineEdit()
        self.halo.setPlaceholderText("measured")
        self.halo.setToolTip(
            "Samples around a block that it is computed with, px; empty: measured. Smaller ones "
            "than measured are refused."
        )
        self.halo.setMaximumWidth(84)
        self.workers = QSpinBox()
        self.workers.setRange(0, 256)
        self.workers.setValue(preferences.workers())
        self.workers.setToolTip(
            "Processes that compute blocks; 0: this one alone. They are reached from this machine "
            "only."
        )
        self.cluster = QLineEdit(preferences.cluster())
        self.cluster.setPlaceholderText("none: this machine")
        self.cluster.setToolTip(
            "Address of a dask scheduler, such as tcp://host:8786, whose workers see the same "
            "folders."
        )
        self.gpu = QCheckBox("GPU")
        self.gpu.setToolTip("Use only workers of the cluster that have the resource GPU.")
        self.start = push("Run", "Settle weight and halo on pieces of the data, then compute "
                          "block by block.", self._start)
        self.cancel = push("Cancel", "Stop; blocks that are done stay, and the job can go on.",
                           self.run.runner.cancel)
        self.bar = progress_bar("How far the job is.")
        self.about = Line("What the job does, how many blocks are done, and the time left.", 2)
        self.map = BlockMap()
        self.list = JobList()
        self.resume = push("Resume", "Compute the blocks of the chosen job that are not done.",
                           self._resume)
        self.open = push("Open", "Show the results of the chosen job.", self._open)
        self.forget = push("Discard", "Remove what a job that is not finished has written; "
                           "finished results stay.", self._discard)
        self.message = Sentence("What the running or last job said.")
        outer = QVBoxLayout(self)
        outer.setContentsMargins(6, 4, 6, 2)
        outer.setSpacing(4)
        outer.addWidget(self.problem)
        outer.addWidget(self.open_bench)
        outer.addLayout(row(self._label("result"), self.folder, self.browse))
        outer.addLayout(row(self._label("blocks"), self.edge, "halo", self.halo, 1))
        outer.addLayout(row(
            self._label("workers"), self.workers, "cluster", self.cluster, self.gpu
        ))
        outer.addLayout(row(self.start, self.cancel, 1))
        outer.addWidget(self.bar)
        outer.addWidget(self.about)
        outer.addWidget(self.map)
        outer.addWidget(self.list, 1)
        outer.addLayout(row(self.resume, self.open, 1, self.forget))
        outer.addWidget(self.message)
        self.setMinimumWidth(WIDTH)

    @staticmethod
    def _label(text: str) -> QWidget:
        label = QLabel(text)
        label.setMinimumWidth(LABEL_WIDTH)
        return label

    def _connect(self) -> None:
        self.run.progressed.connect(self._on_progress)
        self.run.planned.connect(self._on_planned)
        self.run.blocks.connect(self._on_blocks)
        self.run.said.connect(self._say)
        self.run.ended.connect(self._on_end)
        self.run.changed.connect(self._update)
        self.list.picked.connect(self._update)
        self.map.clicked.connect(self._on_block)
        for field in (self.folder, self.edge, self.halo):
            field.textChanged.connect(self._update)

    # ---- what can be done

    def _update(self) -> None:
        """Enable what can be done, and say in place what is missing."""
        if self.is_closed:
            return
        bench, idle = self.bench, self.run.runner.state == "idle"
        self.open_bench.setVisible(bench is None)
        missing = self._missing()
        if bench is not None:
            self.problem.say(self.described_problem())
        else:
            self.problem.say("The workbench holds data, physics and prior.")
        self.start.setEnabled(idle and not missing)
        self.cancel.setEnabled(not idle and self.run.runner.state != "stopping")
        job = self.list.chosen
        self.resume.setEnabled(idle and job is not None and job.state == "unfinished")
        self.open.setEnabled(job is not None and job.state in ("finished", "unfinished"))
        self.forget.setEnabled(idle and job is not None and job.state == "unfinished")
        if idle and missing and not self.about.property("tone"):
            self.about.say(missing)
        elif idle and self.about.text() == self._said_missing:
            self.about.say("Ready: press Run.")
        self._said_missing = missing

    def _missing(self) -> str:
        """What has to be done before a job can begin; empty for nothing."""
        bench = self.bench
        if bench is None:
            return "Open the workbench and choose data, physics and prior there."
        blocked = bench.data.problem()
        if blocked:
            return blocked
        if bench.result.needs_prior and not bench.prior.fitted:
            return "Train a prior in the workbench (step 3), on a part of the data for example."
        try:
            self._blocks()
        except InvPriorError as error:
            return str(error)
        if not self.folder.text().strip():
            return "Choose a folder for the result."
        return ""

    def _blocks(self) -> dict[str, Any]:
        """The recipe's entry; raises `InvalidInput`."""
        found: dict[str, Any] = {}
        for name, field in (("edge", self.edge), ("halo", self.halo)):
            text = field.text().strip()
            if text:
                found[name] = int(text) if text.isdigit() else text
        validate(BlockParameters, found, "blocks")
        return found

    def _workers(self) -> dict[str, Any]:
        return {
            "workers": self.workers.value(), "cluster": self.cluster.text().strip(),
            "gpu": self.gpu.isChecked(),
        }

    # ---- actions

    def _ask_folder(self) -> None:
        name = QFileDialog.getExistingDirectory(self, "A new or empty folder for the result")
        if name:
            self.folder.setText(name)

    def _start(self) -> None:
        assert self.bench is not None
        self._begin()
        try:
            recipe = plan(self.bench, self._blocks())
            folder = Path(self.folder.text().strip()).expanduser()
            self.run.start(self.bench, recipe, folder, self._workers())
        except InvPriorError as error:
            self.about.say(str(error), FAULT)

    def _resume(self) -> None:
        job = self.list.chosen
        self._begin()
        self.folder.setText(str(job.folder))
        self.run.resume(job.folder, self._workers())

    def _begin(self) -> None:
        self.bar.setValue(0)
        self.about.say("preparing…")
        self.map.set_counts(())
        self._planned = None

    def _open(self) -> None:
        """Show a job's images, finished or not."""
        try:
            add_results(self.viewer, self.list.chosen.folder)
        except InvPriorError as error:
            show_error(str(error))

    def _discard(self) -> None:
        from napari_invprior.blocks.job import discard

        try:
            discard(self.list.chosen.folder)
        except InvPriorError as error:
            show_error(str(error))
        self._show_jobs()

    def _show_jobs(self) -> None:
        self._listed = time.monotonic()
        self.list.show_jobs(list(catalogue.known()))

    # ---- a running job

    def _on_planned(self, event: Planned) -> None:
        self._planned = event
        grid = event.plan.grid
        frames = (grid.frames,) if grid.frames > 1 else ()
        self.map.set_counts((*frames, *grid.counts))
        self._show_jobs()
        self.list.choose(event.folder)

    def _on_blocks(self, event: Blocks) -> None:
        self.map.set_state(event.indices, event.state)

    def _on_progress(self, event: Progress) -> None:
        show_progress(self.bar, event)
        doing = STAGES.get(event.stage, event.stage)
        if self._planned is not None:
            total = len(self.map.states)
            failed = self.map.count("failed")
            doing = f"{self.map.count('done')} of {total} blocks"
            doing += f", {failed} failed" if failed else ""
        self.about.say(f"{doing} · {clock(event)}")
        if time.monotonic() - self._listed > LIST_EVERY:
            self._show_jobs()

    def _on_block(self, index: int) -> None:
        if self._planned is not None:
            self.run.look_at(self._planned, index)

    def _on_end(self, how: str, seconds: float) -> None:
        self.map.settle()
        self._show_jobs()
        done, total = self.map.count("done"), len(self.map.states)
        if how == "done":
            self.bar.setValue(self.bar.maximum())
            self.about.say(f"{figures(self.run.metrics)} · {duration(seconds)}", GOOD)
        elif how == "failed":
            self.about.say(self.run.fault, FAULT)
        elif total:
            self.about.say(f"stopped; {done} of {total} blocks are done, Resume goes on")
        else:
            self.about.say("cancelled before the blocks began")

    def _say(self, text: str, warning: bool) -> None:
        self._messages = [*self._messages[-19:], text]
        self.message.say(text, FAULT if warning else "", self._messages[-2::-1])

    def release(self) -> None:
        """Stop the job."""
        self.run.runner.shutdown()
