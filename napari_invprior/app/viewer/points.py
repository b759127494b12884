"""Points in, points out: coordinates in samples of an image, and movies that lie on it (no Qt)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from napari.layers import Layer, Points

from napari_invprior.app.viewer.layers import META, Snapshot, placed_alone, subset
from napari_invprior.geometry import Geometry, shear_matrix
from napari_invprior.points import PointSet, point_set

MOVIE = "movie"
"""Role of points whose first coordinate counts frames."""
COLOURS = ("#ffb000", "#4dd0e1")
"""Faces of flowing particles and of dots."""


def points_from_layer(layer: Points, onto: Layer | None = None) -> PointSet:
    """The points of a layer, in samples of another layer where one is given.

    Of a movie the last frame counts.

    Parameters
    ----------
    layer : Points
        Its coordinates, with as many of the last axes as ``onto`` has.
    onto : Layer, optional
        The image, or the other points, that they are used with.
    """
    values = np.asarray(layer.data, float)
    facts = layer.metadata.get(META)
    movie = isinstance(facts, dict) and facts.get("role") == MOVIE and len(values) > 0
    if movie:
        values = values[values[:, 0] == values[:, 0].max()]
    if onto is not None and onto is not layer and len(values):
        matrix, offset = _affine(layer.data_to_world, layer.ndim)
        world = values @ matrix.T + offset
        ndim = _space(onto)
        if world.shape[1] >= ndim:
            back, origin = _affine(onto.world_to_data, onto.ndim)
            whole = np.zeros((len(world), onto.ndim))
            whole[:, -ndim:] = world[:, -ndim:]
            return point_set((whole @ back.T + origin)[:, -ndim:], layer.name)
    return point_set(values[:, 1:] if movie else values, layer.name)


def _space(layer: Layer) -> int:
    """Axes of a layer that points live in."""
    facts = layer.metadata.get(META)
    movie = isinstance(facts, dict) and facts.get("role") == MOVIE
    return int(layer.ndim) - int(movie)


def _affine(transform: Any, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset of an affine transform that takes one position at a time."""
    offset = np.asarray(transform(np.zeros(ndim)), float)
    columns = [np.asarray(transform(unit), float) - offset for unit in np.eye(ndim)]
    return np.stack(columns, 1), offset


def points_layer(
    rows: np.ndarray, geometry: Geometry, *, name: str, frames: int = 0,
    metadata: dict[str, Any] | None = None, size: float = 1.0, colour: str = COLOURS[0],
) -> Points:
    """Points (n, frames + d) as a layer that lies on the image whose ``geometry`` it has."""
    where = placed_alone(geometry, rows.shape[1])
    if geometry.axis_labels is not None:
        where["axis_labels"] = ("frame",) * frames + tuple(geometry.axis_labels)
    elif frames:
        where["axis_labels"] = ("frame", *(f"axis {k}" for k in range(rows.shape[1] - 1)))
    if where["units"] is None:
        where["units"] = ("pixel",) * rows.shape[1]
    return Points(
        rows, name=name, size=size, face_color=colour, border_color=colour, border_width=0,
        metadata=metadata or {}, **where,
    )


def space_geometry(source: Snapshot | None, layer: Layer | None, ndim: int) -> Geometry:
    """Placement of the last axes of an image, or of a layer of points."""
    if source is not None:
        whole = source.geometry
    elif layer is not None:
        whole = Snapshot.of(layer, ndim).geometry
    else:
        return Geometry.identity(ndim)
    count = len(whole.scale)
    return subset(whole, list(range(count - ndim, count)))


def composed(inner: Geometry, outer: Geometry) -> Geometry:
    """A grid in the coordinates of points, placed as their layer is."""
    scale = tuple(a * b for a, b in zip(outer.scale, inner.scale, strict=True))
    linear = np.eye(len(scale)) if outer.rotate is None else np.asarray(outer.rotate, float)
    if outer.shear is not None:
        linear = linear @ shear_matrix(outer.shear, len(scale))
    shift = linear @ (np.asarray(outer.scale) * np.asarray(inner.translate))
    return replace(
        outer, scale=scale,
        translate=tuple(float(t) for t in np.asarray(outer.translate) + shift),
    )


def dot_size(space: tuple[int, ...] | None, rows: np.ndarray, count: int) -> float:
    """A diameter at which so many points neither vanish nor hide each other, in samples."""
    if space is None:
        spread = np.ptp(rows, 0) if len(rows) else np.ones(2)
        space = tuple(float(s) for s in spread)
    longest = max((*space, 1e-6))
    volume = float(np.prod(np.maximum(space, 0.05 * longest)))
    mean = (volume / max(1, count)) ** (1 / len(space))
    return float(np.clip(0.5 * mean, longest / 250, longest / 25))
