"""Figures that tell how good an image is."""

from __future__ import annotations

import math

from torch import Tensor


def without_rim(x: Tensor, rim: int, ndim: int | None = None) -> Tensor:
    """Cut ``rim`` samples off both ends of the last ``ndim`` axes (all but two by default)."""
    axes = range(x.ndim - (ndim or x.ndim - 2), x.ndim)
    for axis in axes:
        x = x.narrow(axis, rim, x.shape[axis] - 2 * rim)
    return x


def psnr(x: Tensor, truth: Tensor, rim: int = 0) -> float:
    """Peak signal-to-noise ratio in dB for values in [0, 1]; ``x`` is clipped to [0, 1] first.

    Examples
    --------
    >>> import torch
    >>> round(psnr(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.1)), 3)
    20.0
    """
    difference = without_rim(x.clamp(0, 1) - truth, rim).double()
    error = float((difference**2).mean())
    return 10 * math.log10(1 / error) if error > 0 else math.inf


def ssim(x: Tensor, truth: Tensor, rim: int = 0) -> float:
    """Structural similarity (scikit-image, data range 1), mean over batch and channels."""
    from skimage.metrics import structural_similarity

    a = without_rim(x.clamp(0, 1), rim).numpy(force=True)
    b = without_rim(truth, rim).numpy(force=True)
    planes = zip(a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]), strict=True)
    window = min(7, min(a.shape[2:]))
    window -= 1 - window % 2
    values = [structural_similarity(p, q, data_range=1.0, win_size=window) for p, q in planes]
    return float(sum(values) / len(values))
