"""The exact attraction of an image: no target points, hence none of their noise.

``E|x - Y|^r`` is a convolution of the image with ``|x|^r``. It is computed once, by Fourier
transforms, at the middle of all pixels, and read off in between by a cubic spline.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import scipy.signal
import torch
from torch import Tensor

from napari_invprior.memory import require
from napari_invprior.numerics.spline import CubicSpline
from napari_invprior.transport.density import Density
from napari_invprior.transport.riesz import Cloud, Target

MARGIN, GUARD = 14, 6
"""Pixels around the image on which the potential is computed, and those of them, the outermost,
that are not used: the spline is mirrored there. Beyond, the potential goes on as that of blocks
of pixels: a plane would pull less than far particles push each other, and they would escape."""
BLOCKS = 12
"""Blocks along each axis, at most, that stand for the image beyond its surroundings."""
_NEAR, _FINE = 2, 9


class ImagePotential(Target):
    """The density of an image as a target, each pixel a box of constant density.

    Examples
    --------
    >>> target = ImagePotential(Density(torch.ones(16, 16)))
    >>> value, gradient = target.potential(torch.zeros(2, 1, dtype=torch.float64), 1.0)
    >>> round(float(value), 4), bool(gradient.abs().max() < 1e-9)
    (0.3826, True)
    """

    def __init__(self, density: Density) -> None:
        self.density, self.dim = density, density.ndim
        self._splines: dict[float, tuple[CubicSpline, float]] = {}
        self._far = _blocks(density)

    def potential(self, x: Tensor, exponent: float, tie: float = 0.0) -> tuple[Tensor, Tensor]:
        spline, _ = self._spline(exponent)
        shape = torch.tensor(self.density.mass.shape)[:, None]
        pixels = self.density.to_pixels(x) + MARGIN
        inside = pixels.clamp_min(GUARD).minimum(shape - 1.0 + 2 * MARGIN - GUARD)
        values, gradient = spline.value_and_grad(inside)
        gradient = gradient / self.density.pixel[:, None]
        out = (pixels != inside).any(0)
        if bool(out.any()):
            border = self.density.to_points(inside[:, out] - MARGIN)
            near, slope = self._far.potential(border, exponent)
            far, pull = self._far.potential(x[:, out].double(), exponent)
            values[out] += far - near
            free = (pixels == inside)[:, out]
            gradient[:, out] = torch.where(free, gradient[:, out] - slope, 0) + pull
        return values.to(x), gradient.to(x)

    def spread(self, exponent: float) -> float:
        return self._spline(exponent)[1]

    def drawn(self, count: int, generator: torch.Generator) -> ImagePotential:
        return self

    def radius(self) -> tuple[Tensor, float]:
        mass = self.density.mass
        pixels = torch.stack(torch.meshgrid(*map(torch.arange, mass.shape), indexing="ij"))
        points = self.density.to_points(pixels.flatten(1))
        mean = points @ mass.flatten()
        squares = (points - mean[:, None]).square().sum(0)
        return mean, float(squares @ mass.flatten()) ** 0.5

    def mass_at(self, x: Tensor, tie: float) -> Tensor:
        return x.new_zeros(x.shape[1])

    def _spline(self, exponent: float) -> tuple[CubicSpline, float]:
        """The spline of the potential and ``E|Y - Y'|^r``, computed once."""
        if exponent not in self._splines:
            mass, pixel = self.density.mass, self.density.pixel.tolist()
            sides = [2 * (n + MARGIN) for n in mass.shape]
            require(
                8.0 * 8 * float(np.prod(sides)), f"the potential of an image of {(*mass.shape,)}",
                "bin or crop the image",
            )
            kernel = _kernel(mass.shape, pixel, exponent)
            values = scipy.signal.fftconvolve(kernel, mass.numpy(), mode="valid")
            inner = values[(slice(MARGIN, -MARGIN),) * mass.ndim]
            spread = float((inner * mass.numpy()).sum())
            self._splines[exponent] = CubicSpline(torch.from_numpy(values)), spread
        return self._splines[exponent]


def _blocks(density: Density) -> Cloud:
    """The centres of mass of blocks of pixels."""
    pixels = torch.stack(torch.meshgrid(*map(torch.arange, density.mass.shape), indexing="ij"))
    number = torch.zeros(density.mass.shape, dtype=torch.long)
    for line, n in zip(pixels, density.mass.shape, strict=True):
        number = BLOCKS * number + line * BLOCKS // n
    sums = torch.zeros(density.ndim + 1, BLOCKS**density.ndim, dtype=torch.float64)
    parts = torch.cat([pixels.flatten(1) * density.mass.flatten(), density.mass.flatten()[None]])
    sums.index_add_(1, number.flatten(), parts)
    there = sums[:, sums[-1] > 0]
    return Cloud(density.to_points(there[:-1] / there[-1]), there[-1])


def _kernel(shape: Sequence[int], pixel: Sequence[float], exponent: float) -> np.ndarray:
    """``|x|^r`` averaged over each pixel, for all differences of pixels."""
    reaches = [n - 1 + MARGIN for n in shape]
    lines = [np.arange(-n, n + 1) * h for n, h in zip(reaches, pixel, strict=True)]
    grid = np.meshgrid(*lines, indexing="ij", sparse=True)
    square = sum(line**2 for line in grid)
    square[tuple(reaches)] = 1.0  # the middle is averaged below
    kernel = square ** (exponent / 2)
    # mean over a box = value + sum of h^2 / 24 times second derivatives, but for the nearest
    for line, h in zip(grid, pixel, strict=True):
        second = exponent * square ** (exponent / 2 - 1) * (1 + (exponent - 2) * line**2 / square)
        kernel += h**2 / 24 * second
    fine = (np.arange(_FINE) + 0.5) / _FINE - 0.5
    for steps in itertools.product(range(-_NEAR, _NEAR + 1), repeat=len(shape)):
        parts = [(step + fine) * h for step, h in zip(steps, pixel, strict=True)]
        box = sum(part**2 for part in np.meshgrid(*parts, indexing="ij", sparse=True))
        place = tuple(n + step for n, step in zip(reaches, steps, strict=True))
        kernel[place] = (box ** (exponent / 2)).mean()
    return kernel
