"""Known answers: the flow of the repulsion ``-1/2 E|X - X'|^r`` that starts at one point.

The law keeps its shape and grows with ``R(t) = s ((2 - r) t)^(1 / (2 - r))``. Where ``d + r < 4``
its density is proportional to ``(R^2 - |x|^2)^(1 - (r + d) / 2)`` on the ball, else the law is
uniform on the sphere.

References
----------
Altekrueger, Hertrich and Steidl, Neural Wasserstein gradient flows for discrepancies with Riesz
kernels, ICML 2023, arXiv 2301.11624.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.optimize import brentq
from scipy.special import betainc
from torch import Tensor


def unit_radius(exponent: float, dim: int) -> float:
    """The factor ``s(r, d)``.

    Examples
    --------
    >>> [round(unit_radius(r, d), 4) for r, d in ((1, 1), (1, 2), (1, 3), (1.5, 2), (0.5, 2))]
    [1.0, 0.7854, 0.6667, 1.5614, 0.5577]
    """
    r, d = exponent, dim
    log = math.lgamma(2 - r / 2) + math.lgamma((d + r) / 2) - math.lgamma(d / 2)
    return float((2 * r / d * math.exp(log)) ** (1 / (2 - r)))


def radius(time: float, exponent: float, dim: int) -> float:
    """``R(t)``.

    Examples
    --------
    >>> round(radius(2.0, 1.0, 2), 4)
    1.5708
    """
    scale = (2 - exponent) * time
    return unit_radius(exponent, dim) * scale ** (1 / (2 - exponent))


def shape(exponent: float, dim: int) -> float | None:
    """Power of the density, ``1 - (r + d) / 2``; None for the law on the sphere."""
    return 1 - (exponent + dim) / 2 if exponent + dim < 4 else None


def mean_square(exponent: float, dim: int) -> float:
    """``E|x|^2 / R^2``.

    Examples
    --------
    >>> round(mean_square(1, 2), 6), mean_square(1, 3)
    (0.666667, 1.0)
    """
    power = shape(exponent, dim)
    return 1.0 if power is None else dim / (dim + 2 + 2 * power)


def radial_cdf(share: Tensor, exponent: float, dim: int) -> Tensor:
    """Mass within the radius ``share * R``; ``1 - sqrt(1 - share^2)`` for r = 1 in the plane.

    Examples
    --------
    >>> radial_cdf(torch.tensor([0.6, 1.0]), 1, 2)
    tensor([0.2000, 1.0000])
    """
    power = shape(exponent, dim)
    if power is None:
        return (share >= 1).to(share)
    inside = share.double().clamp(0, 1).square().numpy()
    return torch.from_numpy(betainc(dim / 2, power + 1, inside)).to(share)


def jko_scales(steps: Sequence[float], exponent: float) -> list[float]:
    """Scales ``a_n`` after implicit steps: ``a - a_{n-1} = tau_n a^(r - 1)``, radius ``s a_n``.

    For r = 1 they are the times: the scheme makes no error of discretisation.

    Examples
    --------
    >>> jko_scales([0.5, 0.25], 1.0)
    [0.5, 0.75]
    """
    scales: list[float] = []
    last = 0.0
    for tau in steps:

        def excess(a: float, tau: float = tau, last: float = last) -> float:
            return a - last - tau * a ** (exponent - 1)

        alone = tau ** (1 / (2 - exponent))
        # at the upper end both terms that are taken away are at most half of a
        upper = max(2 * last, 2 ** (1 / (2 - exponent)) * alone)
        last = float(brentq(excess, last, upper, xtol=1e-20)) if last else alone
        scales.append(last)
    return scales


def line_positions(count: int, time: float) -> Tensor:
    """Where r = 1 takes ``count`` particles of one point on the line: ``(2i - N + 1) / N * t``.

    Examples
    --------
    >>> line_positions(2, 1.0).tolist()
    [-0.5, 0.5]
    """
    index = torch.arange(count, dtype=torch.float64)
    return (2 * index - count + 1) / count * time
