"""All priors and operators behind one dock: what stays when they are switched, and their maps."""

from __future__ import annotations

import numpy as np
import pytest
from napari.layers import Image, Labels
from napari.utils.notifications import notification_manager
from qtpy.QtWidgets import QAbstractButton, QCheckBox, QComboBox

from napari_invprior import registry
from napari_invprior.app.widgets.controls import FAULT, MethodChooser
from napari_invprior.app.widgets.forms import Form
from napari_invprior.study.lineup import usual_weight
from tests.app.conftest import TINY_PRIOR

pytestmark = pytest.mark.gui

QUICK_TRANSPORT = {"patch_size": 4, "scales": 1, "reference_patches": 200}
PRIORS = [m.name for m in registry.methods("prior") if m.needs_references]
PHYSICS = [m.name for m in registry.methods("physics")]


def kept(bench):
    """What no switch of prior or operator may touch."""
    return (
        bench.data.observation.currentText(), bench.references.part(), bench.data.noise.choice(),
        bench.result.automatic.isChecked(), bench.data.ndim,
    )


def weight_share(bench):
    """The weight beside the usual one."""
    usual = usual_weight(bench.result.solver.method, bench.prior.chooser.method)
    return bench.result.weight_value() / usual


def fits(window, chooser):
    """Whether the chosen form lies inside the dock as one column, folded and unfolded."""
    inner = window.bench.data.parentWidget()
    for shown in (True, False):
        chooser.gear.setChecked(shown)
        window.settle(0.05)
        editors = [e.widget for e in chooser.form.editors.values() if e.widget.isVisible()]
        lefts = {widget.mapTo(inner, widget.rect().topLeft()).x() for widget in editors}
        assert len(lefts) <= 1, (chooser.name, lefts)
        for control in chooser.findChildren((QAbstractButton, QComboBox)):
            if control.isVisible():
                right = control.mapTo(inner, control.rect().topRight()).x()
                assert right <= inner.width(), (chooser.name, control.toolTip())


def train(window, choice):
    window.bench.prior.chooser.choose(choice)
    window.settle()
    window.press(window.bench.prior.train)
    window.wait()
    assert window.bench.prior.fitted, window.bench.prior.about.text()
    return window.bench.prior.prior


def test_switching_the_prior_keeps_what_still_fits_and_what_was_learnt(window):
    window.add_small()
    window.pick_small()
    bench = window.bench
    bench.data.noise.form.set_values({"sigma": 0.02})
    bench.result.set_weight(0.03)
    before, solver, share = kept(bench), bench.result.solver.choice(), weight_share(bench)
    first = train(window, TINY_PRIOR)
    curve, generated = dict(bench.prior.plot.points), bench.prior.gallery.count
    assert curve
    assert generated
    for name in PRIORS:
        bench.prior.chooser.list.choose(name)
        window.settle(0.1)
        assert kept(bench) == before, name
        assert bench.result.solver.choice() == solver, "chosen by hand"
        assert weight_share(bench) == pytest.approx(share, rel=0.01)
        assert bench.prior.chooser.choice()["patch_size"] == 4, name
        assert ("hidden" in bench.prior.chooser.form.editors) == (name == "patchnr")
        assert bench.prior.fitted == bench.result.run.isEnabled() == (name == "patchnr"), name
        assert bench.prior.train.isEnabled(), bench.prior.about.text()
        fits(window, bench.prior.chooser)
    assert "press Train" in bench.prior.about.text()
    transport = train(window, {"kind": "wasserstein"} | QUICK_TRANSPORT)
    assert bench.prior.plot.points == {}, "the curve of the other prior is gone"
    window.press(bench.result.run)
    window.wait()
    shown = bench.runs.history.shown
    assert shown is not None, bench.message.text()
    assert shown.metadata["napari-invprior"]["recipe"]["prior"]["kind"] == "wasserstein"

    bench.prior.chooser.list.choose("patchnr")
    window.settle(0.1)
    assert bench.prior.prior is first
    assert bench.prior.plot.points == curve, "what was seen of its training is back"
    assert bench.prior.gallery.count == generated
    assert bench.result.weight_value() == 0.03
    assert bench.prior.chooser.choice() == TINY_PRIOR
    assert bench.prior.about.text().startswith("trained")
    bench.prior.chooser.form.set_values(TINY_PRIOR | {"kind": None, "hidden": 16})
    assert "Train begins anew" in bench.prior.about.text()
    bench.prior.chooser.list.choose("wasserstein")
    assert bench.prior.prior is transport
    window.press(bench.prior.restart)
    assert not bench.prior.fitted
    bench.prior.chooser.list.choose("patchnr")
    assert bench.prior.prior is first


