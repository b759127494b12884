"""The Compare dock in a real window, and the grid without one."""

from __future__ import annotations

import csv
import time

import numpy as np
import pytest
from napari.components import ViewerModel
from PIL import Image
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QAbstractButton, QCheckBox, QLabel, QTableWidget, QToolButton

from napari_invprior.app.compare import run as compare_run
from napari_invprior.app.compare.dock import OURS, Compare
from napari_invprior.app.compare.grid import GridView, best_shape
from napari_invprior.study.lineup import Candidate
from tests.app.conftest import LONG_PRIOR, TINY_PRIOR

pytestmark = pytest.mark.gui

QUICK_GMM = {"kind": "gmm", "components": 3, "patch_size": 4, "steps": 3}
SPLIT = {"kind": "half_quadratic", "weight": 0.25, "steps": 6}


@pytest.fixture
def compare(window):
    """The dock beside the workbench, with four quick methods to tick."""
    window.add_small()
    window.pick_small()
    opened = Compare(window.viewer)
    window.viewer.window.add_dock_widget(opened, name="Inverse priors compare", area="right")
    window.settle()
    tick(opened, OURS, "gmm", "start", "nlm")
    quick = {"title": "Gaussian mixture", "prior": QUICK_GMM, "solver": SPLIT}
    known = opened._candidates
    known["gmm"] = Candidate("gmm", "Gaussian mixture", "", quick, True)
    yield opened
    opened.close_down()


def tick(dock, *names):
    for name, box in dock.boxes.items():
        box.setChecked(name in names)


def press(window, dock, button):
    """A real click; the dock's tab must be in front."""
    dock.holder().raise_()
    window.settle(0.1)
    window.press(button)


def finish(window, dock, seconds=120):
    window.until(lambda: dock.run.runner.state == "idle", seconds)
    window.settle(0.1)


def column(dock, label):
    heads = [dock.table.horizontalHeaderItem(i).text() for i in range(dock.table.columnCount())]
    place = heads.index(label)
    return [dock.table.item(line, place) for line in range(dock.table.rowCount())]


