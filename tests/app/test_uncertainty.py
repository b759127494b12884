"""The uncertainty dock in a real window, with real clicks."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_invprior.app.uncertainty.dock import Uncertainty
from napari_invprior.app.viewer import layers as app_layers
from tests.app.conftest import Window, canvas_of, move

pytestmark = pytest.mark.gui

GMM = {"kind": "gmm", "patch_size": 4, "components": 3, "steps": 4}
SHORT = {"kind": "underdamped", "samples": 12, "chains": 2, "steps": 60, "warm_up": 20}
LONG = SHORT | {"steps": 1_000_000, "stop_ess": 1e6}


@pytest.fixture
def dock(window: Window):
    """The dock beside a workbench with a trained mixture."""
    window.add_small()
    window.bench.prior.chooser.choose(GMM)
    window.pick_small()
    window.press(window.bench.prior.train)
    window.wait()
    opened = Uncertainty(window.viewer)
    window.viewer.window.add_dock_widget(opened, name="Inverse priors uncertainty", area="right")
    window.settle(0.5)
    yield opened
    opened.close_down()
    window.settle(0.1)


def idle(dock: Uncertainty) -> bool:
    return dock.run.runner.state == "idle"


def sample(window: Window, dock: Uncertainty, sampler=SHORT) -> None:
    dock.sampler.choose(sampler)
    window.press(dock.sample)
    if sampler is SHORT:
        window.until(lambda: idle(dock))
        window.settle(0.2)


def test_from_sampling_to_the_histogram_of_a_place(window: Window, dock: Uncertainty) -> None:
    viewer = window.viewer
    viewer.add_image(np.full((64, 64), 0.5, np.float32), name="true")
    window.bench.data.truth.choose("true")
    sample(window, dock)
    assert dock.run.fault == ""
    assert {"mean", "std", "samples", "quantile_5", "quantile_95", "rhat"} <= set(dock.run.kinds)
    assert viewer.layers["samples 1"].data.shape == (12, 64, 64)
    world = viewer.layers["mean 1"].extent.world
    assert np.allclose(world, [[0, 0], [63, 63]]), "the result lies on the data"
    assert "12 samples kept of 120 states in 2 chains" in dock.about.text()
    assert "R-hat" in dock.badge.text()
    assert set(dock.coverage.shares) == {0.5, 0.8, 0.9, 0.95}

    place = (20.0, 30.0)
    window.click(place)
    window.settle(0.2)
    assert np.allclose(dock.histogram.values, viewer.layers["samples 1"].data[:, 20, 30])
    assert "(20, 30)" in dock.histogram.title.text()
    assert "truth 0.5" in dock.histogram.title.text()
    assert np.allclose(viewer.layers["probed place"].data, [place])

    canvas = canvas_of(viewer)  # to drag the view is no click
    before = dock.histogram.values
    QTest.mousePress(canvas, Qt.MouseButton.LeftButton, pos=window.pixel((40, 40)))
    move(canvas, window.pixel((46, 46)))
    QTest.mouseRelease(canvas, Qt.MouseButton.LeftButton, pos=window.pixel((46, 46)))
    window.settle(0.2)
    assert dock.histogram.values is before


def test_views_contrast_and_threshold(window: Window, dock: Uncertainty) -> None:
    sample(window, dock)
    viewer = window.viewer
    for kind in ("std", "samples", "rhat", "mean"):
        window.press(dock.buttons[kind])
        shown = {k for k in dock.run.kinds if dock.run.layer(k).visible}
        assert shown == {kind}
    mean, stack = dock.run.layer("mean"), dock.run.layer("samples")
    mean.contrast_limits = (0.2, 0.7)
    assert tuple(stack.contrast_limits) == (0.2, 0.7)
    window.press(dock.linked)
    mean.contrast_limits = (0.1, 0.9)
    assert tuple(stack.contrast_limits) == (0.2, 0.7)

    QTest.keyClicks(dock.threshold, "0.5")
    QTest.keyClick(dock.threshold, Qt.Key.Key_Return)
    window.until(lambda: "exceedance" in dock.run.kinds)
    share = viewer.layers["exceedance 1"]
    assert np.allclose(share.data, (stack.data > 0.5).mean(0))
    assert share.visible
    dock.threshold.setText("many")
    QTest.keyClick(dock.threshold, Qt.Key.Key_Return)
    assert "threshold = 'many'" in dock.message.text()

    dock.threshold.clear()
    sample(window, dock)  # a second run has layers of its own
    assert "mean 2" in viewer.layers
    assert viewer.layers["mean 1"].metadata[app_layers.META]["role"] == "uncertainty"
    assert window.bench.runs.history.shown is None, "samples are no reconstructions"


def test_layers_refine_live_and_cancel_keeps_the_samples(
    window: Window, dock: Uncertainty
) -> None:
    sample(window, dock, LONG)
    assert not dock.sample.isEnabled()
    window.until(lambda: "std" in dock.run.kinds, 60)
    mean = dock.run.layer("mean")
    first = np.array(mean.data)
    window.until(lambda: not np.array_equal(mean.data, first), 20)
    window.press(dock.cancel)
    window.until(lambda: idle(dock), 5)
    window.settle(0.2)
    assert "cancelled: " in dock.about.text()
    assert dock.run.layer("samples").data.shape[0] > 1
    assert dock.run.layer("mean") is mean
    assert dock.sample.isEnabled()


def test_what_is_missing_is_said_in_place(window: Window, dock: Uncertainty) -> None:
    window.bench.prior.forget()
    window.settle(0.1)
    assert not dock.sample.isEnabled()
    assert "Train a prior" in dock.problem.text()
    window.bench.close_down()
    window.settle(0.1)
    assert dock.open_bench.isVisible()
    assert "Open the workbench" in dock.problem.text()


def test_a_removed_layer_and_a_closed_dock_do_no_harm(window: Window, dock: Uncertainty) -> None:
    sample(window, dock)
    window.viewer.layers.remove("samples 1")
    window.settle(0.1)
    assert not dock.buttons["samples"].isEnabled()
    assert not dock.probe.active
    window.click((20.0, 30.0))
    sample(window, dock, LONG)
    window.settle(0.3)
    dock.close_down()
    window.settle(0.2)
    assert not dock.run.runner.process_is_busy()


def test_a_volume_works_the_same(window: Window) -> None:
    rng = np.random.default_rng(0)
    viewer, bench = window.viewer, window.bench
    fine = rng.random((16, 16, 16)).astype(np.float32)
    viewer.add_image(fine.reshape(8, 2, 8, 2, 8, 2).mean((1, 3, 5)), name="low",
                     scale=(2, 2, 2), translate=(0.5,) * 3)
    viewer.add_image(fine, name="good", translate=(0, 0, 20))
    bench.data.observation.choose("low")
    bench.references.image.choose("good")
    bench.data.physics.choose({"kind": "superresolution", "factor": 2})
    bench.prior.chooser.choose({"kind": "smooth_tv"})
    bench.result.automatic.setChecked(False)
    bench.result.set_weight(4.0)
    opened = Uncertainty(viewer)
    viewer.window.add_dock_widget(opened, name="Inverse priors uncertainty", area="right")
    window.settle(0.5)
    sample(window, opened)
    assert opened.run.fault == ""
    assert opened.run.layer("samples").data.shape == (12, 16, 16, 16)
    assert opened.run.layer("std").data.shape == (16, 16, 16)
    z = int(viewer.dims.current_step[-3])
    window.click((0, 5.0, 9.0))
    window.settle(0.2)
    assert len(opened.histogram.values) == 12
    assert opened.histogram.title.text().startswith(f"({z}")
    opened.close_down()


def test_a_prior_that_draws_brings_its_sampler(window: Window) -> None:
    window.add_small()
    window.bench.prior.chooser.choose({
        "kind": "conditional_mmd", "patch_size": 8, "pairs": 100, "networks": 1, "steps": 2,
        "centre_steps": 5,
    })
    window.pick_small()
    dock = Uncertainty(window.viewer)
    window.viewer.window.add_dock_widget(dock, name="Inverse priors uncertainty", area="right")
    assert dock.sampler.name == "underdamped"
    window.press(window.bench.prior.train)
    window.wait()
    assert dock.sampler.name == "amortised"
    sample(window, dock, {"kind": "amortised", "samples": 3})
    window.until(lambda: idle(dock))
    assert dock.run.fault == ""
    assert window.viewer.layers["samples 1"].data.shape == (3, 64, 64)
    dock.close_down()
