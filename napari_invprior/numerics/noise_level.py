"""Level of white noise in an image, from the small eigenvalues of its patch covariance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from napari_invprior.numerics.patches import PatchGrid

PATCHES_PER_DIMENSION = 20
"""So many complete patches are needed per number in a patch."""


def estimate_sigma(y: Tensor) -> tuple[float, float]:
    """Standard deviation of the noise in (B, C, *space), and the spread of the estimate.

    The texture of an image lives in few directions of patch space, noise in all of them. The
    smallest eigenvalues of the patch covariance are averaged as far as they lie within the
    spread that pure noise would show for this number of patches (Marchenko-Pastur). Samples that
    are not finite are left out. The spread is half the difference between two halves of the
    image. Sampled fine texture looks like noise: there the estimate is up to 30 % high.

    Returns
    -------
    sigma, spread : float
        NaN where the image is too small (20 complete patches per number in a patch are needed).

    Examples
    --------
    >>> noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> 0.95 < estimate_sigma(noise)[0] < 1.05
    True
    """
    ndim = y.ndim - 2
    planes = y.reshape(-1, 1, *y.shape[2:]).double()
    for edge in (7, 5, 3) if ndim == 2 else (4, 3):
        if min(planes.shape[2:]) < edge:
            continue
        patches = PatchGrid(planes.shape[2:], edge).extract(planes)
        patches = patches[:, torch.isfinite(patches).all(0)]
        if patches.shape[1] >= PATCHES_PER_DIMENSION * edge**ndim:
            half = patches.shape[1] // 2
            first, second = _level(patches[:, :half]), _level(patches[:, half:])
            return _level(patches), abs(first - second) / 2
    return math.nan, math.nan


def _level(patches: Tensor) -> float:
    dim, count = patches.shape
    values = torch.linalg.eigvalsh(torch.cov(patches)).clamp_min(0)
    edge = math.sqrt(dim / count)
    spread = ((1 + edge) / max(1 - edge, 1e-6)) ** 2
    return float(values[values <= spread * values[0]].mean().sqrt())
