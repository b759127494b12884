"""One run as the window asks for it: a recipe, copies of its layers, a prior (no Qt)."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Layer

from napari_invprior.app.viewer.layers import (
    Snapshot,
    layer_named,
    layer_or_none,
    preview_array,
    preview_geometry,
)
from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.image import Image
from napari_invprior.io.images import load
from napari_invprior.io.raw import Raw
from napari_invprior.jobs import Event, Preview, ShouldStop

MAX_PREVIEW = 64_000_000
"""Samples of a preview that is still shown; larger ones would freeze the window."""


@dataclass(frozen=True)
class PlacedPreview:
    """An intermediate image as a layer: samples in the user's numbers, and where they lie."""

    array: np.ndarray
    geometry: Geometry
    rgb: bool


@dataclass
class Request:
    """Everything a worker needs; nothing in it changes when the user goes on working.

    Attributes
    ----------
    recipe : dict
        Plain data for `recipes.run`.
    snapshots : dict
        The layers the recipe names.
    prior : Prior or None
        A prior to use or to train on.
    """

    recipe: dict[str, Any]
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    prior: Any = None

    @property
    def observation(self) -> Snapshot | None:
        """The observed layer."""
        source = self.recipe.get("observation") or {}
        return self.snapshots.get(source.get("layer", ""))

    def job(self, should_stop: ShouldStop) -> Iterator[Event]:
        """Events of the run; runs in the worker thread."""
        from napari_invprior import recipes

        images: dict[str, Image | Raw] = {
            name: snapshot.raw() if snapshot.is_lazy else snapshot.image()
            for name, snapshot in self.snapshots.items()
        }
        recipe = recipes.parse(self.recipe)
        observed = self.observation is not None and recipe.observation is not None
        image = load(recipe.observation, images) if observed else None
        exact = result_grid(self.recipe["physics"], image) if image is not None else None
        for event in recipes.run(
            recipe, arrays=images, prior=self.prior, should_stop=should_stop,
            folder=samples_folder(recipe, image, exact),
        ):
            if not isinstance(event, Preview) or event.kind == "patches":
                yield event
            elif event.stage in ("reconstruct", "sample") and image is not None:
                # pieces that are looked at while the weight is chosen are not the image
                yield from _placed(event, image, exact)

    def changes(self, viewer: ViewerModel) -> list[str]:
        """Sentences about layers that were removed, moved or edited since."""
        found = []
        for name, snapshot in self.snapshots.items():
            sentence = snapshot.differs(layer_or_none(viewer, name))
            if sentence:
                found.append(sentence)
        return found


def _placed(
    event: Preview, image: Image, exact: tuple[tuple[int, ...], Geometry] | None
) -> Iterator[Event]:
    """The preview as a `PlacedPreview`; mean and deviation of a posterior as a pair of them."""
    values = np.asarray(event.array)
    if values.size > MAX_PREVIEW:
        return
    if event.kind == "posterior":
        low, high = event.value_range or image.value_range
        mean = _laid_out(values[0], image, (low, high), exact)
        yield Preview("posterior", (mean, _laid_out(values[1], image, (0.0, high - low), exact)),
                      event.stage)
    else:
        shown = _laid_out(values, image, event.value_range or image.value_range, exact)
        yield Preview("image", shown, event.stage)


def _laid_out(
    values: np.ndarray, image: Image, value_range: tuple[float, float],
    exact: tuple[tuple[int, ...], Geometry] | None,
) -> PlacedPreview:
    space = values.shape[2:]
    geometry = exact[1] if exact is not None and exact[0] == space else None
    return PlacedPreview(
        preview_array(values, image, value_range), preview_geometry(space, image, geometry),
        image.rgb,
    )


def samples_folder(
    recipe: Any, image: Image | None, exact: tuple[tuple[int, ...], Geometry] | None
) -> Path | None:
    """A folder until the session ends, for samples that memory has no room for; else None."""
    from napari_invprior.recipes.sample import fits_in_memory

    if recipe.task != "sample" or image is None or exact is None:
        return None
    shape = (*image.array.shape[:2], *exact[0])
    if fits_in_memory(recipe.sampler.parameters.samples, shape):
        return None
    folder = Path(tempfile.mkdtemp(prefix="invprior-samples-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def result_grid(
    physics: Mapping[str, Any], image: Image
) -> tuple[tuple[int, ...], Geometry] | None:
    """Shape and placement of the result; None where only a run can tell (masks, PSFs)."""
    return grid_for(physics, image.space, image.geometry)


def grid_for(
    physics: Mapping[str, Any], space: tuple[int, ...], geometry: Geometry
) -> tuple[tuple[int, ...], Geometry] | None:
    """`result_grid` from a shape and a placement."""
    from napari_invprior import registry
    from napari_invprior.parameters import validate

    given = {key: value for key, value in physics.items() if key != "kind"}
    method = registry.get("physics", physics["kind"])
    try:
        operator = method.cls(validate(method.parameters, given), len(space)).bound_to(space)
        return tuple(operator.in_shape(space)), operator.grid(geometry)
    except InvalidInput:
        return None


def named_layers(recipe: Mapping[str, Any]) -> list[str]:
    """Names of all layers that a recipe reads."""
    found: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, Mapping):
            name = node.get("layer")
            if isinstance(name, str) and name not in found:
                found.append(name)
            for value in node.values():
                visit(value)
        elif isinstance(node, list | tuple):
            for value in node:
                visit(value)

    visit(recipe)
    return found


def request(
    viewer: ViewerModel, recipe: dict[str, Any], prior: Any, ndim: int
) -> Request:
    """Copy the layers that a recipe names.

    Raises
    ------
    InvalidInput
        If a layer is gone.
    """
    layers: list[Layer] = [layer_named(viewer, name) for name in named_layers(recipe)]
    wanted = Request(recipe, {layer.name: Snapshot.of(layer, ndim) for layer in layers}, prior)
    if wanted.observation is not None and not same_units(recipe.get("physics")):
        wanted.observation.display.pop("contrast_limits", None)
    return wanted


def same_units(physics: Mapping[str, Any] | None) -> bool:
    """Whether a result is shown with the contrast of its data.

    Not where those are integrals or on another brightness scale.
    """
    from napari_invprior import registry

    if physics is None:
        return True
    rescaled = physics.get("gain") is not None or physics.get("offset") is not None
    return registry.get("physics", physics["kind"]).cls.same_units and not rescaled
