"""Kernel sums on the line by way of a grid: shared out to nodes, convolved there, interpolated.

With B-splines ``b`` of the grid, ``f(t - u)`` becomes ``sum_ij b_i(t) f(ih - jh) b_j(u)``. Linear
ones need no more; for cubic ones ``f`` is filtered first, so that it is met at the nodes. Kinks
of ``f`` cost nothing but for pairs of points in the same few cells.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from napari_invprior.transport.kernel_sums.kernels import Kernel, TooNarrow

PADDING = 5.0
"""Period of the grid, in radii of the cloud; differences reach two radii to either side."""
SMALLEST_GRID, LARGEST_GRID = 512, 2**18
SCALE_FREE_GRID = 2**14
"""Largest grid for kernels without a scale; what is singular at 0 matters in one cell only."""
CUBIC_GAIN = 200.0
"""Error of cubic interpolation: fourth differences by this."""


class GridSums:
    """``s(u) = sum_n w_n f(t_n - u)`` for sources t and targets u on many lines.

    Parameters
    ----------
    kernel : Kernel
        In units of its scale.
    dim : int
        Dimension whose slices the lines are.
    radius, spread : float
        Points lie within plus and minus ``radius``, most of them within ``spread``.
    accuracy : float
        Relative error of interpolation that is aimed at.
    cubic : bool
        Cubic splines: their slopes are those of the sums that are computed, and as accurate; one
        point costs twice as much. With linear ones, slopes are good on the mean over many slices.
    like : Tensor
        On whose device the sums are taken.

    Attributes
    ----------
    cells : int
        Nodes of the grid.

    Raises
    ------
    TooNarrow
        If the kernel is too narrow for a grid over the whole cloud.

    Examples
    --------
    >>> from napari_invprior.transport.kernel_sums.kernels import Gauss
    >>> line = GridSums(Gauss(), 1, 2.0, 1.0, 1e-6, True, torch.zeros(1))
    >>> at = torch.tensor([[1.0]])
    >>> value, slope = line.sums(torch.tensor([[0.0]]), torch.ones(1, 1), at, slopes=True)
    >>> [round(float(v), 4) for v in (value, slope)]
    [0.6065, -0.6065]
    """

    def __init__(
        self,
        kernel: Kernel,
        dim: int,
        radius: float,
        spread: float,
        accuracy: float,
        cubic: bool,
        like: Tensor,
    ) -> None:
        radius = _rounded(radius) if radius > 0 else 1.0
        spread = min(_rounded(spread), radius) if spread > 0 else radius
        transfer = _transfer(kernel, dim, radius, spread, accuracy, cubic)
        self.cubic = cubic
        self.cells = 2 * (len(transfer) - 1)
        self._per_unit = self.cells / (PADDING * radius)
        self._transfer = transfer.to(like.device)

    def sums(
        self, sources: Tensor, weights: Tensor, targets: Tensor, slopes: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Values (P, B, M) and, if asked for, slopes ``ds/du`` (P, B, M).

        Parameters
        ----------
        sources, targets : Tensor
            (P, N) and (P, M), on P lines.
        weights : Tensor
            (B, N).
        """
        # differences of neighbours would be rounding alone in single precision
        grid = self._convolved(sources, weights, torch.float64 if slopes else weights.dtype)
        index, place = self._place(targets)
        shares = _cubic(place) if self.cubic else _linear(place)
        values = _interpolated(grid.to(weights.dtype), index, shares)
        if not slopes:
            return values, None
        steps = grid.roll(-1, -1).sub_(grid).mul_(self._per_unit)
        if self.cubic:
            return values, _interpolated(steps.to(place), index, _quadratic(place))
        steps = steps.add(steps.roll(1, -1)).mul_(0.5)
        return values, _interpolated(steps.to(place), index, shares)

    def _place(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """First node (P, n) that sees each point, and how far the point is past its left node."""
        at = torch.add(self.cells / 2, positions, alpha=self._per_unit)
        index = at.int().long()
        return index.sub_(1) if self.cubic else index, at.frac_()

    def _convolved(self, sources: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """Sums at the nodes, (P, B, cells)."""
        index, place = self._place(sources)
        shape = len(index), *weights.shape
        grid = weights.new_zeros((*shape[:2], self.cells))
        index = index[:, None].expand(shape)
        for node, share in enumerate(_cubic(place) if self.cubic else _linear(place)):
            grid[..., node:].scatter_add_(2, index, share[:, None] * weights)
        spectrum = torch.fft.rfft(grid.to(dtype)).mul_(self._transfer.to(dtype))
        return torch.fft.irfft(spectrum, n=self.cells)


def _interpolated(grid: Tensor, index: Tensor, shares: tuple[Tensor, ...]) -> Tensor:
    """Values (P, B, n) of a grid (P, B, cells) at points (P, n)."""
    index = index[:, None].expand(-1, grid.shape[1], -1)
    found = grid.gather(2, index).mul_(shares[0][:, None])
    for node, share in enumerate(shares[1:], 1):
        found.addcmul_(grid[..., node:].gather(2, index), share[:, None])
    return found


def _linear(t: Tensor) -> tuple[Tensor, ...]:
    """Linear B-splines at ``t`` in [0, 1)."""
    return 1 - t, t


def _cubic(t: Tensor) -> tuple[Tensor, ...]:
    """Cubic B-splines at ``t``."""
    left = (1 - t) ** 3 / 6
    right = t**3 / 6
    middle = (t * t * (t - 2)).mul_(0.5).add_(2 / 3)
    return left, middle, 1 - left - middle - right, right


def _quadratic(t: Tensor) -> tuple[Tensor, ...]:
    """Shares of the differences between the nodes in the slope of a cubic spline."""
    left, right = (1 - t) ** 2 * 0.5, t * t * 0.5
    return left, 1 - left - right, right


def _rounded(length: float) -> float:
    """A little more, so that transfer functions are found again for other clouds like this."""
    return float(2 ** (math.ceil(4 * math.log2(length)) / 4))


@lru_cache(maxsize=64)
def _transfer(
    kernel: Kernel, dim: int, radius: float, spread: float, accuracy: float, cubic: bool
) -> Tensor:
    """Real FFT of ``f`` on the coarsest grid that is fine enough."""
    cells = SMALLEST_GRID
    largest = LARGEST_GRID if kernel.has_scale else SCALE_FREE_GRID
    while True:
        f = kernel.samples(dim, PADDING * radius / cells, cells // 2 + 1)
        near = f[: max(4, int(2 * spread / (PADDING * radius) * cells))]
        fine = _interpolation_error(near, cubic) <= accuracy
        if fine or (cells == largest and not kernel.has_scale):
            break
        if cells == largest:
            raise TooNarrow(
                f"the scale is too small for slicing: the points lie within {radius:.3g} times the "
                "scale; choose method='dense', a larger scale or a larger tolerance"
            )
        cells *= 2
    transfer = torch.fft.rfft(torch.cat([f, f[1:-1].flip(0)])).real
    if cubic:
        turn = torch.arange(len(transfer), dtype=torch.float64) * (2 * math.pi / cells)
        transfer /= ((2 + turn.cos()) / 3) ** 2
    return transfer


def _interpolation_error(f: Tensor, cubic: bool) -> float:
    """Mean error of samples of an even function, interpolated in both arguments."""
    whole = torch.cat([f[1:].flip(0), f])
    order, constant = (4, CUBIC_GAIN) if cubic else (2, 6.0)
    return float(whole.diff(order).abs().sum() / (constant * whole.abs().sum()))