def test_the_solver_follows_the_prior_until_it_is_chosen(window):
    prior, solver = window.bench.prior.chooser, window.bench.result.solver
    for name, wanted in (("wppnet", "direct"), ("wasserstein", "variational"),
                         ("pca_gmm", "direct"), ("gmm", "variational")):
        prior.list.choose(name)
        assert solver.name == wanted, name
    solver.list.choose("half_quadratic")
    prior.list.choose("wppnet")
    assert solver.name == "half_quadratic"


def test_switching_the_physics_keeps_what_still_fits(window):
    window.add_small()
    window.pick_small()
    bench = window.bench
    psf = np.outer(*[np.array([1.0, 2, 1]) / 4] * 2)
    window.viewer.add_image(psf, name="kernel", translate=(0, -5))
    window.viewer.add_labels(np.ones((32, 32), np.uint8), name="observed")
    bench.data.noise.form.set_values({"sigma": 0.02})
    physics = bench.data.physics
    physics.choose({"kind": "superresolution", "factor": 2, "psf": {"layer": "kernel"},
                    "boundary": "circular"})
    window.settle()
    before = kept(bench)
    for name in PHYSICS:
        physics.list.choose(name)
        window.settle(0.1)
        assert kept(bench) == before, name
        fits(window, physics)
        assert ("factor" in physics.form.editors) == (name == "superresolution")
        if "psf" in physics.form.editors:
            assert physics.choice()["psf"] == {"layer": "kernel"}, name
            assert physics.choice()["boundary"] == "circular", name
        if name == "inpainting":
            assert "mask" in bench.data.problem()
            physics.choose({"kind": name, "mask": {"layer": "observed"}})
        assert bench.data.problem() == "", name
    physics.list.choose("superresolution")
    assert physics.choice()["factor"] == 2
    assert bench.data.about.text().startswith("32 × 32 → 64 × 64")


def test_what_does_not_fit_the_new_form_is_left_behind(qtbot):
    chooser = MethodChooser("prior", "tip")
    qtbot.addWidget(chooser)
    mixture = {"kind": "gmm", "patch_size": 2, "steps": 7, "symmetries": "on"}
    chooser.choose(mixture)
    chooser.list.choose("adversarial")  # patches of at least 3 px
    assert chooser.choice() == {"kind": "adversarial"}
    chooser.list.choose("wasserstein")
    assert chooser.choice() == {"kind": "wasserstein"}
    chooser.list.choose("gmm")
    assert chooser.choice() == mixture
    chooser.list.choose("wasserstein")
    assert chooser.choice() == {"kind": "wasserstein", "patch_size": 2, "symmetries": True}
    chooser.list.choose("gmm")
    assert chooser.choice() == mixture
    chooser.form.editors["patch_size"].widget.setText("none")
    chooser.list.choose("wasserstein")
    assert chooser.form.fault.isHidden()


@pytest.mark.parametrize("kind", ["wasserstein", "semi_unbalanced"])
def test_maps_open_beside_the_result_and_can_be_read(window, kind):
    window.add_small()
    window.pick_small()
    bench, layers = window.bench, window.viewer.layers
    train(window, {"kind": kind} | QUICK_TRANSPORT)
    bench.result.maps.setChecked(True)
    notification_manager.records.clear()
    window.press(bench.result.run)
    window.wait()
    result = bench.runs.history.shown
    assert result is not None, bench.message.text()
    heat, index = layers["transport_cost 1"], layers["nearest_reference 1"]
    assert type(heat) is Image and type(index) is Labels
    for layer in (heat, index):
        assert layer.data.shape == result.data.shape
        assert np.allclose(layer.extent.world, result.extent.world)
        assert layer.units == result.units
        assert not layer.visible
        assert layers.index(layer) < layers.index(result)
    assert layers.selection.active is result

    # readable: of its own range and in colours; every place names a patch that exists
    low, high = heat.contrast_limits
    values = np.clip((heat.data - low) / (high - low), 0, 1)
    assert np.ptp(np.percentile(values, (10, 90))) > 0.2
    assert heat.colormap.name == "inferno"
    assert index.data.min() >= 1
    assert index.data.max() <= QUICK_TRANSPORT["reference_patches"]

    # they are no results, no data, no regions, and go as any layer does
    assert [layer.name for layer in bench.runs.history.results()] == [result.name]
    references = bench.references.part()
    layers.selection.active = index
    window.settle()
    assert bench.references.part() == references
    offered = [bench.data.observation.itemText(i) for i in range(bench.data.observation.count())]
    assert "transport_cost 1" not in offered
    layers.remove(index)
    window.press(bench.result.again)
    window.wait()
    assert {"nearest_reference 1", "transport_cost 2"} <= {layer.name for layer in layers}
    layers.remove(result)
    assert bench.result.shown.text() == "reconstruction 2"


