"""Histogram of one place, coverage of intervals, ranks of the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyqtgraph
from qtpy.QtCore import Qt

from napari_invprior.app.widgets.controls import GOOD
from napari_invprior.app.widgets.small_plot import SmallPlot
from napari_invprior.posterior.calibration import interval

BARS, TRUTH, START = "#2f9e8f", "#e0605a", "#e08a3c"
"""Colours of samples, of the truth and of the image that the chains began from."""


def _line(value: float, colour: str, style: Qt.PenStyle = Qt.PenStyle.SolidLine) -> object:
    return pyqtgraph.InfiniteLine(value, pen=pyqtgraph.mkPen(colour, width=2, style=style))


class PlaceHistogram(SmallPlot):
    """What all samples say at one place."""

    def __init__(self, height: int = 120) -> None:
        super().__init__(
            "Values of all samples at the place that was clicked. The band holds the middle 90 % "
            "of them; lines: the truth and the reconstruction, where they are known.", height,
        )
        self.values: np.ndarray = np.empty(0)
        self.say("click a place in the image")

    def say(self, text: str) -> None:
        """Show a sentence in place of figures."""
        self.title.setText(text)

    def clear(self) -> None:
        """Forget the place."""
        self.values = np.empty(0)
        self.plot.clear()
        self.number_axes(False)
        self.say("click a place in the image")

    def show_values(
        self, values: np.ndarray, place: str, truth: float | None = None,
        start: float | None = None,
    ) -> None:
        """Draw the histogram of the samples at a place."""
        self.values = values
        self.plot.clear()
        bins = int(np.clip(np.sqrt(len(values)) * 2, 5, 40))
        spread = max(float(np.ptp(values)), 1e-9 * max(1.0, float(np.abs(values).max())))
        counts, edges = np.histogram(
            values, bins, (values.min() - 0.05 * spread, values.max() + 0.05 * spread)
        )
        low, high = interval(values, 0.9)
        band = pyqtgraph.LinearRegionItem((low, high), movable=False, brush=(47, 158, 143, 40))
        for edge in band.lines:
            edge.setPen(None)
        self.plot.addItem(band)
        self.plot.addItem(pyqtgraph.BarGraphItem(
            x0=edges[:-1], x1=edges[1:], height=counts, brush=BARS, pen=None
        ))
        self.plot.addItem(_line(float(values.mean()), BARS))
        spread = values.std(ddof=min(1, len(values) - 1))
        notes = []
        for value, colour, word in ((truth, TRUTH, "truth"), (start, START, "reconstruction")):
            if value is not None:
                self.plot.addItem(_line(value, colour, Qt.PenStyle.DashLine))
                notes.append(f'<span style="color:{colour}">{word} {value:.4g}</span>')
        self.title.setText(
            f"{place}: <b>{values.mean():.4g} ± {spread:.2g}</b>, 90 % in {low:.4g} … {high:.4g}"
            f"<br>{' · '.join(notes)}"
        )
        self.number_axes(True)


class CoveragePlot(SmallPlot):
    """How often intervals hold the truth, against how often they should."""

    def __init__(self, height: int = 110) -> None:
        super().__init__(
            "Share of the image whose interval holds the truth, against the promised share. On the "
            "line: calibrated. Below: too sure. Above: too cautious.", height,
        )
        self.plot.setRange(xRange=(0.4, 1), yRange=(0.4, 1))
        self.shares: dict[float, float] = {}
        self.clear()

    def clear(self) -> None:
        """Without a truth there is nothing to draw."""
        self.shares = {}
        self.plot.clear()
        self.number_axes(False)
        self.title.setText("coverage: needs a truth")

    def show_shares(self, coverage: Mapping[str, float]) -> None:
        """Draw the coverage of each level."""
        self.shares = {float(level): share for level, share in coverage.items()}
        self.plot.clear()
        self.plot.plot([0, 1], [0, 1], pen=pyqtgraph.mkPen("#8aa0b4", style=Qt.PenStyle.DashLine))
        self.plot.plot(
            list(self.shares), list(self.shares.values()), pen=pyqtgraph.mkPen(BARS, width=2),
            symbol="o", symbolSize=6, symbolBrush=BARS, symbolPen=None,
        )
        least = min(0.4, *(share - 0.05 for share in self.shares.values()))
        self.plot.setRange(xRange=(0.4, 1), yRange=(least, 1))
        self.number_axes(True)
        share = self.shares.get(0.9)
        shown = "" if share is None else f" of 90 %: <b>{100 * share:.0f} %</b>"
        self.title.setText(f"coverage{shown}")


class RankPlot(SmallPlot):
    """Ranks of the truth among the samples."""

    def __init__(self, height: int = 110) -> None:
        super().__init__(
            "Rank of the truth among the samples, over the whole image. Flat: calibrated. A bowl: "
            "the samples differ too little. A hill: too much. A slope: they are shifted.", height,
        )
        self.clear()

    def clear(self) -> None:
        """Without a truth there is nothing to draw."""
        self.plot.clear()
        self.number_axes(False)
        self.title.setText("ranks: need a truth")

    def show_ranks(self, ranks: Sequence[float]) -> None:
        """Draw the shares of the bins."""
        self.plot.clear()
        x = (np.arange(len(ranks)) + 0.5) / len(ranks)
        self.plot.addItem(pyqtgraph.BarGraphItem(
            x=x, height=np.asarray(ranks) * len(ranks), width=0.9 / len(ranks), brush=BARS, pen=None
        ))
        pen = pyqtgraph.mkPen(GOOD, style=Qt.PenStyle.DashLine)
        self.plot.addItem(pyqtgraph.InfiniteLine(1.0, angle=0, pen=pen))
        self.plot.setRange(xRange=(0, 1), yRange=(0, max(1.5, 1.1 * max(ranks) * len(ranks))))
        self.number_axes(True)
        self.title.setText("ranks (flat is good)")
