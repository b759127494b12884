"""From drawn shapes and painted labels to the regions of a recipe (no Qt)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from napari.layers import Image, Labels, Layer, Shapes

CLOSED = ("rectangle", "ellipse", "polygon")
"""Shapes that have an inside."""

DEPTH = ("z_start", "z_stop")
"""Features of a shape drawn in 2D on a volume: the slices that it spans."""

ELLIPSE_CORNERS = 64


@dataclass(frozen=True)
class Regions:
    """What the recipe says of one reference layer.

    Attributes
    ----------
    boxes : list
        Boxes and polygons of the recipe, in samples of the image.
    notes : list of str
        Sentences for the user: what was clipped or left out.
    """

    boxes: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def space_shape(layer: Layer, ndim: int) -> tuple[int, ...]:
    """Lengths of the last ``ndim`` space axes of an image or label layer."""
    data = layer.data[0] if getattr(layer, "multiscale", False) else layer.data
    shape = data.shape[:-1] if getattr(layer, "rgb", False) else data.shape
    return tuple(int(n) for n in shape[-ndim:])


def to_image(vertices: np.ndarray, shapes: Shapes, image: Layer) -> np.ndarray:
    """Vertices of a shape (n, axes) as positions on the image's samples (n, image axes).

    A layer drawn in 2D on a volume has fewer axes: it applies to every slice, and the leading
    positions are those of the first one.
    """
    world = np.array([shapes.data_to_world(v) for v in vertices], float)
    missing = image.ndim - world.shape[1]
    if missing > 0:
        origin = np.asarray(image.data_to_world((0,) * image.ndim))[:missing]
        world = np.concatenate([np.tile(origin, (len(world), 1)), world], 1)
    return np.array([image.world_to_data(w[-image.ndim :]) for w in world], float)


def regions_of(shapes: Shapes, image: Image, ndim: int, thickness: int) -> Regions:
    """Every usable shape of a layer as a region of ``image``.

    Parameters
    ----------
    shapes : Shapes
        Drawn or picked shapes. Lines and paths have no inside and are left out.
    image : Image
        The reference image.
    ndim : int
        Space axes, 2 or 3.
    thickness : int
        Slices of a shape that lies in one plane of a volume and does not say how deep it is.
    """
    found = Regions()
    shape = space_shape(image, ndim)
    kinds = list(shapes.shape_type)
    for index, kind in enumerate(kinds):
        name = f"region {index + 1}"
        if kind not in CLOSED:
            found.notes.append(f"{name} is a {kind} without an inside and is left out")
            continue
        vertices = np.asarray(shapes.data[index], float)
        if kind == "ellipse":
            vertices = _ellipse(vertices)
        corners = to_image(vertices, shapes, image)[:, -ndim:]
        depth = _depth(shapes, index, corners, shape, thickness) if ndim == 3 else None
        region, kept = _region(corners, depth, shape, is_box=kind == "rectangle")
        if region is None:
            reason = "lies outside the image" if kept == 0 else "has no area"
            found.notes.append(f"{name} {reason} and is left out")
            continue
        if kept < 0.5:
            found.notes.append(
                f"{name} lies outside the image for the most part; {kept:.0%} of it is used"
            )
        found.boxes.append(region)
    return found


def _ellipse(corners: np.ndarray) -> np.ndarray:
    """Polygon of an ellipse given by the four corners of its (perhaps rotated) box."""
    centre = corners.mean(0)
    first, second = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
    angle = np.linspace(0, 2 * math.pi, ELLIPSE_CORNERS, endpoint=False)[:, None]
    return centre + np.cos(angle) * first + np.sin(angle) * second


def _depth(
    shapes: Shapes, index: int, corners: np.ndarray, shape: Sequence[int], thickness: int
) -> tuple[float, float]:
    """First and last slice border of a shape on a volume."""
    if set(DEPTH) <= set(shapes.features.columns):
        start, stop = (float(shapes.features[name].iloc[index]) for name in DEPTH)
        if math.isfinite(start) and math.isfinite(stop):
            return start - 0.5, stop - 0.5
    if shapes.ndim == 2:
        return -0.5, shape[0] - 0.5
    centre = round(float(corners[:, 0].mean()))
    return centre - thickness // 2 - 0.5, centre - thickness // 2 + thickness - 0.5


def _region(
    corners: np.ndarray, depth: tuple[float, float] | None, shape: Sequence[int], *, is_box: bool
) -> tuple[Any, float]:
    """A box or polygon of the recipe (None when nothing is left) and the share inside the image."""
    plane = corners[:, -2:]
    low, high = plane.min(0), plane.max(0)
    if depth is not None:
        low, high = np.concatenate([[depth[0]], low]), np.concatenate([[depth[1]], high])
    # a sample belongs to the region when its centre does; the tolerance absorbs float32 vertices
    start = np.ceil(low - 1e-3).astype(int)
    stop = np.floor(high + 1e-3).astype(int) + 1
    if np.any(high - low < 1e-3) or np.any(stop <= start):
        return None, 1.0
    first, last = np.clip(start, 0, shape), np.clip(stop, 0, shape)
    if np.any(last <= first):
        return None, 0.0
    kept = float(np.prod(last - first) / np.prod(stop - start))
    if is_box and _is_aligned(plane):
        return [[int(a), int(b)] for a, b in zip(first, last, strict=True)], kept
    region: dict[str, Any] = {"polygon": [[float(y), float(x)] for y, x in plane]}
    if depth is not None:
        region["depth"] = [int(first[0]), int(last[0])]
    return region, kept


def _is_aligned(corners: np.ndarray) -> bool:
    """Whether four corners form a rectangle along the axes."""
    low, high = corners.min(0), corners.max(0)
    near = np.minimum(np.abs(corners - low), np.abs(corners - high))
    return len(corners) == 4 and bool((near < 1e-2).all())


def label_problem(labels: Labels, image: Image, ndim: int) -> str:
    """Why a label layer cannot mark regions of the image; empty when it can."""
    mine, other = space_shape(labels, ndim), space_shape(image, ndim)
    if labels.ndim < ndim or mine != other:
        return (
            f"the label layer {labels.name!r} has {mine} samples but {image.name!r} has {other}; "
            "paint on a new Labels layer of the reference image"
        )
    if not np.any(np.asarray(labels.data)):
        return f"nothing is painted in {labels.name!r} yet"
    return ""
