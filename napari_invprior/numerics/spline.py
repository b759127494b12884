"""Values and gradients of an image between its samples, by a cubic spline."""

from __future__ import annotations

import torch
from scipy.ndimage import spline_filter
from torch import Tensor

BLOCK = 16_384
"""Points that are looked up together."""


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
        parts = [self._block(part) for part in pixels.split(BLOCK, 1)]
        return torch.cat([value for value, _ in parts]), torch.cat([g for _, g in parts], 1)

    def _block(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        shape = self._coefficients.shape
        cells, lines = torch.zeros(1, dtype=torch.long), []
        for axis, n in enumerate(shape):
            base = pixels[axis].floor().clamp(0, n - 1)
            lines.append(_basis(pixels[axis] - base))
            near = _mirrored(base.long() + torch.arange(-1, 3)[:, None], n)
            cells = cells.unsqueeze(-2) * n + near.view(*(1,) * axis, 4, -1)
        value = self._coefficients.flatten()[cells]
        gradient: list[Tensor] = []
        for weights, slopes in reversed(lines):
            gradient = [(part * weights).sum(-2) for part in gradient]
            gradient.insert(0, (value * slopes).sum(-2))
            value = (value * weights).sum(-2)
        return value, torch.stack(gradient)


def _basis(t: Tensor) -> tuple[Tensor, Tensor]:
    """The four cubic B-splines at the fraction ``t`` (N,) and their slopes: (4, N)."""
    s = 1 - t
    weights = [s**3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * s**2 + 3 * s**3, t**3]
    slopes = [-(s**2), (3 * t - 4) * t, (4 - 3 * s) * s, t**2]
    return torch.stack(weights) / 6, torch.stack(slopes) / 2


def _mirrored(index: Tensor, n: int) -> Tensor:
    """Indices just outside of n samples mirrored at the outermost ones."""
    last = n - 1
    return (last - (last - index.abs()).abs()).clamp_min(0)
