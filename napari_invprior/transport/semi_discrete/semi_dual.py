"""Semi-discrete optimal transport of a point cloud to weighted sites, by its semi-dual.

For points ``x_i`` (``i = 1..n``, equal weights), sites ``y_j`` with weights ``b_j`` and a potential
``psi`` on the sites

``D(psi) = 1/n sum_i f(x_i) + sum_j b_j h(psi_j)``,  ``f(x) = min_j |x - y_j|^2 - psi_j``,

with ``h(t) = t`` for balanced transport; ``max D = W_2^2``. Three forms share this one function:

- entropic (``epsilon`` > 0): ``f(x) = -eps log sum_j b_j exp((psi_j - |x - y_j|^2) / eps)``;
- semi-unbalanced (``reach``): the mass of the sites may differ from ``b`` at a cost of
  ``rho KL(mass | b)``, ``rho = 2 reach^2``; ``h(t) = rho (1 - exp(-t / rho))``;
- both.

The gradient in ``psi`` is ``b h'(psi) - mass``; the gradient in the points is, by the envelope
theorem, ``2/n (x_i - t_i)`` with ``t_i`` the site (or the average of sites) that point i goes to.
Nothing of size n x M is ever held: distances live in blocks that stay in the inner cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from napari_invprior.numerics.lbfgs import minimise
from napari_invprior.transport.semi_discrete.nearest import Sites

ANNEALING = 4.0
"""Factor between two levels of smoothing."""
STEPS_PER_LEVEL = 9
MISPLACED = 4.0
"""A level is done when the share of misplaced mass is this many times the tolerance."""
FIRST_SMOOTHING = 0.06
"""First level, as a share of the spread of both clouds."""
SMALL, COARSENING = 4000, 4
"""Problems of more points or sites are solved for a share of them first, one in so many."""
LARGEST_EXPONENT = 30.0
DRAWN_RATE = 0.1
"""Step of `SemiDual.ascend`, as a share of the transport cost."""


@dataclass(frozen=True)
class Plan:
    """Where points go.

    Attributes
    ----------
    potentials : Tensor
        ``f(x_i)``, (n,).
    targets : Tensor
        ``t_i``, the site of each point or the average of its sites, (d, n).
    mass : Tensor
        Share of the points that each site receives, (M,).
    cost : float
        Mean of ``|x_i - t_i|^2``.
    """

    potentials: Tensor
    targets: Tensor
    mass: Tensor
    cost: float


class SemiDual:
    """The semi-dual of transport to fixed sites, with its present potential.

    Parameters
    ----------
    sites : Tensor
        (d, M).
    weights : Tensor, optional
        (M,), positive; equal by default.
    epsilon : float
        Entropic smoothing, in units of squared distance; 0 for none.
    rho : float, optional
        Price of mass that differs from ``weights``; None for balanced transport.

    Attributes
    ----------
    psi : Tensor
        (M,), the potential; starts at zero.
    last_level : float
        Smoothing that the last `solve` ended with; 0 before.

    Examples
    --------
    >>> points = torch.tensor([[0.0, 1.0, 10.0, 11.0]])
    >>> dual = SemiDual(torch.tensor([[0.5, 10.5]]))
    >>> plan = dual.plan(points)
    >>> plan.mass.tolist(), round(float(dual.value(plan)), 4)
    ([0.5, 0.5], 0.25)
    """

    def __init__(
        self,
        sites: Tensor,
        weights: Tensor | None = None,
        *,
        epsilon: float = 0.0,
        rho: float | None = None,
    ) -> None:
        self.sites = Sites(sites)
        count = self.sites.count
        equal = sites.new_full((count,), 1 / count)
        self.weights = equal if weights is None else weights / weights.sum()
        self.epsilon, self.rho = epsilon, rho
        self.psi = torch.zeros_like(self.weights)
        self._moments = torch.zeros_like(self.psi), torch.zeros_like(self.psi)
        self.last_level = 0.0
        self._steps, self._cost = 0, math.inf

    # --- evaluation -------------------------------------------------------------------------

    def plan(self, points: Tensor, smoothing: float | None = None) -> Plan:
        """Where points (d, n) go under the present potential.

        Parameters
        ----------
        smoothing : float, optional
            Another smoothing than ``epsilon``. At the best ``psi`` some points lie on the border
            of cells and must be divided; a little smoothing does that, a nearest site cannot.
        """
        level = self.epsilon if smoothing is None else smoothing
        if level == 0:
            potentials, index = self.sites.nearest(points, self.psi)
            mass = torch.bincount(index, minlength=self.sites.count) / len(index)
            cost = float((potentials + self.psi[index]).mean())
            return Plan(potentials, self.sites.sites[:, index], mass.to(self.psi), cost)
        potentials, targets = points.new_empty(points.shape[1]), torch.empty_like(points)
        mass = torch.zeros_like(self.psi)
        for here, values, shares, totals in self.soft(points, self.psi, level):
            potentials[here] = values
            targets[:, here] = (self.sites.sites @ shares).div_(totals)
            mass += shares @ (1 / totals)
        cost = float(torch.sub(points, targets).square_().sum(0).mean())
        return Plan(potentials, targets, mass / points.shape[1], cost)

    def soft(
        self, points: Tensor, psi: Tensor, level: float
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """`Sites.soft_minimum` with the weights of these sites."""
        return self.sites.soft_minimum(points, psi, self.weights.log(), level)

    def value(self, plan: Plan) -> Tensor:
        """``D(psi)``: a lower bound of the transport cost, equal to it at the best ``psi``."""
        return plan.potentials.double().mean() + self._site_term(self.psi)

    def imbalance(self, mass: Tensor) -> float:
        """Share of the mass that lies at the wrong sites: 0 for a converged potential, at most 1.

        With an exact ``f`` and few points, sites get whole points: it does not reach 0 then.
        """
        return 0.5 * float((mass - self._wanted(self.psi)).abs().sum())

    # --- improvement ------------------------------------------------------------------------

    def ascend(self, plan: Plan) -> None:
        """One stochastic step (Adam) on ``psi`` from a plan of some of the points."""
        # The step follows the cost down, never up: a potential gone astray makes itself dearer.
        self._cost = min(self._cost, plan.cost)
        rate = DRAWN_RATE * self._cost
        if self.rho is not None:
            rate = min(rate, 5 * self.rho)
        self._steps += 1
        gradient = self._wanted(self.psi) - plan.mass
        first, second = self._moments
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient**2, 0.01)
        slope = (second / (1 - 0.99**self._steps)).sqrt_().add_(1e-12)
        self.psi += (rate / (1 - 0.9**self._steps)) * first / slope

    def solve(
        self, points: Tensor, tolerance: float = 0.01, rounds: int = 1
    ) -> Iterator[float]:
        """Bring ``psi`` to the maximum of D for these points; yields the value after each level.

        L-BFGS on the smoothed dual while the smoothing sinks, from the coarse problem upwards:
        many small steps of a stochastic method do what a few of these do.

        Parameters
        ----------
        points : Tensor
            (d, n).
        tolerance : float
            Relative accuracy of the value that the last level aims at.
        rounds : int
            Repetitions of the last level, as long as they gain.
        """
        coarse = self._coarse(points)
        if coarse is not None:
            some, dual = coarse
            yield from dual.solve(some, tolerance)
            self.psi = dual._extended(points, self.sites.sites)
        levels, enough = self._levels(points, tolerance), MISPLACED * tolerance
        if coarse is not None:  # free masses settle more slowly
            levels = levels[-1:] if self.rho is None else levels[-2:]
        for level in levels:
            yield self._climb(points, level, enough)
        self.last_level = levels[-1]
        before = -math.inf
        for _ in range(rounds - 1):
            reached = self._climb(points, levels[-1], 0.0)
            yield reached
            if reached - before <= 0.1 * torch.finfo(self.psi.dtype).eps * abs(reached):
                break
            before = reached
        if self.epsilon == 0 and self.rho is None:
            self._transform(points)
            yield float(self.value(self.plan(points)))

    def _climb(self, points: Tensor, level: float, enough: float) -> float:
        """L-BFGS on D with smoothing ``level`` until so little mass is misplaced; the new value."""
        values: list[float] = []
        misplaced = math.inf

        def function(psi: Tensor) -> tuple[float, Tensor]:
            nonlocal misplaced
            value, slope = self._smoothed(points, psi, level)
            values.append(-value)
            misplaced = 0.5 * float(slope.abs().sum())
            return value, slope

        reached = 0  # the call that belongs to the present potential
        for psi in islice(minimise(function, self.psi, first_step=level), STEPS_PER_LEVEL):
            self.psi, reached = psi, len(values) - 1
            if misplaced < enough:
                break
        return values[reached]

    def _transform(self, points: Tensor) -> None:
        """Replace ``psi`` by the transform of ``f``; never lowers D of balanced transport."""
        prices = self.plan(points).potentials
        raised = Sites(points).nearest(self.sites.sites, prices)[0]
        self.psi = torch.maximum(self.psi, raised)

    def _coarse(self, points: Tensor) -> tuple[Tensor, SemiDual] | None:
        """The problem with fewer points and sites; None where it is small."""
        n, count = points.shape[1], self.sites.count
        if max(n, count) <= SMALL:
            return None
        generator = torch.Generator().manual_seed(0)

        def draw(size: int) -> Tensor:
            most = max(min(size, SMALL), -(-size // COARSENING))
            return torch.randperm(size, generator=generator)[:most].to(points.device)

        some, few = draw(n), draw(count)
        dual = SemiDual(
            self.sites.sites[:, few], self.weights[few], epsilon=self.epsilon, rho=self.rho
        )
        return points[:, some].contiguous(), dual

    def _extended(self, points: Tensor, sites: Tensor) -> Tensor:
        """The best potential of other sites, with the prices that the points have here."""
        level = self.last_level
        prices = self.plan(points, level).potentials
        equal = torch.full_like(prices, -math.log(len(prices)))
        psi = sites.new_empty(sites.shape[1])
        for here, values, *_ in Sites(points).soft_minimum(sites, prices, equal, level):
            psi[here] = values
        return psi if self.rho is None else psi * (self.rho / (self.rho + level))

    def _levels(self, points: Tensor, tolerance: float) -> list[float]:
        """Sinking levels of smoothing."""
        spread = float(points.var(1).sum() + self.sites.sites.var(1).sum())
        last = self.epsilon
        if last == 0:
            last = 4 * tolerance * float(self.plan(points).potentials.double().mean().abs())
            last = max(last, 1e-7 * spread, 1e-30)
        count = max(0, math.ceil(math.log(max(FIRST_SMOOTHING * spread / last, 1), ANNEALING)))
        return [last * ANNEALING**k for k in range(count, -1, -1)]

    def _smoothed(self, points: Tensor, psi: Tensor, level: float) -> tuple[float, Tensor]:
        """``-D`` with smoothing ``level``, and its gradient."""
        mass, total = torch.zeros_like(psi), 0.0
        for _, values, shares, totals in self.soft(points, psi, level):
            mass += shares @ (1 / totals)
            total += float(values.double().sum())
        n = points.shape[1]
        value = total / n + float(self._site_term(psi))
        return -value, mass / n - self._wanted(psi)

    # --- terms ------------------------------------------------------------------------------

    def _site_term(self, psi: Tensor) -> Tensor:
        if self.rho is None:
            return (self.weights.double() * psi.double()).sum()
        exponent = (-psi.double() / self.rho).clamp_max(LARGEST_EXPONENT)
        return self.rho * (self.weights.double() * -torch.expm1(exponent)).sum()

    def _wanted(self, psi: Tensor) -> Tensor:
        """``b h'(psi)``: the mass that each site asks for."""
        if self.rho is None:
            return self.weights
        return self.weights * torch.exp((-psi / self.rho).clamp_max(LARGEST_EXPONENT))
