"""Kernel sums as means over slices, and how far they are from the kernel's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from napari_invprior.transport.kernel_sums.grid import GridSums
from napari_invprior.transport.kernel_sums.kernels import Energy, Kernel, TooNarrow
from napari_invprior.transport.kernel_sums.sorted import SortedSums

GROUPS = 8
"""Parts of the slices whose spread tells the error of their mean."""
BLOCK_NUMBERS = 2**17
"""Projections and nodes in one block of slices: few calls, but small arrays, for memory that goes
back to the system in between costs more than the sums."""
PROJECTED = 16
"""Directions in one product; fewer at a time are slow, for more the buffer would be large."""
TRIED = 2
"""Slices on which the grid is held against sorting."""


class LineSums(Protocol):
    """A way to sum on lines."""

    cells: int
    """Numbers held for each line beside those of the points."""

    def sums(
        self, sources: Tensor, weights: Tensor, targets: Tensor, slopes: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Values and, if asked for, slopes at the targets, (P, B, M)."""


class SlicedSums:
    """``s_m = mean_p sum_n w_n f(<xi_p, x_n - y_m>)``, in units of the scale.

    Parameters
    ----------
    line : LineSums
        How sums on the line are computed.
    xi : Tensor
        (P, d), directions as rows. Every `GROUPS`-th belongs to one group; where groups are
        independent of each other the error is right, where all directions are spread as one set
        it is too large.
    """

    def __init__(self, line: LineSums, xi: Tensor) -> None:
        self.line, self.xi = line, xi

    def groups(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Sums (G, B, M) over the slices of each group, not yet divided by their number."""
        groups = min(GROUPS, len(self.xi))
        found = w.new_zeros((groups, len(w), y.shape[1]))
        start = 0
        for xi, sources, targets in self._blocks(x, y, w):
            member = torch.arange(start, start + len(xi), device=w.device) % groups
            found.index_add_(0, member, self.line.sums(sources, w, targets)[0])
            start += len(xi)
        return found

    def gradients(
        self, x: Tensor, y: Tensor, w: Tensor, g: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of ``sum_bm g_bm s_bm`` in x, y and w."""
        in_x, in_y, in_w = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(w)
        for xi, sources, targets in self._blocks(x, y, w):
            _, slopes = self.line.sums(sources, w, targets, slopes=True)
            in_y += xi.T @ _total(slopes, g)
            values, slopes = self.line.sums(targets, g, sources, slopes=True)
            in_x += xi.T @ _total(slopes, w)
            in_w += values.sum(0)
        count = len(self.xi)
        return in_x.div_(count), in_y.div_(count), in_w.div_(count)

    def _blocks(self, x: Tensor, y: Tensor, w: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Some directions (P, d) and the points' places along them, overwritten by later ones."""
        points = x.shape[1] + y.shape[1]
        together = max(1, BLOCK_NUMBERS // (len(w) * (points + self.line.cells)))
        batch = min(max(together, PROJECTED), len(self.xi))
        buffers = [c.new_empty((batch, c.shape[1])) for c in (x, y)]
        for xi in self.xi.split(batch):
            sources, targets = (
                torch.mm(xi, c, out=buffer[: len(xi)]).split(together)
                for c, buffer in zip((x, y), buffers, strict=True)
            )
            yield from zip(xi.split(together), sources, targets, strict=True)


def _total(slopes: Tensor | None, factors: Tensor) -> Tensor:
    """Over the weight vectors: (P, B, n) and (B, n) to (P, n)."""
    assert slopes is not None
    return (slopes * factors).sum(1)


def spread_error(groups: Tensor, slices: int) -> tuple[Tensor, float]:
    """Mean (B, M) of sums (G, B, M) over groups of slices, and its relative error.

    The error is the standard error of the mean, summed over all targets, as a share of the summed
    absolute values; infinite where there is one group.

    Examples
    --------
    >>> mean, error = spread_error(torch.tensor([1.0, 3.0]).view(2, 1, 1), 2)
    >>> float(mean), round(error, 4)
    (2.0, 0.5)
    """
    count = len(groups)
    value = groups.sum(0) / slices
    if count == 1:
        return value, torch.inf
    apart = (groups * (count / slices) - value).square_().sum(0)
    spread = float(apart.sqrt_().double().sum()) / (count * (count - 1)) ** 0.5
    size = float(value.abs().double().sum())
    return value, spread / size if size > 0 else (torch.inf if spread > 0 else 0.0)


def line_sums(
    kernel: Kernel, x: Tensor, y: Tensor, w: Tensor, xi: Tensor, accuracy: float
) -> LineSums:
    """The fastest sums on the line that are accurate enough for these points.

    Sums of the energy kernel are exact by sorting; the grid is ten times as fast, and used where
    it agrees on a few of the directions ``xi``. Double precision is for those who compare, single
    slices have nothing that their slopes could be averaged with: these get cubic splines.
    """
    dim = len(x)
    exact = isinstance(kernel, Energy)
    if exact and len(xi) <= TRIED:
        return SortedSums(dim)
    squares = [points.square().sum(0) for points in (x, y)]
    radius = max(float(found.max()) for found in squares) ** 0.5
    typical = max(float(found[:: 1 + len(found) // 1000].median()) for found in squares)
    cubic = dim == 1 or x.dtype == torch.float64
    try:
        grid = GridSums(kernel, dim, radius, (typical / dim) ** 0.5, accuracy, cubic, x)
    except TooNarrow:
        if exact:
            return SortedSums(dim)
        raise
    if not exact:
        return grid
    sources, targets, first = xi[:TRIED] @ x, xi[:TRIED] @ y, w[:1]
    right = SortedSums(dim).sums(sources, first, targets)[0]
    wrong = grid.sums(sources, first, targets)[0] - right
    agrees = float(wrong.abs().sum()) <= accuracy * float(right.abs().sum())
    return grid if agrees else SortedSums(dim)
