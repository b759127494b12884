"""Do two images, or two sets of points, look like draws of one distribution?

Neighbouring patches share samples and resemble each other, while the permutations of the test ask
for independent draws. Each image is therefore cut into cells, and whole cells change sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
from napari_invprior.transport.kernel_sums.two_sample import TwoSampleTest, two_sample_test

FEWEST, FEWEST_CELLS = 10, 4
CELLS_PER_AXIS = {2: 4, 3: 3}
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
    cell: Annotated[int, Field(ge=2, le=100_000)] | None = parameter(
        None, "Edge of the cells of an image that count as one draw each: larger than what "
        "repeats in it; empty cuts each axis into 4, or 3 in volumes.", unit="px", advanced=True,
    )


@dataclass(frozen=True)
class _Side:
    """Patches (d, N) of one image and the cell (N,) of each."""

    patches: Tensor
    cells: Tensor


def same_points(
    x: Tensor, y: Tensor, parameters: SamenessParameters, *, seed: int = 0
) -> TwoSampleTest:
    """Test points (d, N) and (d, M), each an independent draw.

    Raises
    ------
    InvalidInput
        For different numbers of coordinates, or fewer than ten points on a side.
    """
    if len(x) != len(y):
        raise InvalidInput(
            f"the sets have {len(x)} and {len(y)} coordinates; only points of one space compare"
        )
    for count in (x.shape[1], y.shape[1]):
        if count < FEWEST:
            raise InvalidInput(f"{count} points on one side; a test needs at least {FEWEST}")
    generator = torch.Generator().manual_seed(seed)
    # differences of large coordinates would lose their digits
    middle = torch.cat([x, y], 1).double().mean(1, keepdim=True)
    sides = []
    for side in (x, y):
        kept = torch.randperm(side.shape[1], generator=generator)[: parameters.most]
        sides.append((side.double() - middle)[:, kept].contiguous())
    return two_sample_test(
        sides[0], sides[1], parameters.kernel, permutations=parameters.permutations,
        generator=generator,
    )


def same_patches(
    first: Sequence[Reference], second: Sequence[Reference], parameters: SamenessParameters, *,
    seed: int = 0,
) -> tuple[TwoSampleTest, tuple[int, int]]:
    """Test the patches of two images; also how many cells of each took part.

    Raises
    ------
    InvalidInput
        For images of different kinds, or with fewer than ten patches or four cells.
    """
    shapes = [(r.image.ndim, r.image.shape[0]) for r in (*first, *second)]
    if len(set(shapes)) > 1:
        raise InvalidInput("the images differ in axes or channels; only images of one kind compare")
    ndim = shapes[0][0] - 1
    patch = edges(parameters.patch_size or USUAL_EDGE[ndim], ndim)
    generator = torch.Generator().manual_seed(seed)
    sides = [_side(side, patch, parameters, generator) for side in (first, second)]
    test = two_sample_test(
        sides[0].patches, sides[1].patches, parameters.kernel,
        permutations=parameters.permutations, groups=(sides[0].cells, sides[1].cells),
        generator=generator,
    )
    return test, (int(sides[0].cells.max()) + 1, int(sides[1].cells.max()) + 1)


def _side(
    references: Sequence[Reference], patch: Sequence[int], parameters: SamenessParameters,
    generator: torch.Generator,
) -> _Side:
    """Random patches of one image and their cells, counted from 0 without gaps."""
    found, cells, begin = [], [], 0
    for reference in references:
        image = reference.image.float()
        if any(n < p for n, p in zip(image.shape[1:], patch, strict=True)):
            continue
        grid = PatchGrid(tuple(image.shape[1:]), patch)
        places = valid_positions(image, reference.mask, grid).flatten().nonzero()[:, 0]
        order = torch.randperm(len(places), generator=generator)[: parameters.most]
        places = places[order]
        number = _cell_numbers(places, grid.counts, parameters.cell)
        found.append(gather_patches(torch.nan_to_num(image), grid, places))
        cells.append(begin + number)
        begin += int(number.max()) + 1 if len(number) else 0
    count = sum(f.shape[1] for f in found)
    _, numbers = torch.cat(cells).unique(return_inverse=True) if count else (None, None)
    if count < FEWEST or numbers is None or int(numbers.max()) + 1 < FEWEST_CELLS:
        there = 0 if numbers is None else int(numbers.max()) + 1
        raise InvalidInput(
            f"{count} patches of {tuple(patch)} px in {there} cells of one image; a test needs "
            f"{FEWEST} patches and {FEWEST_CELLS} cells: give a larger region, or smaller cells"
        )
    kept = torch.randperm(count, generator=generator)[: parameters.most]
    _, compact = numbers[kept].unique(return_inverse=True)
    return _Side(torch.cat(found, 1)[:, kept].contiguous(), compact)


def _cell_numbers(places: Tensor, counts: Sequence[int], edge: int | None) -> Tensor:
    """Cell of each flat grid position."""
    number = torch.zeros_like(places)
    for line, n in zip(torch.unravel_index(places, tuple(counts)), counts, strict=True):
        size = edge or math.ceil(n / CELLS_PER_AXIS[len(counts)])
        number = number * -(-n // size) + line // size
    return number
