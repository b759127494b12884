"""Layers in, layers out: what the engine gets of a layer, and where its results lie (no Qt)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image as ImageLayer
from napari.layers import Labels, Layer

from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.image import Image, denormalised
from napari_invprior.io.arrays import image_from_array
from napari_invprior.io.raw import Raw

FRAME_WORDS = ("t", "time", "frame", "frames", "position", "p")
CHANNEL_WORDS = ("c", "channel", "channels", "ch")
META = "napari-invprior"
"""Key of our own facts in a layer's metadata."""
PREVIEW, COARSE = "preview", "coarse"
"""Roles of layers that only stand for another image, and go when they are no longer needed."""
SHOWN = (1.0, 99.0)
"""Percentiles of a map's values that its colours span."""


def geometry_of(layer: Layer) -> Geometry:
    """Placement of all axes of a layer."""
    return Geometry(
        scale=tuple(float(s) for s in layer.scale),
        translate=tuple(float(t) for t in layer.translate),
        units=tuple(str(u) for u in layer.units),
        axis_labels=tuple(layer.axis_labels),
        rotate=np.array(layer.rotate),
        shear=np.array(layer.shear),
        affine=np.array(layer.affine.affine_matrix),
    )


def same_place(first: Geometry, second: Geometry) -> bool:
    """Whether two placements agree."""
    numbers = [
        np.concatenate([np.ravel(np.asarray(v, float)) for v in
                        (g.scale, g.translate, g.rotate, g.shear, g.affine)])
        for g in (first, second)
    ]
    return numbers[0].shape == numbers[1].shape and bool(np.allclose(*numbers))


def is_lazy(layer: Layer) -> bool:
    """Whether reading the samples may take long (dask, zarr, files on disk)."""
    return not isinstance(finest(layer), np.ndarray)


def finest(layer: Layer) -> Any:
    """The samples at full resolution, not yet read."""
    return layer.data[0] if getattr(layer, "multiscale", False) else layer.data


def channel_axis_of(layer: Layer) -> int | None:
    """The axis that the layer's labels call channels."""
    words = [str(label).lower() for label in layer.axis_labels]
    found = [axis for axis, word in enumerate(words) if word in CHANNEL_WORDS]
    return found[0] if len(found) == 1 and not getattr(layer, "rgb", False) else None


def possible_dimensions(layer: Layer) -> tuple[int, ...]:
    """Space dimensions that a layer may be read with, the likeliest first."""
    words = [str(label).lower() for label in layer.axis_labels]
    channel = channel_axis_of(layer)
    axes = [axis for axis in range(layer.ndim) if axis != channel]
    shape = finest(layer).shape
    if len(axes) < 3 or getattr(layer, "rgb", False) or shape[axes[-3]] == 1:
        return (2,)
    return (2, 3) if words[axes[-3]] in FRAME_WORDS else (3, 2)


@dataclass(frozen=True)
class Snapshot:
    """A layer as it was when a job began; edits during the run do not reach the job.

    Attributes
    ----------
    name : str
        Name of the layer then.
    data : object
        Samples: a copy of an array in memory; lazy data as they are, read in the worker.
    geometry : Geometry
        Placement of all axes.
    ndim : int
        Space axes.
    rgb : bool
        Whether the last axis holds colours.
    channel_axis : int or None
        Axis of the channels.
    display : dict
        Contrast limits, colour map and so on, for the results.
    """

    name: str
    data: Any
    geometry: Geometry
    ndim: int
    rgb: bool = False
    channel_axis: int | None = None
    display: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, layer: Layer, ndim: int) -> Snapshot:
        """Copy what may change; called in the window's thread."""
        data = finest(layer)
        display = {}
        if isinstance(layer, ImageLayer) and not layer.rgb:
            display = {
                "contrast_limits": tuple(layer.contrast_limits),
                "colormap": layer.colormap.name,
                "gamma": layer.gamma,
                "interpolation2d": layer.interpolation2d,
            }
        return cls(
            name=layer.name,
            data=data.copy() if isinstance(data, np.ndarray) else data,
            geometry=geometry_of(layer),
            ndim=ndim,
            rgb=bool(getattr(layer, "rgb", False)),
            channel_axis=channel_axis_of(layer),
            display=display,
        )

    @property
    def is_lazy(self) -> bool:
        """Whether the samples are still to be read."""
        return not isinstance(self.data, np.ndarray)

    def raw(self) -> Raw:
        """Lazy samples, of which the engine reads what it needs."""
        axes = list(range(len(self.geometry.scale)))
        kept = [axis for axis in axes if self.rgb or axis != self.channel_axis]
        space = kept[-self.ndim :]
        letters = ["T"] * (len(axes) + int(self.rgb))
        for axis, letter in zip(space, "ZYX"[-self.ndim :], strict=True):
            letters[axis] = letter
        if self.rgb:
            letters[-1] = "S"
        elif self.channel_axis is not None:
            letters[self.channel_axis] = "C"
        return Raw(self.data, labels="".join(letters), geometry=subset(self.geometry, space))

    def image(self) -> Image:
        """The samples as the engine wants them; reads lazy data (called in the worker).

        Raises
        ------
        InvalidInput
            If the layer is no image that can be used.
        """
        axes = range(len(self.geometry.scale))
        channel = None if self.rgb else self.channel_axis
        kept = [axis for axis in axes if axis != channel]
        return image_from_array(
            np.asarray(self.data), name=self.name, geometry=subset(self.geometry, kept),
            rgb=self.rgb, channel_axis=channel, ndim=self.ndim,
        )

    def differs(self, layer: Layer | None) -> str:
        """What happened to the layer since; empty when nothing did."""
        if layer is None:
            return f"{self.name!r} was removed during the run; the result shows it as it was before"
        if not same_place(self.geometry, geometry_of(layer)):
            return f"{layer.name!r} was moved or rescaled during the run; the result was not"
        data = finest(layer)
        if isinstance(data, np.ndarray) and not np.array_equal(
            data, self.data, equal_nan=data.dtype.kind == "f"
        ):
            return f"{layer.name!r} was edited during the run; the result shows it as it was before"
        return ""


