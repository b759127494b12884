"""An image as a density of points: drawing points, and the way between points and pixels.

Points live in coordinates of about unit size, so that times and steps mean the same for every
image: the middle of the image is 0 and its longest edge has length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.numerics.hilbert import hilbert_order
from napari_invprior.parameters import Parameters, parameter

FAR_BLURS, FAR_WEIGHT = (0.1, 0.2, 0.5), 0.01
"""Wide blurs, in longest edges, that are added so that no place is quite empty."""

Drawing = Literal["stratified", "independent"]


class TargetParameters(Parameters):
    """How grey values become a density of points."""

    mass: Literal["dark", "bright"] = parameter(
        "dark", "Where points go: to dark places, as ink does, or to bright ones."
    )
    blur: float = parameter(
        0.1, "Standard deviation of a Gaussian blur of the image.", unit="px", ge=0, le=1000,
        advanced=True,
    )
    background: float = parameter(
        FAR_WEIGHT, "Weight of wide blurs, which lead points across empty places; 0 for none.",
        ge=0, le=1, advanced=True,
    )


class Density:
    """The mass of each pixel, of sum one.

    Parameters
    ----------
    mass : Tensor
        (*space), 2 or 3 axes, finite, none negative.
    spacing : sequence of float, optional
        Sizes of a pixel along the axes; equal by default.

    Examples
    --------
    >>> density = Density(torch.tensor([[0.0, 1.0], [0.0, 3.0]]))
    >>> points = density.draw(8, torch.Generator().manual_seed(0))
    >>> density.to_pixels(points).round().sum(1).tolist()
    [6.0, 8.0]
    """

    def __init__(self, mass: Tensor, spacing: Sequence[float] | None = None) -> None:
        mass = _checked(torch.as_tensor(mass), "the density")
        total = float(mass.sum())
        if total <= 0 or float(mass.min()) < 0:
            raise InvalidInput(
                f"the density lies between {float(mass.min()):.4g} and {float(mass.max()):.4g}: no "
                "value may be negative and one must be positive; subtract the background or clip"
            )
        self.mass = mass / total
        shape = torch.tensor(mass.shape, dtype=torch.float64)
        self._middle = (shape[:, None] - 1) / 2
        sizes = _sizes(spacing, mass.ndim)
        self.pixel = sizes / (shape * sizes).max()

    @property
    def ndim(self) -> int:
        """Number of space axes."""
        return self.mass.ndim

    def to_points(self, pixels: Tensor) -> Tensor:
        """Pixel coordinates (d, N), whole at the middle of a pixel, as points."""
        return (pixels.double() - self._middle) * self.pixel[:, None]

    def to_pixels(self, points: Tensor) -> Tensor:
        """Points (d, N) as pixel coordinates."""
        return points.double() / self.pixel[:, None] + self._middle

    def draw(self, count: int, generator: torch.Generator, kind: Drawing = "stratified") -> Tensor:
        """Points (d, count), each anywhere within its pixel.

        ``"stratified"`` cuts a Hilbert curve through the image into pieces of equal mass and
        draws one point in each: every region gets its share of points but for about one, where
        independent draws vary by the square root of the share.
        """
        if count < 1:
            raise InvalidInput(f"count = {count}: draw at least one point")
        flat = self.mass.flatten()
        if kind == "independent":
            places = torch.rand(count, generator=generator, dtype=torch.float64)
            order = torch.arange(len(flat))
        else:
            within = torch.rand(count, generator=generator, dtype=torch.float64)
            places = (torch.arange(count) + within) / count
            order = torch.from_numpy(hilbert_order(self.mass.shape))
        steps = flat[order].cumsum(0)
        # to the right: a place on the border belongs to the next pixel that has mass
        found = torch.searchsorted(steps, places * steps[-1], right=True)
        last = int((steps < steps[-1]).sum())
        cells = order[found.clamp_max(last)]
        pixels = torch.stack(torch.unravel_index(cells, self.mass.shape)).double()
        jitter = torch.rand(pixels.shape, generator=generator, dtype=torch.float64) - 0.5
        return self.to_points(pixels + jitter)


def density_of(
    image: Tensor,
    *,
    invert: bool = True,
    blur: float = 0.1,
    background: float = FAR_WEIGHT,
    spacing: Sequence[float] | None = None,
) -> Density:
    """Grey values as a density.

    Parameters
    ----------
    image : Tensor
        (*space), 2 or 3 axes.
    invert : bool
        Points go where the image is dark; the brightest pixel gets none. Else they go where it is
        bright, and no value may be negative.
    blur : float
        Standard deviation of a Gaussian blur, in pixels.
    background : float
        Weight of each of three wide blurs: they lead points to places across empty ones.
    spacing : sequence of float, optional
        Sizes of a pixel along the axes.

    Raises
    ------
    InvalidInput
        For other axes, values that are not finite, negative ones without ``invert``, and images
        without mass.

    Examples
    --------
    >>> image = torch.ones(5, 5)
    >>> image[2, 2] = 0
    >>> int(density_of(image).mass.argmax())
    12
    """
    mass = _mass(_checked(torch.as_tensor(image), "the image"), invert)
    blurred = _blurred(mass.numpy(), blur, background, _sizes(spacing, mass.ndim).numpy())
    return Density(torch.from_numpy(blurred), spacing)


def _mass(image: Tensor, invert: bool) -> Tensor:
    """Grey values as mass; refuses images that have none, or less than none."""
    low, high = float(image.min()), float(image.max())
    if invert and low == high:
        raise InvalidInput(
            f"the image is {low:g} everywhere: with dark pixels as mass it has none; choose "
            "another image, or bright pixels as mass"
        )
    if not invert and low < 0:
        raise InvalidInput(
            f"the image has values down to {low:.4g}: a density cannot be negative; subtract the "
            "background, clip at 0 or take dark pixels as mass"
        )
    if not invert and high == 0:
        raise InvalidInput("the image is 0 everywhere: it has no mass; choose another image")
    return high - image if invert else image


def _sizes(spacing: Sequence[float] | None, ndim: int) -> Tensor:
    sizes = torch.as_tensor([1.0] * ndim if spacing is None else spacing, dtype=torch.float64)
    if sizes.shape != (ndim,) or not bool((sizes > 0).all()):
        raise InvalidInput(
            f"spacing = {sizes.tolist()}: give {ndim} positive sizes, one for each axis"
        )
    return sizes


def _blurred(
    mass: np.ndarray, blur: float, background: float, sizes: np.ndarray
) -> np.ndarray:
    """All Gaussian blurs in one cosine transform, which mirrors the image at its borders."""
    longest = max(n * size for n, size in zip(mass.shape, sizes, strict=True))
    transfer = _gaussian(mass.shape, [blur] * mass.ndim)
    if background:
        for share in FAR_BLURS:
            sigmas = [share * longest / size for size in sizes]
            transfer = transfer + background * _gaussian(mass.shape, sigmas)
    spectrum = scipy.fft.dctn(mass, norm="ortho")
    return np.maximum(scipy.fft.idctn(spectrum * transfer, norm="ortho"), 0)


def _gaussian(shape: tuple[int, ...], sigmas: Sequence[float]) -> np.ndarray:
    """Transfer function of a Gaussian on the frequencies of the cosine transform."""
    lines = [
        np.exp(-0.5 * (sigma * np.pi * np.arange(n) / n) ** 2)
        for n, sigma in zip(shape, sigmas, strict=True)
    ]
    return reduce(np.multiply.outer, lines)


def _checked(values: Tensor, what: str) -> Tensor:
    """Double precision on the CPU; refuses other axes and values that are not finite."""
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise InvalidInput(
            f"{what} has the shape {tuple(values.shape)}: give 2 or 3 space axes, none of length "
            "0; take one channel and one time"
        )
    values = values.detach().cpu().double()
    broken = int((~values.isfinite()).sum())
    if broken:
        raise InvalidInput(
            f"{what} has {broken} values that are NaN or infinite: fill or crop them first"
        )
    return values
