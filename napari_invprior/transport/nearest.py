"""Nearest sites of many points: exact, in blocks that stay in the inner cache.

Points and sites are the columns of ``(d, n)`` and ``(d, M)`` matrices. With a potential ``psi`` the
distance is that of a power diagram, ``|x - y_j|^2 - psi_j``; its cells are Laguerre cells.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SITES_PER_GROUP = 32
"""Sites whose minimum is taken first; only the best group is looked at again."""
BLOCK_NUMBERS = 400_000
"""Distances in one block, so that it stays in the second-level cache."""
MOST_SITES = 4096
"""Sites that are met in one block; more of them are taken in turns."""
LOG_NEGLIGIBLE = -36.0
"""Log of the smallest share; smaller ones change nothing."""
FAR = 1e30
"""Distance of the sites that fill the last group."""


class Sites:
    """Fixed sites whose distances to many points are wanted again and again.

    Parameters
    ----------
    sites : Tensor
        (d, M), one column per site.

    Examples
    --------
    >>> sites = Sites(torch.tensor([[0.0, 1.0, 5.0]]))
    >>> distance, index = sites.nearest(torch.tensor([[0.2, 4.0]]))
    >>> index.tolist(), [round(v, 4) for v in distance.tolist()]
    ([0, 2], [0.04, 1.0])
    >>> sites.nearest(torch.tensor([[0.2]]), torch.tensor([0.0, 0.9, 0.0]))[1].tolist()
    [1]
    """

    def __init__(self, sites: Tensor) -> None:
        self.sites = sites
        d, self.count = sites.shape
        # Centred: |x|^2 - 2 x.y + |y|^2 loses fewer digits near the middle of the cloud.
        self._centre = sites.mean(1, keepdim=True)
        centred = sites - self._centre
        padded = -(-self.count // SITES_PER_GROUP) * SITES_PER_GROUP
        self._rows = sites.new_zeros((padded, d + 1))
        self._rows[: self.count, :d] = -2 * centred.T
        self._squares = (centred**2).sum(0)
        self._rows[:, d] = FAR
        self._rows[: self.count, d] = self._squares
        self._psi: Tensor | None = None

    def nearest(self, points: Tensor, psi: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``min_j |x - y_j|^2 - psi_j`` (n,) and the smallest such ``j`` (n,) of points (d, n).

        Among equal distances, one site is returned; rounding decides which.
        """
        values = points.new_empty(points.shape[1])
        index = torch.empty(points.shape[1], dtype=torch.long, device=points.device)
        for here, squares, scores in self._scores(points, psi):
            value, which = _group_minimum(scores[0])
            for part, first in zip(scores[1:], self._firsts()[1:], strict=True):
                other, there = _group_minimum(part)
                closer = other < value
                value = torch.where(closer, other, value)
                which = torch.where(closer, there + first, which)
            values[here] = value + squares
            index[here] = which
        return values, index

    def soft_minimum(
        self, points: Tensor, psi: Tensor, log_weights: Tensor, epsilon: float
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """``-eps log sum_j w_j exp((psi_j - |x - y_j|^2) / eps)`` and its shares, block by block.

        Yields
        ------
        columns : slice
            Which points.
        values : Tensor
            (n,).
        shares, totals : Tensor
            (M, n) and (n,): the share of site j in point i is ``shares[j, i] / totals[i]``. Both
            are overwritten by the next block.
        """
        shifted = psi + epsilon * log_weights
        for here, squares, parts in self._scores(points, shifted, scale=-1 / epsilon, whole=True):
            scores = parts[0][: self.count]
            peak = scores.amax(0)
            # denormal numbers would make exp and the products that follow many times slower
            shares = scores.sub_(peak).clamp_min_(LOG_NEGLIGIBLE).exp_()
            totals = shares.sum(0)
            yield here, squares - epsilon * (peak + totals.log()), shares, totals

    def _firsts(self) -> range:
        return range(0, len(self._rows), MOST_SITES)

    def _scores(
        self, points: Tensor, psi: Tensor | None, *, scale: float = 1.0, whole: bool = False
    ) -> Iterator[tuple[slice, Tensor, list[Tensor]]]:
        """Columns, ``|x|^2`` and ``scale (|y_j|^2 - 2 x.y_j - psi_j)`` in parts of (M, n)."""
        d = points.shape[0]
        rows = self._rows
        rows[: self.count, d] = self._squares if psi is None else self._squares - psi
        parts = [rows] if whole else list(rows.split(MOST_SITES))
        block = max(16, BLOCK_NUMBERS // len(parts[0]))
        buffers = [rows.new_empty((len(part), block)) for part in parts]
        for start in range(0, points.shape[1], block):
            x = points.new_ones((d + 1, min(block, points.shape[1] - start)))
            torch.sub(points[:, start : start + block], self._centre, out=x[:d])
            squares, n = torch.linalg.vecdot(x[:d], x[:d], dim=0), x.shape[1]
            x *= scale
            scores = [
                torch.mm(part, x, out=buffer.view(-1)[: len(part) * n].view(-1, n))
                for part, buffer in zip(parts, buffers, strict=True)
            ]
            yield slice(start, start + n), squares, scores


def _group_minimum(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum over the rows of (M, n) and its row; M is a multiple of `SITES_PER_GROUP`.

    The plain minimum is vectorised, the search for its row is not: it looks at one group only.
    """
    groups = scores.view(-1, SITES_PER_GROUP, scores.shape[1])
    value, group = groups.amin(1).min(0)
    columns = torch.arange(scores.shape[1], device=scores.device)
    inner = groups[group, :, columns].argmin(1)
    return value, group * SITES_PER_GROUP + inner
