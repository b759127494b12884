"""Sums of a radial kernel over point clouds: ``s_m = sum_n w_n K(x_n, y_m)``.

Over all pairs, or as a mean over one-dimensional slices, which costs a number of slices times
``N + M`` instead of ``N M``; the automatic choice takes what is cheaper for the tolerance. Both
are differentiable: the backward pass calls the fast sum again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from napari_invprior.errors import InvalidInput, nearest
from napari_invprior.transport.kernel_sums.budget import Problem, Sliced, adaptive, fixed
from napari_invprior.transport.kernel_sums.dense import DenseSums
from napari_invprior.transport.kernel_sums.kernels import Kernel, TooNarrow, as_kernel
from napari_invprior.transport.kernel_sums.sliced import SlicedSums
from napari_invprior.transport.slices.directions import DirectionKind

Method = Literal["auto", "dense", "sliced"]

MEDIAN_POINTS = 400
"""Points of each cloud that medians are taken over."""
MOST_SLICES = 1_000_000
FIXED_ACCURACY = 1e-5
"""Of the sums on the line, where the number of slices is given."""


@dataclass(frozen=True)
class KernelSum:
    """A kernel sum and how it was found.

    Attributes
    ----------
    value : Tensor
        (M,) or (B, M).
    error : float
        Estimated error as a share of the absolute values (both summed over the targets); 0 for
        the dense sum, infinite for a single slice.
    method : str
        ``"dense"`` or ``"sliced"``.
    slices : int
        Directions used; 0 for the dense sum.
    scale : float
        Scale of the kernel.
    """

    value: Tensor
    error: float
    method: Literal["dense", "sliced"]
    slices: int
    scale: float


def kernel_sum(x: Tensor, y: Tensor, w: Tensor, kernel: str | Kernel, **options: Any) -> Tensor:
    """The value of `kernel_sum_with_error`, (M,) or (B, M); differentiable in x, y and w.

    Examples
    --------
    >>> x, y = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0]])
    >>> kernel_sum(x, y, torch.ones(2), "energy")
    tensor([-3.])
    """
    return kernel_sum_with_error(x, y, w, kernel, **options).value


def kernel_sum_with_error(
    x: Tensor,
    y: Tensor,
    w: Tensor,
    kernel: str | Kernel,
    *,
    scale: float | None = None,
    method: Method = "auto",
    tolerance: float = 1e-2,
    slices: int | None = None,
    kind: DirectionKind = "auto",
    generator: torch.Generator | None = None,
) -> KernelSum:
    """``s_m = sum_n w_n K(x_n, y_m)``, with an estimate of its error.

    Parameters
    ----------
    x, y : Tensor
        Sources (d, N) and targets (d, M), one column per point.
    w : Tensor
        Weights (N,), or several sets of them (B, N).
    kernel : str or Kernel
        Of `kernels.KERNELS`, or one with parameters.
    scale : float, optional
        Of the kernel, in units of the points; `median_scale` by default.
    method : str
        ``"dense"``: all pairs; ``"sliced"``; ``"auto"``: what is cheaper.
    tolerance : float
        Relative error at which no more slices are added; the dense sum ignores it.
    slices : int, optional
        A fixed number of slices instead, spread as one set. Their error is overestimated.
    kind : str
        Of the `slicing.directions`.
    generator : torch.Generator, optional
        Source of randomness (CPU); the same directions at every call by default.

    Raises
    ------
    InvalidInput
        For clouds or weights that do not fit together, and for parameters out of range.
    """
    kernel = as_kernel(kernel)
    _check(x, y, w)
    _check_options(method, tolerance, slices)
    scale = _scale(kernel, scale, x, y)
    centre = _centre(y.detach())
    x, y, rows = (x - centre) / scale, (y - centre) / scale, w if w.dim() == 2 else w[None]
    _check_extent(x, y, scale)
    problem = Problem(kernel, x.detach(), y.detach(), rows.detach())
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    found = _solve(problem, method, tolerance, slices, kind, generator)
    if found is None:
        dense = DenseSums(kernel)
        value = _Sum.apply(x, y, rows, dense, dense.value(*problem[1:]))
        return KernelSum(value.view(w.shape[:-1] + y.shape[1:]), 0.0, "dense", 0, scale)
    value = _Sum.apply(x, y, rows, found.sums, found.value).view(w.shape[:-1] + y.shape[1:])
    return KernelSum(value, found.error, "sliced", len(found.sums.xi), scale)


def median_scale(x: Tensor, y: Tensor) -> float:
    """Median distance between points of two clouds; 1 where it vanishes.

    Examples
    --------
    >>> median_scale(torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 5.0]]))
    2.0
    """
    a, b = (c.detach()[:, :: -(-c.shape[1] // MEDIAN_POINTS)].T.double() for c in (x, y))
    return float(torch.cdist(a, b).median()) or 1.0


def _solve(
    problem: Problem, method: Method, tolerance: float, slices: int | None,
    kind: DirectionKind, generator: torch.Generator,
) -> Sliced | None:
    """The sliced sum, or None for the dense one."""
    if method == "dense":
        return None
    limit = problem.dense_cost() if method == "auto" else math.inf
    try:
        if slices is None and len(problem.x) > 1:
            return adaptive(problem, tolerance, kind, generator, limit)
        accuracy = tolerance if slices is None else min(tolerance, FIXED_ACCURACY)
        return fixed(problem, slices or 1, accuracy, kind, generator, limit)
    except TooNarrow:
        if method == "auto":
            return None
        raise


class _Sum(torch.autograd.Function):
    """The value found before, with the gradients of the method that found it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, w: Tensor, sums: DenseSums | SlicedSums, value: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, y, w)
        ctx.sums = sums
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return (*ctx.sums.gradients(*ctx.saved_tensors, g.contiguous()), None, None)


