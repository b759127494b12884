"""A weighted sample of the references' patches at one scale of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from napari_invprior.networks.draws import require_patches
from napari_invprior.numerics.patches import gather_patches, positions_inside, symmetries
from napari_invprior.numerics.pyramid import Pyramid, scales_that_fit, valid_at_scale
from napari_invprior.priors.base import Reference
from napari_invprior.priors.patchwise import FEWEST_PATCHES, PatchPrior, refuse_constant, too_few


@dataclass(frozen=True)
class ReferencePatches:
    """A sample of the references' patches at one scale.

    Attributes
    ----------
    patches : Tensor
        (d, M).
    weights : Tensor
        (M,), sum 1.
    """

    patches: Tensor
    weights: Tensor


def draw_reference_patches(
    references: Sequence[Reference],
    prior: PatchPrior,
    scale: int,
    most: int,
    generator: torch.Generator,
    *,
    turned: bool = False,
) -> ReferencePatches | None:
    """At most ``most`` patches of the references at one scale; None where it holds too few.

    Parameters
    ----------
    scale : int
        0 for the finest.
    turned : bool
        Apply random symmetries of the patch, so that few patches become more.

    Raises
    ------
    InvalidInput
        If the finest scale holds too few patches, or they are constant.
    """
    sources = []
    for reference in references:
        valid = torch.isfinite(reference.image).all(0)
        if reference.mask is not None:
            valid = valid & reference.mask.to(valid.device)
        space = tuple(valid.shape)
        if scales_that_fit(space, prior.patch, scale + 1) <= scale:
            continue
        clean = torch.where(valid, reference.image, 0)[None]
        level = Pyramid(space, scale + 1, clean).levels(clean)[scale]
        places = positions_inside(valid_at_scale(valid, scale), prior.patch)
        sources += [(plane, places, reference.weight) for plane in prior.as_planes(level)]
    total = sum(len(places) for _, places, _ in sources)
    if total < FEWEST_PATCHES:
        if scale > 0:
            return None
        raise too_few(total, prior.patch, "compare with")
    require_patches(min(total, most), prior.dim)
    chosen = torch.randperm(total, generator=generator)[:most].sort().values
    patches, weights, first = [], [], 0
    for plane, places, weight in sources:
        mine = chosen[(chosen >= first) & (chosen < first + len(places))] - first
        first += len(places)
        patches.append(gather_patches(plane, prior.patch_grid(plane.shape[1:]), places[mine]))
        weights.append(plane.new_full((len(mine),), weight))
    columns, masses = torch.cat(patches, 1), torch.cat(weights)
    refuse_constant(columns)
    if turned:
        columns, masses = _turned(columns, masses, prior, most, generator)
    return ReferencePatches(columns.to(prior.device), (masses / masses.sum()).to(prior.device))


def _turned(
    patches: Tensor, weights: Tensor, prior: PatchPrior, most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Patches with random symmetries, as many as wanted or as there are."""
    group = symmetries(prior.patch, prior.joint_channels)
    n = patches.shape[1]
    source = torch.arange(min(most, n * len(group))) % n
    element = torch.randint(len(group), (len(source),), generator=generator)
    return torch.gather(patches[:, source], 0, group[element].T), weights[source]