def test_a_small_view_is_told_of_the_semi_unbalanced_form(window):
    """The proposal comes first, because a notification shows the beginning of a sentence."""
    window.add_small()
    window.pick_small()
    bench = window.bench
    for kind, told in (("wasserstein", True), ("semi_unbalanced", False)):
        train(window, {"kind": kind} | QUICK_TRANSPORT)
        notification_manager.records.clear()
        window.press(bench.result.run)
        window.wait()
        notes = [note.message for note in notification_manager.records]
        assert any(n.startswith("choose the semi-unbalanced form") for n in notes) == told, notes
        if told:
            window.settle(0.1)
            assert "semi-unbalanced" in bench.message.text() + bench.message.toolTip()
    title = registry.get("prior", "semi_unbalanced").title
    assert title.startswith("Semi-unbalanced"), "the words of the warning are found in the list"


@pytest.mark.parametrize("method", registry.methods(), ids=lambda m: f"{m.kind}-{m.name}")
def test_lists_say_automatic_and_boxes_have_one_label(qtbot, method):
    form = Form(method.parameters)
    qtbot.addWidget(form)
    assert all("--" not in box.currentText() for box in form.findChildren(QComboBox))
    assert all(box.text() == "" for box in form.findChildren(QCheckBox))


def test_the_pictures_of_step_3_say_what_they_are_and_no_curve_is_shown_where_there_is_none(window):
    window.add_small()
    bench = window.bench
    for method in registry.methods("prior"):
        bench.prior.chooser.list.choose(method.name)
        window.settle(0.05)
        gallery, plot = bench.prior.gallery, bench.prior.plot
        assert gallery.toolTip().startswith(method.cls.previews), method.name
        assert plot.isVisible() == method.cls.optimises, method.name
        left = plot.width() if method.cls.optimises else 0
        assert gallery.width() > 0.9 * (gallery.parentWidget().width() - left - 24), method.name
    learnt = {m.cls.previews for m in registry.methods("prior") if m.needs_references}
    assert len(learnt) == 4, "generated, met, compared and made patches are told apart"
    assert registry.get("prior", "wppnet").cls.optimises, "a network learns"
    assert not registry.get("prior", "sinkhorn").cls.optimises


def test_the_truth_of_another_operator_is_left_out_and_a_fault_does_not_outlive_its_cause(window):
    window.add_small()
    bench = window.bench
    window.viewer.add_image(np.zeros((64, 64), np.float32), name="truth", visible=False)
    window.settle()
    bench.data.truth.choose("truth")
    assert bench.data.part()["truth"] == {"layer": "truth"}
    assert "truth" not in bench.data.about.text()
    bench.data.physics.choose({"kind": "denoising"})
    assert bench.data.part()["truth"] is None, "denoising leaves 32 x 32"
    assert "truth left out" in bench.data.about.text()
    bench.result.about.say("it failed", FAULT)
    bench.data.refresh()
    assert bench.result.about.text() == "it failed", "nothing else was asked for"
    bench.data.physics.choose({"kind": "superresolution", "factor": 2})
    window.settle()
    assert bench.result.about.text() != "it failed"
    assert bench.data.part()["truth"] == {"layer": "truth"}


def test_every_noise_model_fits_into_the_dock(window):
    window.add_small()
    bench = window.bench
    inner, noise = bench.data.parentWidget(), bench.data.noise
    for method in registry.methods("noise"):
        noise.list.choose(method.name)
        window.settle(0.1)
        assert inner.width() <= bench.scroll.viewport().width(), method.name
        shown = [e.widget for e in noise.form.editors.values() if e.widget.isVisible()]
        assert shown, method.name
        for widget in (*shown, noise.list):
            right = widget.mapTo(inner, widget.rect().topRight()).x()
            assert right <= inner.width(), method.name
        text = noise.list.fontMetrics().horizontalAdvance(method.title)
        assert noise.list.width() > text + 36, f"{method.title} is cut off"


def test_pressing_a_button_brings_its_progress_into_view(window):
    window.add_small()
    window.pick_small()
    bench = window.bench
    window.viewer.window.resize(1000, 500)
    bench.prior.chooser.gear.setChecked(True)
    window.settle()
    for panel, button in ((bench.prior, bench.prior.train), (bench.result, bench.result.run)):
        bench.scroll.verticalScrollBar().setValue(0)
        button.click()
        window.wait()
        window.settle(0.1)
        top = panel.about.mapTo(bench.scroll.viewport(), panel.about.rect().topLeft()).y()
        bottom = panel.about.mapTo(bench.scroll.viewport(), panel.about.rect().bottomLeft()).y()
        assert 0 <= top < bottom <= bench.scroll.viewport().height()
