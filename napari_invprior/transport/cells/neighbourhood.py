"""Which cells of flow matching touch, and which reach to infinity: geometry of the atoms alone.

Late in the flow ``y = z / s`` moves straight to the nearest atom, so that it rests at the critical
points of the distance to the atoms only: the atoms, middles of pairs, and further centres of
spheres that hold no atom and whose atoms surround the centre (own derivation).

- Two cells share a face where the ball between their atoms as poles holds no other atom: they are
  neighbours in Gabriel's graph. An atom that sees two others under an obtuse angle parts them.
- The borders of a cell are found going back: from an atom, ``y`` climbs away from the nearest atoms
  until it rests or escapes. A cell is unbounded where a path from a corner of its Voronoi cell
  escapes.

Neither depends on the weights.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy.optimize import nnls
from scipy.spatial import ConvexHull, Delaunay, cKDTree

from napari_invprior.transport.cells.atoms import Atoms

FEW = 400
"""Up to so many atoms all pairs are looked at; with more, the edges of their triangulation."""
EQUAL = 1e-9
"""Share of a squared distance that is rounding."""
MOST_CORNERS = 5_000


def touching(atoms: Atoms) -> np.ndarray:
    """Pairs (m, 2), first number less than second, of distinct atoms whose cells share a face.

    Examples
    --------
    The middle of three atoms on a line parts the others.

    >>> import torch
    >>> touching(Atoms(torch.tensor([[0.0, 2.0, 1.0]]))).tolist()
    [[0, 2], [1, 2]]
    """
    sites = atoms.sites.T.numpy()
    pairs = _candidates(sites)
    if len(pairs) == 0:
        return pairs
    first, second = sites[pairs[:, 0]], sites[pairs[:, 1]]
    middle, radius = (first + second) / 2, np.linalg.norm(first - second, axis=1) / 2
    tree = cKDTree(sites)
    nearest = tree.query(middle)[0]
    open_ones = np.flatnonzero(nearest**2 >= radius**2 * (1 - EQUAL))
    around = tree.query_ball_point(middle[open_ones], radius[open_ones] * (1 + EQUAL))
    kept = [
        number for number, near in zip(open_ones, around, strict=True)
        if _has_face(sites, pairs[number], [k for k in near if k not in pairs[number]])
    ]
    return pairs[kept]


def _candidates(sites: np.ndarray) -> np.ndarray:
    """Pairs that may be neighbours."""
    count, rank = sites.shape
    if count <= FEW:
        return np.array(list(itertools.combinations(range(count), 2)), int).reshape(-1, 2)
    if rank == 1:
        order = np.argsort(sites[:, 0])
        return np.sort(np.stack([order[:-1], order[1:]], 1), 1)
    simplices = Delaunay(sites).simplices
    edges = [simplices[:, pair] for pair in itertools.combinations(range(rank + 1), 2)]
    return np.unique(np.sort(np.concatenate(edges), 1), axis=0)


def _has_face(sites: np.ndarray, pair: np.ndarray, on_sphere: list[int]) -> bool:
    """Whether some direction in the plane between two atoms leads away from all on their sphere."""
    if len(on_sphere) < 2:
        return True
    first, second = sites[pair]
    axis = (second - first) / np.linalg.norm(second - first)
    offsets = sites[on_sphere] - (first + second) / 2
    offsets -= np.outer(offsets @ axis, axis)
    return _nearest_to_zero(offsets)[1] > EQUAL * float(np.abs(offsets).max())


def _nearest_to_zero(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights of the point of the convex hull of rows that is nearest to zero, and its norm."""
    size = max(float(np.abs(points).max()), 1e-300)
    system = np.vstack([points.T / size, 1e3 * np.ones(len(points))])
    weights, _ = nnls(system, np.concatenate([np.zeros(points.shape[1]), [1e3]]))
    weights /= weights.sum()
    return weights, float(np.linalg.norm(weights @ points))


def unbounded(atoms: Atoms) -> np.ndarray | None:
    """Whether each cell reaches to infinity, (n,); None where that is too much to find out.

    Examples
    --------
    The centre of a triangle sees its corners under 120 degrees, that of a pentagon under 72.

    >>> import torch
    >>> def with_centre(corners):
    ...     angles = 2 * torch.pi * torch.arange(corners) / corners
    ...     rim = torch.stack([angles.cos(), angles.sin()])
    ...     return Atoms(torch.cat([rim, torch.zeros(2, 1)], 1))
    >>> bool(unbounded(with_centre(3))[-1]), bool(unbounded(with_centre(5))[-1])
    (True, False)
    """
    sites, count = atoms.sites.T.numpy(), len(atoms)
    if atoms.rank < atoms.ndim or count <= atoms.rank:
        return np.ones(count, bool)
    if atoms.rank == 1:
        return np.isin(np.arange(count), [sites[:, 0].argmin(), sites[:, 0].argmax()])
    if atoms.rank > 3:
        return None
    found = np.zeros(count, bool)
    found[ConvexHull(sites).vertices] = True
    mesh = Delaunay(sites)
    if atoms.rank == 2:
        found[np.unique(mesh.simplices[_escaping(sites, mesh)])] = True
        return found
    if len(mesh.simplices) > MOST_CORNERS:
        return None
    for corner in mesh.simplices:
        if not found[corner].all() and _climbs_out(sites, corner):
            found[corner] = True
    return found


def _escaping(sites: np.ndarray, mesh: Delaunay) -> np.ndarray:
    """Triangles (T,) from whose circumcentre a path escapes: it leaves over the longest edge."""
    corners = sites[mesh.simplices]
    opposite = np.stack([
        np.sum((corners[:, (k + 1) % 3] - corners[:, k]) * (corners[:, (k + 2) % 3]
               - corners[:, k]), 1) for k in range(3)
    ], 1)  # scalar products of the edges at each corner: negative where the angle is obtuse
    size = np.abs(opposite).max(1)
    obtuse = opposite.argmin(1)
    rests = opposite.min(1) >= -EQUAL * size
    here = np.arange(len(corners))
    follows = np.where(rests, here, mesh.neighbors[here, obtuse])
    out = ~rests & (follows < 0)
    # the circumradius grows along a path, so that paths end
    following = np.where(follows < 0, here, follows)
    while True:
        grown = out | out[following]
        if (grown == out).all():
            return out
        out = grown


def _climbs_out(sites: np.ndarray, corner: np.ndarray) -> bool:
    """Whether the path from the circumcentre of a simplex escapes to infinity."""
    first = sites[corner[0]]
    edges = sites[corner[1:]] - first
    try:
        place = first + np.linalg.solve(2 * edges, np.sum(edges**2, 1))
    except np.linalg.LinAlgError:  # a flat simplex of atoms on one sphere
        return False
    while True:
        squares = np.sum((sites - place) ** 2, 1)
        least = float(squares.min())
        near = np.flatnonzero(squares <= least * (1 + EQUAL) + EQUAL**2)
        weights, length = _nearest_to_zero(sites[near] - place)
        if length <= 1e-6 * np.sqrt(least):
            return False
        away = -(weights @ (sites[near] - place))
        gains = (sites - sites[near[weights.argmax()]]) @ away
        rising = gains > EQUAL * length * np.sqrt(least)
        rising[near] = False
        if not rising.any():
            return True
        place = place + away * float(((squares - least)[rising] / (2 * gains[rising])).min())
