"""Every form at its bounds: a recipe runs its first step, or is refused with a reason."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_invprior import registry
from napari_invprior.errors import InvPriorError, JobError
from napari_invprior.io.arrays import image_from_array
from napari_invprior.jobs import Progress, Result
from napari_invprior.recipes import run
from napari_invprior.recipes.model import Recipe

FREE_BYTES = 200_000_000

STEP_S = 0.3
"""How long a run goes on after its first sign of progress."""

SMOOTH = np.add.outer(np.sin(np.arange(40) / 3), np.cos(np.arange(44) / 4)) / 4 + 0.5
VOLUME = (SMOOTH[:14, :15, None] + SMOOTH[None, :15, :13]) / 2


def texture(ndim: int) -> np.ndarray:
    image = SMOOTH if ndim == 2 else VOLUME
    grain = np.random.default_rng(0).normal(0, 0.05, image.shape)
    return (image + grain).astype(np.float32)


# ---- strategies from a form's own schema


def drawn_from(schema: Mapping[str, Any], ndim: int) -> st.SearchStrategy[Any]:
    """Values that the schema of one field allows; its bounds more often than not."""
    if "anyOf" in schema:
        parts = [drawn_from(part, ndim) for part in schema["anyOf"] if "$ref" not in part]
        return st.one_of(parts)
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "null":
        return st.none()
    if kind == "boolean":
        return st.booleans()
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items", {"type": "number"})] * ndim
        return st.tuples(*(drawn_from(item, ndim) for item in items)).map(list)
    low = schema.get("minimum", schema.get("exclusiveMinimum", -1000))
    high = schema.get("maximum", schema.get("exclusiveMaximum", 1000))
    if kind == "integer":
        high -= "exclusiveMaximum" in schema
        low += "exclusiveMinimum" in schema
        usual = st.integers(low, min(high, low + 12))
        return st.one_of(st.sampled_from([low, high]), usual, st.integers(low, high))
    strictly = {
        "exclude_min": "exclusiveMinimum" in schema, "exclude_max": "exclusiveMaximum" in schema
    }
    usual = st.floats(low, min(high, max(low + 1e-3, 1.0)), **strictly)
    ends = [v for v, out in zip((low, high), strictly.values(), strict=True) if not out]
    return st.one_of(usual, *([st.sampled_from(ends)] if ends else []))


def choice(method: registry.Method, ndim: int) -> st.SearchStrategy[dict[str, Any]]:
    """The method with some of its parameters set."""
    fields = method.parameters.model_json_schema().get("properties", {})
    optional = {
        name: drawn_from(schema, ndim)
        for name, schema in fields.items()
        if "$ref" not in str(schema)
    }
    return st.fixed_dictionaries({"kind": st.just(method.name)}, optional=optional)


def starts_or_is_refused(recipe: Mapping[str, Any], ndim: int) -> str:
    """Run until the first step is done; the reason of the refusal, or an empty string."""
    began: list[float] = []
    arrays = {
        name: image_from_array(texture(ndim), name=name, ndim=ndim)
        for name in ("image", "reference")
    }

    def stop() -> bool:
        return bool(began) and time.monotonic() > began[0] + STEP_S

    result = None
    try:
        for event in run(Recipe.parse(recipe), arrays=arrays, should_stop=stop):
            if isinstance(event, Progress) and not began:
                began.append(time.monotonic())
            if isinstance(event, Result):
                result = event.value
    except InvPriorError as error:
        if isinstance(error, JobError) and error.__cause__ is not None:
            raise AssertionError(f"not foreseen: {error}") from error
        assert str(error).strip()
        return str(error)
    for layer in () if result is None else result.layers:
        assert np.isfinite(layer.array).all(), layer.name
    return ""


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little free memory, so that what is too large is refused rather than computed."""
    free = SimpleNamespace(available=FREE_BYTES)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)


def each(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("method", "ndim"),
        [
            pytest.param(m, n, id=f"{m.name}-{n}d")
            for m in registry.methods(kind)
            for n in m.dimensions
        ],
    )


BASE: dict[str, Any] = {
    "observation": {"layer": "image"},
    "physics": {"kind": "superresolution", "factor": 2, "blur_sigma": 0.5},
    "prior": None,
    "solver": {"kind": "total_variation", "weight": 0.1, "iterations": 2},
}

MANY = settings(max_examples=12, suppress_health_check=list(HealthCheck))


@MANY
@each("prior")
@given(data=st.data())
def test_priors_at_their_bounds(method: registry.Method, ndim: int, data: st.DataObject) -> None:
    prior = data.draw(choice(method, ndim))
    direct = hasattr(method.cls, "estimate")
    solver = {"kind": "direct"} if direct else {"kind": "variational", "weight": 1, "iterations": 1}
    recipe = BASE | {"references": [{"layer": "reference"}], "prior": prior, "solver": solver}
    starts_or_is_refused(recipe, ndim)


@MANY
@each("physics")
@given(data=st.data())
def test_physics_at_their_bounds(method: registry.Method, ndim: int, data: st.DataObject) -> None:
    physics = data.draw(choice(method, ndim))
    if method.name == "tomography":  # any other number is refused at once
        physics["angle_count"] = texture(ndim).shape[-2]
    starts_or_is_refused(BASE | {"physics": physics}, ndim)


@MANY
@each("noise")
@given(data=st.data())
def test_noises_at_their_bounds(method: registry.Method, ndim: int, data: st.DataObject) -> None:
    starts_or_is_refused(BASE | {"noise": data.draw(choice(method, ndim))}, ndim)


@MANY
@each("solver")
@given(data=st.data())
def test_solvers_at_their_bounds(method: registry.Method, ndim: int, data: st.DataObject) -> None:
    prior = {"kind": "gmm", "components": 2, "patch_size": 3, "steps": 1}
    if method.name == "direct":
        prior = {"kind": "pca_gmm", "components": 2, "patch_size": 3, "rank": 2, "steps": 1}
    recipe = BASE | {
        "references": [{"layer": "reference"}], "prior": prior,
        "solver": data.draw(choice(method, ndim)),
    }
    starts_or_is_refused(recipe, ndim)
