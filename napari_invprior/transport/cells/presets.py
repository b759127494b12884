"""Sets of atoms that show what cells of flow matching are like."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Preset:
    """Named atoms.

    Attributes
    ----------
    title, about : str
        For lists, and what is to be seen.
    ndim : int
        Coordinates.
    draw : callable
        Positions (n, d) and weights (n,) from a number of atoms and a seed, which most ignore.
    """

    title: str
    about: str
    ndim: int
    draw: Callable[[int, int], tuple[np.ndarray, np.ndarray]]


def _fixed(*rows: tuple[float, ...]) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
    positions = np.array(rows)
    return lambda _count, _seed: (positions, np.full(len(positions), 1 / len(positions)))


def _circle(corners: int, *others: tuple[float, float]) -> list[tuple[float, float]]:
    """Corners of a regular polygon on the unit circle, and other points."""
    angles = (2 * math.pi * k / corners for k in range(corners))
    return [(math.cos(a), math.sin(a)) for a in angles] + list(others)


def _product_grid(_count: int, _seed: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = (-1.0, 0.3, 2.0), (0.0, 1.0)
    weights = np.outer((0.2, 0.5, 0.3), (0.35, 0.65)).ravel()
    return np.array(list(itertools.product(first, second))), weights


def _random(ndim: int) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
    def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.random.default_rng(seed).standard_normal((count, ndim))
        return positions, np.full(count, 1 / count)

    return draw


_TETRAHEDRON = [(1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0)]

PRESETS = {
    "triangle_with_centre": Preset(
        "Triangle with its centre",
        "The centre's cell is a star of three endless arms; under optimal transport it is a "
        "triangle.", 2, _fixed(*_circle(3, (0.0, 0.0))),
    ),
    "pentagon": Preset(
        "Pentagon", "A regular polygon: sectors, the same in both.", 2, _fixed(*_circle(5))
    ),
    "product_grid": Preset(
        "Product grid", "3 x 2 atoms with product weights: boxes, the same in both.", 2,
        _product_grid,
    ),
    "obtuse_edge": Preset(
        "Obtuse angle", "The inner atom sees an edge under an obtuse angle: its cell has an "
        "endless arm that parts the cells of the edge.", 2,
        _fixed((0.0, -1.0), (0.0, 1.0), (-4.0, 0.0), (-0.5, 0.0)),
    ),
    "acute_edge": Preset(
        "Acute angle", "The inner atom sees the edge under an acute angle: no arm over it.", 2,
        _fixed((0.0, -1.0), (0.0, 1.0), (-4.0, 0.0), (-1.2, 0.0)),
    ),
    "random": Preset("Random", "Normal atoms in the plane.", 2, _random(2)),
    "cube": Preset(
        "Cube, 3D", "Corners of a cube: octants, the same in both.", 3,
        _fixed(*itertools.product((-1.0, 1.0), repeat=3)),
    ),
    "tetrahedron_with_centre": Preset(
        "Tetrahedron with its centre, 3D", "The centre's cell reaches to infinity between the "
        "others; under optimal transport it is a tetrahedron.", 3,
        _fixed(*_TETRAHEDRON, (0.0, 0.0, 0.0)),
    ),
    "random_3d": Preset("Random, 3D", "Normal atoms in space.", 3, _random(3)),
}
