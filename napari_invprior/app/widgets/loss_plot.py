"""The learning curve with named levels to compare it with."""

from __future__ import annotations

import pyqtgraph
from qtpy.QtCore import Qt
from superqt.utils import qthrottled

from napari_invprior.app.widgets.small_plot import SmallPlot

CURVES = {"held_out": ("held out", 2.0), "train": ("train", 1.0),
          "residual": ("misfit / noise", 2.0)}
"""Losses that are drawn as curves: label and line width."""

LEVELS = {"gaussian": "Gaussian", "gmm": "GMM", "pca_gmm": "PCA-GMM"}
"""Losses that are drawn as dashed levels."""

COLOURS = {"held_out": "#2f9e8f", "train": "#8aa0b4", "gaussian": "#e08a3c", "gmm": "#b678d6",
           "pca_gmm": "#d65a7a", "residual": "#2f9e8f"}


class LossPlot(SmallPlot):
    """Curves of one training against the number of steps."""

    def __init__(self, height: int = 120) -> None:
        super().__init__(
            "Loss on held-out patches; lower is better. Dashed: what a Gaussian or a mixture of "
            "Gaussians reaches on the same patches. Networks that learn from the data show the "
            "misfit of their images over that of the noise: near 1 is good.",
            height,
        )
        self.points: dict[str, tuple[list[float], list[float]]] = {}
        self._curves: dict[str, pyqtgraph.PlotDataItem] = {}
        self._levels: dict[str, pyqtgraph.InfiniteLine] = {}
        self._redraw = qthrottled(self._draw, timeout=400)  # drawing takes time from the window
        self._name_curves()

    def _name_curves(self) -> None:
        """The curves' names in their colours, above the plot where they hide nothing."""
        shown = [name for name in CURVES if name in self._curves]
        names = " ".join(
            f'<span style="color:{COLOURS[name]}">▬ {CURVES[name][0]}</span>' for name in shown
        )
        self.title.setText(f"loss {names}")

    def clear(self) -> None:
        """Begin a new training."""
        for item in (*self._curves.values(), *self._levels.values()):
            self.plot.removeItem(item)
        self.points.clear()
        self._curves.clear()
        self._levels.clear()
        self._name_curves()
        self.number_axes(False)

    def add(self, step: int, losses: dict[str, float]) -> None:
        """Add one point per loss; names that have neither curve nor level are left out."""
        for name, value in losses.items():
            if value != value:  # NaN: nothing to draw
                continue
            if name in LEVELS:
                self._level(name, value)
            elif name in CURVES:
                self._point(name, step, value)
        self._redraw()

    def _draw(self) -> None:
        for name, curve in self._curves.items():
            curve.setData(*self.points[name])

    def _point(self, name: str, step: int, value: float) -> None:
        steps, values = self.points.setdefault(name, ([], []))
        if steps and step < steps[-1]:  # a training that was resumed
            step += steps[-1]
        steps.append(step)
        values.append(value)
        if name not in self._curves:
            pen = pyqtgraph.mkPen(COLOURS[name], width=CURVES[name][1])
            self._curves[name] = self.plot.plot([], [], pen=pen)
            self.number_axes(True)
            self._name_curves()

    def _level(self, name: str, value: float) -> None:
        if name not in self._levels:
            pen = pyqtgraph.mkPen(COLOURS[name], width=1.5, style=Qt.PenStyle.DashLine)
            self._levels[name] = line = pyqtgraph.InfiniteLine(
                angle=0, pen=pen, label=LEVELS[name],
                labelOpts={"position": 0.45, "color": COLOURS[name], "anchors": [(0, 0), (0, 0)]},
            )
            font = self.font()
            font.setPointSizeF(7)
            line.label.setFont(font)
            self.plot.addItem(line)
        self._levels[name].setValue(value)

    @property
    def levels(self) -> dict[str, float]:
        """Named levels in the plot."""
        return {name: float(line.value()) for name, line in self._levels.items()}
