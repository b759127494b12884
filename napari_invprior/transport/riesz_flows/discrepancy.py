"""The discrepancy of Riesz kernels between point clouds, and its gradient.

With ``K(x, y) = -|x - y|^r`` and ``0 < r < 2``, twice the discrepancy of the laws of X and Y is the
energy distance ``2 E|X - Y|^r - E|X - X'|^r - E|Y - Y'|^r``. Particles are drawn to the target and
push each other away. Points are the columns of ``(d, N)`` matrices; work goes in blocks of
distances, so that memory stays bounded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput

BLOCK_NUMBERS = 256_000
"""Distances in one block, so that it stays in the cache."""


def mean_power(
    x: Tensor, y: Tensor, exponent: float, weights: Tensor | None = None, tie: float = 0.0
) -> tuple[Tensor, Tensor]:
    """``sum_j w_j |x_i - y_j|^r`` (N,) and its gradient in ``x_i`` (d, N).

    Points of no greater distance than ``tie`` add nothing to the gradient.

    Parameters
    ----------
    x, y : Tensor
        (d, N) and (d, M), of one floating type.
    exponent : float
        ``r``.
    weights : Tensor, optional
        (M,), of sum one; equal by default.

    Examples
    --------
    >>> value, gradient = mean_power(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 4.0]]), 1.0)
    >>> value.tolist(), gradient.tolist()
    ([2.0, 2.0], [[-0.5, 0.0]])
    """
    points, sites = x.detach().T.contiguous(), y.detach().T.contiguous()
    values, gradient = points.new_empty(len(points)), torch.empty_like(points)
    share = points.new_full((1,), 1 / len(sites)) if weights is None else weights.to(points)
    width = max(1, BLOCK_NUMBERS // len(sites))
    for start in range(0, len(points), width):
        here = slice(start, start + width)
        with torch.enable_grad():
            leaf = points[here].clone().requires_grad_()
            # by differences: a product would lose the small distances
            distances = torch.cdist(leaf, sites, compute_mode="donot_use_mm_for_euclid_dist")
        slope = _slope(distances.detach(), exponent, tie) * share
        values[here] = torch.linalg.vecdot(distances.detach().pow(exponent), share)
        # the derivative of a distance that is zero counts as zero here
        (gradient[here],) = torch.autograd.grad(distances, leaf, slope)
    return values, gradient.T.contiguous()


def _slope(distances: Tensor, exponent: float, tie: float) -> Tensor:
    """``r D^(r - 1)``, zero at ties."""
    apart = distances > tie
    if exponent == 1:
        return apart.to(distances)
    return torch.where(apart, exponent * distances.pow(exponent - 1), 0.0)


class Target(ABC):
    """Where particles are drawn to.

    Attributes
    ----------
    dim : int
        Dimension of the space.
    """

    dim: int

    @abstractmethod
    def potential(self, x: Tensor, exponent: float, tie: float = 0.0) -> tuple[Tensor, Tensor]:
        """``E|x_i - Y|^r`` (N,) and its gradient (d, N) at points (d, N)."""

    @abstractmethod
    def spread(self, exponent: float) -> float:
        """``E|Y - Y'|^r``."""

    @abstractmethod
    def drawn(self, count: int, generator: torch.Generator) -> Target:
        """A cheaper target whose potential is an unbiased estimate; ``self`` where there is none.

        ``count`` is the number of points it may have.
        """

    @abstractmethod
    def radius(self) -> tuple[Tensor, float]:
        """Mean (d,) and root mean square distance from it."""

    @abstractmethod
    def mass_at(self, x: Tensor, tie: float) -> Tensor:
        """Mass of the target within the distance ``tie`` of each point: (N,)."""