def image_from_layer(layer: Layer, ndim: int | None = None) -> Image:
    """A layer as the engine wants it, for scripts in napari's console.

    Parameters
    ----------
    layer : Layer
        An image or label layer; of a multiscale one the finest level.
    ndim : int, optional
        Space axes; guessed from the axis labels and the shape.
    """
    return Snapshot.of(layer, ndim or possible_dimensions(layer)[0]).image()


def subset(geometry: Geometry, axes: list[int]) -> Geometry:
    """Placement along some of the axes."""
    total = len(geometry.scale)
    if len(axes) == total:
        return geometry
    upper = np.eye(total)
    upper[np.triu_indices(total, 1)] = np.ravel(geometry.shear)
    labels, units = geometry.axis_labels, geometry.units
    return Geometry(
        scale=tuple(geometry.scale[a] for a in axes),
        translate=tuple(geometry.translate[a] for a in axes),
        units=None if units is None else tuple(units[a] for a in axes),
        axis_labels=None if labels is None else tuple(labels[a] for a in axes),
        rotate=np.asarray(geometry.rotate)[np.ix_(axes, axes)],
        shear=upper[np.ix_(axes, axes)][np.triu_indices(len(axes), 1)],
        affine=np.asarray(geometry.affine)[np.ix_([*axes, -1], [*axes, -1])],
    )


def placed(result: Geometry, source: Snapshot, ndim: int) -> dict[str, Any]:
    """Keyword arguments that put a result of ``ndim`` axes onto its source.

    The space axes lie where the engine says; frames and channels lie as in the source.
    """
    whole, count = source.geometry, len(result.scale)
    if ndim < len(whole.scale):  # a volume of one slice became an image
        whole = subset(whole, list(range(len(whole.scale) - ndim, len(whole.scale))))
    stack = ndim - len(whole.scale)  # axes of samples, in front of those of the source
    lead = ndim - count - stack
    scale = (*(1.0,) * stack, *whole.scale[:lead], *result.scale)
    translate = (*(0.0,) * stack, *whole.translate[:lead], *result.translate)
    labels = whole.axis_labels
    if labels is not None and stack:
        labels = (*(f"sample {k}" if k else "sample" for k in range(stack)), *labels)
    # napari leaves the leading axes of smaller matrices as they are
    return {
        "scale": scale,
        "translate": translate,
        "rotate": whole.rotate,
        "shear": whole.shear,
        "affine": whole.affine,
        "units": None if whole.units is None else ("pixel",) * stack + tuple(whole.units),
        "axis_labels": labels,
    }


def placed_alone(result: Geometry, ndim: int) -> dict[str, Any]:
    """Keyword arguments that place a result of ``ndim`` axes whose source is no layer."""
    lead = ndim - len(result.scale)
    return {
        "scale": (*(1.0,) * lead, *result.scale),
        "translate": (*(0.0,) * lead, *result.translate),
        # napari leaves the leading axes of smaller matrices as they are
        "rotate": result.rotate,
        "shear": result.shear,
        "affine": result.affine,
        "units": ("pixel",) * lead + result.units if result.units else None,
    }


