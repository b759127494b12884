"""Results as layers: tensors back in the user's numbers, axes and place."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from napari_invprior.geometry import Geometry
from napari_invprior.image import Image, denormalised
from napari_invprior.io.provenance import versions
from napari_invprior.priors.base import Map
from napari_invprior.recipes.prepare import Problem


@dataclass(frozen=True)
class OutputLayer:
    """One result, in the user's numbers and shape, placed in the world.

    Attributes
    ----------
    name : str
        ``"reconstruction"``, ...
    array : numpy.ndarray or zarr.Array
        Shaped like the observation (its leading axes and channels), float32. Samples that were
        written while they came are the array on disk.
    geometry : Geometry
        Placement of the space axes.
    kind : str
        ``"image"``, ``"labels"``; ``"points"``: rows of coordinates in samples of the grid, after
        the numbers of ``frames``; ``"shapes"``: a list of polygons (k, d); ``"surface"``: a list of
        corners (k, 3) with triangles (m, 3); ``"tracks"``: rows of track, frame and coordinates; or
        ``"vectors"``: (n, 2, d), places and directions.
    metadata : dict
        Provenance: the completed recipe, versions, digests, figures.
    rgb : bool
        Whether the last axis holds colours.
    role : str
        ``"result"``, ``"map"`` for what a prior says about a result, or ``"truth"``.
    unit : str
        Of the values: ``"image"`` as in the observation, ``"difference"`` of such values, or
        ``"own"`` of the prior; of shapes and surfaces that of their coordinates.
    frames : int
        Leading axes that count frames, or samples of a stack.
    features : dict
        By name, a list with an entry for each point or shape.
    """

    name: str
    array: Any
    geometry: Geometry
    kind: str = "image"
    metadata: dict[str, Any] = field(default_factory=dict)
    rgb: bool = False
    role: str = "result"
    unit: str = "image"
    frames: int = 0
    features: dict[str, Any] = field(default_factory=dict)


def image_layer(name: str, image: Tensor, problem: Problem) -> OutputLayer:
    """The image in the user's numbers and axes, with its provenance."""
    source = problem.observation
    assert source is not None and problem.physics is not None
    values = denormalised(image.numpy(), problem.scale)
    return OutputLayer(
        name=name,
        array=restored_axes(values, source),
        geometry=problem.physics.grid(source.geometry),
        metadata=provenance(problem),
        rgb=source.rgb,
        frames=_leading(source, channels=True),
    )


def map_layer(entry: Map, problem: Problem) -> OutputLayer:
    """A map on the image's grid: the axes of a stack, then those of the observation.

    Grey values come in the user's numbers and have the observation's channels; nothing else has
    channels.
    """
    source = problem.observation
    assert source is not None and problem.physics is not None
    values = entry.values.numpy(force=True)
    grey = entry.unit == "image"
    low, high = problem.scale
    if grey:
        values = denormalised(values, problem.scale)
    elif entry.unit == "difference":
        values = values * np.float32(high - low)
    stack = values.shape[: -2 - source.ndim]
    layout = source if grey else replace(source, channel_axis=None, rgb=False)
    images = values.reshape(-1, *values.shape[len(stack) :])
    laid = np.stack([restored_axes(image, layout) for image in images])
    return OutputLayer(
        name=entry.name,
        array=laid.reshape(*stack, *laid.shape[1:]),
        geometry=problem.physics.grid(source.geometry),
        kind=entry.kind,
        metadata=provenance(problem),
        rgb=layout.rgb,
        role="map",
        unit=entry.unit,
        frames=len(stack) + _leading(source, channels=grey),
    )


def _leading(source: Image, *, channels: bool) -> int:
    """Frame axes that come before all others in an array laid out as the observation."""
    count = len(source.frame_axes)
    behind = source.channel_axis is None or source.channel_axis >= count
    return count if behind or not channels else 0


def restored_axes(values: np.ndarray, source: Image) -> np.ndarray:
    """(frames, C, *space) back to the leading axes and the channel axis of the source."""
    if source.channel_axis is None:
        values = values[:, 0]
        return values.reshape(*source.frame_axes, *values.shape[1:])
    values = values.reshape(*source.frame_axes, *values.shape[1:])
    channels = len(source.frame_axes)
    return np.moveaxis(values, channels, source.channel_axis)


def provenance(problem: Problem) -> dict[str, Any]:
    """What a result carries: recipe, versions, input digests, intensity scale."""
    return {
        "recipe": problem.recipe.to_dict(),
        "versions": versions(),
        "inputs": problem.digests,
        "intensity_scale": list(problem.scale),
        "notes": problem.facts,
    }
