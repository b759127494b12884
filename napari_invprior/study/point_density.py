"""How many points there are per pixel: the kernel density of a set of points on a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Event, Result, ShouldStop, Stage, check_stop, never
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.transport.kernel_sums.kernel_sum import kernel_sum_with_error

CHUNK = 16_384
"""Pixels computed at a time."""
MARGIN = 3.0
"""Scales between the points and the rim of a grid that is laid around them."""


class PointDensityParameters(Parameters):
    """Kernel, its scale, and the size of a grid of its own."""

    kernel: Literal["gauss", "laplace"] = parameter(
        "gauss", "What stands for each point: a Gaussian, or a peak with long tails."
    )
    scale: Annotated[float, Field(gt=0, le=1e9)] | None = parameter(
        None, "Width of the kernel; empty follows Scott's rule.", unit="px"
    )
    resolution: int = parameter(
        128, "Samples along the longest edge where no image gives the grid.", unit="px",
        ge=8, le=4096,
    )


@dataclass(frozen=True)
class PointDensity:
    """Points per pixel.

    Attributes
    ----------
    values : Tensor
        (*space), float32.
    scale : float
        Of the kernel, in the points' units.
    error : float
        Largest estimated relative error of the sums; 0 where all pairs were summed.
    """

    values: Tensor
    scale: float
    error: float


def automatic_scale(points: Tensor) -> float:
    """Scott's rule for points (d, N): their spread times ``N^(-1 / (d + 4))``; 1 for no spread.

    Examples
    --------
    >>> automatic_scale(torch.zeros(2, 5))
    1.0
    """
    dim, count = points.shape
    spread = float(points.double().var(1, correction=0).mean().sqrt())
    return spread * count ** (-1 / (dim + 4)) or 1.0


def grid_around(
    points: Tensor, scale: float, resolution: int
) -> tuple[tuple[int, ...], float, tuple[float, ...]]:
    """Shape, step and origin of a grid that holds points (d, N) and their kernels.

    Examples
    --------
    >>> grid_around(torch.tensor([[0.0, 10.0], [0.0, 4.0]]), 1.0, 17)
    ((17, 11), 1.0, (-3.0, -3.0))
    """
    low = points.amin(1).double() - MARGIN * scale
    high = points.amax(1).double() + MARGIN * scale
    step = float((high - low).max()) / (resolution - 1)
    shape = ((high - low) / step).round().long() + 1
    return tuple(shape.tolist()), step, tuple(low.tolist())


def point_density(
    points: Tensor,
    space: Sequence[int],
    parameters: PointDensityParameters,
    *,
    spacing: Sequence[float] | None = None,
    should_stop: ShouldStop = never,
) -> Iterator[Event]:
    """Sum a kernel over points (d, N) at all pixels of a grid; the `Result` is a `PointDensity`.

    Parameters
    ----------
    points : Tensor
        In pixels of the grid.
    space : sequence of int
        Shape of the grid.
    spacing : sequence of float, optional
        Sizes of a pixel along the axes, in which the kernel is round; equal by default. The scale
        is in units of the first axis with the smallest one.
    """
    if len(points) != len(space):
        raise InvalidInput(
            f"the points have {len(points)} coordinates, the grid has {len(space)} axes; both must "
            "live in one space"
        )
    sizes = torch.tensor(spacing or [1.0] * len(space), dtype=torch.float64)
    sizes = sizes[:, None] / sizes.min()
    places = points.double() * sizes
    scale = parameters.scale or automatic_scale(places)
    height = float(sizes.prod()) / _integral(parameters.kernel, scale, len(space))
    total = math.prod(space)
    values, worst = torch.empty(total), 0.0
    stage, weights = Stage("density", total), places.new_ones(places.shape[1])
    for start in range(0, total, CHUNK):
        check_stop(should_stop)
        flat = torch.arange(start, min(start + CHUNK, total))
        pixels = torch.stack(torch.unravel_index(flat, tuple(space))).double() * sizes
        found = kernel_sum_with_error(places, pixels, weights, parameters.kernel, scale=scale)
        values[flat] = (found.value.clamp_min(0) * height).float()
        worst = max(worst, found.error)
        if stage.due():
            yield stage.progress(start + len(flat))
    yield stage.progress(total)
    yield Result(PointDensity(values.reshape(*space), scale, worst))


def _integral(kernel: str, scale: float, dim: int) -> float:
    """Integral of the kernel over the space."""
    if kernel == "gauss":
        return (2 * math.pi) ** (dim / 2) * scale**dim
    sphere = 2 * math.pi ** (dim / 2) / math.gamma(dim / 2)
    return sphere * math.gamma(dim) * scale**dim
