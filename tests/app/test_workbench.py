"""The dock in a real window: what it says, what it allows, what it leaves behind."""

from __future__ import annotations

import contextlib

import dask.array
import numpy as np
import pytest
import torch
from napari.utils.notifications import notification_manager
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractSlider,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QLabel,
    QLineEdit,
    QProgressBar,
    QScrollBar,
)

from napari_invprior.app.viewer.request import Request
from napari_invprior.app.widgets.gallery import PatchGallery
from napari_invprior.app.widgets.loss_plot import LossPlot
from napari_invprior.app.workbench.dock import SHORTCUTS
from napari_invprior.app.workbench.picking import LAYER_NAME
from tests.app.conftest import LONG_PRIOR, TINY_PRIOR

pytestmark = pytest.mark.gui

CONTROLS = (QAbstractButton, QAbstractSpinBox, QComboBox, QLineEdit, QAbstractSlider, QProgressBar,
            PatchGallery, LossPlot)


def test_an_empty_viewer_is_told_what_to_do(window):
    bench = window.bench
    assert "Open Sample" in bench.data.about.text()
    assert "reference" in bench.prior.about.text()
    assert not bench.prior.train.isEnabled()
    assert not bench.result.run.isEnabled()


def test_every_control_has_a_tooltip(window):
    window.add_small()
    bench = window.bench
    bare = []
    for method in ("patchnr", "gmm", "pca_gmm"):
        bench.prior.chooser.list.choose(method)
        for control in bench.findChildren(CONTROLS):
            inner = isinstance(control.parent(), QAbstractSpinBox | QComboBox)
            if isinstance(control, QScrollBar) or inner or control.objectName().startswith("qt_"):
                continue
            if not control.toolTip() and control.window() is bench.window():
                bare.append((type(control).__name__, getattr(control, "text", str)()))
        bare += [
            ("label", label.text()) for label in bench.findChildren(QLabel)
            if label.text() and not label.toolTip() and label not in titles(bench)
        ]
    assert bare == []


def titles(bench):
    return [panel.title for panel in (bench.data, bench.references, bench.prior, bench.result)]


def test_the_dock_fits_into_a_small_window(window):
    window.viewer.window.resize(1280, 800)
    window.add_small()
    bench = window.bench
    assert bench.window().width() == 1280
    inner = bench.data.parentWidget()
    assert inner.width() <= bench.width()
    for button in inner.findChildren(QAbstractButton):
        if button.isVisible():
            right = button.mapTo(inner, button.rect().topRight()).x()
            assert right <= inner.width(), button.text()
            # all of the text is visible
            wanted = button.fontMetrics().horizontalAdvance(button.text())
            assert button.width() >= wanted, button.text()


def test_the_walk_by_mouse_and_keys_on_the_canvas(window):
    window.add_small()
    bench, viewer = window.bench, window.viewer
    window.press(bench.references.pick)
    assert bench.references.picker.active
    window.click((20, 90))
    window.click((40, 115))
    layer = viewer.layers[LAYER_NAME]
    assert layer.nshapes == 2
    before = layer.data[1].copy()
    centre = tuple(viewer.scene.camera.center)
    window.drag((40, 115), (44, 109))
    shift = layer.data[1] - before
    assert np.allclose(shift, shift[0])
    assert np.abs(shift[0] - (4, -6)).max() <= 1
    assert tuple(viewer.scene.camera.center) == centre, "the view must not move along"
    window.key(Qt.Key.Key_Delete)
    assert layer.nshapes == 1
    window.key(Qt.Key.Key_Escape)
    assert not bench.references.picker.active
    assert not bench.references.pick.isChecked()
    window.click((20, 90))
    assert layer.nshapes == 1
    window.settle()
    assert "1 region · " in bench.references.about.text()


