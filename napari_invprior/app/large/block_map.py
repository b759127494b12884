"""A map of the blocks of a job: which wait, run, are done or failed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from qtpy.QtCore import QPoint, QRect, QSize, Signal
from qtpy.QtGui import QColor, QPainter
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

COLOURS = {"left": "#5a6068", "running": "#d8a838", "done": "#3a9c69", "failed": "#e0605a"}
LARGEST, GAP = 16, 6
"""Edge of a block at most, and pixels between two layers of blocks."""


class BlockMap(QWidget):
    """Layers of blocks side by side, the first axis from left to right and then down.

    Signals
    -------
    clicked : int
        A block was clicked.
    """

    clicked = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self.setToolTip(
            "Blocks of the volume: grey ones wait, yellow ones run, green ones are done, red ones "
            "failed. A click shows the place."
        )
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setMouseTracking(True)
        self._counts: tuple[int, ...] = ()
        self.states: list[str] = []

    def sizeHint(self) -> QSize:  # noqa: N802
        """Room for some layers."""
        return QSize(360, 120)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """What is always taken, so that nothing jumps when a job begins."""
        return QSize(120, 90)

    def set_counts(self, counts: Sequence[int]) -> None:
        """A new job with so many blocks along (frames and) each axis."""
        self._counts = tuple(counts)
        self.states = ["left"] * math.prod(counts) if counts else []
        self.update()

    def set_state(self, indices: Iterable[int], state: str) -> None:
        """Blocks changed."""
        for index in indices:
            if index < len(self.states):
                self.states[index] = state
        self.update()

    def settle(self) -> None:
        """Nothing runs any more."""
        self.states = ["left" if state == "running" else state for state in self.states]
        self.update()

    def count(self, state: str) -> int:
        """Blocks in a state."""
        return self.states.count(state)

    def _layout(self) -> tuple[int, int, int, int, int]:
        """Rows and columns of a layer, layers per line, layers, and the edge of a block."""
        rows, columns = self._counts[-2:]
        layers = math.prod(self._counts[:-2])
        for edge in range(LARGEST, 0, -1):
            per_line = max(1, (self.width() + GAP) // (columns * edge + GAP))
            lines = math.ceil(layers / per_line)
            fits = lines * (rows * edge + GAP) <= self.height() + GAP
            if fits and columns * edge <= self.width():
                return rows, columns, per_line, layers, edge
        return rows, columns, max(1, self.width() // (columns + 1)), layers, 1

    def _rectangle(self, index: int) -> QRect:
        rows, columns, per_line, _, edge = self._layout()
        layer, place = divmod(index, rows * columns)
        line, across = divmod(layer, per_line)
        row, column = divmod(place, columns)
        return QRect(
            across * (columns * edge + GAP) + column * edge,
            line * (rows * edge + GAP) + row * edge, max(1, edge - 1), max(1, edge - 1),
        )

    def block_at(self, place: QPoint) -> int | None:
        """The block at a place of the widget."""
        if not self.states:
            return None
        rows, columns, per_line, layers, edge = self._layout()
        across, x = divmod(place.x(), columns * edge + GAP)
        line, y = divmod(place.y(), rows * edge + GAP)
        layer = line * per_line + across
        if across >= per_line or layer >= layers or x >= columns * edge or y >= rows * edge:
            return None
        return int(layer * rows * columns + (y // edge) * columns + x // edge)

    def paintEvent(self, _: Any) -> None:  # noqa: N802
        """Draw every block."""
        if not self.states:
            return
        painter = QPainter(self)
        colours = {state: QColor(colour) for state, colour in COLOURS.items()}
        for index, state in enumerate(self.states):
            painter.fillRect(self._rectangle(index), colours[state])
        painter.end()

    def mouseMoveEvent(self, event: Any) -> None:  # noqa: N802
        """Say which block is under the pointer."""
        index = self.block_at(event.position().toPoint())
        text = "" if index is None else f"block {index}: {self.states[index]}"
        QToolTip.showText(event.globalPosition().toPoint(), text, self)

    def mousePressEvent(self, event: Any) -> None:  # noqa: N802
        """Tell which block was clicked."""
        index = self.block_at(event.position().toPoint())
        if index is not None:
            self.clicked.emit(index)
