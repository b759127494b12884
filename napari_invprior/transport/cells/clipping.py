"""Convex cells cut out of a square or a cube by half-spaces ``<normal, z> <= level``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, HalfspaceIntersection, QhullError

from napari_invprior.transport.cells.lower_hull import Floats

THIN = 1e-9
"""Cells thinner than this share of the box count as empty."""


def clipped_polygon(normals: Floats, levels: Floats, extent: float) -> Floats:
    """Corners (k, 2), counter-clockwise, of what half-planes leave of ``[-extent, extent]^2``.

    Examples
    --------
    >>> clipped_polygon(np.array([[1.0, 0.0]]), np.array([0.0]), 1.0).tolist()
    [[-1.0, -1.0], [0.0, -1.0], [0.0, 1.0], [-1.0, 1.0]]
    """
    corners = extent * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    for normal, level in zip(normals, levels, strict=True):
        beyond = corners @ normal - level
        if (beyond > 0).any():
            corners = _cut(corners, beyond)
        if len(corners) < 3:
            return np.zeros((0, 2))
    return corners


def _cut(corners: Floats, beyond: Floats) -> Floats:
    """The part of a convex polygon where ``beyond <= 0``."""
    after, next_ = np.roll(beyond, -1), np.roll(corners, -1, axis=0)
    crosses = (beyond < 0) != (after < 0)
    crosses &= (beyond != 0) & (after != 0)
    share = np.where(crosses, beyond / np.where(crosses, beyond - after, 1), 0)[:, None]
    both = np.stack([corners, corners + share * (next_ - corners)], axis=1)
    kept: Floats = both[np.stack([beyond <= 0, crosses], axis=1)]
    return kept


def clipped_surface(
    normals: Floats, levels: Floats, extent: float
) -> tuple[Floats, NDArray[np.intp]]:
    """Triangles of the boundary of what half-spaces leave of ``[-extent, extent]^3``.

    Returns
    -------
    corners : ndarray
        (k, 3), none where nothing is left.
    faces : ndarray
        (m, 3), corners of each triangle, counter-clockwise as seen from outside.

    Examples
    --------
    >>> corners, faces = clipped_surface(np.zeros((0, 3)), np.zeros(0), 1.0)
    >>> corners.shape, faces.shape
    ((8, 3), (12, 3))
    """
    nothing = np.zeros((0, 3)), np.zeros((0, 3), np.intp)
    size = np.linalg.norm(normals, axis=1)
    # in units of the box
    normals = np.vstack([normals / size[:, None], np.eye(3), -np.eye(3)])
    levels = np.r_[levels / size / extent, np.ones(6)]
    ball = linprog([0, 0, 0, -1], np.c_[normals, np.ones(len(levels))], levels, bounds=(None, None))
    if ball.status != 0 or ball.x[3] < THIN:
        return nothing
    try:
        corners = HalfspaceIntersection(np.c_[normals, -levels], ball.x[:3]).intersections
        corners = corners[np.isfinite(corners).all(1)]
        hull = ConvexHull(corners, qhull_options="Qt")
    except QhullError:
        return nothing
    used, faces = np.unique(hull.simplices, return_inverse=True)
    faces = faces.reshape(-1, 3)
    corners = corners[used]
    first, second, third = (corners[faces[:, k]] for k in range(3))
    turned = np.einsum("kr,kr->k", np.cross(second - first, third - first), hull.equations[:, :3])
    faces[turned < 0] = faces[turned < 0][:, ::-1]
    return corners * extent, faces.astype(np.intp)
