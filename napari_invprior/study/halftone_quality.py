"""How well dots say an image: both seen from afar."""

from __future__ import annotations

import torch
from scipy import ndimage
from torch import Tensor

from napari_invprior.numerics.metrics import psnr
from napari_invprior.transport.riesz_flows.density import Density


def seen_from_afar(dots: Tensor, density: Density) -> Tensor:
    """Share of the dots in each pixel (*space), each dot spread over its nearest pixels."""
    image = torch.zeros(density.mass.shape, dtype=torch.float64)
    size = torch.tensor(density.mass.shape)
    low = dots.double().floor()
    part = dots.double() - low
    for corner in range(2 ** len(dots)):
        step = torch.tensor([(corner >> axis) & 1 for axis in range(len(dots))])[:, None]
        share = torch.where(step == 1, part, 1 - part).prod(0)
        place = (low.long() + step).clamp_min(0).minimum(size[:, None] - 1)
        image.index_put_(tuple(place), share, accumulate=True)
    return image / dots.shape[1]


def blurred_psnr(dots: Tensor, density: Density) -> float:
    """PSNR in dB of dots (d, N) beside the image, both blurred by the mean distance of the dots.

    The largest value of the blurred image counts as 1.

    Examples
    --------
    >>> density = Density(torch.ones(8, 8))
    >>> grid = torch.cartesian_prod(torch.arange(8), torch.arange(8)).T
    >>> blurred_psnr(grid, density) > 100
    True
    """
    sigma = (density.mass.numel() / dots.shape[1]) ** (1 / len(dots))
    truth, seen = (
        torch.from_numpy(ndimage.gaussian_filter(image.numpy(), sigma, mode="reflect"))
        for image in (density.mass, seen_from_afar(dots, density))
    )
    top = float(truth.max())
    return psnr(seen[None, None] / top, truth[None, None] / top)
