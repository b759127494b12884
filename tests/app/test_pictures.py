"""Gallery and loss plot: what is drawn of what there is."""

from __future__ import annotations

import numpy as np
import pytest

from napari_invprior.app.widgets.gallery import PatchGallery
from napari_invprior.app.widgets.loss_plot import LossPlot

pytestmark = pytest.mark.gui


@pytest.mark.parametrize("count", [1, 5, 17, 48, 64])
@pytest.mark.parametrize("width", [170, 390, 700])
def test_no_row_of_the_gallery_is_half_empty(qtbot, count, width):
    gallery = PatchGallery("patches", "none yet", 94)
    qtbot.addWidget(gallery)
    gallery.resize(width, 94)
    gallery.show_patches(np.random.default_rng(0).random((count, 1, 6, 6)))
    columns, rows, zoom = gallery._grid(14)
    assert 1 <= columns * rows <= count
    assert rows * 7 * zoom <= 81
    assert columns == 1 or columns * 7 * zoom <= width
    assert rows == 1 or columns * 7 * zoom > width - 8 * zoom, "and none could be longer"


def test_an_empty_plot_has_no_numbers(qtbot):
    plot = LossPlot()
    qtbot.addWidget(plot)
    axes = [plot.plot.getPlotItem().getAxis(side) for side in ("left", "bottom")]
    assert not any(axis.style["showValues"] for axis in axes)
    plot.add(1, {"train": 3.0, "residual": 0.2})
    assert all(axis.style["showValues"] for axis in axes)
    assert "misfit / noise" in plot.title.text()
    plot.clear()
    assert not any(axis.style["showValues"] for axis in axes)
