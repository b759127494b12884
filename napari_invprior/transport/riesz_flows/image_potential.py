"""The exact attraction of an image: no target points, hence none of their noise.

``E|x - Y|^r`` is a convolution of the image with ``|x|^r``. It is computed once, by Fourier
transforms, at the middle of all pixels, and read off in between by a cubic spline. Farther away,
a sum over coarse cells is exact enough. (A plane is not: it lies below the convex potential, and
particles would gain by running away.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import scipy.signal
import torch
from scipy.ndimage import correlate1d
from torch import Tensor

from napari_invprior.memory import require
from napari_invprior.numerics.spline import CubicSpline
from napari_invprior.transport.riesz_flows.density import Density
from napari_invprior.transport.riesz_flows.discrepancy import Cloud, Target

MARGIN, GUARD = 14, 6
"""Pixels around the image on which the potential is computed, and those of them, the outermost,
that are not used: the spline is mirrored there. Beyond, coarse cells are summed."""
FAR_CELLS = 16_384
"""About so many of these, at most."""
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
        self._far = _coarse(density)

    def potential(self, x: Tensor, exponent: float, tie: float = 0.0) -> tuple[Tensor, Tensor]:
        spline, _ = self._spline(exponent)
        last = torch.tensor(self.density.mass.shape)[:, None] - 1.0 + 2 * MARGIN
        pixels = self.density.to_pixels(x) + MARGIN
        near = ((pixels >= GUARD) & (pixels <= last - GUARD)).all(0)
        values, gradient = torch.empty_like(pixels[0]), torch.empty_like(pixels)
        values[near], slope = spline.value_and_grad(pixels[:, near])
        gradient[:, near] = slope / self.density.pixel[:, None]
        if not bool(near.all()):
            values[~near], gradient[:, ~near] = self._far.potential(x[:, ~near].double(), exponent)
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
            inner = values[(slice(MARGIN - 1, 1 - MARGIN),) * mass.ndim]
            # the other point is anywhere in its pixel too
            for axis in range(mass.ndim):
                inner = correlate1d(inner, [1 / 24, 22 / 24, 1 / 24], axis)
            inner = inner[(slice(1, -1),) * mass.ndim]
            spread = float((inner * mass.numpy()).sum())
            self._splines[exponent] = CubicSpline(torch.from_numpy(values)), spread
        return self._splines[exponent]


def _coarse(density: Density) -> Cloud:
    """The mass in larger cells, each at its centre of mass."""
    shape = density.mass.shape
    edge = max(1, math.ceil((density.mass.numel() / FAR_CELLS) ** (1 / len(shape))))
    grid = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).flatten(1)
    counts = [-(-n // edge) for n in shape]
    cells = torch.zeros_like(grid[0])
    for axis, count in zip(grid, counts, strict=True):
        cells = cells * count + axis // edge
    mass = density.mass.flatten()
    total = mass.new_zeros(math.prod(counts)).index_add_(0, cells, mass)
    sums = mass.new_zeros((len(shape), len(total))).index_add_(1, cells, mass * grid)
    full = total > 0
    return Cloud(density.to_points(sums[:, full] / total[full]), total[full])


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
