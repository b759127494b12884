"""Which numbers mean 0 and 1: one scale for all images, and what it makes of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.image import Image
from napari_invprior.io.arrays import Range
from napari_invprior.physics.base import Physics

UNKNOWN: Range = (0.0, 0.0)
"""Range of an image of which nothing but data in another unit is known yet."""
AIR = 0.25
"""A first image may fall so far below 0, as a share of its largest value, by noise alone."""


def common_scale(images: Sequence[Image]) -> tuple[dict[int, tuple[float, float]], str]:
    """One intensity scale for images of one type; a warning where the types differ.

    Integers of one type, and floating-point images, share the smallest range that holds all of
    their ranges. Where an integer meets a floating-point image each keeps its own.
    """
    if not images:
        return {}, ""
    kinds = {np.dtype(image.array.dtype).kind in "fc" or image.array.dtype for image in images}
    if len(kinds) > 1:
        listed = "; ".join(
            f"{i.name}: {i.array.dtype} {i.value_range[0]:.4g}..{i.value_range[1]:.4g}"
            for i in images
        )
        return {}, (
            "references and observation are of different types and are scaled each by its own "
            f"range ({listed}); give dtype_range to match them"
        )
    low = min(image.value_range[0] for image in images)
    high = max(image.value_range[1] for image in images)
    spans = [image.value_range[1] - image.value_range[0] for image in images]
    warning = ""
    if max(spans) > 8 * min(spans):
        warning = (
            "references and observation differ in contrast by a factor of "
            f"{max(spans) / min(spans):.3g}; the prior expects one scale (match them first)"
        )
    return {id(image): (low, high) for image in images}, warning


def ranges_of(
    images: Sequence[Image], alike: Sequence[bool], same_units: bool
) -> tuple[list[Range], str]:
    """What 0 and 1 mean for each image, and a warning.

    Images that are ``alike`` share one scale of intensities; the others take that of the first
    reference or, without one, their own (none yet where they are in another unit).
    """
    shared = [image for image, own in zip(images, alike, strict=True) if own]
    scale, warning = common_scale(shared)
    known = [scale.get(id(i), i.value_range) for i in shared]
    if not same_units:
        known = [from_zero(r) for r in known]
    left = iter(known)
    return [
        next(left) if own else known[0] if known else image.value_range if same_units else UNKNOWN
        for image, own in zip(images, alike, strict=True)
    ], warning


def from_zero(value_range: Range) -> Range:
    """The range with 0 in it: of what is integrated along rays, nothing is 0.

    Examples
    --------
    >>> from_zero((0.2, 0.9)), from_zero((-1000.0, 3000.0))
    ((0.0, 0.9), (-1000.0, 3000.0))
    """
    return min(value_range[0], 0.0), max(value_range[1], 0.0)


def range_of_start(values: Tensor, physics: Physics) -> Range:
    """The image's range as the first image shows it, for data of another unit without references.

    Raises
    ------
    InvalidInput
        If that image is constant.
    """
    first = physics.start(values[:1]).numpy(force=True)
    low, high = (float(v) for v in np.percentile(first, (1, 99)))
    if low >= -AIR * high:
        low = 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InvalidInput(
            f"the data give no image (values {low:.3g}..{high:.3g}); check the observation, or "
            "give a reference that shows the range of values"
        )
    return low, high


def to_unit(values: Tensor, physics: Physics, value_range: Range) -> Tensor:
    """Data in the user's unit as the data of an image that is scaled to [0, 1]: float32."""
    low, high = value_range
    offset = 0.0 if low == 0 else low * _of_ones(values, physics)
    return ((values.double() - offset) / (high - low)).float()


def from_unit(y: Tensor, physics: Physics, value_range: Range) -> Tensor:
    """The inverse of `to_unit`."""
    low, high = value_range
    offset = 0.0 if low == 0 else low * _of_ones(y, physics)
    return (y.double() * (high - low) + offset).float()


def _of_ones(y: Tensor, physics: Physics) -> Tensor | float:
    """The data of an image that is 1 everywhere."""
    if physics.same_units:
        return 1.0
    ones = torch.ones((1, 1, *physics.in_shape(y.shape[2:])))
    return physics.A(ones).double()
