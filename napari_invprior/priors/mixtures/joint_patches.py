"""Patches of a good image together with those of the poor image of the same place.

A joint sample is the good patch, stacked on the poor patch that shares its centre. The poor image
is given (`Reference.pair`) or made from the good one by the operator and its noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Message
from napari_invprior.networks.draws import split_positions, valid_positions
from napari_invprior.numerics.patches import PatchGrid, gather_patches
from napari_invprior.physics.base import Physics
from napari_invprior.physics.blocks import block_factor, magnification, to_blocks
from napari_invprior.physics.unobserved import Masked
from napari_invprior.priors.base import Measurement, Reference
from napari_invprior.priors.patchwise import FEWEST_PATCHES

FEWEST_HELD_OUT = 20
HELD_OUT_LIMIT = 10_000
TRACE = 1e-4
"""A poor sample counts as unknown where more than this share of its light is unknown."""
MAX_SHIFT = 0.5
"""Coarse samples by which a pair may be out of register without a warning."""


@dataclass(frozen=True)
class Registered:
    """A good and a poor image in register, with what is valid in each.

    Attributes
    ----------
    high, low : Tensor
        (C, *space); the space of ``high`` is ``factor`` times that of ``low``.
    high_mask, low_mask : Tensor
        Boolean, (*space).
    """

    high: Tensor
    low: Tensor
    high_mask: Tensor
    low_mask: Tensor

    @property
    def factor(self) -> tuple[int, ...]:
        """Good samples per poor sample, per axis."""
        return magnification(self.high.shape[1:], self.low.shape[1:])


def usable_measurement(measurement: Measurement | None) -> Measurement | None:
    """The measurement with the operator alone, without the samples missing in one image.

    None where the operator itself is a mask: a mask differs from patch to patch.
    """
    if measurement is None:
        return None
    physics = measurement.physics
    if isinstance(physics, Masked):
        physics = physics.physics
    if physics.mask is not None:
        return None
    return Measurement(measurement.y, physics, measurement.noise)


def factor_of(
    references: Sequence[Reference], measurement: Measurement | None
) -> tuple[int, ...] | None:
    """Good samples per poor sample: of the pairs, else of the operator; None without either.

    Raises
    ------
    InvalidInput
        If pairs and operator disagree.
    """
    found = {
        magnification(r.image.shape[1:], r.pair.shape[1:])
        for r in references
        if r.pair is not None
    }
    if measurement is not None:
        found.add(block_factor(measurement.physics))
    if len(found) > 1:
        raise InvalidInput(
            f"the pairs and the operator disagree on the magnification ({sorted(found)}); set the "
            "operator's factor to that of the pair"
        )
    return found.pop() if found else None


def registered(
    reference: Reference, measurement: Measurement | None, generator: torch.Generator
) -> Registered | None:
    """The reference with its pair, given or simulated; None where there is neither."""
    finite = torch.isfinite(reference.image).all(0)
    mask = finite if reference.mask is None else finite & reference.mask.to(finite.device)
    if reference.pair is not None:
        low = reference.pair
        return Registered(reference.image, low, mask, torch.isfinite(low).all(0))
    if measurement is None:
        return None
    return _simulated(reference.image, mask, measurement, generator)


def _simulated(
    image: Tensor, mask: Tensor, measurement: Measurement, generator: torch.Generator
) -> Registered | None:
    physics = measurement.physics
    if not bool(mask.any()):
        return None
    window = tuple(slice(0, n) for n in physics.fitting_shape(tuple(image.shape[1:])))
    image, mask = image[(slice(None), *window)], mask[window]
    known = torch.where(mask, image, image[:, mask].mean())[None]
    low = measurement.noise.simulate(physics.A(known), generator)
    space = tuple(low.shape[2:])
    low_mask = physics.A((~mask).to(known)[None, None])[0, 0].abs() < TRACE
    low_mask &= _inside(space, physics)
    high, high_mask = (
        to_blocks(x, physics, space) for x in (known[0], mask.to(known)[None])
    )
    return Registered(high, low[0], high_mask[0] > 0.5, low_mask)


def _inside(space: tuple[int, ...], physics: Physics) -> Tensor:
    """Poor samples whose kernel stays within the image, where there are enough of them.

    What lies beyond a border is made up (mirrored, repeated): nothing to learn from.
    """
    inside = torch.ones(space, dtype=torch.bool)
    if physics.boundary == "valid":
        return inside
    for axis, (n, reach, f) in enumerate(
        zip(space, physics.reach(), block_factor(physics), strict=True)
    ):
        rim = -(-max(0, reach - f) // (2 * f))
        if 4 * rim < n:
            for border in (slice(0, rim), slice(n - rim, n)):
                inside[(*(slice(None),) * axis, border)] = False
    return inside


def joint_planes(
    references: Sequence[Reference],
    measurement: Measurement | None,
    factor: tuple[int, ...] | None,
    as_planes: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> list[Registered | tuple[Tensor, Tensor]]:
    """The references plane by plane: in register, or (image, mask) where there is no ``factor``.

    A reference without a pair is left out where others have one and no operator is known.
    """
    planes: list[Registered | tuple[Tensor, Tensor]] = []
    for reference in references:
        if factor is None:
            mask = torch.isfinite(reference.image).all(0)
            mask = mask if reference.mask is None else mask & reference.mask
            planes += [(plane, mask) for plane in as_planes(reference.image[None])]
            continue
        pair = registered(reference, measurement, generator)
        if pair is not None:
            highs, lows = as_planes(pair.high[None]), as_planes(pair.low[None])
            planes += [
                Registered(high, low, pair.high_mask, pair.low_mask)
                for high, low in zip(highs, lows, strict=True)
            ]
    return planes


def misalignment(pair: Registered) -> tuple[float, ...]:
    """Shift of the poor image against the good one by phase correlation, in poor samples."""
    from skimage.registration import phase_cross_correlation

    low = pair.low.mean(0)
    coarse = pair.high.mean(0)
    for axis, f in enumerate(pair.factor):
        coarse = coarse.unflatten(axis, (-1, f)).mean(axis + 1)
    images = [torch.nan_to_num(x, nan=float(x.nanmean())).numpy(force=True) for x in (coarse, low)]
    shift, _, _ = phase_cross_correlation(*images, upsample_factor=10)
    return tuple(0.0 - float(s) for s in shift)


def alignment_warnings(references: Sequence[Reference]) -> Iterator[Message]:
    """Say which given pairs are out of register, and by how much."""
    for number, reference in enumerate(references, 1):
        if reference.pair is None:
            continue
        mask = torch.ones(reference.image.shape[1:], dtype=torch.bool)
        shift = misalignment(Registered(reference.image, reference.pair, mask, mask))
        if max(abs(s) for s in shift) > MAX_SHIFT:
            listed = ", ".join(f"{s:+.1f}" for s in shift)
            yield Message(
                f"the low-resolution pair of reference {number} is shifted by ({listed}) of its "
                "own px; register the two images first",
                "warning",
            )


@dataclass(frozen=True)
class JointDraws:
    """Joint patches as columns, each part in random order.

    Attributes
    ----------
    patches : Tensor
        (D, N): the good patch, then the poor one where there is a pair. First those to train on,
        then those that overlap held-out ones, at last those held out.
    train, held_out : Tensor
        The first and the last part.
    """

    patches: Tensor
    train: Tensor
    held_out: Tensor

    def to(self, device: torch.device) -> JointDraws:
        """The same on a device; where either part holds too few patches, all stand in for both."""
        patches = self.patches.to(device)
        train = patches[:, : self.train.shape[1]]
        held_out = patches[:, patches.shape[1] - self.held_out.shape[1] :]
        if held_out.shape[1] < FEWEST_HELD_OUT or train.shape[1] < FEWEST_PATCHES:
            train = held_out = patches
        return JointDraws(patches, train, held_out[:, :HELD_OUT_LIMIT])


def draw_joint(
    pairs: Sequence[Registered | tuple[Tensor, Tensor]],
    patch: Sequence[int],
    generator: torch.Generator,
    most: int,
) -> JointDraws:
    """Training and held-out joint patches, held out in blocks of the image.

    Parameters
    ----------
    pairs : sequence
        Planes in register, or (image, mask) where there is no poor image.
    patch : sequence of int
        Edges of the good patch; multiples of the magnification.
    most : int
        Draw at most so many, uniformly.
    """
    sites = []
    for pair in pairs:
        layers, valid = _layers(pair, patch)
        if valid is not None and bool(valid.any()):
            small = layers[-1][1].patch
            train, held_out = split_positions(valid, small, generator)
            sites.append((layers, (train, valid & ~train & ~held_out, held_out)))
    total = sum(int(part.sum()) for _, parts in sites for part in parts)
    share = min(1.0, most / max(1, total))
    drawn: list[Tensor] = []
    counts = []
    for number in range(3):
        found = [
            _gathered(layers, parts[number], share, generator) for layers, parts in sites
        ]
        joint = torch.cat(found, 1) if found else torch.empty(0, 0)
        drawn.append(joint[:, torch.randperm(joint.shape[1], generator=generator)])
        counts.append(joint.shape[1])
    patches = torch.cat(drawn, 1)
    return JointDraws(patches, patches[:, : counts[0]], patches[:, counts[0] + counts[1] :])


def _gathered(
    layers: list[tuple[Tensor, PatchGrid]],
    chosen: Tensor,
    share: float,
    generator: torch.Generator,
) -> Tensor:
    """A random share of the patches at the chosen positions, one layer below the other."""
    places = chosen.flatten().nonzero()[:, 0]
    if share < 1:
        places = places[torch.rand(len(places), generator=generator) < share]
    return torch.cat([gather_patches(image, grid, places) for image, grid in layers])


def _layers(
    pair: Registered | tuple[Tensor, Tensor], patch: Sequence[int]
) -> tuple[list[tuple[Tensor, PatchGrid]], Tensor | None]:
    """Images with the grids of their patches, and the valid positions common to the grids."""
    if not isinstance(pair, Registered):
        image, mask = pair
        if any(n < p for n, p in zip(mask.shape, patch, strict=True)):
            return [], None
        grid = PatchGrid(mask.shape, patch)
        return [(image, grid)], valid_positions(image, mask, grid)
    factor = pair.factor
    small = [p // f for p, f in zip(patch, factor, strict=True)]
    if any(n < p for n, p in zip(pair.low.shape[1:], small, strict=True)):
        return [], None
    high = PatchGrid(pair.high_mask.shape, patch, factor)
    low = PatchGrid(pair.low_mask.shape, small)
    every = PatchGrid(high.space, patch)
    steps = tuple(slice(None, None, f) for f in factor)
    valid = valid_positions(pair.high, pair.high_mask, every)[steps]
    valid &= valid_positions(pair.low, pair.low_mask, low)
    return [(pair.high, high), (pair.low, low)], valid
