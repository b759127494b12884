"""Outlines, surfaces, paths and arrows as files that other programs read.

Polygons become GeoJSON, surfaces Wavefront OBJ, paths and arrows comma-separated values; numbers
have nine digits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from napari_invprior.errors import InvalidInput


def geojson(
    polygons: Sequence[np.ndarray], properties: Sequence[Mapping[str, Any]], unit: str
) -> bytes:
    """A feature collection of polygons (k, 2), counter-clockwise and not closed.

    The first coordinate stands where longitudes stand, the second where latitudes do; a member
    ``axes`` says so. A polygon of less than three corners is a feature without geometry.

    Examples
    --------
    >>> triangle = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> found = json.loads(geojson([triangle], [{"atom": 0}], "px"))["features"][0]
    >>> found["geometry"]["coordinates"][0][-1], found["properties"]
    ([0.0, 0.0], {'atom': 0})
    """
    features = []
    for polygon, known in zip(polygons, properties, strict=True):
        if polygon.ndim != 2 or polygon.shape[1] != 2:
            raise InvalidInput(f"a polygon of shape {polygon.shape}: corners have two coordinates")
        closed = [[*_short(corner)] for corner in (*polygon, *polygon[:1])]
        shape = {"type": "Polygon", "coordinates": [closed]} if len(polygon) > 2 else None
        features.append({"type": "Feature", "properties": dict(known), "geometry": shape})
    collection = {
        "type": "FeatureCollection", "axes": ["coordinate 0", "coordinate 1"], "unit": unit,
        "features": features,
    }
    return (json.dumps(collection) + "\n").encode()


def obj(surfaces: Sequence[tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> bytes:
    """Surfaces of vertices (k, 3) and triangles (m, 3), one group for each.

    Examples
    --------
    >>> corners, faces = np.eye(3), np.array([[0, 1, 2]])
    >>> obj([(corners, faces)], ["cell 4"]).decode().splitlines()
    ['o cell_4', 'v 1 0 0', 'v 0 1 0', 'v 0 0 1', 'f 1 2 3']
    """
    lines, first = [], 1
    for (vertices, triangles), name in zip(surfaces, names, strict=True):
        if vertices.ndim != 2 or vertices.shape[1] != 3:
            raise InvalidInput(f"vertices of shape {vertices.shape}: they have three coordinates")
        lines.append(f"o {name.replace(' ', '_')}")
        lines += ["v " + " ".join(f"{x:.9g}" for x in vertex) for vertex in vertices]
        lines += ["f " + " ".join(str(k) for k in row) for row in np.asarray(triangles) + first]
        first += len(vertices)
    return ("\n".join(lines) + "\n").encode()


def tracks_csv(rows: np.ndarray) -> bytes:
    """Rows (track, frame, coordinates).

    Examples
    --------
    >>> tracks_csv(np.array([[0.0, 1.0, 2.5, 3.0]])).decode().splitlines()
    ['track,frame,axis-0,axis-1', '0,1,2.5,3']
    """
    return _table(["track", "frame", *_axes(rows.shape[1] - 2)], rows)


def vectors_csv(vectors: np.ndarray) -> bytes:
    """Places and directions (n, 2, d), one row for each.

    Examples
    --------
    >>> vectors_csv(np.array([[[0.0, 1.0], [2.0, 3.0]]])).decode().splitlines()
    ['axis-0,axis-1,direction-0,direction-1', '0,1,2,3']
    """
    count = vectors.shape[2]
    names = [*_axes(count), *(f"direction-{k}" for k in range(count))]
    return _table(names, vectors.reshape(len(vectors), -1))


def _axes(count: int) -> list[str]:
    return [f"axis-{k}" for k in range(count)]


def _table(names: Sequence[str], rows: np.ndarray) -> bytes:
    lines = [",".join(names), *(",".join(f"{v:.9g}" for v in row) for row in rows)]
    return ("\n".join(lines) + "\n").encode()


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.9g}") for value in values]
