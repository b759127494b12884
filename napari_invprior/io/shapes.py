"""Outlines, surfaces, paths and arrows on disk: GeoJSON, Wavefront OBJ and CSV.

Numbers have nine significant digits. Axis k is coordinate k of a point.

Examples
--------
>>> square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
>>> json.loads(geojson([square], [{"atom": 0}]))["features"][0]["geometry"]["coordinates"][0][:2]
[[0.0, 0.0], [1.0, 0.0]]
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from napari_invprior.errors import InvalidInput
from napari_invprior.transport.cells.outlines import area


def geojson(polygons: Sequence[np.ndarray], properties: Sequence[Mapping[str, Any]]) -> bytes:
    """Polygons in the plane as a GeoJSON FeatureCollection.

    Rings are closed and run counter-clockwise, as RFC 7946 wants them, with coordinate 0 as x and
    coordinate 1 as y. They are no places on Earth; the members ``axes`` and ``unit`` say what they
    are. A polygon of fewer than three points is a feature without geometry.

    Parameters
    ----------
    polygons : sequence of numpy.ndarray
        Corners (k, 2) of each, closed or not, in either direction.
    properties : sequence of mapping
        What is known of each polygon, as plain data.

    Raises
    ------
    InvalidInput
        If shapes, numbers or lengths do not fit, or a property cannot be written as JSON.

    Examples
    --------
    >>> found = json.loads(geojson([np.zeros((0, 2))], [{"atom": 3}]))
    >>> found["features"]
    [{'type': 'Feature', 'properties': {'atom': 3}, 'geometry': None}]
    >>> found["axes"], found["unit"]
    (['coordinate 0', 'coordinate 1'], 'standard deviation')
    """
    _as_many(polygons, "polygons", properties, "properties")
    features = [
        {"type": "Feature", "properties": dict(known), "geometry": _geometry(polygon)}
        for polygon, known in zip(polygons, properties, strict=True)
    ]
    collection = {
        "type": "FeatureCollection", "axes": ["coordinate 0", "coordinate 1"],
        "unit": "standard deviation", "features": features,
    }
    try:
        return (json.dumps(collection, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"properties: {error}; give plain numbers, texts and lists") from error


def _geometry(polygon: np.ndarray) -> dict[str, Any] | None:
    ring = _table(polygon, "a polygon", (2,))
    if len(ring) > 1 and np.array_equal(ring[0], ring[-1]):
        ring = ring[:-1]
    if len(ring) < 3:
        return None
    if area(ring) < 0:
        ring = ring[::-1]
    corners = [[float(_number(v)) for v in corner] for corner in ring.tolist()]
    return {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}


def obj(surfaces: Sequence[tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> bytes:
    """Surfaces as Wavefront OBJ, with one group for each.

    Parameters
    ----------
    surfaces : sequence of tuple
        Corners (k, 3), and triangles (m, 3) as indices of corners from 0.
    names : sequence of str
        Of the groups. White space becomes ``_``: in OBJ it separates names.

    Raises
    ------
    InvalidInput
        If shapes, numbers or lengths do not fit, an index names no corner, or two groups would have
        one name.

    Examples
    --------
    >>> corners = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.5]])
    >>> print(obj([(corners, np.array([[0, 1, 2]]))], ["cell 4"]).decode(), end="")
    g cell_4
    v 0 0 0
    v 1 0 0
    v 0 1 0.5
    f 1 2 3
    """
    _as_many(surfaces, "surfaces", names, "names")
    lines: list[str] = []
    before = 0
    for (corners, triangles), name in zip(surfaces, _group_names(names), strict=True):
        corners = _table(corners, "corners", (3,))
        triangles = _whole(_table(triangles, "triangles", (3,)), "triangles")
        if triangles.size and not 0 <= triangles.min() <= triangles.max() < len(corners):
            raise InvalidInput(
                f"triangles of {name!r} name corners {triangles.min()} to {triangles.max()}; there "
                f"are 0 to {len(corners) - 1}"
            )
        lines.append(f"g {name}")
        lines += ["v " + " ".join(map(_number, corner)) for corner in corners.tolist()]
        lines += ["f " + " ".join(map(str, face)) for face in (triangles + before + 1).tolist()]
        before += len(corners)
    return _text(lines)


def _group_names(names: Iterable[str]) -> list[str]:
    found = ["_".join(name.split()) for name in names]
    if not all(found):
        raise InvalidInput("a surface has an empty name; give each a name of its own")
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise InvalidInput(f"two surfaces have the name {twice[0]!r}; give each a name of its own")
    return found


def tracks_csv(rows: np.ndarray) -> bytes:
    """Tracks as CSV, with the columns of the data of napari's Tracks layers.

    Parameters
    ----------
    rows : numpy.ndarray
        (N, 4) or (N, 5): number of the track, frame, and coordinates.

    Raises
    ------
    InvalidInput
        If the shape is another one, a number is not finite, or a track or frame is not whole.

    Examples
    --------
    >>> tracks_csv(np.array([[7, 0, 0.5, -1.0], [7, 1, 0.25, -1.0]])).decode().splitlines()
    ['track,frame,axis-0,axis-1', '7,0,0.5,-1', '7,1,0.25,-1']
    """
    rows = _table(rows, "tracks", (4, 5))
    counts, places = _whole(rows[:, :2], "tracks and frames"), rows[:, 2:]
    lines = [",".join(["track", "frame", *_axes("axis", places)])]
    lines += [
        ",".join([*map(str, count), *map(_number, place)])
        for count, place in zip(counts.tolist(), places.tolist(), strict=True)
    ]
    return _text(lines)


def vectors_csv(places: np.ndarray, directions: np.ndarray) -> bytes:
    """Arrows as CSV: where each begins, and its direction.

    napari has no such form of its own. It opens this one as points at the beginnings, and keeps the
    directions as their properties.

    Parameters
    ----------
    places, directions : numpy.ndarray
        (N, d) both, with d 2 or 3.

    Raises
    ------
    InvalidInput
        If the shapes are others, or a number is not finite.

    Examples
    --------
    >>> vectors_csv(np.array([[0.0, 1.0]]), np.array([[0.5, -2.0]])).decode().splitlines()
    ['index,axis-0,axis-1,vector-0,vector-1', '0,0,1,0.5,-2']
    """
    places = _table(places, "places", (2, 3))
    directions = _table(directions, "directions", (2, 3))
    if places.shape != directions.shape:
        raise InvalidInput(
            f"places of shape {places.shape}, directions of shape {directions.shape}: give one "
            "direction for each place"
        )
    lines = [",".join(["index", *_axes("axis", places), *_axes("vector", places)])]
    lines += [
        ",".join([str(index), *map(_number, row)])
        for index, row in enumerate(np.hstack([places, directions]).tolist())
    ]
    return _text(lines)


def _as_many(first: Sequence[Any], what: str, second: Sequence[Any], of_what: str) -> None:
    if len(first) != len(second):
        raise InvalidInput(f"{len(first)} {what}, {len(second)} {of_what}: give one for each")


def _table(array: np.ndarray, what: str, columns: tuple[int, ...]) -> np.ndarray:
    """The array as finite numbers (n, one of ``columns``)."""
    array = np.asarray(array)
    if array.ndim != 2 or array.shape[1] not in columns:
        wanted = " or ".join(f"(n, {count})" for count in columns)
        raise InvalidInput(f"{what} of shape {array.shape}: give one of shape {wanted}")
    if array.dtype.kind not in "iuf":
        raise InvalidInput(f"{what} of type {array.dtype}: give real numbers")
    if not np.isfinite(array).all():
        raise InvalidInput(f"{what}: some numbers are NaN or infinite; remove them")
    return array


def _whole(array: np.ndarray, what: str) -> np.ndarray:
    whole = np.rint(array).astype(np.int64)
    if not np.array_equal(whole, array):
        raise InvalidInput(f"{what} are counted in whole numbers; these are not")
    return whole


def _axes(name: str, array: np.ndarray) -> list[str]:
    return [f"{name}-{axis}" for axis in range(array.shape[1])]


def _number(value: float) -> str:
    """Nine digits; adding 0 turns -0 into 0."""
    return f"{value + 0.0:.9g}"


def _text(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
