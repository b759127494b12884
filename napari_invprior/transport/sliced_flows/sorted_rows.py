"""The energy distance of points on the line and its gradient, for many lines at once.

For samples ``x_1..N`` and ``y_1..M`` with distribution functions ``F`` and ``G``

``D^2 = E|X - Y| - E|X - X'| / 2 - E|Y - Y'| / 2 = integral (G - F)^2 dt``,

and ``dD^2/dx_i = (2 #{y < x_i} - M) / (N M) - (2 rank(x_i) - N + 1) / N^2``. Both follow from the
steps of ``G - F``: one merge of two sorted rows, and a running sum of whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from napari_invprior.numerics.sorting import Merged, merge_rows, sorted_rows

BLOCK_KEYS = 2**18
"""Numbers that are merged at a time, so that they stay in the cache."""


class SortedRows:
    """Targets on many lines, sorted once and compared with particles again and again.

    Parameters
    ----------
    rows : Tensor
        (P, M), one line per row, in any order; it is not changed.

    Examples
    --------
    >>> target = SortedRows(torch.tensor([[2.0, 0.0]]))
    >>> target.gradient(torch.tensor([[1.0, 5.0]])).tolist()
    [[0.25, 0.25]]
    >>> target.distance(torch.tensor([[0.0, 2.0]])).tolist()
    [0.0]
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = sorted_rows(rows)

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient of D^2 of each line in the particles: (P, N), like ``x``.

        Equal particles share the mean of their ranks, and an equal target counts half: what is
        tied does not pull.
        """
        n, m = x.shape[1], self.rows.shape[1]
        gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
        for here, merged in self._merged(x):
            heights = _heights(merged, n, m)
            # the sum of the heights before and after a particle, or all that equal it
            slopes = torch.add(m, heights, alpha=2).to(x.dtype)
            _level_ties(slopes, heights, merged, m)
            slopes *= 1 / (n * n * m)
            found = slopes.new_empty((len(slopes), n + 1))  # the last column takes the targets
            gradient[here] = found.scatter_(1, merged.columns, slopes)[:, :n]
        return gradient

    def distance(self, x: Tensor) -> Tensor:
        """D^2 of each line between the particles and the targets: (P,), float64."""
        n, m = x.shape[1], self.rows.shape[1]
        found = x.new_empty(len(x), dtype=torch.float64)
        for here, merged in self._merged(x):
            gaps = merged.values.double().diff(dim=1)
            found[here] = torch.linalg.vecdot(gaps, _heights(merged, n, m)[:, :-1].square_())
        return found / float(n * m) ** 2

    def spread(self) -> Tensor:
        """Mean distance ``E|Y - Y'|`` of the targets on each line: (P,), float64."""
        m = self.rows.shape[1]
        ranks = torch.arange(1 - m, m, 2, dtype=torch.float64, device=self.rows.device)
        return self.rows.double() @ ranks.mul_(2 / m**2)

    def _merged(self, x: Tensor) -> Iterator[tuple[slice, Merged]]:
        count = max(1, BLOCK_KEYS // (x.shape[1] + self.rows.shape[1]))
        for start in range(0, len(x), count):
            here = slice(start, start + count)
            yield here, merge_rows(x[here], self.rows[here])


def _heights(merged: Merged, n: int, m: int) -> Tensor:
    """``N M (G - F)`` after each number: whole numbers, exact in float64."""
    targets = (merged.columns == n).cumsum(1, dtype=torch.int32)
    places = torch.arange(1, n + m + 1, dtype=torch.float64, device=targets.device)
    return targets.double().mul_(n + m).sub_(places.mul_(m))


def _level_ties(slopes: Tensor, heights: Tensor, merged: Merged, m: int) -> None:
    """Give equal numbers the heights before the first and after the last of them."""
    values = merged.values
    same = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    torch.eq(values[:, 1:], values[:, :-1], out=same[:, :-1])
    tied = same.flatten().nonzero()[:, 0]  # places that equal the next one
    if len(tied) == 0:
        return
    starts = torch.ones_like(tied, dtype=torch.bool)
    starts[1:] = tied.diff() > 1
    first = tied[starts]
    lengths = starts.nonzero()[:, 0].diff(append=tied.new_tensor([len(tied)])) + 1
    flat, n = heights.flatten(), values.shape[1] - m
    rise = torch.where(merged.columns.flatten()[first] == n, n, -m)
    level = flat[first] - rise + flat[first + lengths - 1]
    offset = torch.arange(int(lengths.sum()), device=tied.device)
    offset -= (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    places = first.repeat_interleave(lengths) + offset
    slopes.view(-1)[places] = level.repeat_interleave(lengths).to(slopes.dtype)
