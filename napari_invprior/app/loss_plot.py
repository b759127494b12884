"""The learning curve with named levels to compare it with."""

from __future__ import annotations

import pyqtgraph
from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import QLabel, QSizePolicy, QVBoxLayout, QWidget
from superqt.utils import qthrottled

CURVES = {"held_out": ("held out", 2.0), "train": ("train", 1.0),
          "residual": ("misfit / noise", 2.0)}
"""Losses that are drawn as curves: label and line width."""

LEVELS = {"gaussian": "Gaussian", "gmm": "GMM", "pca_gmm": "PCA-GMM"}
"""Losses that are drawn as dashed levels."""

COLOURS = {"held_out": "#2f9e8f", "train": "#8aa0b4", "gaussian": "#e08a3c", "gmm": "#b678d6",
           "pca_gmm": "#d65a7a", "residual": "#2f9e8f"}


class LossPlot(QWidget):
    """Curves of one training against the number of steps."""

    def __init__(self, height: int = 120) -> None:
        super().__init__()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(1)
        self.title = QLabel()
        font = self.title.font()
        font.setPointSizeF(max(6.0, font.pointSizeF() * 0.85))
        self.title.setFont(font)
        self.title.setTextFormat(Qt.TextFormat.RichText)
        self.plot = pyqtgraph.PlotWidget()
        self.plot.setMenuEnabled(False)
        self.plot.hideButtons()
        self.plot.getViewBox().setDefaultPadding(0.08)  # room for the names of the levels
        self.plot.setMouseEnabled(False, False)
        self.setToolTip(
            "Loss on held-out patches; lower is better. Dashed: what a Gaussian or a mixture of "
            "Gaussians reaches on the same patches. Networks that learn from the data show the "
            "misfit of their images over that of the noise: near 1 is good."
        )
        self.title.setToolTip(self.toolTip())
        layout.addWidget(self.title)
        layout.addWidget(self.plot, 1)
        self.setFixedHeight(height)
        self.setMinimumWidth(120)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.points: dict[str, tuple[list[float], list[float]]] = {}
        self._curves: dict[str, pyqtgraph.PlotDataItem] = {}
        self._levels: dict[str, pyqtgraph.InfiniteLine] = {}
        self._redraw = qthrottled(self._draw, timeout=400)  # drawing takes time from the window
        self._name_curves()
        self._number_axes(False)
        self.follow_theme()

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        """The viewer's theme changed."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.StyleChange, QEvent.Type.PaletteChange):
            self.follow_theme()

    def follow_theme(self) -> None:
        """Take the colours of the dock's text and background."""
        if not hasattr(self, "plot"):
            return
        text = self.palette().text().color()
        self.plot.setBackground(self.palette().window().color())
        item = self.plot.getPlotItem()
        for side in ("left", "bottom"):
            axis = item.getAxis(side)
            axis.setPen(text)
            axis.setTextPen(text)
            font = self.font()
            font.setPointSizeF(7)
            axis.setTickFont(font)
            axis.setStyle(maxTickLevel=0)  # few ticks: the plot is small
        item.getAxis("left").setWidth(34)

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
        self._number_axes(False)

    def _number_axes(self, shown: bool) -> None:
        """An empty plot has no numbers: they would be those of the training before."""
        for side in ("left", "bottom"):
            self.plot.getPlotItem().getAxis(side).setStyle(showValues=shown)

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
            self._number_axes(True)
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
