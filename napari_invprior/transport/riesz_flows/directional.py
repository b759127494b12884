"""How the discrepancy changes when particles start to move, also those that lie on each other.

The gradient says nothing on coinciding points, yet the flow splits them: the one-sided derivative
of ``|x - y|`` along velocities is ``|v_x - v_y|`` there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.transport.riesz_flows.discrepancy import BLOCK_NUMBERS, Discrepancy

TIE = 1e-10
"""Points of no greater distance coincide."""


class DirectionalDerivative:
    """The one-sided derivative of a discrepancy at particles, as a function of their velocities.

    It is positively homogeneous, and linear where no points coincide. For ``r > 1`` coinciding
    points add nothing; for ``r < 1`` the derivative is infinite.

    Parameters
    ----------
    discrepancy : Discrepancy
        What changes.
    x : Tensor
        (d, N), double precision.

    Attributes
    ----------
    start : float
        The discrepancy at ``x``.

    Raises
    ------
    InvalidInput
        Where points coincide and ``r < 1``.

    Examples
    --------
    >>> at_one_point = torch.zeros(1, 2, dtype=torch.float64)
    >>> derivative = DirectionalDerivative(Discrepancy(None, 1.0), at_one_point)
    >>> derivative.value_and_grad(torch.tensor([[-1.0, 1.0]], dtype=torch.float64))
    (-0.5, tensor([[ 0.2500, -0.2500]], dtype=torch.float64))
    """

    def __init__(self, discrepancy: Discrepancy, x: Tensor) -> None:
        self.x, self.exponent = x, discrepancy.exponent
        self.start, self._slopes = discrepancy.value_and_grad(x, TIE)
        self._held = x.new_zeros(x.shape[1])
        if discrepancy.target is not None:
            self._held = discrepancy.target.mass_at(x, TIE)
        self._tied = _any_tie(x)
        tied = self._tied or bool(self._held.any())
        if tied and self.exponent < 1:
            raise InvalidInput(
                f"r = {self.exponent:g}: points that coincide part with infinite speed; choose the "
                "backward or the particle scheme, or r = 1"
            )
        self._splits = tied and self.exponent == 1

    def value_and_grad(self, v: Tensor, columns: Tensor | None = None) -> tuple[float, Tensor]:
        """The derivative along velocities (d, n), and its gradient in them (d, n).

        Parameters
        ----------
        columns : Tensor, optional
            (n,): which particles, drawn at random, the velocities belong to; all of them in order
            by default. The value is an unbiased estimate then.
        """
        some = slice(None) if columns is None else columns
        count = v.shape[1]
        gradient = self._slopes[:, some] / count
        value = float((gradient * v).sum())
        if self._splits:
            speed = v.norm(dim=0)
            held = self._held[some] / count
            value += float(speed @ held)
            gradient = gradient + held * _unit(v, speed)
        if self._splits and self._tied and count > 1:
            part, slope = self._parting(v, self.x[:, some])
            value, gradient = value + part, gradient + slope
        return value, gradient

    def _parting(self, v: Tensor, x: Tensor) -> tuple[float, Tensor]:
        """Share of the pairs of particles that coincide, and its gradient."""
        n, count = self.x.shape[1], v.shape[1]
        scale = (n - 1) / n / (count * (count - 1))
        total, gradient = 0.0, torch.empty_like(v)
        rows, places = v.T.contiguous(), x.T.contiguous()
        width = max(1, BLOCK_NUMBERS // count)
        for start in range(0, count, width):
            here = slice(start, start + width)
            with torch.enable_grad():
                leaf = rows[here].clone().requires_grad_()
                speeds = _distances(leaf, rows)
            weights = (_distances(places[here], places) <= TIE).to(v)
            total += float((speeds.detach() * weights).sum())
            (slope,) = torch.autograd.grad(speeds, leaf, weights)
            gradient[:, here] = slope.T
        return -0.5 * scale * total, -scale * gradient


def _any_tie(x: Tensor) -> bool:
    """Whether two particles coincide: neighbours on some line are the only candidates."""
    order = x[0].argsort()
    line = x[:, order]
    gaps = line[0].diff()
    shift = 1
    candidates = (gaps <= TIE).nonzero().flatten()
    while len(candidates):
        ahead = candidates + shift
        away = (line[:, ahead] - line[:, candidates]).norm(dim=0)
        if bool((away <= TIE).any()):
            return True
        shift += 1
        candidates = candidates[candidates + shift < line.shape[1]]
        candidates = candidates[line[0, candidates + shift] - line[0, candidates] <= TIE]
    return False


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _unit(v: Tensor, length: Tensor) -> Tensor:
    return torch.where(length > 0, v / length.where(length > 0, length.new_ones(())), 0.0)
