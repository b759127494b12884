"""How many patches the regions give, and a few of them to look at (no Qt)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import minimum_filter1d

from napari_invprior.priors.patchnr import FEWEST, GOOD, USABLE
from napari_invprior.recipes.regions import region_mask
from napari_invprior.sources import Source

SHOWN = 240
"""Patches of the references that the gallery gets."""


@dataclass(frozen=True)
class Count:
    """Regions in use, and patches that lie wholly inside them."""

    regions: int
    patches: int


def verdict(count: Count, patch: Sequence[int]) -> tuple[str, bool]:
    """The sentence for the user, and whether it is enough."""
    regions = f"{count.regions} region{'s' if count.regions != 1 else ''}"
    number = f"{count.patches:,}".replace(",", " ")
    if count.patches == 0:
        return f"{regions}, no patch of {' × '.join(map(str, patch))} fits: make them larger", False
    said = f"{regions} · {number} patches"
    if count.patches < USABLE:
        worst = ", too few to learn from" if count.patches < FEWEST else ""
        return f"{said} · too few{worst}: {USABLE - count.patches} more needed", False
    if count.patches < GOOD:
        return f"{said} · usable (10 000 are good)", True
    return f"{said} · enough", True


def windows_inside(mask: np.ndarray, patch: Sequence[int]) -> np.ndarray:
    """True at the first sample of every patch whose samples are all true."""
    inside = mask
    if any(n < p for n, p in zip(mask.shape, patch, strict=True)):
        return np.zeros((0,) * mask.ndim, bool)
    for axis, edge in enumerate(patch):
        # the filter is centred: shift so that index i looks at i .. i + edge - 1
        inside = minimum_filter1d(inside, edge, axis=axis, origin=-(edge // 2), mode="nearest")
        inside = inside.take(range(mask.shape[axis] - edge + 1), axis=axis)
    return inside


def count_patches(
    space: tuple[int, ...],
    boxes: list[Any],
    labels: np.ndarray | None,
    patch: Sequence[int],
    samples: np.ndarray | None,
    *,
    rgb: bool,
) -> tuple[Count, np.ndarray | None]:
    """Exactly the patches that the engine will use, by the engine's own mask of the regions.

    Parameters
    ----------
    space : tuple of int
        Shape of the reference image's space axes.
    boxes : list
        Boxes and polygons of the recipe.
    labels : ndarray or None
        Painted regions, on the samples of the image.
    patch : sequence of int
        Edges of the patch.
    samples : ndarray or None
        The image, when it is in memory: samples that are not finite do not count.
    rgb : bool
        Whether the last axis of ``samples`` holds colours.

    Returns
    -------
    count : Count
    patches : ndarray or None
        Some of the patches, (n, C, *patch), in the image's numbers.
    """
    mask = np.zeros(space, bool)
    if boxes:
        from napari_invprior.recipes.model import ReferenceSource
        source = ReferenceSource.model_validate(
            {**Source(layer="image").model_dump(), "regions": boxes}
        )
        found = region_mask(source, space, {})
        mask |= np.asarray(found) if found is not None else False
    regions = len(boxes)
    if labels is not None:
        painted = labels > 0
        mask |= painted.reshape(-1, *space).any(0)
        regions += len(np.unique(labels[painted]))
    planes = None if samples is None else _planes(samples, space, rgb)
    if planes is not None and planes.dtype.kind == "f":
        mask &= np.isfinite(planes).all(0)
    inside = windows_inside(mask, patch)
    count = Count(regions, int(inside.sum()))
    return count, None if planes is None else _some(planes, inside, patch)


def _planes(samples: np.ndarray, space: tuple[int, ...], rgb: bool) -> np.ndarray:
    """The first frame as (C, *space)."""
    if rgb:
        return np.moveaxis(samples.reshape(-1, *space, samples.shape[-1])[0], -1, 0)[:3]
    return samples.reshape(-1, *space)[:1]


def _some(planes: np.ndarray, inside: np.ndarray, patch: Sequence[int]) -> np.ndarray | None:
    """Up to `SHOWN` patches spread over the regions."""
    starts = np.flatnonzero(inside)
    if len(starts) == 0:
        return None
    # a golden-ratio walk spreads evenly and never changes between two looks at the same regions
    steps = (np.arange(min(SHOWN, len(starts))) * (math.sqrt(5) - 1) / 2) % 1
    chosen = np.unravel_index(starts[(steps * len(starts)).astype(int)], inside.shape)
    return np.stack([
        planes[(slice(None), *(slice(i, i + p) for i, p in zip(start, patch, strict=True)))]
        for start in zip(*chosen, strict=True)
    ]).astype(np.float32)
