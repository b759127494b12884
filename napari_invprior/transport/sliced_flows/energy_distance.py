"""The energy distance between two clouds, exact and by slices, with its gradient.

``D^2(x, y) = E|X - Y| - E|X - X'| / 2 - E|Y - Y'| / 2``: the squared maximum mean discrepancy of
the kernel ``-|.|``. It is ``c_d`` times the mean over directions of the same on the line, where
sorting takes the place of all pairs. Points are the columns of ``(d, N)`` and ``(d, M)`` matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.transport.sliced_flows.sorted_rows import SortedRows
from napari_invprior.transport.slices.directions import slice_constant

BLOCK_NUMBERS = 2**24
"""Projected numbers that are held at a time."""
PAIRS = 2**22
"""Distances between points that are held at a time."""


class Slices(Protocol):
    """Lines through a cloud."""

    def project(self, x: Tensor) -> Tensor:
        """The numbers (P, N) that points (d, N) have on each line."""

    def scatter(self, gradient: Tensor) -> Tensor:
        """Gradient (d, N) of the weighted sum over the lines from those on each line (P, N)."""

    def weighted(self, distances: Tensor) -> Tensor:
        """The weighted sum over the lines of distances (P,)."""

    def parts(self, most: int) -> Iterator[Slices]:
        """Slices of about ``most`` lines each, which sum up to this one."""


class Directions:
    """Lines along unit vectors; the mean over them, times ``c_d``.

    Parameters
    ----------
    directions : Tensor
        (P, d), rows of unit length.
    total : int, optional
        Directions that the mean is over, where these are only some of them.

    Examples
    --------
    >>> lines = Directions(torch.eye(2))
    >>> lines.project(torch.tensor([[3.0], [4.0]])).tolist()
    [[3.0], [4.0]]
    """

    def __init__(self, directions: Tensor, total: int | None = None) -> None:
        self.directions = directions
        self.total = len(directions) if total is None else total
        self._weight = slice_constant(directions.shape[1]) / self.total

    def project(self, x: Tensor) -> Tensor:
        return self.directions @ x

    def scatter(self, gradient: Tensor) -> Tensor:
        return (self.directions.T @ gradient).mul_(self._weight)

    def weighted(self, distances: Tensor) -> Tensor:
        return distances.sum() * self._weight

    def parts(self, most: int) -> Iterator[Directions]:
        for part in self.directions.split(most):
            yield Directions(part, self.total)


class SlicedTarget:
    """A cloud projected on fixed lines and sorted there, once for many steps of particles.

    Parameters
    ----------
    points : Tensor
        (d, M).
    slices : Slices
        Lines, for example `Directions`.
    particles : int
        Particles that it will be compared with, to bound memory; M by default.

    Raises
    ------
    InvalidInput
        If the cloud is empty or not finite, or has another dimension than the lines.

    Examples
    --------
    >>> from napari_invprior.transport.slices.directions import directions
    >>> generator = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn((2, 3, 500), generator=generator)
    >>> target = SlicedTarget(y, Directions(directions(64, 3, generator)))
    >>> closer = x - 500 * target.gradient(x)
    >>> bool(target.distance(closer) < target.distance(x))
    True
    """

    def __init__(self, points: Tensor, slices: Slices, particles: int = 0) -> None:
        check_cloud(points, "targets")
        self._count = points.shape[1]
        most = max(1, BLOCK_NUMBERS // max(points.shape[1], particles))
        self._parts = [
            (part, SortedRows(_projected(part, points))) for part in slices.parts(most)
        ]

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient (d, N) of D^2 in particles (d, N)."""
        found: Tensor | None = None
        for part, rows in self._parts:
            gradient = part.scatter(rows.gradient(part.project(x)))
            found = gradient if found is None else found.add_(gradient)
        assert found is not None
        return found

    def distance(self, x: Tensor) -> Tensor:
        """D^2 between particles (d, N) and the targets, a float64 number."""
        return torch.stack(
            [part.weighted(rows.distance(part.project(x))) for part, rows in self._parts]
        ).sum()


    @property
    def bytes(self) -> int:
        """Memory that the sorted targets take."""
        return sum(rows.rows.nbytes for _, rows in self._parts)

    def chance(self, count: int) -> float:
        """Mean D^2 between the targets and ``count`` other points drawn like them."""
        spread = torch.stack([part.weighted(rows.spread()) for part, rows in self._parts]).sum()
        return (1 / count + 1 / self._count) / 2 * float(spread)


def sliced_energy_gradient(x: Tensor, y: Tensor | SlicedTarget, directions: Tensor) -> Tensor:
    """Gradient (d, N) of `sliced_energy_distance` in ``x``.

    Parameters
    ----------
    x, y : Tensor
        (d, N) and (d, M); ``y`` may be a `SlicedTarget`, whose own lines count then.
    directions : Tensor
        (P, d), see `slicing.directions`.
    """
    check_cloud(x, "particles")
    if not isinstance(y, SlicedTarget):
        y = SlicedTarget(y, Directions(directions), x.shape[1])
    return y.gradient(x)