def test_wheel_on_the_canvas_sizes_the_region(window):
    from qtpy.QtCore import QPoint, QPointF
    from qtpy.QtGui import QWheelEvent

    from tests.app.conftest import canvas_of

    window.add_small()
    window.press(window.bench.references.pick)
    window.click((32, 100))
    canvas = canvas_of(window.viewer)
    place = QPointF(window.pixel((32, 100)))
    zoom = window.viewer.scene.camera.zoom
    event = QWheelEvent(
        place, QPointF(canvas.mapToGlobal(window.pixel((32, 100)))), QPoint(0, 0), QPoint(0, 120),
        Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(canvas, event)
    window.settle(0.1)
    assert window.bench.references.size.value() > 24
    assert window.viewer.scene.camera.zoom == zoom


def test_drawn_shapes_and_painted_labels_serve_as_regions(window):
    window.add_small()
    bench, viewer = window.bench, window.viewer
    window.press(bench.references.rectangle)
    assert viewer.layers[LAYER_NAME].mode == "add_rectangle"
    window.drag((10, 75), (50, 120))
    window.settle()
    (box,) = bench.references.regions().boxes
    assert np.abs(np.array(box) - [[10, 51], [7, 53]]).max() <= 2
    count = bench.references.counted.patches
    window.press(bench.references.paint)
    labels = viewer.layers.selection.active
    assert labels.mode == "paint"
    labels.brush_size = 12
    labels.paint((54, 56), 1)
    window.settle()
    assert bench.references.counted.patches > count
    assert bench.references.part()["references"][0]["labels"] == {"layer": labels.name}
    window.press(bench.references.clear)
    window.settle()
    assert bench.references.counted.patches == 0
    assert not bench.prior.train.isEnabled()


def test_train_and_reconstruct_with_the_buttons(window):
    window.add_small()
    window.pick_small()
    bench = window.bench
    window.press(bench.prior.train)
    assert not bench.prior.train.isEnabled()
    assert bench.prior.cancel.isEnabled()
    window.wait()
    assert bench.prior.fitted, bench.prior.about.text()
    assert bench.prior.plot.points["train"][0]
    assert "gaussian" in bench.prior.plot.levels
    window.press(bench.result.run)
    window.wait()
    result = window.viewer.layers["reconstruction 1"]
    truth = window.viewer.layers["good"]
    assert result.data.shape == truth.data.shape
    assert np.allclose(result.scale, (1, 1))
    assert np.allclose(result.translate, (0, 0))
    assert "preview" not in window.viewer.layers
    assert "misfit / noise" in bench.result.about.text()
    window.press(bench.result.script)
    assert "recipes.execute" in QApplication.clipboard().text()


def test_a_pair_is_offered_where_the_prior_learns_from_pairs(window):
    window.add_small()
    bench = window.bench
    assert bench.references.paired.isHidden()
    bench.prior.chooser.choose({"kind": "pca_gmm", "patch_size": 4, "components": 2, "steps": 3})
    bench.result.solver.choose({"kind": "direct"})
    window.settle()
    assert bench.references.paired.isVisible()
    assert not bench.result.weighing.isVisible()
    bench.references.picker.add(np.array([32, 32 + 68]))
    window.settle()
    assert "pair" not in bench.references.part()["references"][0]
    assert bench.references.pair.choose("low")
    recipe = bench.runs.recipe("train")
    assert recipe["references"][0]["pair"] == {"layer": "low"}
    assert recipe["solver"] == {"kind": "direct"}
    bench.prior.train.click()
    window.wait()
    assert bench.prior.fitted, bench.message.text()
    assert bench.prior.prior.factor == (2, 2)
    bench.result.maps.setChecked(True)
    bench.result.run.click()
    window.wait()
    shown = bench.runs.history.shown
    assert shown is not None, bench.message.text()
    assert shown.data.shape == (64, 64)
    assert "component 1" in window.viewer.layers
    assert "weight" not in bench.result.about.text()
    bench.result.solver.choose({"kind": "variational"})
    bench.prior.chooser.choose(TINY_PRIOR)
    window.settle()
    assert bench.result.weighing.isVisible()
    assert bench.references.paired.isHidden()
    assert "pair" not in bench.references.part()["references"][0]


def test_nothing_jumps_when_a_job_starts(window):
    window.add_small()
    window.pick_small()
    bench = window.bench
    bench.prior.chooser.choose(LONG_PRIOR)
    window.settle()

    def places():
        return {
            w: w.mapTo(bench, w.rect().topLeft()).y()
            for w in (bench.data, bench.references, bench.prior, bench.result, bench.result.older)
        }

    before = places()
    window.press(bench.prior.train)
    window.until(lambda: "step" in bench.prior.about.text())
    window.settle(0.3)
    during = places()
    window.press(bench.prior.cancel)
    window.wait(5)
    window.settle(0.2)
    assert during == before
    assert places() == before


def test_cancelled_training_is_kept_and_continued(window):
    window.add_small()
    window.pick_small()
    bench = window.bench
    bench.prior.chooser.choose(LONG_PRIOR)
    window.press(bench.prior.train)
    window.until(lambda: len(bench.prior.plot.points.get("train", ([], []))[0]) > 3)
    window.press(bench.prior.pause)
    assert bench.prior.pause.text() == "Resume"
    window.press(bench.prior.pause)
    window.press(bench.prior.cancel)
    window.wait(3)
    assert bench.prior.fitted, bench.prior.about.text()
    first = bench.prior.prior
    window.press(bench.prior.train)
    window.until(lambda: "step" in bench.prior.about.text())
    assert bench.runs.request.prior is not first
    window.press(bench.prior.cancel)
    window.wait(3)
    assert bench.prior.fitted


def test_cancelled_reconstruction_leaves_earlier_results(window):
    window.add_small()
    window.pick_small()
    bench = window.bench
    window.press(bench.prior.train)
    window.wait()
    window.press(bench.result.run)
    window.wait()
    first = window.viewer.layers["reconstruction 1"]
    bench.result.solver.choose({"kind": "variational", "iterations": 10_000, "plateau": 0.0})
    window.press(bench.result.run)
    window.until(lambda: "step" in bench.result.about.text())
    window.press(bench.result.cancel)
    window.wait(5)
    names = [layer.name for layer in window.viewer.layers]
    assert [n for n in names if n.startswith(("reconstruction", "preview"))] == [first.name]
    assert first.visible


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch in matmul"), torch.OutOfMemoryError("out of memory"),
              KeyError("surprise")],
)
def test_errors_in_a_job_reach_the_user_and_reset_the_buttons(window, monkeypatch, error):
    window.add_small()
    window.pick_small()
    bench = window.bench
    kept = bench.prior.prior

    def broken(self, should_stop):
        raise error
        yield

    monkeypatch.setattr(Request, "job", broken)
    notification_manager.records.clear()
    window.press(bench.prior.train)
    window.wait(10)
    assert str(error) in bench.prior.about.text()
    assert any(str(error.args[0]) in note.message for note in notification_manager.records)
    assert bench.prior.train.isEnabled()
    assert bench.prior.prior is kept


