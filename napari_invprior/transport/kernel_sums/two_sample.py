"""Are two clouds samples of one distribution? The kernel test, with a permutation p-value.

The statistic is the unbiased estimate (a U-statistic) of the squared maximum mean discrepancy

``mean_{i != j} K(x_i, x_j) + mean_{i != j} K(y_i, y_j) - 2 mean_ij K(x_i, y_j)``,

for the energy kernel the energy distance. With ``u`` the indicator of the first cloud in the
union of both, everything follows from ``K 1`` and ``K u``; permutations of the labels are further
weights of one batched kernel sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.transport.kernel_sums.kernel_sum import (
    Method,
    kernel_sum,
    kernel_sum_with_error,
    median_scale,
)
from napari_invprior.transport.kernel_sums.kernels import Kernel, as_kernel

BATCH_NUMBERS = 2**22
"""Weights of permutations that are summed at a time."""


@dataclass(frozen=True)
class TwoSampleTest:
    """Outcome of a kernel two-sample test.

    Attributes
    ----------
    statistic : float
        Unbiased squared discrepancy; around 0 for clouds of one distribution.
    p_value : float
        Share of the permutations, the given labels among them, with no smaller statistic.
    null : Tensor
        Statistics of the permutations, sorted, float64.
    """

    statistic: float
    p_value: float
    null: Tensor

    def quantiles(self, shares: Sequence[float] = (0.5, 0.9, 0.95, 0.99)) -> list[float]:
        """Quantiles of the statistic for clouds of one distribution."""
        at = torch.tensor(shares, dtype=self.null.dtype, device=self.null.device)
        return [float(q) for q in self.null.quantile(at)]


def two_sample_test(
    x: Tensor,
    y: Tensor,
    kernel: str | Kernel = "gauss",
    *,
    scale: float | None = None,
    permutations: int = 200,
    method: Method = "auto",
    tolerance: float = 1e-2,
    slices: int | None = None,
    groups: tuple[Tensor, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> TwoSampleTest:
    """Test whether the columns of (d, N) and (d, M) come from one distribution.

    All permutations see the same slices, so that the p-value is exact however few these are.

    Parameters
    ----------
    kernel, scale, method, tolerance, slices
        As for `kernel_sum_with_error`; the tolerance is that of ``K 1``.
    permutations : int
        Random relabellings; the smallest p-value is one by their number plus 1.
    groups : tuple of Tensor, optional
        Group (N,) and (M,) of each point, counted from 0 in each cloud, where points of a group
        are no independent draws: whole groups are relabelled then.
    generator : torch.Generator, optional
        Source of the permutations (CPU); the same ones at every call by default.

    Raises
    ------
    InvalidInput
        For fewer than two points in a cloud, and as `kernel_sum_with_error`.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> x, y = (torch.randn((3, 80), generator=generator) for _ in range(2))
    >>> two_sample_test(x, y, "energy").p_value > 0.05
    True
    >>> two_sample_test(x, y + 1, "energy").p_value < 0.01
    True
    """
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or min(x.shape[1], y.shape[1]) < 2:
        raise InvalidInput(
            f"clouds {tuple(x.shape)} and {tuple(y.shape)}: need (d, N) and (d, M) with two points "
            "or more"
        )
    if permutations < 1:
        raise InvalidInput(f"permutations = {permutations!r}: give 1 or more; 200 is usual")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    kernel = as_kernel(kernel)
    if kernel.has_scale and scale is None:
        scale = median_scale(x, y)
    cloud = torch.cat([x.detach(), y.detach()], 1)
    if groups is None:
        groups = torch.arange(x.shape[1]), torch.arange(y.shape[1])
    batches = _labellings(*groups, permutations, generator)
    weights = [torch.cat([torch.ones_like(u[:1]), u]).to(cloud) for u in batches]
    decided = kernel_sum_with_error(
        cloud, cloud, weights[0], kernel,
        scale=scale, method=method, tolerance=tolerance, slices=slices,
    )
    sums = [decided.value]
    if len(weights) > 1:
        same = {"method": decided.method, "slices": decided.slices or None}
        sums = [
            kernel_sum(cloud, cloud, w, kernel, scale=scale, tolerance=tolerance, **same)
            for w in weights
        ]
    at_zero = float(kernel.value(cloud.new_zeros(1)))
    first, *rest = torch.cat(
        [
            _statistics(w[1:].double(), s.double(), at_zero)
            for w, s in zip(weights, sums, strict=True)
        ]
    ).tolist()
    null = torch.tensor(sorted(rest), dtype=torch.float64)
    p_value = (1 + int((null >= first).sum())) / (1 + permutations)
    return TwoSampleTest(first, p_value, null)


def _labellings(
    first: Tensor, second: Tensor, permutations: int, generator: torch.Generator
) -> list[Tensor]:
    """Indicators of the first cloud (B, n + m) in batches, the given labels first."""
    n = int(first.max()) + 1
    groups = torch.cat([first, second + n])
    total = n + int(second.max()) + 1
    rows = [torch.arange(total) < n]
    rows += [torch.randperm(total, generator=generator) < n for _ in range(permutations)]
    labels = torch.stack(rows)[:, groups].double()
    return list(labels.split(max(1, BATCH_NUMBERS // len(groups))))


def _statistics(u: Tensor, sums: Tensor, at_zero: float) -> Tensor:
    """Unbiased squared discrepancies (B,) of labellings u (B, n + m) from ``K 1`` and ``K u``."""
    n = u.sum(1)
    m = u.shape[1] - n
    both, total = u @ sums[0], sums[0].sum()
    inside = (u * sums[1:]).sum(1)
    across = both - inside
    outside = total - 2 * both + inside
    return (
        (inside - n * at_zero) / (n * (n - 1))
        + (outside - m * at_zero) / (m * (m - 1))
        - 2 * across / (n * m)
    )
