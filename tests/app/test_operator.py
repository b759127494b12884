"""Estimating the operator from two layers, in a real window."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_invprior.app.widgets.controls import FAULT
from napari_invprior.app.workbench.operator_row import BUSY, IDLE
from napari_invprior.app.workbench.runs import ESTIMATE
from napari_invprior.samples import PAIR_GAIN, PAIR_OFFSET, load_sample, pair_kernel
from tests.app.conftest import TINY_PRIOR, TINY_SOLVER

pytestmark = pytest.mark.gui


@pytest.fixture
def pair(window):
    """The built-in pair as layers, factor 2, the gear of step 1 open."""
    good, poor = load_sample("pair-good"), load_sample("pair-poor")
    window.viewer.add_image(poor, name="poor", scale=(2, 2), translate=(0.5, 0.5))
    window.viewer.add_image(good, name="good", translate=(0, 280))
    bench = window.bench
    bench.data.observation.choose("poor")
    bench.references.image.choose("good")
    bench.data.physics.choose({"kind": "superresolution", "factor": 2})
    bench.data.physics.gear.setChecked(True)
    window.viewer.reset_view()
    window.settle()
    return window


def open_dialog(window):
    """A real click on the button."""
    row = window.bench.data.operator
    window.press(row.button)
    window.until(lambda: row.dialog is not None and row.dialog.isVisible(), 5)
    window.settle()
    return row.dialog


def picture(window, name: str) -> None:
    """A screenshot for people, where a folder is named."""
    if folder := os.environ.get("INVPRIOR_SHOTS"):
        window.settle()
        window.viewer.window._qt_window.grab().save(str(Path(folder) / f"{name}.png"))


def test_from_the_button_to_a_reconstruction_with_the_right_brightness(pair):
    bench, row = pair.bench, pair.bench.data.operator
    dialog = open_dialog(pair)
    assert (dialog.good.currentData(), dialog.poor.currentData()) == ("good", "poor")
    assert dialog.size.value() == 15
    assert "they fit" in dialog.about.text()
    if folder := os.environ.get("INVPRIOR_SHOTS"):
        dialog.grab().save(str(Path(folder) / "dialog.png"))
    pair.qtbot.mouseClick(dialog.go, Qt.MouseButton.LeftButton)
    assert bench.runs.runner.name == ESTIMATE
    assert row.button.text() == BUSY
    assert not bench.result.run.isEnabled()
    pair.wait()
    psf = pair.viewer.layers["psf"]
    assert np.linalg.norm(psf.data - pair_kernel()) < 0.1 * np.linalg.norm(pair_kernel())
    assert tuple(psf.scale) == (1, 1)
    assert psf.translate[1] + psf.data.shape[1] < 280, "it lies beside the good image"
    choice = bench.data.physics.choice()
    assert choice["psf"] == {"layer": "psf"}
    assert choice["factor"] == 2
    assert choice["gain"] == pytest.approx(PAIR_GAIN, rel=0.02)
    assert choice["offset"] == pytest.approx(PAIR_OFFSET, abs=0.02)
    assert bench.data.noise.choice()["sigma"] == pytest.approx(0.005, rel=0.1)
    assert "dB held out (Gaussian" in row.about.text()
    assert row.button.text() == IDLE
    assert bench.runs.history.results() == [], "a kernel is no reconstruction"
    picture(pair, "estimated")
    # the kernel and its brightness scale serve the next run
    bench.prior.chooser.choose(TINY_PRIOR)
    bench.result.solver.choose(TINY_SOLVER | {"iterations": 30})
    bench.result.automatic.setChecked(False)
    pair.bench.references.picker.enter()
    bench.references.picker.set_size(64)
    bench.references.picker.add((100.0, 400.0))
    bench.references.picker.leave()
    pair.settle()
    pair.press(bench.prior.train)
    pair.wait()
    pair.press(bench.result.run)
    pair.wait()
    result = bench.runs.history.shown
    good = pair.viewer.layers["good"].data
    assert result.data.shape == good.shape
    inner = (slice(8, -8),) * 2
    assert np.mean(result.data[inner] - good[inner]) == pytest.approx(0, abs=0.005)
    assert np.std(result.data[inner] - good[inner]) < 0.6 * np.std(good)
    low, high = result.contrast_limits
    assert low > -0.1, "not the contrast of the poor image"
    assert high < 1.2


def test_layers_that_do_not_fit_are_told_before_anything_runs(pair):
    dialog = open_dialog(pair)
    dialog.poor.choose("good")
    assert "two different layers" in dialog.about.text()
    assert not dialog.go.isEnabled()
    dialog.good.choose("poor")
    assert "must have 512 × 512" in dialog.about.text()
    assert not dialog.go.isEnabled()
    dialog.reject()
    pair.settle()
    assert pair.idle


def test_a_bad_pair_says_so_in_place_and_changes_nothing(pair, monkeypatch):
    bench = pair.bench
    pair.viewer.add_image(np.random.default_rng(0).random((128, 128)), name="other")
    pair.settle()
    dialog = open_dialog(pair)
    dialog.poor.choose("other")
    before = bench.data.physics.choice()
    monkeypatch.setattr("napari_invprior.app.docks.run.show_error", lambda text: None)
    pair.qtbot.mouseClick(dialog.go, Qt.MouseButton.LeftButton)
    pair.wait()
    assert "same" in bench.data.operator.about.text()
    assert bench.data.operator.about.property("tone") == FAULT
    assert bench.data.physics.choice() == before
    assert "psf" not in pair.viewer.layers


def test_cancel_keeps_the_operator(pair):
    bench, row = pair.bench, pair.bench.data.operator
    dialog = open_dialog(pair)
    dialog.size.setValue(40)  # 1600 taps: seconds
    before = bench.data.physics.choice()
    pair.qtbot.mouseClick(dialog.go, Qt.MouseButton.LeftButton)
    pair.settle(0.1)
    pair.press(row.button)
    pair.wait(30)
    assert "cancelled" in row.about.text()
    assert bench.data.physics.choice() == before
    assert row.button.text() == IDLE


def test_it_is_offered_with_the_kernel_only(pair):
    bench, row = pair.bench, pair.bench.data.operator
    assert row.isVisible()
    bench.data.physics.gear.setChecked(False)
    assert not row.isVisible()
    bench.data.physics.gear.setChecked(True)
    bench.data.physics.choose({"kind": "denoising"})
    assert not row.isVisible()
    bench.data.physics.choose({"kind": "blur"})
    assert row.isVisible()
    dialog = open_dialog(pair)
    assert dialog.factor == (1, 1)
    dialog.reject()
