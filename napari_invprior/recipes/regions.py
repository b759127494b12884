"""The parts of a reference to learn from, as a mask on its grid."""

from __future__ import annotations

import numpy as np
import torch
from skimage.draw import polygon2mask
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.io.images import Arrays, load
from napari_invprior.recipes.model import Polygon, ReferenceSource


def region_mask(
    source: ReferenceSource, space: tuple[int, ...], arrays: Arrays
) -> Tensor | None:
    """Union of a reference's boxes, polygons and labels on its grid; None for all of it."""
    if not source.regions and source.labels is None:
        return None
    mask = np.zeros(space, bool)
    for region in source.regions:
        if isinstance(region, Polygon):
            mask |= _polygon_mask(region, space)
            continue
        if len(region) != len(space):
            raise InvalidInput(
                f"region {region} has {len(region)} axes; the reference has {len(space)}"
            )
        mask[tuple(slice(low, high) for low, high in region)] = True
    if source.labels is not None:
        labels = load(source.labels, arrays)
        if labels.space != space:
            raise InvalidInput(
                f"the labels have shape {labels.space}, the reference {space}; they must agree"
            )
        mask |= labels.array[0].any(0)
    if not mask.any():
        raise InvalidInput(
            "the picked regions are empty or lie outside the reference; draw one on the image"
        )
    return torch.from_numpy(mask)


def _polygon_mask(region: Polygon, space: tuple[int, ...]) -> np.ndarray:
    plane = polygon2mask(space[-2:], np.asarray(region.polygon))
    mask = np.zeros(space, bool)
    if len(space) == 3:
        low, high = region.depth or (0, space[0])
        mask[low:high] = plane
    else:
        mask[:] = plane
    return mask