def _scale(kernel: Kernel, scale: float | None, x: Tensor, y: Tensor) -> float:
    if kernel.has_scale:
        scale = median_scale(x, y) if scale is None else float(scale)
        if not 0 < scale < math.inf:
            raise InvalidInput(f"scale = {scale!r} is not positive; leave it out for the median")
        return scale
    if scale not in (None, 1):
        raise InvalidInput(
            f"scale = {scale!r}, but the kernel {kernel.name!r} has none; leave it out, and "
            "multiply the points instead"
        )
    return 1.0


def _centre(points: Tensor) -> Tensor:
    """Middle of the cloud (d, 1), rounded: grids stay where they are while points move a little.

    Medians of some of the points: where far ones drew the middle away, the others would lose
    digits.
    """
    some = points[:, :: -(-points.shape[1] // MEDIAN_POINTS)]
    middle = some.median(1, keepdim=True).values
    extent = float((some - middle).abs().median(1).values.max())
    step = 2.0 ** (math.floor(math.log2(extent)) - 2) if extent > 0 else 1.0
    return (middle / step).round_().mul_(step)


def _check(x: Tensor, y: Tensor, w: Tensor) -> None:
    """Refuse clouds and weights that do not fit together."""
    given = {"x": x, "y": y, "w": w}
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())
    fits = x.dim() == y.dim() == 2 and len(x) == len(y) and w.dim() in (1, 2)
    if not fits or w.shape[-1] != x.shape[1]:
        raise InvalidInput(
            f"{shapes}: need x (d, N), y (d, M) and w (N,) or (B, N); points are columns"
        )
    if 0 in (*x.shape, *y.shape, *w.shape):
        raise InvalidInput(f"{shapes}: a cloud is empty; give at least one point")
    if {t.dtype for t in given.values()} not in ({torch.float32}, {torch.float64}):
        kinds = ", ".join(f"{name} {tensor.dtype}" for name, tensor in given.items())
        raise InvalidInput(f"{kinds}: need float32 or float64 for all; convert with .to")
    for name, tensor in given.items():
        if not all(bool(bound.isfinite()) for bound in tensor.aminmax()):
            raise InvalidInput(f"{name} has values that are not finite; remove these points")


def _check_extent(x: Tensor, y: Tensor, scale: float) -> None:
    """Refuse points whose squared distances, in units of the scale, are no numbers any more."""
    extent = max(float(bound.abs()) for points in (x, y) for bound in points.detach().aminmax())
    if not 4 * len(x) * extent**2 < torch.finfo(x.dtype).max:
        raise InvalidInput(
            f"the points reach {extent:.3g} times the scale ({scale:.3g}), too far for {x.dtype}; "
            "divide them by a large number, or choose a larger scale"
        )


def _check_options(method: str, tolerance: float, slices: int | None) -> None:
    if method not in get_args(Method):
        raise InvalidInput(
            f"no method {method!r}{nearest(method, get_args(Method))}; choose one of "
            f"{', '.join(get_args(Method))}"
        )
    if not 1e-7 <= tolerance <= 1:
        raise InvalidInput(
            f"tolerance = {tolerance!r} is not within 1e-7 to 1; use method='dense' for exact sums"
        )
    if slices is not None and not 1 <= slices <= MOST_SLICES:
        raise InvalidInput(
            f"slices = {slices!r} is not within 1 to {MOST_SLICES}; leave it out to have as many "
            "as the tolerance needs"
        )
