"""Do two images, or two sets of points, look like draws of one distribution?

Neighbouring patches share samples and resemble each other, while the permutations of the test ask
for independent draws. Patches are therefore taken from places that are at least two patches apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.networks.draws import valid_positions
from napari_invprior.numerics.patches import PatchGrid, edges, gather_patches
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.priors.base import Reference
from napari_invprior.study.typicality import USUAL_EDGE
from napari_invprior.transport.two_sample import TwoSampleTest, two_sample_test

FEWEST = 10
Edge = Annotated[int, Field(ge=2, le=32)]


class SamenessParameters(Parameters):
    """Kernel, patches and permutations of the test."""

    kernel: Literal["energy", "gauss"] = parameter(
        "energy", "What differences count: all (energy), or those of about the median distance."
    )
    permutations: int = parameter(
        999, "Random relabellings; the smallest p-value is one by their number plus 1.",
        ge=19, le=99_999,
    )
    patch_size: Edge | tuple[Edge, ...] | None = parameter(
        None, "Patch edge of images, one number or one per axis; empty is 6 in planes, 4 in "
        "volumes.", unit="px",
    )
    most: int = parameter(
        1000, "Patches or points of each side, at most; drawn at random.", ge=FEWEST, le=20_000
    )
    distance: float = parameter(
        2.0, "Least distance between patches of one image, in patch edges: near ones are no "
        "independent draws.", unit="patches", ge=1, le=100, advanced=True,
    )


def same_points(
    x: Tensor, y: Tensor, parameters: SamenessParameters, *, seed: int = 0
) -> TwoSampleTest:
    """Test points (d, N) and (d, M).

    Raises
    ------
    InvalidInput
        For different numbers of coordinates, or fewer than ten points on a side.
    """
    if len(x) != len(y):
        raise InvalidInput(
            f"the sets have {len(x)} and {len(y)} coordinates; only points of one space compare"
        )
    generator = torch.Generator().manual_seed(seed)
    sides = [_some(side.float(), parameters.most, generator) for side in (x, y)]
    for count in (sides[0].shape[1], sides[1].shape[1]):
        if count < FEWEST:
            raise InvalidInput(f"{count} points on one side; a test needs at least {FEWEST}")
    return two_sample_test(
        sides[0], sides[1], parameters.kernel, permutations=parameters.permutations,
        generator=generator,
    )


def same_patches(
    first: Sequence[Reference], second: Sequence[Reference], parameters: SamenessParameters, *,
    seed: int = 0,
) -> tuple[TwoSampleTest, tuple[int, int]]:
    """Test the patches of two images; also how many patches of each took part.

    Raises
    ------
    InvalidInput
        For images of different kinds, or fewer than ten patches in one of them.
    """
    shapes = [(r.image.ndim, r.image.shape[0]) for r in (*first, *second)]
    if len(set(shapes)) > 1:
        raise InvalidInput("the images differ in axes or channels; only images of one kind compare")
    ndim = shapes[0][0] - 1
    patch = edges(parameters.patch_size or USUAL_EDGE[ndim], ndim)
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for side in (first, second):
        found = [_apart(r, patch, parameters.distance, generator) for r in side]
        patches = _some(torch.cat(found, 1), parameters.most, generator)
        if patches.shape[1] < FEWEST:
            raise InvalidInput(
                f"{patches.shape[1]} patches of {patch} px that are {parameters.distance:g} edges "
                f"apart in one of the images; a test needs at least {FEWEST}: give a larger region "
                "or a smaller patch_size"
            )
        sides.append(patches)
    test = same_points(sides[0], sides[1], parameters, seed=seed)
    return test, (sides[0].shape[1], sides[1].shape[1])


def _apart(
    reference: Reference, patch: Sequence[int], distance: float, generator: torch.Generator
) -> Tensor:
    """Patches (d, M) on a lattice with a random offset, those inside the mask."""
    image = reference.image.float()
    if any(n < p for n, p in zip(image.shape[1:], patch, strict=True)):
        return image.new_empty(len(image) * math.prod(patch), 0)
    grid = PatchGrid(tuple(image.shape[1:]), patch)
    valid = valid_positions(image, reference.mask, grid)
    kept = torch.zeros_like(valid)
    lattice = []
    for count, edge in zip(grid.counts, patch, strict=True):
        step = max(1, round(edge * distance))
        offset = int(torch.randint(min(step, count), (), generator=generator))
        lattice.append(slice(offset, None, step))
    kept[tuple(lattice)] = valid[tuple(lattice)]
    places = kept.flatten().nonzero()[:, 0]
    return gather_patches(torch.nan_to_num(image), grid, places)


def _some(columns: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """At most so many columns, drawn at random."""
    order = torch.randperm(columns.shape[1], generator=generator)[:most]
    return columns[:, order.sort().values].contiguous()
