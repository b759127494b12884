"""Pairs of windows: references, and the fast first images of data simulated from them.

The operator acts on whole references (or pieces of the size that it asks for), so that a window's
first image is what it would be in the middle of real data. Data of a scan cannot be cut to windows,
but its first image, the filtered back-projection, can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy import ndimage
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.memory import require
from napari_invprior.networks.draws import valid_positions
from napari_invprior.numerics.patches import PatchGrid, flat_index
from napari_invprior.numerics.windows import box, random_corner
from napari_invprior.physics.base import Physics
from napari_invprior.physics.blocks import block_factor, block_shift
from napari_invprior.physics.noise import Noise
from napari_invprior.priors.base import Reference
from napari_invprior.priors.patchwise import (
    FEWEST_PATCHES,
    PatchPrior,
    refuse_constant,
    too_few,
)

MOST_SIMULATIONS = 16
"""Simulated data sets per reference, with new noise, places and masks."""
TRIES = 20
"""Random places of a mask that may show nothing."""
COPIES = 6
"""Copies of all windows that training holds at a time."""


class Pairs(NamedTuple):
    """Windows and what is known of each.

    Attributes
    ----------
    truth, first : Tensor
        (N, C, *window): of the reference, and of the first image.
    seen : Tensor or None
        (N, 1, *window), one where a sample was observed; None where the operator has no mask.
    """

    truth: Tensor
    first: Tensor
    seen: Tensor | None

    def first_of(self, count: int) -> Pairs:
        """The first ``count`` pairs, at most."""
        seen = None if self.seen is None else self.seen[:count]
        return Pairs(self.truth[:count], self.first[:count], seen)


def simulated_pairs(
    references: Sequence[Reference],
    physics: Physics,
    noise: Noise,
    prior: PatchPrior,
    count: int,
    generator: torch.Generator,
) -> Pairs:
    """About ``count`` pairs from windows that lie inside the references' masks.

    Fewer where the references have fewer different ones than an eighth of that.

    Raises
    ------
    InvalidInput
        For constant references, fewer than 100 windows, or references smaller than the operator
        asks for.
    """
    sites = [_site(reference, prior) for reference in references]
    distinct = [0 if valid is None else int(valid.sum()) for _, valid in sites]
    if sum(distinct) < FEWEST_PATCHES:
        raise too_few(sum(distinct), prior.patch)
    require(
        COPIES * 12 * count * prior.dim, f"{count} pairs of windows of {prior.patch} px",
        "lower pairs or patch_size",
    )
    found: list[Pairs] = []
    for (image, valid), own in zip(sites, distinct, strict=True):
        if valid is None or own == 0:
            continue
        wanted = max(1, round(count * own / sum(distinct)))
        separate = max(1, own // math.prod(prior.patch) * 4)
        runs = min(MOST_SIMULATIONS, -(-wanted // separate))
        for _ in range(runs):
            part = _simulated(
                image, valid, physics, noise, prior, -(-wanted // runs), generator
            )
            found += [] if part is None else [part]
    if not found:
        raise too_few(0, prior.patch)
    truth, first, seen = (None if p[0] is None else torch.cat(p) for p in zip(*found, strict=True))
    assert truth is not None and first is not None
    refuse_constant(truth)
    return Pairs(truth, first, seen)


def phase(physics: Physics) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Image samples after which an operator repeats itself, and a sample where that begins.

    A network that is to know where in a coarse sample it is must see all images in step.

    Examples
    --------
    >>> from napari_invprior.physics.superresolution import (
    ...     SuperResolution, SuperResolutionParameters)
    >>> phase(SuperResolution(SuperResolutionParameters(factor=4), ndim=2))
    ((4, 4), (0, 0))
    """
    if not all(physics.divisible()):
        return (1,) * physics.ndim, (0,) * physics.ndim
    factor = block_factor(physics)
    return factor, tuple(s % f for s, f in zip(block_shift(physics), factor, strict=True))


