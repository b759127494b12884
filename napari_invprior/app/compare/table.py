"""The live table of a comparison: sortable, the best figure of each column bold."""

from __future__ import annotations

import math
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

from napari_invprior.app.widgets.controls import FAULT
from napari_invprior.study.table import Column, Row, best, shown_columns

NAME = Qt.ItemDataRole.UserRole


class _Figure(QTableWidgetItem):
    """A cell that sorts by its number, not by its text; cells without one come last."""

    def __init__(self, row: Row, column: Column) -> None:
        super().__init__(row.text(column))
        self.value = row.figures.get(column.key, math.inf)
        self.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)

    def __lt__(self, other: Any) -> bool:
        return bool(self.value < other.value)


class CompareTable(QTableWidget):
    """Rows of a study, one per method.

    Signals
    -------
    picked : str
        Name of the row that was clicked.
    """

    picked = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.setToolTip("What each method reached; click on a head to sort, on a row to choose it.")
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setShowGrid(False)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(self.fontMetrics().height() + 8)
        head = self.horizontalHeader()
        head.setHighlightSections(False)
        head.setSortIndicatorClearable(True)
        head.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)  # the order in which they ran
        self.cellClicked.connect(lambda line, _: self.picked.emit(self.item(line, 0).data(NAME)))
        self.show_rows([])

    def show_rows(self, rows: list[Row]) -> None:
        """Replace all rows; the user's sorting stays."""
        self.rows = list(rows)
        columns = shown_columns(rows)
        head = self.horizontalHeader()
        sorted_by, order = head.sortIndicatorSection(), head.sortIndicatorOrder()
        self.setSortingEnabled(False)
        self.setColumnCount(1 + len(columns))
        self.setRowCount(len(rows))
        for place, (label, about) in enumerate(
            [("method", "Prior with its solver, or baseline."),
             *((c.label, c.about + _end(c)) for c in columns)]
        ):
            item = QTableWidgetItem(label)
            item.setToolTip(about)
            self.setHorizontalHeaderItem(place, item)
        winners = {column.key: best(rows, column) for column in columns}
        for line, row in enumerate(rows):
            self.setItem(line, 0, _title(row))
            for place, column in enumerate(columns, 1):
                figure = _Figure(row, column)
                figure.setToolTip(_more(row, column))
                font = figure.font()
                font.setBold(winners[column.key] is row)
                figure.setFont(font)
                self.setItem(line, place, figure)
        self.setSortingEnabled(True)
        if 0 <= sorted_by < self.columnCount():
            self.sortItems(sorted_by, order)
        head.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)


def _end(column: Column) -> str:
    words = {"high": " Higher is better.", "low": " Lower is better.", "": ""}
    return words[column.better]


def _title(row: Row) -> QTableWidgetItem:
    item = QTableWidgetItem(row.title if row.status == "done" else f"{row.title} – {row.status}")
    item.setData(NAME, row.name)
    item.setToolTip(row.reason or row.title)
    if row.status == "failed":
        item.setForeground(QColor(FAULT))
    return item


def _more(row: Row, column: Column) -> str:
    """What a figure rests on."""
    if column.key not in row.behind_best:
        return row.reason or f"{row.title}: {row.text(column)}"
    mean, low, high = row.behind_best[column.key]
    count = len(row.images[column.key])
    return (
        f"{row.title}: mean of {count} images with its 95 % bootstrap interval.\n"
        f"Difference to the best, image by image: {column.text(mean)} "
        f"({column.text(low)} to {column.text(high)})."
    )
