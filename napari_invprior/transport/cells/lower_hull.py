"""Laguerre diagrams by duality: the lower hull of lifted atoms, its vertices and its ridges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

ABOVE = 20.0
"""Height of the point that closes the hull from above; the lifted atoms lie between -1 and 1."""
UPRIGHT = 1e-10
"""Facets steeper than this are walls: their vertex is as good as infinitely far."""


@dataclass(frozen=True)
class Diagram:
    """Vertices of a Laguerre diagram, and its edges (rank 3) or faces (rank 2) between them.

    Attributes
    ----------
    simplices : ndarray
        (m, r + 1), the atoms whose cells meet in each vertex.
    vertices : ndarray
        (m, r). Several vertices at one place where more than r + 1 cells meet.
    ridges : ndarray
        (k, r), the r atoms, in ascending order, whose cells share a line (in rank 1: a point).
    ends : ndarray
        (k, 2), the vertices at both ends of that line; the second is -1 where it is a ray.
    """

    simplices: Ints
    vertices: Floats
    ridges: Ints
    ends: Ints


def laguerre_diagram(sites: Floats, psi: Floats) -> Diagram:
    """The diagram of the cells ``{z : i = argmax_k <z, x_k> - psi_k}``.

    The greatest convex function below the lifted atoms ``(x_i, psi_i)`` is linear on each facet of
    their lower hull; its slope there is the vertex where the cells of the facet's atoms meet. An
    atom above the lower hull has an empty cell. Facets with more than r + 1 atoms are cut into
    simplices of the same slope, some of them flat.

    Parameters
    ----------
    sites : ndarray
        (n, r), atoms that span r dimensions, so ``n > r``.
    psi : ndarray
        (n,).

    Examples
    --------
    >>> sites = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> diagram = laguerre_diagram(sites, np.zeros(3))
    >>> len(diagram.vertices), np.allclose(diagram.vertices, 0), diagram.ridges.tolist()
    (1, True, [[0, 1], [0, 2], [1, 2]])
    """
    n, r = sites.shape
    # The lower hull stays the same under affine maps of the atoms, and when an affine function is
    # added; in these coordinates even nearly flat sets are round.
    round_, sizes, axes = np.linalg.svd(sites - sites.mean(0), full_matrices=False)
    mean = psi.mean()
    slope = round_.T @ (psi - mean)
    lift = psi - mean - round_ @ slope
    scale = float(np.abs(lift).max()) or 1.0
    lifted = np.vstack([np.c_[round_ * np.sqrt(n), lift / scale], np.r_[np.zeros(r), ABOVE]])
    hull = ConvexHull(lifted, qhull_options="Qt")
    normals = hull.equations[:, : r + 1]
    lower = (normals[:, r] < -UPRIGHT) & (hull.simplices < n).all(1)
    slopes = -normals[lower, :r] / normals[lower, r:] * (scale * np.sqrt(n)) + slope
    simplices = hull.simplices[lower].astype(np.intp)
    return Diagram(simplices, (slopes / sizes) @ axes, *_ridges(simplices))


def _ridges(simplices: Ints) -> tuple[Ints, Ints]:
    """Sides of the simplices (k, r), and the one or two simplices that have each (k, 2)."""
    m, corners = simplices.shape
    sides = np.concatenate([np.delete(simplices, c, axis=1) for c in range(corners)])
    ridges, of_side = np.unique(np.sort(sides, axis=1), axis=0, return_inverse=True)
    of_side = of_side.reshape(-1)
    order = np.argsort(of_side, kind="stable")
    first = np.searchsorted(of_side[order], np.arange(len(ridges)))
    owner = np.append(order % m, -1)
    shared = np.bincount(of_side, minlength=len(ridges)) > 1
    return ridges, np.c_[
        owner[first], np.where(shared, owner[np.minimum(first + 1, m * corners)], -1)
    ]
