"""A curve that falls: discrepancy of particles over time, or distance of patches over steps."""

from __future__ import annotations

from collections.abc import Sequence

import pyqtgraph
from superqt.utils import qthrottled

from napari_invprior.app.widgets.small_plot import SmallPlot

CURVE = "#2f9e8f"


class CurvePlot(SmallPlot):
    """One curve with its last value as the title."""

    def __init__(self, height: int = 110) -> None:
        super().__init__(
            "How far the particles are from their target, against time or steps: lower is better. "
            "Without a target it falls below zero as they part.", height,
        )
        self.x: list[float] = []
        self.y: list[float] = []
        self._curve = self.plot.plot([], [], pen=pyqtgraph.mkPen(CURVE, width=2))
        self._redraw = qthrottled(self._draw, timeout=300)
        self.clear()

    def clear(self, title: str = "discrepancy") -> None:
        """Begin a new curve."""
        self.x, self.y = [], []
        self._curve.setData([], [])
        self.number_axes(False)
        self._name = title
        self.title.setText(title)

    def add(self, x: float, y: float) -> None:
        """One point; what does not go on to the right begins anew."""
        if self.x and x < self.x[-1]:
            self.x, self.y = [], []
        self.x.append(x)
        self.y.append(y)
        self._redraw()

    def show_curve(self, x: Sequence[float], y: Sequence[float]) -> None:
        """The whole curve."""
        self.x, self.y = list(x), list(y)
        self._redraw()

    def _draw(self) -> None:
        if not self.x:
            return
        self._curve.setData(self.x, self.y)
        self.number_axes(len(self.x) > 1)
        self.title.setText(f"{self._name}: <b>{self.y[-1]:.3g}</b>")