def test_four_methods_side_by_side_and_back(window, compare, tmp_path):
    viewer, bench = window.viewer, window.bench
    truth = viewer.add_image(viewer.layers["good"].data.copy(), name="truth", visible=False)
    bench.data.truth.choose("truth")
    window.settle()
    assert compare.bench is bench
    assert compare.problem.text().startswith("low: 32 × 32 → 64 × 64 px")
    assert "truth: truth" in compare.problem.text()
    before = {layer: layer.visible for layer in viewer.layers}
    order, camera = list(viewer.layers), (viewer.scene.camera.center, viewer.scene.camera.zoom)
    press(window, compare, compare.compare)
    assert compare.run.runner.state == "running"
    assert not compare.compare.isEnabled()
    finish(window, compare)

    titles = [item.text() for item in column(compare, "method")]
    assert titles == ["patchNR (workbench)", "Gaussian mixture", "Spline (shift-corrected)",
                      "Non-local means"]
    figures = column(compare, "PSNR / dB")
    values = [row.figures["psnr"] for row in compare.run.rows]
    assert [item.text() for item in figures] == [f"{v:.2f}" for v in values]
    assert [item.font().bold() for item in figures] == [v == max(values) for v in values]
    assert compare.about.text().startswith("4 methods in ")

    # the grid: truth first, then the rows; one contrast; nothing else
    grid = viewer.canvas.grid
    assert grid.enabled
    shown = [layer.name for layer in viewer.layers if layer.visible]
    assert shown == ["truth", *titles]
    places = [grid.position(viewer.layers.index(viewer.layers[name]), viewer.layers)
              for name in shown]
    assert places == sorted(places)
    assert places[0] == (0, 0)
    assert viewer.layers["Gaussian mixture"].name_overlay.visible
    canvas = viewer.window._qt_window._qt_viewer.canvas
    viewer.scene.camera.center, viewer.scene.camera.zoom = (0, 12.0, 34.0), 5.5
    window.settle(0.2)
    assert len(canvas.grid_cameras) >= len(shown) == 5
    assert {(c.zoom, tuple(c.center)[-2:]) for c in canvas.grid_cameras} == {(5.5, (12.0, 34.0))}
    viewer.layers["Gaussian mixture"].contrast_limits = (0.2, 0.6)
    assert viewer.layers["patchNR (workbench)"].contrast_limits == [0.2, 0.6]
    result = viewer.layers["patchNR (workbench)"]
    assert np.allclose(result.scale, viewer.layers["good"].scale)
    assert np.allclose(result.translate, (0, 0))
    assert bench.runs.history.shown is None, "the history of the workbench is not disturbed"

    # back
    limits = compare.grid._before.limits[truth]
    press(window, compare, compare.in_grid)
    assert not grid.enabled
    assert {layer: layer.visible for layer in order} == before
    assert list(viewer.layers)[: len(order)] == order
    assert not any(viewer.layers[title].visible for title in titles)
    assert tuple(truth.contrast_limits) == limits
    viewer.layers["Gaussian mixture"].contrast_limits = (0.1, 0.5)
    assert tuple(truth.contrast_limits) == limits, "no longer linked"
    assert np.allclose(viewer.scene.camera.center, camera[0])
    assert viewer.scene.camera.zoom == pytest.approx(camera[1])
    press(window, compare, compare.in_grid)
    assert grid.enabled

    # sort by a real click on a head
    head = compare.table.horizontalHeader()
    place = next(i for i in range(compare.table.columnCount())
                 if compare.table.horizontalHeaderItem(i).text() == "PSNR / dB")
    middle = head.sectionViewportPosition(place) + head.sectionSize(place) // 2
    window.qtbot.mouseClick(head.viewport(), Qt.MouseButton.LeftButton,
                            pos=head.rect().center().__class__(middle, head.height() // 2))
    sorted_values = [float(item.text()) for item in column(compare, "PSNR / dB")]
    assert sorted_values == sorted(sorted_values)

    # a click on a row chooses its layer
    item = column(compare, "method")[0]
    window.qtbot.mouseClick(compare.table.viewport(), Qt.MouseButton.LeftButton,
                            pos=compare.table.visualItemRect(item).center())
    assert viewer.layers.selection.active.name == item.text()

    # export
    compare.export(tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["title"] for row in rows] == titles
    compare.export(tmp_path / "table.png")
    finish(window, compare)
    with Image.open(tmp_path / "table.png") as picture:
        assert picture.width > 500
    assert "table.png" in compare.message.text()


def test_what_is_missing_is_said_in_place(window, compare, make_napari_viewer):
    tick(compare)
    assert compare.problem.text() == "Tick at least one method."
    assert not compare.compare.isEnabled()
    tick(compare, "start")
    assert compare.compare.isEnabled()
    window.bench.references.picker.clear()
    window.settle()
    assert compare.compare.isEnabled(), "a baseline needs no reference"
    tick(compare, "gmm")
    assert compare.problem.text() == (
        "To train priors, pick a region on the reference image (step 2) in the workbench."
    )
    window.viewer.window.remove_dock_widget(window.bench)
    window.settle(0.1)
    assert "Open the workbench" in compare.problem.text()
    assert not compare.open_bench.isHidden()
    press(window, compare, compare.open_bench)
    window.settle()
    assert compare.bench is not None
    assert compare.open_bench.isHidden()
    compare.bench.close_down()


def test_cancel_keeps_finished_rows_and_a_busy_process_is_told(window, compare):
    long = {"title": "long", "prior": LONG_PRIOR, "solver": SPLIT}
    compare._candidates["patchnr"] = Candidate("patchnr", "long", "", long, False)
    tick(compare, "gmm", "patchnr", "start")
    press(window, compare, compare.compare)
    window.until(lambda: compare.table.rowCount() == 1 and "training" in compare.about.text())
    window.press(window.bench.prior.train)
    assert "another window runs a job" in window.bench.message.text()
    press(window, compare, compare.cancel)
    finish(window, compare, 5)
    assert column(compare, "method")[0].text() == "Gaussian mixture"
    assert compare.run.rows[0].status == "done"
    assert "1 finished rows are kept" in compare.about.text()
    assert all(row.status == "cancelled" for row in compare.run.rows[1:])
    assert "Gaussian mixture" in window.viewer.layers


def test_a_trained_prior_is_used_as_it_is(window, compare):
    window.press(window.bench.prior.train)
    window.wait()
    tick(compare, OURS)
    wanted = compare_run.plan(window.bench, [compare._candidates[OURS]], ours=True)
    assert wanted.prior is window.bench.prior.prior
    assert wanted.recipe["methods"][0]["prior"]["kind"] == TINY_PRIOR["kind"]
    window.bench.prior.chooser.choose(QUICK_GMM)
    other = compare_run.plan(window.bench, [compare._candidates[OURS]], ours=True)
    assert other.prior is None, "what is compared is the prior on show"
    assert other.recipe["methods"][0]["title"].startswith("Gaussian mixture")
    assert other.recipe["methods"][0]["prior"]["kind"] == "gmm"
    window.bench.prior.chooser.choose(TINY_PRIOR)
    press(window, compare, compare.compare)
    finish(window, compare)
    assert compare.run.rows[0].figures["training_seconds"] == 0


def test_closing_the_dock_stops_its_job_and_restores_the_view(window, compare):
    tick(compare, "start", "nlm")
    press(window, compare, compare.compare)
    finish(window, compare)
    assert window.viewer.canvas.grid.enabled
    long = {"title": "long", "prior": LONG_PRIOR, "solver": SPLIT}
    compare._candidates["gmm"] = Candidate("gmm", "long", "", long, False)
    tick(compare, "gmm")
    press(window, compare, compare.compare)
    window.until(lambda: "training" in compare.about.text())
    thread = compare.run.runner._thread
    window.viewer.window.remove_dock_widget(compare)
    assert thread.done.is_set()
    assert not window.viewer.canvas.grid.enabled
    assert window.viewer.layers["low"].visible
    window.viewer.add_image(np.zeros((5, 5)))


def test_every_control_has_a_tooltip_and_fits(window, compare):
    compare.holder().raise_()
    window.settle()
    controls = compare.findChildren((QAbstractButton, QCheckBox, QLabel, QTableWidget))
    bare = [c.text() for c in controls if isinstance(c, QAbstractButton | QLabel)
            and not isinstance(c, QToolButton) and c.text() and not c.toolTip()]
    assert bare == []
    for button in compare.findChildren(QAbstractButton):
        if button.isVisible() and button.text():
            right = button.mapTo(compare, button.rect().topRight()).x()
            assert right <= compare.width(), button.text()
    assert compare.window().width() == 1280


def test_volumes_are_offered_what_fits_them(window):
    compare = Compare(window.viewer)
    window.viewer.window.add_dock_widget(compare, name="Inverse priors compare", area="right")
    window.add("superresolution_3d")
    assert compare._ndim == 3
    assert compare._candidates["patchnr"].method["solver"]["kind"] == "half_quadratic"
    assert "bm3d" not in compare.boxes
    compare.close_down()


def test_the_dock_opens_from_the_menu(make_napari_viewer, qtbot):
    viewer = make_napari_viewer(show=True)
    from napari_invprior.app.demo import dock, process_events

    bench = dock(viewer)
    process_events(0.2)
    _, opened = viewer.window.add_plugin_dock_widget("napari-invprior", "Inverse priors compare")
    process_events(0.4)
    assert opened.bench is bench
    assert bench.holder() in viewer.window._qt_window.tabifiedDockWidgets(opened.holder())
    layers = [viewer.add_image(np.eye(8, 9), name=name) for name in "ab"]
    opened.grid.enter(list(opened.viewer.layers))
    assert viewer.canvas.grid.enabled
    opened.grid.leave()
    assert all(layer.visible for layer in layers)
    opened.close_down()
    bench.close_down()


def test_the_window_stays_alive_while_comparing(window, compare):
    """95 % of the turns of the event loop take less than 50 ms, rows and grid included."""
    from tests.app.test_liveness import report_turns, turns_of

    long = {"title": "long", "prior": {"kind": "patchnr", "steps": 100_000, "stop_early": False},
            "solver": SPLIT}
    compare._candidates["patchnr"] = Candidate("patchnr", "long", "", long, False)
    tick(compare, "gmm", "patchnr", "start", "nlm")
    press(window, compare, compare.compare)
    taken = turns_of(window)
    press(window, compare, compare.cancel)
    begin = time.monotonic()
    finish(window, compare, 5)
    report_turns("comparison", taken, time.monotonic() - begin)
    assert np.percentile(taken, 95) < 50


def test_a_study_on_disk_opens_with_its_results_in_the_history(window, tmp_path):
    from napari_invprior import recipes
    from napari_invprior.app.viewer.results import add_results

    study = {
        "task": "study", "methods": [{"title": "EPLL", "prior": QUICK_GMM, "solver": SPLIT}],
        "observation": {"simulate_from": {"sample": "brick-test", "crop": [[0, 32], [0, 32]]}},
        "references": [{"sample": "brick-reference", "crop": [[0, 48], [0, 48]]}],
        "physics": {"kind": "denoising"}, "noise": {"kind": "gaussian", "sigma": 0.05},
        "study_baselines": ["start"],
    }
    recipes.write_outcome(recipes.execute(study), tmp_path / "study")
    names = add_results(window.viewer, tmp_path / "study")
    assert set(names) == {"reconstruction_epll", "reconstruction_observation", "truth"}
    window.settle()
    assert [r.name for r in window.bench.runs.history.results()] == ["reconstruction_epll"]
    assert window.bench.runs.last_recipe()["task"] == "reconstruct"


# ---- the grid, without a window


def test_leaving_the_grid_survives_removed_and_new_layers():
    viewer = ViewerModel()
    first, second, third = (viewer.add_image(np.eye(4) * k, name=str(k)) for k in (1, 2, 3))
    view = GridView(viewer)
    first.visible = False
    view.enter([third, first])
    assert [layer.name for layer in viewer.layers if layer.visible] == ["3", "1"]
    viewer.layers.remove(third)
    late = viewer.add_image(np.eye(4), name="late")
    view.leave()
    assert [layer.visible for layer in (first, second, late)] == [False, True, True]
    assert [layer.name for layer in viewer.layers] == ["1", "2", "late"]
    view.leave()


def test_long_names_are_written_smaller_until_they_fit():
    viewer = ViewerModel()
    viewer.canvas.size = (600, 250)
    names = ("short", "a name of thirty-two characters!")
    layers = [viewer.add_image(np.eye(4), name=name) for name in names]
    view = GridView(viewer)
    view.enter(layers)
    columns = viewer.canvas.grid.shape[1]
    sizes = [layer.name_overlay.font_size for layer in layers]
    assert sizes[1] < sizes[0]
    for layer, size in zip(layers, sizes, strict=True):
        assert size * len(layer.name) <= 250 / columns
    view.leave()
    assert layers[1].name_overlay.font_size == layers[0].name_overlay.font_size != sizes[1]


def test_colours_are_shown_but_not_linked():
    viewer = ViewerModel()
    layers = [viewer.add_image(np.zeros((4, 5, 3), np.uint8), rgb=True, name=n) for n in "ab"]
    view = GridView(viewer)
    view.enter(layers)
    assert viewer.canvas.grid.enabled
    view.leave()
    assert not viewer.canvas.grid.enabled


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_the_best_shape_holds_all_images(count):
    for canvas in ((400, 1600), (700, 500), (0, 0)):
        rows, columns = best_shape(count, canvas, (1.0, 1.0))
        assert rows * columns >= count > (rows - 1) * columns
