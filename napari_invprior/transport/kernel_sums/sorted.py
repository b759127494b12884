"""Exact sums on the line with ``f(t) = -c |t|``, whose mean over slices is ``-r``."""

from __future__ import annotations

import torch
from torch import Tensor

from napari_invprior.numerics.sorting import argsort_rows
from napari_invprior.transport.slices.directions import slice_constant


class SortedSums:
    """Sums over many lines at once: one sort, then running totals.

    Parameters
    ----------
    dim : int
        Dimension whose slices the lines are.

    Examples
    --------
    >>> line = SortedSums(1)
    >>> line.sums(torch.tensor([[0.0, 3.0]]), torch.ones(1, 2), torch.tensor([[4.0]]), True)
    (tensor([[[-5.]]]), tensor([[[-2.]]]))
    """

    cells = 0

    def __init__(self, dim: int) -> None:
        self._constant = slice_constant(dim)

    def sums(
        self, sources: Tensor, weights: Tensor, targets: Tensor, slopes: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        joint = torch.cat([sources, targets], 1).add_(0.0)  # adding 0 makes -0 and 0 equal
        at, order = argsort_rows(joint)
        at = at.double()
        mass = torch.cat([weights, weights.new_zeros((len(weights), targets.shape[1]))], 1)
        sorted_mass = mass.T[order].permute(0, 2, 1).double()
        below = sorted_mass.cumsum(2)
        moment = (sorted_mass * at[:, None]).cumsum(2)
        total = below[..., -1:]
        distance = at[:, None] * (2 * below - total) - 2 * moment + moment[..., -1:]

        def at_targets(found: Tensor) -> Tensor:
            place = order[:, None].expand_as(found)
            back = torch.empty_like(found).scatter_(2, place, found.mul_(-self._constant))
            return back[..., sources.shape[1] :].to(sources.dtype)

        values = at_targets(distance)
        if not slopes:
            return values, None
        return values, at_targets(below + _before_ties(at, below - sorted_mass, below) - total)


def _before_ties(at: Tensor, exclusive: Tensor, below: Tensor) -> Tensor:
    """Weight strictly to the left of each sorted position; sources come first among equals."""
    same = at[:, 1:] == at[:, :-1]
    if not bool(same.any()):
        return exclusive
    number = torch.arange(at.shape[1], device=at.device)
    first = torch.where(torch.nn.functional.pad(same, (1, 0)), 0, number).cummax(1).values
    return exclusive.gather(2, first[:, None].expand_as(below))
