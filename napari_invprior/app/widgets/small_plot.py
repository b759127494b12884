"""A small plot in the colours of the dock, with a title above it that hides nothing."""

from __future__ import annotations

import pyqtgraph
from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import QLabel, QSizePolicy, QVBoxLayout, QWidget


class SmallPlot(QWidget):
    """A plot that is looked at, not moved.

    Parameters
    ----------
    tooltip : str
        What is drawn and how to read it.
    height : int
        Pixels, title included.
    """

    def __init__(self, tooltip: str, height: int = 120) -> None:
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
        self.setToolTip(tooltip)
        self.title.setToolTip(tooltip)
        layout.addWidget(self.title)
        layout.addWidget(self.plot, 1)
        self.setFixedHeight(height)
        self.setMinimumWidth(120)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.number_axes(False)
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

    def number_axes(self, shown: bool) -> None:
        """An empty plot has no numbers: they would be those of what was drawn before."""
        for side in ("left", "bottom"):
            self.plot.getPlotItem().getAxis(side).setStyle(showValues=shown)
