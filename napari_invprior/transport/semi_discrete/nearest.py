"""Nearest sites of many points: exact, in blocks that stay in the inner cache.

Points and sites are the columns of ``(d, n)`` and ``(d, M)`` matrices. With a potential ``psi`` the
distance is that of a power diagram, ``|x - y_j|^2 - psi_j``; its cells are Laguerre cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

SITES_PER_GROUP = 16
"""Sites whose minimum is taken first; only the best group is looked at again."""
SITES_PER_PART = 1024
"""Sites that points meet in one product, where only the nearest one is wanted."""
BLOCK_NUMBERS = 800_000
"""Distances in one block, so that it stays in the second-level cache."""
ALIGNED = 64
"""Points of a block are a multiple of this: rows of other lengths take several times longer."""
LOG_NEGLIGIBLE = -52.0
"""Logarithm (base 2) of the smallest share; smaller ones change nothing."""
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

    def nearest(self, points: Tensor, psi: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``min_j |x - y_j|^2 - psi_j`` (n,) and the smallest such ``j`` (n,) of points (d, n).

        Among equal distances, one site is returned; rounding decides which.
        """
        values = points.new_empty(points.shape[1])
        index = torch.empty(points.shape[1], dtype=torch.long, device=points.device)
        rows = self._priced(psi)
        groups = rows.view(-1, SITES_PER_GROUP * rows.shape[1])
        parts = rows.split(SITES_PER_PART)
        firsts = range(0, len(groups), SITES_PER_PART // SITES_PER_GROUP)
        width = _columns(len(parts[0]))
        buffer = rows.new_empty(len(parts[0]) * width)
        for here, x, squares in self._blocks(points, width):
            n = len(squares)
            least = torch.full_like(squares, torch.inf)
            group = torch.zeros(n, dtype=torch.long, device=points.device)
            for first, part in zip(firsts, parts, strict=True):
                scores = torch.mm(part, x, out=buffer[: len(part) * n].view(-1, n))
                # the plain minimum is vectorised, the search for its row is not
                value, which = scores.view(-1, SITES_PER_GROUP, n).amin(1).min(0)
                closer = value < least
                least = torch.where(closer, value, least)
                group = torch.where(closer, which + first, group)
            nearby = groups.index_select(0, group).view(n, SITES_PER_GROUP, -1)
            within = torch.linalg.vecdot(nearby, x.T.contiguous()[:, None]).argmin(1)
            values[here] = least + squares
            index[here] = group * SITES_PER_GROUP + within
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
        rows = self._priced(psi + epsilon * log_weights)[: self.count]
        scale = epsilon * math.log(2)  # powers of two are computed three times as fast
        width = _columns(self.count)
        buffer = rows.new_empty(self.count * width)
        for here, x, squares in self._blocks(points, width):
            n = len(squares)
            scores = torch.mm(rows, x.mul_(-1 / scale), out=buffer[: self.count * n].view(-1, n))
            peak = scores.amax(0)
            # denormal numbers would make the products that follow many times slower
            shares = scores.sub_(peak).clamp_min_(LOG_NEGLIGIBLE).exp2_()
            totals = shares.sum(0)
            yield here, squares - scale * (peak + totals.log2()), shares, totals

    def _priced(self, psi: Tensor | None) -> Tensor:
        """Rows whose product with ``(x, 1)`` is ``|y_j|^2 - 2 x.y_j - psi_j``, in whole groups."""
        rows = self._rows
        rows[: self.count, -1] = self._squares if psi is None else self._squares - psi
        return rows

    def _blocks(self, points: Tensor, width: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Columns, centred points with a row of ones (d + 1, n), and their ``|x|^2``."""
        d, count = points.shape
        for start in range(0, count, width):
            x = points.new_ones((d + 1, min(width, count - start)))
            torch.sub(points[:, start : start + width], self._centre, out=x[:d])
            yield slice(start, start + width), x, torch.linalg.vecdot(x[:d], x[:d], dim=0)


def _columns(sites: int) -> int:
    """Points that meet so many sites in one block."""
    return max(1, BLOCK_NUMBERS // sites // ALIGNED) * ALIGNED
