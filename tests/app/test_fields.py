"""What forms read from the declarations."""

from __future__ import annotations

from typing import Literal

import pytest

from napari_invprior import registry
from napari_invprior.app.widgets.fields import fields
from napari_invprior.errors import InvalidInput
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.physics.superresolution import SuperResolutionParameters


def by_name(model):
    return {field.name: field for field in fields(model)}


def test_declaration_is_read():
    found = by_name(SuperResolutionParameters)
    factor = found["factor"]
    assert (factor.kind, factor.low, factor.high, factor.per_axis) == ("int", 1, 16, True)
    assert not factor.optional
    sigma = found["blur_sigma"]
    assert (sigma.kind, sigma.low, sigma.high, sigma.optional) == ("float", 0, 64, True)
    assert found["boundary"].choices == ("reflect", "circular", "valid")
    assert found["psf"].kind == "layer"
    assert found["pixel_average"].kind == "bool"
    assert found["kernel_size"].advanced
    assert not factor.advanced


def test_tooltip_has_description_unit_and_range():
    tip = by_name(SuperResolutionParameters)["blur_sigma"].tooltip
    assert "Standard deviation" in tip
    assert "fine px" in tip
    assert "0 to 64" in tip


def test_constraints_inside_tuples_and_optional_switches():
    class Demo(Parameters):
        above: float = parameter(0.5, "Open below.", gt=0, lt=1)
        switch: bool | None = parameter(None, "Three states.")
        mode: Literal["a", "b"] | None = parameter(None, "Choice or nothing.")

    found = by_name(Demo)
    assert found["above"].open_low
    assert found["switch"].kind == "choice"
    assert found["switch"].choices == (True, False)
    assert found["mode"].optional


@pytest.mark.parametrize(
    ("text", "value"), [("", None), ("2", 2.0), ("1.5, 2, 2", [1.5, 2.0, 2.0]), (" 3 ", 3.0)]
)
def test_numbers_are_read_with_a_point_in_any_language(text, value):
    assert by_name(SuperResolutionParameters)["blur_sigma"].parse(text) == value


def test_faulty_numbers_are_refused_by_name():
    field = by_name(SuperResolutionParameters)["blur_sigma"]
    with pytest.raises(InvalidInput, match=r"blur sigma = '1;5'.*number such as 0.5"):
        field.parse("1;5")
    single = by_name(registry.get("noise", "gaussian").parameters)["sigma"]
    with pytest.raises(InvalidInput, match="decimal mark is"):
        single.parse("0,01")


@pytest.mark.parametrize("method", registry.methods(), ids=lambda m: f"{m.kind}-{m.name}")
def test_text_and_parse_are_inverse_for_every_default(method):
    for field in fields(method.parameters):
        assert field.description, field.name
        if field.kind in ("int", "float") and field.default is not None:
            parsed = field.parse(field.text(field.default))
            assert parsed == (list(field.default) if isinstance(field.default, tuple)
                              else field.default)