def _site(reference: Reference, prior: PatchPrior) -> tuple[Tensor, Tensor | None]:
    """The image, what was not picked filled in, and which windows may be used (None for none)."""
    image = reference.image.float()
    inside = torch.isfinite(image).all(0)
    if reference.mask is not None:
        inside &= reference.mask.to(inside.device)
    fits = all(n >= p for n, p in zip(image.shape[1:], prior.patch, strict=True))
    if not fits or not bool(inside.any()):
        return image, None
    valid = valid_positions(image, inside, PatchGrid(tuple(image.shape[1:]), prior.patch))
    if not bool(inside.all()):  # an operator looks beyond the picked region
        nearest = ndimage.distance_transform_edt(
            ~inside.numpy(force=True), return_distances=False, return_indices=True
        )
        image = image[(slice(None), *(torch.from_numpy(i) for i in nearest))]  # type: ignore[index]
    return image, valid


def _simulated(
    image: Tensor, valid: Tensor, physics: Physics, noise: Noise, prior: PatchPrior, count: int,
    generator: torch.Generator,
) -> Pairs | None:
    """Windows of one simulated data set, at most ``count``; None where none may be used."""
    factor, begin = phase(physics)
    operator, corner, space = _placed(physics, tuple(image.shape[1:]), prior, generator)
    piece = image[(slice(None), *box(corner, space))]  # type: ignore[index]
    y = noise.simulate(operator.A(piece[None]), generator)
    first = operator.start(y)[0].to(piece)
    counts = [n - p + 1 for n, p in zip(space, prior.patch, strict=True)]
    allowed = torch.zeros(counts, dtype=torch.bool)
    steps = tuple(slice(b, None, f) for b, f in zip(begin, factor, strict=True))
    allowed[steps] = valid[box(corner, counts)][steps]
    places = allowed.flatten().nonzero()[:, 0]
    places = places[torch.randperm(len(places), generator=generator)[:count]]
    if len(places) == 0:
        return None
    grid, shape = PatchGrid(space, prior.patch), (-1, prior.joint_channels, *prior.patch)

    def cut(whole: Tensor) -> Tensor:
        planes = prior.as_planes(whole[None]).flatten(1)
        index = flat_index(grid, prior.joint_channels, places)
        return planes[:, index].movedim(1, 2).reshape(shape)

    seen = None
    if operator.mask is not None:
        alone = operator.mask.to(piece).flatten()[flat_index(grid, 1, places)].T
        seen = alone.reshape(-1, 1, *prior.patch)
        seen = seen.repeat(len(piece) // prior.joint_channels, *(1,) * (seen.ndim - 1))
    return Pairs(cut(piece), cut(first), seen)


def _placed(
    physics: Physics, space: tuple[int, ...], prior: PatchPrior, generator: torch.Generator
) -> tuple[Physics, tuple[int, ...], tuple[int, ...]]:
    """An operator for a random piece of a reference, where the piece begins, and its shape."""
    if physics.mask is None:
        steps = phase(physics)[0]
        most = [
            n - f + 1 if n - f + 1 >= p else n
            for n, f, p in zip(space, steps, prior.patch, strict=True)
        ]
        shape = physics.fitting_shape(most)
        if any(n < p for n, p in zip(shape, prior.patch, strict=True)):
            raise too_few(0, prior.patch)
        return physics, random_corner(space, shape, generator), shape
    whole = tuple(physics.mask.shape)
    shape = tuple(min(n, m) for n, m in zip(space, whole, strict=True))
    if any(n < p for n, p in zip(shape, prior.patch, strict=True)):
        raise InvalidInput(
            f"windows of {prior.patch} px do not fit in data of {whole}; choose a smaller "
            "patch_size"
        )
    for _ in range(TRIES):
        window = box(random_corner(whole, shape, generator), shape)
        if bool(physics.mask[window].any()):
            return physics.restricted(window)[0], random_corner(space, shape, generator), shape
    raise InvalidInput(
        f"pieces of {shape} px of the mask show nothing: give a reference of {whole} px or more"
    )
