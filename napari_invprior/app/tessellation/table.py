"""The table of cells: weight, mass, whether the cell ends, and its neighbours in both divisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

COLUMNS = (
    ("atom", "The atom, in the colour of its cell. Click to find it in the picture."),
    ("weight", "Share of the target's mass; type another one."),
    ("mass", "Gaussian mass of the flow-matching cell on the grid; its exact value is the weight."),
    ("endless", "Whether the cell reaches to infinity: under flow matching / under transport."),
    ("touches", "Atoms whose flow-matching cells share a border with this one."),
    ("transport", "Atoms whose Laguerre cells share a border with this one."),
)
WEIGHT, SWATCH = 1, 10


class CellTable(QTableWidget):
    """One row for each cell.

    Signals
    -------
    picked : int
        Number of the atom whose row was clicked.
    weighed : int, float
        An atom and the weight that was typed for it.
    """

    picked = Signal(int)
    weighed = Signal(int, float)

    def __init__(self) -> None:
        super().__init__(0, len(COLUMNS))
        self.setToolTip("What the cells are like; a number of the column weight can be typed.")
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setShowGrid(False)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(self.fontMetrics().height() + 6)
        for place, (name, about) in enumerate(COLUMNS):
            item = QTableWidgetItem(name)
            item.setToolTip(about)
            self.setHorizontalHeaderItem(place, item)
        head = self.horizontalHeader()
        head.setHighlightSections(False)
        head.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        head.setStretchLastSection(True)
        self.cellClicked.connect(lambda line, _: self.picked.emit(self._atom(line)))
        self.cellChanged.connect(self._on_typed)

    def show_cells(self, cells: Sequence[dict[str, Any]], colours: np.ndarray) -> None:
        """Replace all rows.

        Parameters
        ----------
        cells : sequence of dict
            Rows of the figures of a run.
        colours : numpy.ndarray
            (atoms, 3), in [0, 1].
        """
        self.blockSignals(True)
        self.setRowCount(len(cells))
        for line, cell in enumerate(cells):
            texts = (
                str(cell["atom"]), f"{cell['weight']:.4g}", f"{cell['flow_matching_mass']:.4f}",
                _endless(cell), _listed(cell.get("flow_matching_neighbours")),
                _listed(cell.get("laguerre_neighbours")),
            )
            for place, text in enumerate(texts):
                item = QTableWidgetItem(text)
                flags = Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsEnabled
                item.setFlags(flags | Qt.ItemFlag.ItemIsEditable if place == WEIGHT else flags)
                item.setToolTip(COLUMNS[place][1])
                self.setItem(line, place, item)
            self.item(line, 0).setIcon(_swatch(colours[cell["atom"]]))
        self.blockSignals(False)

    def select(self, atom: int) -> None:
        """Select the row of an atom."""
        for line in range(self.rowCount()):
            if self._atom(line) == atom:
                self.selectRow(line)
                self.scrollToItem(self.item(line, 0))
                return
        self.clearSelection()

    def _atom(self, line: int) -> int:
        return int(self.item(line, 0).text())

    def _on_typed(self, line: int, place: int) -> None:
        if place != WEIGHT:
            return
        try:
            weight = float(self.item(line, place).text().replace(",", "."))
        except ValueError:
            weight = float("nan")
        self.weighed.emit(self._atom(line), weight)


def _endless(cell: dict[str, Any]) -> str:
    words = {True: "yes", False: "no", None: "?"}
    both = [words[cell[f"{kind}_unbounded"]] for kind in ("flow_matching", "laguerre")
            if f"{kind}_unbounded" in cell]
    return " / ".join(both)


def _listed(atoms: Sequence[int] | None) -> str:
    return "" if atoms is None else " ".join(map(str, atoms)) or "none"


def _swatch(colour: Sequence[float]) -> QIcon:
    picture = QPixmap(SWATCH, SWATCH)
    picture.fill(QColor.fromRgbF(*(float(c) for c in colour)))
    return QIcon(picture)
