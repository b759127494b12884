"""Flow-matching cells in the plane as polygons, put together from the curves between them.

Around an atom its neighbours follow each other by angle, and so do the borders to them around its
cell: the end of one is the beginning of the next, in a corner of cells or at infinity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from napari_invprior.transport.cells.atoms import Atoms
from napari_invprior.transport.cells.separatrices import Curve

ARC = math.radians(5)
"""Chords of the far circle that closes an unbounded cell."""
SAME = 1e-9
"""Corners closer than this share of the extent are one."""


def outlines(atoms: Atoms, borders: Sequence[Curve], extent: float) -> list[np.ndarray]:
    """The cell of every distinct atom, clipped to the square ``[-extent, extent]^2``.

    Parameters
    ----------
    borders : sequence of Curve
        All of them; their ends are corners, or lie outside the square.

    Returns
    -------
    list of numpy.ndarray
        (k, 2) each, counter-clockwise and not closed; empty where the cell misses the square. A
        cell of several parts is joined along the square's edge.
    """
    parts: list[list[tuple[float, np.ndarray]]] = [[] for _ in range(len(atoms))]
    sites = atoms.lift(atoms.sites).T.numpy()
    for border in borders:
        first, second = border.pair
        points = border.points.numpy()
        east, north = sites[second] - sites[first]
        parts[first].append((math.atan2(north, east), points))
        parts[second].append((math.atan2(-north, -east), points[::-1]))
    square = extent * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    rings = [
        _ring([line for _, line in sorted(around, key=lambda part: part[0])], extent)
        if around else square
        for around in parts
    ]
    return [_distinct(clipped(ring, extent), SAME * extent) for ring in rings]


def _ring(parts: Sequence[np.ndarray], extent: float) -> np.ndarray:
    """One closed polygon of borders in order; open ends are joined by a far circle."""
    pieces = []
    for number, part in enumerate(parts):
        pieces.append(part)
        end, begin = part[-1], parts[(number + 1) % len(parts)][0]
        far = math.sqrt(2) * extent
        if min(math.hypot(*end), math.hypot(*begin)) > far:
            pieces.append(_arc(end, begin))
    return np.concatenate(pieces)


def _distinct(ring: np.ndarray, least: float) -> np.ndarray:
    """The polygon without corners that repeat the one before."""
    step = np.linalg.norm(ring - np.roll(ring, 1, 0), axis=1)
    return ring[step > least] if len(ring) else ring


def _arc(end: np.ndarray, begin: np.ndarray) -> np.ndarray:
    """Points on the way from one far point to another, counter-clockwise around the middle."""
    start = math.atan2(end[1], end[0])
    sweep = (math.atan2(begin[1], begin[0]) - start) % (2 * math.pi)
    if sweep > 1.5 * math.pi:  # an arm: both ends lie in one direction, up to rounding
        return np.empty((0, 2))
    angles = start + sweep * np.linspace(0, 1, max(2, round(sweep / ARC)))[1:-1]
    radius = max(math.hypot(*end), math.hypot(*begin))
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def clipped(ring: np.ndarray, extent: float) -> np.ndarray:
    """A polygon (k, 2) cut to the square ``[-extent, extent]^2``.

    Examples
    --------
    >>> area(clipped(np.array([[-9.0, 0.0], [9.0, 0.0], [9.0, 9.0], [-9.0, 9.0]]), 1.0))
    2.0
    """
    for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1)):
        if len(ring) == 0:
            break
        over = sign * ring[:, axis] - extent
        inside = over <= 0
        follow, next_over = np.roll(ring, -1, 0), np.roll(over, -1)
        crosses = inside != np.roll(inside, -1)
        share = np.where(crosses, over / np.where(crosses, over - next_over, 1), 0)[:, None]
        cut = ring + share * (follow - ring)
        cut[:, axis] = np.where(crosses, sign * extent, cut[:, axis])
        both = np.stack([ring, cut], 1).reshape(-1, 2)
        ring = both[np.stack([inside, crosses], 1).reshape(-1)]
    return ring


def area(ring: np.ndarray) -> float:
    """Signed area of a polygon (k, 2), positive when it runs counter-clockwise.

    Examples
    --------
    >>> area(np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]]))
    2.0
    """
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2) if len(ring) else 0.0
