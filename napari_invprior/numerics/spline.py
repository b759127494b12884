"""Values and gradients of an image between its samples, by a cubic spline."""

from __future__ import annotations

import itertools

import torch
from scipy.ndimage import spline_filter
from torch import Tensor


class CubicSpline:
    """The cubic spline through the samples of an image, mirrored at its borders.

    Parameters
    ----------
    image : Tensor
        (*space).

    Examples
    --------
    >>> line = torch.arange(8.0)[:, None] * torch.ones(8)
    >>> value, gradient = CubicSpline(line).value_and_grad(torch.tensor([[3.25], [4.0]]).double())
    >>> round(float(value), 2), [round(v, 2) for v in gradient.flatten().tolist()]
    (3.25, [1.0, 0.0])
    """

    def __init__(self, image: Tensor) -> None:
        coefficients = spline_filter(image.double().numpy(), order=3, mode="mirror")
        self._coefficients = torch.from_numpy(coefficients)

    def value_and_grad(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Values (N,) and gradients per pixel (d, N) at pixel coordinates (d, N) inside."""
        shape = self._coefficients.shape
        sizes = torch.tensor(shape)[:, None]
        base = pixels.floor().long().clamp_min(0).minimum(sizes - 1)
        weights, slopes = _basis(pixels - base)
        values, gradient = pixels.new_zeros(pixels.shape[1]), torch.zeros_like(pixels)
        for offsets in itertools.product(range(4), repeat=len(shape)):
            shift = torch.tensor(offsets)[:, None] - 1
            cell = _mirrored(base + shift, sizes)
            coefficients = self._coefficients[tuple(cell)]
            lines = [weights[o, axis] for axis, o in enumerate(offsets)]
            values += coefficients * torch.stack(lines).prod(0)
            for axis, o in enumerate(offsets):
                others = [*lines[:axis], slopes[o, axis], *lines[axis + 1 :]]
                gradient[axis] += coefficients * torch.stack(others).prod(0)
        return values, gradient


def _basis(t: Tensor) -> tuple[Tensor, Tensor]:
    """The four cubic B-splines at the fraction ``t`` (d, N) and their slopes: (4, d, N)."""
    s = 1 - t
    weights = [s**3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * s**2 + 3 * s**3, t**3]
    slopes = [-(s**2), (3 * t - 4) * t, (4 - 3 * s) * s, t**2]
    return torch.stack(weights) / 6, torch.stack(slopes) / 2


def _mirrored(index: Tensor, sizes: Tensor) -> Tensor:
    """Indices just outside the image mirrored at its outermost samples."""
    last = sizes - 1
    return (last - (last - index.abs()).abs()).clamp_min(0)
