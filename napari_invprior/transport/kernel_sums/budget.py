"""How many slices a tolerance needs, and whether all pairs would be cheaper.

Slices come in rounds. Each round has `GROUPS` independent well-spread sets, whose spread is an
honest estimate of the error; from it follows the size of the next round, which replaces the one
before. Decisions rest on fixed costs, not on clocks: the same input gives the same result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from napari_invprior.transport.kernel_sums.kernels import Kernel
from napari_invprior.transport.kernel_sums.sliced import (
    GROUPS,
    LineSums,
    SlicedSums,
    line_sums,
    spread_error,
)
from napari_invprior.transport.slices.directions import (
    DISTANCE_DIMENSIONS,
    DirectionKind,
    directions,
)

# Costs in ns, of one core of a server of 2024 with 512-bit vectors; only their ratios matter.
PAIR, PAIR_DIMENSION, PAIR_WEIGHT = 1.0, 0.018, 0.04
"""One pair of points; for each dimension; for each weight vector."""
PROJECTION = 0.03
"""One point in one slice, for each dimension."""
GRID_POINT, SORTED_POINT = 2.7, 60.0
"""One point in one slice, for each weight vector: on the grid, by sorting."""
NODE = 3.0
"""One node of the grid in one slice, for each weight vector: its share of the two FFTs."""
ROUND = 4e5
"""What a round costs beside its slices."""

FIRST_SET, LARGEST_SET = 4, 2560
"""Directions in each set of the first round, and at most."""
PILOT_SHARE = 0.15
"""Where the first rounds cost more than this share of the dense sum, the dense sum is taken."""
GROWTH = 16
"""Most growth from one round to the next."""
LINE_SHARE = 0.01
"""Accuracy of the sums on the line, as a share of the tolerance."""
BEYOND_BASIS = 0.02
"""Variance that is left of independent slices' when they make whole orthonormal bases."""


class Problem(NamedTuple):
    """Kernel of unit scale, points near the origin, weights (B, N)."""

    kernel: Kernel
    x: Tensor
    y: Tensor
    w: Tensor

    @property
    def dim(self) -> int:
        return len(self.x)

    def dense_cost(self) -> float:
        """Of the sum over all pairs."""
        pair = PAIR + PAIR_DIMENSION * self.dim + PAIR_WEIGHT * len(self.w)
        return self.x.shape[1] * self.y.shape[1] * pair

    def slice_cost(self, line: LineSums) -> float:
        """Of one slice."""
        beyond = 0.0 if line.cells else SORTED_POINT - GRID_POINT
        points = self.x.shape[1] + self.y.shape[1]
        return self.least_slice_cost() + len(self.w) * (beyond * points + NODE * line.cells)

    def least_slice_cost(self) -> float:
        """Of one slice on a grid, without the grid."""
        points = self.x.shape[1] + self.y.shape[1]
        return points * (PROJECTION * self.dim + GRID_POINT * len(self.w))


@dataclass(frozen=True)
class Sliced:
    """A sliced sum that was found: how, its value (B, M) and its relative error."""

    sums: SlicedSums
    value: Tensor
    error: float


def fixed(
    problem: Problem,
    count: int,
    accuracy: float,
    kind: DirectionKind,
    generator: torch.Generator,
    limit: float = math.inf,
) -> Sliced | None:
    """So many slices, spread as one set; on the line there is only one, and no error but its own.

    Parameters
    ----------
    accuracy : float
        Of the sums on the line.
    limit : float
        Cost that sliced sums must stay below.

    Returns
    -------
    Sliced or None
        None where the limit is exceeded.
    """
    if count * problem.least_slice_cost() + ROUND > limit:
        return None
    xi = directions(count, problem.dim, generator, kind).to(problem.x)
    line = line_sums(*problem, xi, accuracy)
    if len(xi) * problem.slice_cost(line) + ROUND > limit:
        return None
    sums = SlicedSums(line, xi)
    value, error = spread_error(sums.groups(*problem[1:]), len(xi))
    own = accuracy if line.cells else 0.0
    return Sliced(sums, value, own if problem.dim == 1 else max(error, own))


def adaptive(
    problem: Problem,
    tolerance: float,
    kind: DirectionKind,
    generator: torch.Generator,
    limit: float = math.inf,
) -> Sliced | None:
    """As many slices as the tolerance needs, or as there may be.

    Parameters
    ----------
    limit : float
        Cost that sliced sums must stay below.

    Returns
    -------
    Sliced or None
        None as soon as the limit looks out of reach.
    """
    size, line, spent = FIRST_SET, None, 0.0
    share = 1.0 if problem.dim == 2 else PILOT_SHARE  # in the plane few slices are enough
    if GROUPS * size * problem.least_slice_cost() + ROUND > share * limit:
        return None
    while True:
        xi = _independent_sets(size, problem.dim, generator, kind).to(problem.x)
        line = line_sums(*problem, xi, LINE_SHARE * tolerance) if line is None else line
        cost = len(xi) * problem.slice_cost(line) + ROUND
        if cost > limit - spent or (spent == 0 and cost > share * limit):
            return None
        sums = SlicedSums(line, xi)
        value, error = spread_error(sums.groups(*problem[1:]), len(xi))
        if error <= tolerance or size >= LARGEST_SET:
            return Sliced(sums, value, error)
        spent += cost
        size = _next_size(size, problem.dim, kind, error / tolerance)


def _independent_sets(
    size: int, dim: int, generator: torch.Generator, kind: DirectionKind
) -> Tensor:
    """`GROUPS` sets, of which each `GROUPS`-th row belongs to one."""
    sets = [directions(size, dim, generator, kind) for _ in range(GROUPS)]
    return torch.stack(sets, 1).flatten(0, 1)


def _next_size(size: int, dim: int, kind: DirectionKind, excess: float) -> int:
    """Directions in a set whose error is smaller by ``excess``.

    The variance of a part of an orthonormal basis falls like ``1 / size - 1 / dim``, beside a
    small share that falls like ``1 / size``.
    """
    if kind == "iid":
        wanted = 1.1 * size * excess**2
    else:
        now = max(1 / size - 1 / dim, 0) + BEYOND_BASIS / size
        goal = now / (1.2 * excess**2)
        wanted = (1 + BEYOND_BASIS) / (goal + 1 / dim)
        if wanted > 0.8 * dim:
            wanted = max(dim, BEYOND_BASIS / goal)
    wanted = min(max(wanted, 1.5 * size), GROWTH * size, LARGEST_SET)
    if wanted <= dim or dim > DISTANCE_DIMENSIONS:
        return math.ceil(wanted)
    # few different sizes: each set that is spread by distance is searched for once
    step = 2 ** math.floor(math.log2(wanted)) // 2
    return math.ceil(wanted / step) * step