def test_start_pressed_twenty_times_is_one_training(window):
    window.add_small()
    window.pick_small()
    bench = window.bench
    bench.prior.chooser.choose(LONG_PRIOR)
    started = []
    bench.runs.runner.state_changed.connect(
        lambda state: started.append(state) if state == "running" else None
    )
    for _ in range(20):
        bench.runs.train()
    assert started == ["running"]
    bench.runs.runner.cancel()
    window.wait(5)


def test_closing_the_dock_stops_its_job_and_unbinds_everything(window):
    viewer, bench = window.viewer, window.bench
    before = list(viewer.mouse_drag_callbacks)
    assert set(SHORTCUTS) == {str(key) for key in viewer.keymap}
    window.add_small()
    window.pick_small()
    bench.prior.chooser.choose(LONG_PRIOR)
    window.press(bench.references.pick)
    window.press(bench.prior.train)
    window.until(lambda: "step" in bench.prior.about.text())
    thread = bench.runs.runner._thread
    viewer.window.remove_dock_widget(bench)
    assert thread.done.is_set()
    assert list(viewer.mouse_drag_callbacks) == before
    assert viewer.keymap == {}
    viewer.add_image(np.zeros((5, 5)))
    viewer.layers["low"].name = "renamed"


def test_closing_the_viewer_while_training_stops_the_job(window):
    window.add_small()
    window.pick_small()
    bench = window.bench
    bench.prior.chooser.choose(LONG_PRIOR)
    window.press(bench.prior.train)
    window.until(lambda: "step" in bench.prior.about.text())
    thread = bench.runs.runner._thread
    window.viewer.close()
    window.until(thread.done.is_set, 2)


def test_layer_removed_renamed_and_edited_during_the_run(window):
    window.add_small()
    window.pick_small()
    bench, viewer = window.bench, window.viewer
    window.press(bench.prior.train)
    window.wait()
    bench.result.solver.choose({"kind": "variational", "iterations": 60, "plateau": 0.0})
    said = []
    bench.runs.said.connect(lambda text, warning: said.append(text))
    window.press(bench.result.run)
    viewer.layers["low"].data[3, 3] = 9
    viewer.layers["good"].name = "better"
    window.wait()
    assert any("'low' was edited" in text for text in said)
    assert any("'good' was removed" in text for text in said)
    assert "reconstruction 1" in viewer.layers