def result_layer(
    array: Any, geometry: Geometry, source: Snapshot | None, *, name: str,
    rgb: bool = False, kind: str = "image", metadata: dict[str, Any] | None = None,
    unit: str = "image", limits: tuple[float, float] | None = None,
) -> Layer:
    """A layer that lies exactly on the observation it came from, or where a file was.

    Contrast and colours are those of the observation where the ``unit`` is (see `OutputLayer`);
    values of another unit are shown as heat. With ``limits`` samples are not looked at: they may
    be a pyramid (a list of arrays) on disk that is still to be filled.
    """
    pyramid = isinstance(array, list)
    ndim = (array[0] if pyramid else array).ndim - int(rgb)
    display: Mapping[str, Any] = {}
    if unit == "image":
        display = {} if source is None else source.display
        if limits is not None:
            display = {"contrast_limits": limits} | dict(display)
    elif kind == "image" and not rgb:
        display = {"colormap": "inferno"} if pyramid or limits is not None else heat(array)
        if limits is not None:
            display |= {"contrast_limits": (0.0, limits[1] - limits[0])}
    where = placed_alone(geometry, ndim) if source is None else placed(geometry, source, ndim)
    options = where | {"name": name, "metadata": metadata or {}}
    if pyramid:
        options["multiscale"] = True
    if kind == "labels" and limits is not None:
        return Labels(array, **options)
    if kind == "labels":
        return Labels(np.asarray(array, np.int32), **options)
    if rgb:
        return ImageLayer(as_colours(array), rgb=True, **options)
    return ImageLayer(array, rgb=False, **options, **display)


def heat(values: np.ndarray) -> dict[str, Any]:
    """Colours of a map, and contrast limits that a few extreme values do not change."""
    low, high = np.nanpercentile(values, SHOWN)
    return {"colormap": "inferno", "contrast_limits": (low, high if high > low else low + 1)}


def beside(geometry: Geometry, shape: tuple[int, ...], source: Snapshot) -> Geometry:
    """A small image moved to the left of a layer, two of its samples apart."""
    place = list(source.geometry.translate[-len(shape) :])
    place[-1] -= (shape[-1] + 2) * geometry.scale[-1]
    return replace(geometry, translate=tuple(place))


def as_colours(array: np.ndarray) -> np.ndarray:
    """Floats in the range of bytes as bytes: napari shows float colours from 0 to 1 only."""
    if array.dtype.kind == "f" and array.size and np.nanmax(array) > 1.5:
        return np.clip(np.rint(array), 0, 255).astype(np.uint8)
    return array


def preview_array(
    values: np.ndarray, image: Image, value_range: tuple[float, float] | None = None
) -> np.ndarray:
    """A normalised (frames, C, *space) preview in the user's numbers; the last frame only."""
    frame = denormalised(values[-1], value_range or image.value_range)
    if image.channel_axis is None:
        return frame[0]
    return np.moveaxis(frame, 0, -1) if image.rgb else frame


def preview_geometry(space: tuple[int, ...], image: Image, exact: Geometry | None) -> Geometry:
    """Where a preview lies: as the physics says, else spread evenly over the observation."""
    if exact is not None:
        return exact
    factor = tuple(max(1, round(n / m)) for n, m in zip(space, image.space, strict=True))
    return image.geometry.resampled(factor, tuple((f - 1) / 2 for f in factor))


def free_name(viewer: ViewerModel, stem: str) -> str:
    """``stem 1``, ``stem 2``, ...: the first that no layer has."""
    number = 1
    while f"{stem} {number}" in viewer.layers:
        number += 1
    return f"{stem} {number}"


def add_quietly(viewer: ViewerModel, layer: Layer) -> None:
    """Add a layer and leave the selection as it is."""
    active = viewer.layers.selection.active
    viewer.add_layer(layer)
    viewer.layers.selection.active = active


def role_of(layer: Layer) -> str:
    """What a layer is for, as its maker says: ``"observation"``, ``"map"``, ..."""
    facts = layer.metadata.get(META)
    return str(facts.get("role", "")) if isinstance(facts, dict) else ""


def images_of(viewer: ViewerModel, *others: type[Layer]) -> list[Layer]:
    """Images (and layers of other types) that can be chosen for something."""
    return [
        layer for layer in viewer.layers
        if isinstance(layer, (ImageLayer, *others)) and role_of(layer) not in (PREVIEW, COARSE)
    ]


def recipe_of(layer: Layer | None) -> dict[str, Any] | None:
    """The recipe that a result layer carries."""
    facts = layer.metadata.get(META) if layer is not None else None
    recipe = facts.get("recipe") if isinstance(facts, dict) else None
    return recipe if isinstance(recipe, dict) else None


def layer_or_none(viewer: ViewerModel, name: object) -> Layer | None:
    """A layer by name; None when it is gone."""
    return next((layer for layer in viewer.layers if layer.name == name), None)


def layer_named(viewer: ViewerModel, name: str) -> Layer:
    """A layer by name; `InvalidInput` says what to do when it is gone."""
    layer = layer_or_none(viewer, name)
    if layer is None:
        raise InvalidInput(f"there is no layer {name!r}; choose another one")
    return layer
