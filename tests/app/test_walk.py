"""The whole walk of a user, with mouse, buttons, files and a restart."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from scipy.ndimage import zoom

from napari_invprior.app.demo import PICKS, dock
from tests.app.conftest import LONG_PRIOR, Window

pytestmark = pytest.mark.gui

QUICK_PRIOR = {"kind": "patchnr", "hidden": 16, "blocks": 2, "batch": 128, "steps": 400,
               "stop_early": False}


def test_from_sample_to_result_and_back_after_a_restart(make_napari_viewer, qtbot, tmp_path):
    window = opened(make_napari_viewer, qtbot)
    bench, viewer = window.bench, window.viewer
    window.add("superresolution_2d")
    assert bench.data.observation.currentText() == "gravel observation"
    assert bench.references.image.currentText() == "gravel reference"
    assert bench.data.about.text().startswith("64 × 64 → 256 × 256 px")
    pick_by_clicks(window)
    assert bench.references.about.text().startswith("3 regions · ")
    bench.prior.chooser.choose(QUICK_PRIOR)
    bench.result.solver.choose({"kind": "variational", "iterations": 8})
    bench.result.automatic.setChecked(False)
    bench.result.set_weight(2e-3)
    bench.data.truth.choose(None)  # no figures: the baselines take longer than the rest
    window.settle()

    # train, cancel, resume
    window.press(bench.prior.train)
    window.until(lambda: len(bench.prior.plot.points.get("train", ([], []))[0]) > 2)
    window.press(bench.prior.cancel)
    window.wait(3)
    assert bench.prior.fitted
    assert "cancelled" in bench.prior.about.text()
    window.press(bench.prior.train)
    window.wait()
    assert bench.prior.about.text().startswith("trained"), bench.prior.about.text()
    assert bench.prior.gallery.count > 0

    # reconstruct: aligned, better than the start, provenance aboard
    window.press(bench.result.run)
    window.wait()
    result, truth = viewer.layers["reconstruction 1"], viewer.layers["gravel truth"]
    assert np.allclose(result.scale, truth.scale)
    assert np.allclose(result.translate, truth.translate)
    assert result.units == truth.units
    observed = viewer.layers["gravel observation"].data
    enlarged = zoom(observed, 4, order=3, mode="reflect", grid_mode=True)
    assert mean_square(result.data, truth.data) < mean_square(enlarged, truth.data)
    assert result.metadata["napari-invprior"]["recipe"]["solver"]["weight"] == 2e-3
    first = result.data.copy()

    # once more; "<" goes back
    window.press(bench.result.again)
    window.wait()
    assert np.array_equal(viewer.layers["reconstruction 2"].data, first)
    assert not result.visible
    window.press(bench.result.older)
    assert result.visible
    assert bench.result.shown.text() == "reconstruction 1"
    regions = bench.references.regions().boxes

    # save, restart, load, run again
    assert bench.save_prior(tmp_path / "prior.safetensors")
    bench.save_result(tmp_path / "results")
    window.wait()
    assert (tmp_path / "results" / "recipe.json").is_file()
    viewer.close()

    again = opened(make_napari_viewer, qtbot)
    again.add("superresolution_2d")
    assert not again.bench.result.again.isEnabled()
    assert again.bench.load_prior(tmp_path / "prior.safetensors")
    assert again.bench.prior.chooser.choice()["hidden"] == 16
    again.press(again.bench.result.again)
    again.wait()
    second = again.viewer.layers["reconstruction 1"]
    assert np.array_equal(second.data, first)
    recipe = second.metadata["napari-invprior"]["recipe"]
    assert [[list(i) for i in box] for box in recipe["references"][0]["regions"]] == regions
    again.bench.close_down()


def mean_square(image, truth):
    return float(((image - truth) ** 2).mean())


def opened(make_napari_viewer, qtbot):
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1280, 800)
    window = Window(viewer, dock(viewer), qtbot)
    window.settle()
    return window


def pick_by_clicks(window):
    """Three real clicks on the reference."""
    image = window.bench.references.layer
    window.press(window.bench.references.pick)
    for y, x in PICKS:
        window.click(image.data_to_world((y * image.data.shape[0], x * image.data.shape[1])))
    window.press(window.bench.references.pick)
    window.settle()


def test_refused_files_are_named_and_change_nothing(make_napari_viewer, qtbot, tmp_path):
    window = opened(make_napari_viewer, qtbot)
    window.add_small()
    window.pick_small()
    bench = window.bench
    window.press(bench.prior.train)
    window.wait()
    kept = bench.prior.prior
    (tmp_path / "pickled.pt").write_bytes(b"\x80\x04.")
    (tmp_path / "broken.safetensors").write_bytes(b"not a prior")
    for name in ("pickled.pt", "broken.safetensors", "missing.safetensors"):
        assert not bench.load_prior(tmp_path / name)
        assert name.split(".")[0] in bench.message.text()
        assert bench.prior.prior is kept
    assert bench.save_prior(tmp_path / "good.safetensors")
    window.bench.close_down()


def test_pausing_by_key_and_shortcuts(make_napari_viewer, qtbot):
    window = opened(make_napari_viewer, qtbot)
    window.add_small()
    window.pick_small()
    bench, alt = window.bench, Qt.KeyboardModifier.AltModifier
    bench.prior.chooser.choose(LONG_PRIOR)
    window.settle()
    window.key(Qt.Key.Key_T, alt)
    window.until(lambda: "step" in bench.prior.about.text())
    window.key(Qt.Key.Key_T, alt)
    assert bench.runs.runner.state == "paused"
    window.key(Qt.Key.Key_T, alt)
    assert bench.runs.runner.state == "running"
    window.key(Qt.Key.Key_C, alt)
    window.wait(3)
    assert bench.prior.fitted
    window.key(Qt.Key.Key_D, alt)
    assert bench.references.picker.active
    QTest.keyClick(bench.references.clear, Qt.Key.Key_D, alt)
    assert not bench.references.picker.active, "keys work in the dock as well"
    window.bench.close_down()


def test_suggest_chooses_the_winner_and_3d_starts_with_the_mixture(
    make_napari_viewer, qtbot, monkeypatch
):
    from napari_invprior.priors.mixtures.gmm import GaussianMixture
    from napari_invprior.reconstruct import propose
    from napari_invprior.reconstruct.half_quadratic import HalfQuadratic

    solver = HalfQuadratic(HalfQuadratic.Parameters(steps=6))
    candidates = [
        propose.Candidate(
            f"{k} Gaussians", GaussianMixture,
            GaussianMixture.Parameters(components=k, steps=3), solver, (0.25,),
        )
        for k in (1, 3)
    ]
    monkeypatch.setattr(propose, "default_candidates", lambda ndim: candidates)
    monkeypatch.setattr(propose, "total_variation_candidates", list)
    window = opened(make_napari_viewer, qtbot)
    bench = window.bench
    assert bench.prior.chooser.name == "patchnr"
    window.add("superresolution_3d")
    assert bench.prior.chooser.name == "gmm"
    assert bench.result.solver.name == "half_quadratic"
    pick_by_clicks_3d(window)
    window.press(bench.prior.suggest)
    window.wait(60)
    assert bench.prior.about.text() == "chosen: 3 Gaussians"
    assert bench.prior.chooser.choice()["components"] == 3
    assert "1 Gaussians" in bench.message.text()
    window.press(bench.prior.suggest)
    window.press(bench.prior.cancel)
    window.wait(5)
    assert bench.prior.chooser.choice()["components"] == 3
    window.bench.close_down()


def pick_by_clicks_3d(window):
    """One real click on the middle slice of the reference volume."""
    image = window.bench.references.layer
    window.press(window.bench.references.pick)
    middle = [n / 2 for n in image.data.shape]
    window.viewer.dims.set_point(0, image.data_to_world(middle)[0])
    window.settle()
    window.click(image.data_to_world(middle))
    window.press(window.bench.references.pick)
    window.settle()
