"""Denoising of points by a transport plan that interpolates between the sites.

A plan sends a point to many sites. Their average is the best guess of the clean point that knows
nothing but the sites, and with little noise it is one of them: between the sites there is nothing.
Here the sites of a point, weighted by the plan, are a Gaussian with mean ``m`` and covariance
``C``, and the clean point is ``m + C (C + v I)^-1 (x - m)`` under noise of variance ``v``. As ``v``
sinks, that is the projection on the plane in which the sites around the point lie.
"""

from __future__ import annotations

import torch
from torch import Tensor

from napari_invprior.memory import require
from napari_invprior.transport.semi_discrete.semi_dual import Plan, SemiDual

ROUNDING = 1e-6
"""Smallest variance as a share of that of all sites; a smaller one is lost in rounding."""


class Interpolation:
    """Second moments of the sites that points go to.

    Parameters
    ----------
    dual : SemiDual
        The transport problem with its present potential.

    Raises
    ------
    OutOfMemory
        If the products of the coordinates of all sites cannot be held.

    Examples
    --------
    Sites on a line are thinned out, yet a point beside the line comes back to its foot.

    >>> line = torch.stack([torch.linspace(0, 1, 6), torch.zeros(6)])
    >>> plan = Interpolation(SemiDual(line)).plan(torch.tensor([[0.53], [0.2]]), 0.1, 1e-4)
    >>> [abs(round(value, 2)) for value in plan.targets.flatten().tolist()]
    [0.53, 0.0]
    """

    def __init__(self, dual: SemiDual) -> None:
        self._dual = dual
        sites = dual.sites.sites
        d, count = sites.shape
        self._centre = sites.mean(1, keepdim=True)
        self._pairs = torch.triu_indices(d, d, device=sites.device)
        rows = d + self._pairs.shape[1]
        require(
            2 * sites.element_size() * rows * count,
            f"interpolation between {count} patches of {d} samples",
            "lower reference_patches or patch_size",
        )
        centred = sites - self._centre
        first, second = self._pairs
        self._moments = torch.cat([centred, centred[first] * centred[second]])
        self._least = max(ROUNDING * float(centred.square().mean()), 1e-30)

    def plan(self, points: Tensor, level: float, variance: float) -> Plan:
        """The plan of points (d, n); its targets are the denoised points.

        Parameters
        ----------
        level : float
            Smoothing of the plan, in units of squared distance; twice the variance of the noise at
            least, so that a noisy point finds the sites that it may come from.
        variance : float
            Of the noise on the points.
        """
        dual, d = self._dual, len(points)
        noise = max(variance, self._least) * torch.eye(d, dtype=points.dtype, device=points.device)
        potentials, targets = points.new_empty(points.shape[1]), torch.empty_like(points)
        mass = torch.zeros_like(dual.psi)
        for here, values, shares, totals in dual.soft(points, dual.psi, level):
            potentials[here] = values
            mass += shares @ (1 / totals)
            moments = (self._moments @ shares).div_(totals)
            mean = moments[:d].T
            spread = self._covariances(moments[d:].T, mean)
            away = (points[:, here] - self._centre).T - mean
            pulled = spread @ torch.linalg.solve(spread + noise, away[..., None])
            targets[:, here] = (mean + pulled[..., 0]).T + self._centre
        cost = float(torch.sub(points, targets).square_().sum(0).mean())
        return Plan(potentials, targets, mass / points.shape[1], cost)

    def _covariances(self, products: Tensor, mean: Tensor) -> Tensor:
        """Covariances (n, d, d) from mean products of pairs (n, pairs) and means (n, d)."""
        n, d = mean.shape
        full = products.new_empty((n, d, d))
        first, second = self._pairs
        full[:, first, second] = products
        full[:, second, first] = products
        return full - mean[:, :, None] * mean[:, None]