HOSTILE = {
    "nan": np.full((16, 16), np.nan, np.float32),
    "infinite": np.where(np.eye(16), np.inf, 0.5).astype(np.float32),
    "complex": np.ones((16, 16), complex),
    "constant": np.full((16, 16), 3, np.uint8),
    "one sample": np.ones((1, 1)),
    "one row": np.random.default_rng(0).random((1, 50)),
    "one slice": np.random.default_rng(0).random((1, 16, 16)),
    "time": np.random.default_rng(0).random((3, 2, 16, 16)),
    "bool": np.eye(16, dtype=bool),
    "half": np.random.default_rng(0).random((16, 16)).astype(np.float16),
    "big endian": np.random.default_rng(0).random((16, 16)).astype(">f4"),
    "lazy": dask.array.random.random((64, 64), chunks=16),
}


def test_no_image_upsets_the_dock(window):
    """Whatever is opened, the dock says what it makes of it; a refused job resets the buttons."""
    for kind, data in HOSTILE.items():
        # not `layers.clear()`: napari 0.9.2 crashes in the driver when shapes come back after it
        for layer in [x for x in window.viewer.layers if x.name != LAYER_NAME]:
            window.viewer.layers.remove(layer)
        window.bench.references.picker.clear()
        with contextlib.suppress(TypeError, NotImplementedError):  # napari itself refuses it
            window.viewer.add_image(data, name=kind)
        train_on(window, kind)


def train_on(window, kind):
    """Pick a region if that can be done, and train if that is offered."""
    bench = window.bench
    bench.prior.chooser.choose(TINY_PRIOR | {"patch_size": 2, "steps": 5})
    window.settle()
    assert bench.data.about.text(), kind
    if bench.references.layer is not None:
        bench.references.picker.enter()
        bench.references.picker.add((0.0,) * window.viewer.dims.ndim)
        bench.references.picker.leave()
    window.settle()
    assert bench.references.about.text(), kind
    if bench.prior.train.isEnabled():
        window.press(bench.prior.train)
        window.wait(60)
        assert bench.prior.about.text(), kind
        assert bench.prior.train.isEnabled(), kind


def test_hostile_layer_names_are_shown_as_they_are(window):
    name = "<img src=x onerror=alert(1)><b>'; import os #"
    window.viewer.add_image(np.random.default_rng(0).random((32, 32)), name=name)
    window.settle()
    bench = window.bench
    assert bench.data.observation.currentText() == name
    assert bench.data.part()["observation"] == {"layer": name}
    for label in (bench.data.about, bench.references.about, bench.message, bench.result.shown):
        assert label.textFormat() == Qt.TextFormat.PlainText
    assert name in bench.references.about.text()


def test_dark_and_light_theme_are_readable(window):
    window.add_small()
    bench = window.bench
    bench.prior.plot.add(1, {"train": 1.0, "held_out": 1.1, "gaussian": 1.5})
    seen = {}
    for theme in ("light", "dark"):
        window.viewer.theme = theme
        window.settle(0.3)
        window.viewer.window.screenshot(flash=False, canvas_only=False)
        back = bench.grab().toImage().pixelColor(2, 2).lightness()
        plot = bench.prior.plot.plot
        assert abs(plot.grab().toImage().pixelColor(2, 2).lightness() - back) < 20, theme
        pen = bench.prior.plot.plot.getPlotItem().getAxis("left").textPen().color().lightness()
        assert abs(back - pen) > 90, theme
        seen[theme] = back
    assert seen["light"] > seen["dark"]


def test_two_docks_share_one_job(window):
    from napari_invprior.app.workbench.dock import Workbench

    window.add_small()
    window.pick_small()
    bench = window.bench
    bench.prior.chooser.choose(LONG_PRIOR)
    other = Workbench(window.viewer)
    other.prior.chooser.choose(LONG_PRIOR)
    window.settle()
    window.press(bench.prior.train)
    said = []
    other.runs.said.connect(lambda text, warning: said.append(text))
    other.runs.train()
    assert "another window" in said[0]
    bench.runs.runner.cancel()
    window.wait(5)
    other.close_down()
    other.deleteLater()