def sliced_energy_distance(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """``D^2`` by slices, exact on each; differentiable in both clouds.

    Parameters
    ----------
    x, y : Tensor
        (d, N) and (d, M).
    directions : Tensor
        (P, d), see `slicing.directions`.

    Examples
    --------
    >>> x, y = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0]], requires_grad=True)
    >>> value = sliced_energy_distance(x, y, torch.ones(1, 1))
    >>> value.backward()
    >>> value.item(), y.grad.item()
    (0.5, 0.0)
    """
    check_clouds(x, y)
    return _Sliced.apply(x, y, directions)  # type: ignore[no-any-return]


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """``D^2`` over all pairs, for small clouds; differentiable in both.

    Equal points, whose distance has no gradient, do not pull at each other.

    Examples
    --------
    >>> float(energy_distance(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0]])))
    0.5
    """
    check_clouds(x, y)
    return _Dense.apply(x, y)  # type: ignore[no-any-return]


def energy_gradient(x: Tensor, y: Tensor) -> Tensor:
    """Gradient (d, N) of `energy_distance` in ``x``, computed in double precision."""
    check_clouds(x, y)
    n, m = x.shape[1], y.shape[1]
    gradient = _pull(x, y) / (n * m) - _pull(x, x) / (n * n)
    return gradient.to(x.dtype)


class _Sliced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, directions)
        return SlicedTarget(y, Directions(directions), x.shape[1]).distance(x).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, y, directions = ctx.saved_tensors
        ours, theirs, _ = ctx.needs_input_grad
        return (
            gradient * sliced_energy_gradient(x, y, directions) if ours else None,
            gradient * sliced_energy_gradient(y, x, directions) if theirs else None,
            None,
        )


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        value = _mean_distance(x, y) - (_mean_distance(x, x) + _mean_distance(y, y)) / 2
        return value.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        ours, theirs = ctx.needs_input_grad
        return (
            gradient * energy_gradient(x, y) if ours else None,
            gradient * energy_gradient(y, x) if theirs else None,
        )


def _blocks(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Points of x as rows, in double precision, and their distances to all of y.

    Differences, not products: near pairs, which pull as hard as far ones, keep their digits.
    """
    rows = y.T.double().contiguous()
    for part in x.T.split(max(1, PAIRS // y.shape[1])):
        points = part.double()
        yield points, torch.cdist(points, rows, compute_mode="donot_use_mm_for_euclid_dist")


def _mean_distance(x: Tensor, y: Tensor) -> Tensor:
    total = torch.stack([distances.sum() for _, distances in _blocks(x, y)]).sum()
    return total / (x.shape[1] * y.shape[1])


def _pull(x: Tensor, y: Tensor) -> Tensor:
    """``sum_j (x_i - y_j) / |x_i - y_j|``, (d, N), float64."""
    rows, found = y.T.double(), []
    for points, distances in _blocks(x, y):
        weights = torch.where(distances > 0, 1 / distances, 0)
        found.append(points * weights.sum(1, keepdim=True) - weights @ rows)
    return torch.cat(found).T.contiguous()


def _projected(slices: Slices, points: Tensor) -> Tensor:
    try:
        return slices.project(points)
    except (RuntimeError, IndexError) as error:
        raise InvalidInput(
            f"points of {len(points)} numbers of type {points.dtype} do not fit the slices "
            f"({error}); give both the same dimension and type"
        ) from error


def check_cloud(points: Tensor, name: str) -> None:
    """Refuse what is not a finite cloud of at least one point.

    Raises
    ------
    InvalidInput
        Names the shape, the type or the number of broken values.
    """
    if points.ndim != 2 or 0 in points.shape:
        raise InvalidInput(
            f"{name} of shape {tuple(points.shape)}: expected (dimension, count), at least (1, 1)"
        )
    if not points.dtype.is_floating_point:
        raise InvalidInput(f"{name} have type {points.dtype}: convert them to float32 or float64")
    if bool(torch.isfinite(points.sum())):  # twenty times as fast as to look at each number
        return
    broken = int((~torch.isfinite(points)).sum())
    if broken:
        raise InvalidInput(f"{name} hold {broken} NaN or infinite values: leave those points out")


def check_clouds(x: Tensor, y: Tensor) -> None:
    """Refuse clouds that cannot be compared; see `check_cloud`."""
    check_cloud(x, "the first points")
    check_cloud(y, "the second points")
    if len(x) != len(y) or x.dtype != y.dtype:
        raise InvalidInput(
            f"points of {len(x)} numbers ({x.dtype}) and of {len(y)} ({y.dtype}) cannot be "
            "compared: give both the same dimension and type"
        )
