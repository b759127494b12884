"""Steps as long as the posterior is wide, for each spatial frequency on its own.

Textures and blurs are nearly the same everywhere, so that cosines nearly diagonalise the Hessian of
the negative log-posterior. Its diagonal in the cosine basis, averaged over frequencies of one
length, is measured with a few random probes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

BANDS = 24
"""Bands of frequencies whose curvature is averaged."""
PROBES = 6
DIFFERENCE, ROUGH_DIFFERENCE = 1e-3, 0.02
"""Step of the finite differences, grey; the second one where the gradient has jumps."""
ROUNDS = 8
FLAT = 1e-4
"""Smallest curvature as a share of the largest, so that flat directions get finite steps."""

Gradient = Callable[[Tensor], Tensor]


class SpectralScale:
    """Change of coordinates ``u = sqrt(precision) * cosines of x`` and back.

    Parameters
    ----------
    precision : Tensor
        Positive, (*space): inverse variance of each cosine.

    Examples
    --------
    >>> scale = SpectralScale(torch.full((4, 5), 9.0))
    >>> x = torch.rand(2, 1, 4, 5)
    >>> torch.allclose(scale.unwhiten(scale.whiten(x)), x, atol=1e-6)
    True
    """

    def __init__(self, precision: Tensor) -> None:
        self.precision = precision
        self._root = precision.sqrt()

    def whiten(self, x: Tensor) -> Tensor:
        """Coordinates of images (..., *space)."""
        return cosines(x, self._root.ndim) * self._root

    def unwhiten(self, u: Tensor) -> Tensor:
        """Images of coordinates."""
        return inverse_cosines(u / self._root, self._root.ndim)

    def gradient(self, slope: Tensor) -> Tensor:
        """Gradient in the coordinates, from that in the image."""
        return cosines(slope, self._root.ndim) / self._root


def cosines(x: Tensor, ndim: int) -> Tensor:
    """Orthonormal cosine transform (DCT-II) of the last ``ndim`` axes."""
    found = dctn(x.numpy(force=True), axes=range(-ndim, 0), norm="ortho")
    return torch.from_numpy(found).to(x)


def inverse_cosines(u: Tensor, ndim: int) -> Tensor:
    """Inverse (and adjoint) of `cosines`."""
    found = idctn(u.numpy(force=True), axes=range(-ndim, 0), norm="ortho")
    return torch.from_numpy(found).to(u)


def measured_scale(
    gradient: Gradient, x: Tensor, generator: torch.Generator, difference: float = DIFFERENCE
) -> SpectralScale:
    """The scale that fits the curvature at an image.

    Parameters
    ----------
    gradient : callable
        Gradient of the negative log-posterior at images like ``x``; the same for the same image.
    x : Tensor
        (1, C, *space).
    generator : torch.Generator
        Of the probes.
    difference : float
        Step of the finite differences, grey.
    """
    space = x.shape[2:]
    band = _bands(space)
    total, count = torch.zeros(BANDS, dtype=torch.float64), torch.zeros(BANDS, dtype=torch.float64)
    for _ in range(PROBES):
        signs = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
        step = difference * inverse_cosines(signs, len(space))
        change = (gradient(x + step) - gradient(x - step)) / (2 * difference)
        diagonal = (signs * cosines(change, len(space))).double().cpu()
        where = band.expand(x.shape).flatten()
        total.index_add_(0, where, diagonal.flatten())
        count.index_add_(0, where, torch.ones(where.numel(), dtype=torch.float64))
    level = _filled(total.numpy(), count.numpy())
    return SpectralScale(torch.from_numpy(level).to(x)[band.to(x.device)])


def _bands(space: torch.Size) -> Tensor:
    """Number of the band of each cosine, by the length of its frequency."""
    squares = torch.zeros(space)
    for axis, n in enumerate(space):
        shape = [-1 if k == axis else 1 for k in range(len(space))]
        squares = squares + (torch.arange(n) / n).view(shape) ** 2
    radius = squares.sqrt()
    return (radius / (radius.max() + 1e-6) * BANDS).long()


def _filled(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mean curvature of each band; bands without cosines take that of their neighbours."""
    known = np.flatnonzero(count)
    # a concave band is as narrow as its curvature says, whatever the sign
    level = np.abs(np.interp(np.arange(len(count)), known, total[known] / count[known]))
    top = level.max()
    if not top > 0:
        return np.ones_like(level)
    clamped: np.ndarray = np.maximum(level, FLAT * top)
    return clamped


def largest_curvature(
    gradient: Gradient, x: Tensor, scale: SpectralScale, generator: torch.Generator,
    difference: float = DIFFERENCE,
) -> float:
    """Largest positive eigenvalue of the Hessian in the coordinates of ``scale``.

    Power iterations find the largest magnitude first; shifted by it, they find the largest value.
    Only convex directions limit a step: where a potential is a minimum of others it has concave
    edges that are much sharper.
    """
    v = torch.randn(x.shape, generator=generator).to(x)
    shift = value = 0.0
    for rounds in (ROUNDS, ROUNDS):
        for _ in range(rounds):
            v = v / v.norm()
            step = scale.unwhiten(v)
            step *= difference * x[0].numel() ** 0.5 / step.norm()  # as large as a probe
            size = float(scale.whiten(step).norm())
            change = scale.gradient(gradient(x + step) - gradient(x - step)) / (2 * size)
            value = float((v * change).sum())
            v = change + shift * v
            if not float(v.norm()) > 0:
                return 1.0
        shift = max(float(change.norm()), 1e-6)
    return value if value > 0 else shift