class Cloud(Target):
    """Points as a target.

    Parameters
    ----------
    points : Tensor
        (d, M), finite.
    weights : Tensor, optional
        (M,), positive; equal by default. They are scaled to sum one.

    Examples
    --------
    >>> cloud = Cloud(torch.tensor([[0.0, 2.0]]))
    >>> cloud.spread(1.0), cloud.mass_at(torch.tensor([[2.0, 1.0]]), 1e-10).tolist()
    (1.0, [0.5, 0.0])
    """

    def __init__(self, points: Tensor, weights: Tensor | None = None) -> None:
        self.points = checked_points(points, "the target")
        self.dim, count = self.points.shape
        self.weights = self.points.new_full((count,), 1 / count)
        if weights is not None:
            self.weights = _checked_weights(weights, count)

    def potential(self, x: Tensor, exponent: float, tie: float = 0.0) -> tuple[Tensor, Tensor]:
        return mean_power(x, self.points.to(x), exponent, self.weights.to(x), tie)

    def spread(self, exponent: float) -> float:
        values, _ = self.potential(self.points, exponent)
        return float(values @ self.weights)

    def drawn(self, count: int, generator: torch.Generator) -> Cloud:
        if count >= self.points.shape[1]:
            return self
        some = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return Cloud(self.points[:, some])

    def radius(self) -> tuple[Tensor, float]:
        mean = self.points @ self.weights
        squares = (self.points - mean[:, None]).square().sum(0)
        return mean, float(squares @ self.weights) ** 0.5

    def mass_at(self, x: Tensor, tie: float) -> Tensor:
        sites, shares = self.points.T.to(x), self.weights.to(x)
        width = max(1, BLOCK_NUMBERS // len(sites))
        parts = [_near(part.T, sites, tie) @ shares for part in x.split(width, 1)]
        return torch.cat(parts)


def _near(points: Tensor, sites: Tensor, tie: float) -> Tensor:
    """One where a row of ``points`` and one of ``sites`` coincide, else zero."""
    distances = torch.cdist(points, sites, compute_mode="donot_use_mm_for_euclid_dist")
    return (distances <= tie).to(points)


class Discrepancy:
    """Half the energy distance to a target, as a function of equally weighted particles.

    A replacement for clouds that are too large for all pairs need only offer `value_and_grad`.

    Parameters
    ----------
    target : Target or None
        None leaves the repulsion of the particles, ``-1/2 E|X - X'|^r``, which is negative.
    exponent : float
        ``r``, between 0 and 2.

    Examples
    --------
    >>> x = torch.tensor([[-1.0, 1.0]])
    >>> value, gradient = Discrepancy(None, 1.0).value_and_grad(x)
    >>> value, gradient.tolist()
    (-0.5, [[0.5, -0.5]])
    >>> Discrepancy(Cloud(x), 1.0).value_and_grad(x)[0]
    0.0
    """

    def __init__(self, target: Target | None, exponent: float) -> None:
        if not 0 < exponent < 2:
            raise InvalidInput(f"r = {exponent:g}: choose an exponent between 0 and 2")
        self.target, self.exponent = target, exponent
        self._constant = 0.0 if target is None else target.spread(exponent) / 2

    def value_and_grad(self, x: Tensor, tie: float = 0.0) -> tuple[float, Tensor]:
        """The value, and the gradient (d, N) in the sense of Wasserstein: N times the usual one.

        The flow moves particle i with minus column i.
        """
        near, push = mean_power(x, x, self.exponent, tie=tie)
        value, gradient = -float(near.mean()) / 2, -push
        if self.target is not None:
            far, pull = self.target.potential(x, self.exponent, tie)
            value += float(far.mean()) - self._constant
            gradient += pull
        return value, gradient

    def drawn_value_and_grad(
        self, x: Tensor, others: Tensor, generator: torch.Generator
    ) -> tuple[float, Tensor]:
        """The same, estimated without bias from two independent draws of a law.

        Parameters
        ----------
        x, others : Tensor
            (d, n) and (d, m): the first are repelled by the second. Points that repel each other
            would count pairs of distance zero.
        """
        near, push = mean_power(x, others, self.exponent)
        value, gradient = -float(near.mean()) / 2, -push
        if self.target is not None:
            far, pull = self.target.drawn(others.shape[1], generator).potential(x, self.exponent)
            value += float(far.mean()) - self._constant
            gradient += pull
        return value, gradient


def checked_points(points: Tensor, what: str) -> Tensor:
    """Points (d, N) in double precision; refuses what is no cloud of finite points.

    Raises
    ------
    InvalidInput
        Names the shape or how many coordinates are not finite.
    """
    points = torch.as_tensor(points)
    if points.ndim != 2 or 0 in points.shape:
        raise InvalidInput(
            f"{what} has the shape {tuple(points.shape)}: give at least one point, as columns of a "
            "(d, N) matrix"
        )
    points = points.detach().double()
    broken = int((~points.isfinite()).sum())
    if broken:
        raise InvalidInput(f"{what} has {broken} coordinates that are NaN or infinite: remove them")
    return points


def _checked_weights(weights: Tensor, count: int) -> Tensor:
    weights = torch.as_tensor(weights).detach().double()
    if weights.shape != (count,):
        raise InvalidInput(f"{tuple(weights.shape)} weights for {count} points: give one for each")
    if not bool(((weights >= 0) & weights.isfinite()).all()) or float(weights.sum()) == 0:
        raise InvalidInput("weights must be finite, none negative and one positive")
    return weights / weights.sum()
