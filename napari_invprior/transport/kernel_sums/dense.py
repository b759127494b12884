"""Kernel sums and their gradients over all pairs, in blocks that stay in the inner cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from napari_invprior.transport.kernel_sums.kernels import Kernel

ROWS, COLUMNS = 256, 1024
"""Sources and targets of one block: its distances take 1 MB in single precision."""
MOST = 0.9
"""Share of a block whose rounding is taken for no distance; far points must not count."""
FEW_DIMENSIONS = 4
"""Up to here distances come from differences: no slower, and exact for close points."""


class DenseSums:
    """``s_m = sum_n w_n K(x_n, y_m)`` of points (d, N) and (d, M), in units of the scale.

    Points should lie about the origin: ``|x|^2 - 2 x.y + |y|^2`` loses digits elsewhere.

    Examples
    --------
    >>> from napari_invprior.transport.kernel_sums.kernels import Energy
    >>> x, y = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0]])
    >>> DenseSums(Energy()).value(x, y, torch.ones(1, 2))
    tensor([[-3.]])
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def value(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Sums (B, M) for weights (B, N)."""
        found = w.new_zeros((len(w), y.shape[1]))
        for rows, columns, squared in _blocks(x, y):
            found[:, columns] += w[:, rows] @ self.kernel.value(squared)
        return found

    def gradients(
        self, x: Tensor, y: Tensor, w: Tensor, g: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of ``sum_bm g_bm s_bm`` in x, y and w."""
        in_x, in_y, in_w = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(w)
        for rows, columns, squared in _blocks(x, y):
            pull = w[:, rows].T @ g[:, columns]
            pull *= self.kernel.slope(squared.clone())
            in_w[:, rows] += g[:, columns] @ self.kernel.value(squared).T
            in_x[:, rows] += x[:, rows] * pull.sum(1) - y[:, columns] @ pull.T
            in_y[:, columns] += y[:, columns] * pull.sum(0) - x[:, rows] @ pull
        return in_x, in_y, in_w


def _blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances (n, m), overwritten by the next block; 0 where rounding hides them."""
    x_squares, y_squares = x.square().sum(0), y.square().sum(0)
    rounding = 4 * torch.finfo(x.dtype).eps
    x_typical = [float(part.quantile(MOST)) for part in x_squares.split(ROWS)]
    # rows (-2 x, |x|^2, 1) times columns (y, 1, |y|^2)
    left = torch.cat([-2 * x, x_squares[None], torch.ones_like(x_squares)[None]]).T.contiguous()
    right = torch.cat([y, torch.ones_like(y_squares)[None], y_squares[None]])
    buffer = x.new_empty(ROWS * COLUMNS)
    for start in range(0, y.shape[1], COLUMNS):
        columns = slice(start, start + COLUMNS)
        block = right[:, columns].contiguous()
        y_typical = float(y_squares[columns].quantile(MOST))
        for number, typical in enumerate(x_typical):
            rows = slice(number * ROWS, (number + 1) * ROWS)
            some = left[rows]
            squared = buffer[: len(some) * block.shape[1]].view(len(some), -1)
            if len(x) <= FEW_DIMENSIONS:
                _differences(x[:, rows], y[:, columns], squared)
            else:
                torch.mm(some, block, out=squared)
                torch.threshold_(squared, rounding * (typical + y_typical), 0.0)
            yield rows, columns, squared


def _differences(x: Tensor, y: Tensor, squared: Tensor) -> None:
    """Write the squared distances, one coordinate after the other."""
    squared.zero_()
    for a, b in zip(x, y, strict=True):
        difference = a[:, None] - b
        squared.addcmul_(difference, difference)
