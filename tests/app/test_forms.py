"""Forms made of declarations: values, bounds, reset, gear, axes."""

from __future__ import annotations

import pytest
from qtpy.QtCore import QLocale

from napari_invprior import registry
from napari_invprior.app.widgets.controls import MethodChooser
from napari_invprior.app.widgets.forms import AxesEditor, Form, LayerEditor, TextEditor, ValueEditor
from napari_invprior.errors import InvalidInput
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.physics.superresolution import SuperResolutionParameters

pytestmark = pytest.mark.gui


@pytest.fixture
def form(qtbot):
    made = Form(SuperResolutionParameters, layers=lambda: ["a", "b"])
    qtbot.addWidget(made)
    return made


@pytest.mark.parametrize("method", registry.methods(), ids=lambda m: f"{m.kind}-{m.name}")
def test_untouched_form_is_the_default_of_every_method(qtbot, method):
    made = Form(method.parameters)
    qtbot.addWidget(made)
    assert made.value() == method.parameters()
    assert made.chosen() == {}
    assert made.fault.isHidden()


def test_controls_by_kind(form):
    kinds = {name: type(editor) for name, editor in form.editors.items()}
    assert kinds["factor"] is AxesEditor
    assert kinds["blur_sigma"] is TextEditor
    assert kinds["boundary"] is ValueEditor
    assert kinds["psf"] is LayerEditor
    assert form.editors["factor"].boxes[0].max == 16


def test_one_number_per_axis(form):
    factor = form.editors["factor"]
    factor.split.setChecked(True)
    factor.boxes[1].value = 2
    assert form.chosen() == {"factor": [4, 2]}
    assert form.value().factor == (4, 2)
    factor.split.setChecked(False)
    assert form.chosen() == {}
    form.set_values({"factor": [3, 5]})
    assert form.value().factor == (3, 5)
    with pytest.raises(InvalidInput, match="2 axes"):
        form.set_values({"factor": [1, 2, 3]})


def test_empty_is_automatic_and_faults_are_said_in_place(form):
    text = form.editors["blur_sigma"].widget
    assert text.placeholderText() == "automatic"
    text.setText("2.5")
    assert form.chosen() == {"blur_sigma": 2.5}
    text.setText("99")
    assert not form.fault.isHidden()
    assert "less than or equal to 64" in form.fault.text()
    text.setText("two")
    assert "'two'" in form.fault.text()
    with pytest.raises(InvalidInput):
        form.value()
    text.setText("")
    assert form.fault.isHidden()


def test_reset_restores_the_default_and_hides_itself(form):
    button = form._resets["factor"]
    assert button.isHidden()
    form.editors["factor"].boxes[0].value = 7
    assert not button.isHidden()
    button.click()
    assert form.chosen() == {}
    assert button.isHidden()


def test_layers_are_offered_and_forgotten(qtbot):
    names = ["a", "b"]
    made = Form(SuperResolutionParameters, layers=lambda: names)
    qtbot.addWidget(made)
    made.set_values({"psf": {"layer": "b"}})
    assert made.value().psf.layer == "b"
    names.remove("b")
    made.refresh_layers()
    assert made.chosen() == {}


def test_gear_folds_what_is_seldom_needed(qtbot):
    chooser = MethodChooser("physics", "tip")
    qtbot.addWidget(chooser)
    assert chooser.form.advanced.isHidden()
    chooser.gear.setChecked(True)
    assert not chooser.form.advanced.isHidden()
    chooser.list.choose("denoising")
    assert chooser.gear.isHidden()
    assert chooser.choice() == {"kind": "denoising"}
    with pytest.raises(InvalidInput, match="no physics"):
        chooser.choose({"kind": "alchemy"})


def test_numbers_are_shown_with_a_point_in_a_german_desktop(qtbot):
    class Demo(Parameters):
        share: float = parameter(0.25, "A share.", ge=0, le=1)

    before = QLocale()
    QLocale.setDefault(QLocale("de_DE"))
    try:
        made = Form(Demo)
        qtbot.addWidget(made)
        assert made.editors["share"].widget.text() == "0.25"
    finally:
        QLocale.setDefault(before)


def test_small_and_large_numbers_are_typed_not_rounded(qtbot):
    class Demo(Parameters):
        tiny: float = parameter(1e-5, "Tiny.", ge=0)
        switch: bool | None = parameter(None, "Three states.")

    made = Form(Demo)
    qtbot.addWidget(made)
    assert made.value().tiny == 1e-5
    made.set_values({"tiny": 2.5e-7, "switch": True})
    assert made.value() == Demo(tiny=2.5e-7, switch=True)
