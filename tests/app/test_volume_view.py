"""The window in 3D with a volume that is too large: real button, real threads, the choosers."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QPushButton

from napari_invprior.app.viewer import coarse
from napari_invprior.app.viewer.layers import role_of
from tests.app.test_volume_guard import BLOCKS, HUGE, Counted

pytestmark = pytest.mark.gui


def press_3d(window):
    """napari's own button, with the mouse."""
    buttons = [
        button for button in window.viewer.window._qt_window.findChildren(QPushButton)
        if button.property("mode") == "ndisplay_button"
    ]
    assert len(buttons) == 1
    window.qtbot.mouseClick(buttons[0], Qt.MouseButton.LeftButton)
    window.settle()


def views(window):
    return [layer for layer in window.viewer.layers if role_of(layer) == "coarse"]


def chosen(picker):
    return [picker.itemText(i) for i in range(picker.count())]


def test_the_3d_button_shows_a_coarse_layer_that_fills_in_while_the_window_lives(window):
    huge = Counted(HUGE, BLOCKS)
    layer = window.viewer.add_image(huge.array, name="huge", contrast_limits=(0, 255))
    window.settle()
    before = len(huge.reads)
    press_3d(window)
    assert len(views(window)) == 1
    volume = window.bench.guard.covers[layer].volume
    window.until(lambda: volume.complete)
    window.settle()
    assert volume.values.min() > 0
    assert before < len(huge.reads) < 0.35 * huge.chunks
    picture = window.viewer.screenshot(flash=False)
    assert picture[..., 0].max() > 20, "it is drawn"
    press_3d(window)
    assert views(window) == [] and layer.visible
    assert window.viewer.dims.ndisplay == 2


def test_a_coarse_layer_is_never_taken_for_data(window, monkeypatch):
    monkeypatch.setattr(coarse, "SHARE", 1e-9)
    data = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    layer = window.viewer.add_image(data, name="volume")
    window.viewer.add_image(data, name="better")
    window.settle()
    bench = window.bench
    bench.data.observation.choose("volume")
    lists = (bench.data.observation, bench.data.truth, bench.references.image,
             bench.references.pair)
    before = [chosen(picker) for picker in lists], [picker.currentData() for picker in lists]
    press_3d(window)
    assert len(views(window)) == 2
    window.viewer.layers.selection.active = views(window)[0]
    window.settle()
    bench.data.refresh()
    bench.references.refresh()
    assert ([chosen(p) for p in lists], [p.currentData() for p in lists]) == before
    assert bench.data.layer is layer
    assert not any("coarse" in name for name in bench.data._mask_layers())
    assert bench.data.part()["observation"] == {"layer": "volume"}


def test_closing_the_dock_gives_the_view_back(window, monkeypatch):
    monkeypatch.setattr(coarse, "SHARE", 1e-9)
    data = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    layer = window.viewer.add_image(data, name="volume")
    press_3d(window)
    assert not layer.visible
    window.viewer.window.remove_dock_widget(window.bench)
    window.settle()
    assert window.bench.is_closed
    assert window.viewer.dims.ndisplay == 2
    assert layer.visible and views(window) == []
    press_3d(window)
    assert layer.visible and views(window) == [], "nobody guards any more"


def test_the_window_can_be_closed_in_3d(window, monkeypatch):
    monkeypatch.setattr(coarse, "SHARE", 1e-9)
    window.viewer.add_image(np.zeros((20, 20, 20), np.float32), name="volume")
    press_3d(window)
    assert len(views(window)) == 1
    window.viewer.close()
    window.settle()
    assert window.bench.is_closed
