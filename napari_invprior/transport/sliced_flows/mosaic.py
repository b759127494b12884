"""An image whose patches are like those of a cloud, from coarse to fine.

The patches of one image are particles that share samples. Each is pulled towards the cloud by the
gradient of the sliced energy distance; a sample goes where its patches want it on average. The
image is periodic. Coarse levels, with patches averaged down, come first: they place what the fine
ones cannot see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Job, Preview, Result, ShouldStop, Stage, never
from napari_invprior.numerics.patches import PatchGrid
from napari_invprior.transport.sliced_flows.energy_distance import SlicedTarget, check_cloud
from napari_invprior.transport.slices.draws import DirectionDraw, spread

LARGEST_BLOCK, SMALLEST_BLOCK = {2: 5, 3: 4}, 3
"""Edges of the patches that are compared at each level, px."""
MOST_TARGETS = 20_000
FLOOR, POWER = 1e-3, 0.25
"""Smallest variance as a share of the largest, and the power that variances are divided by."""
_PREVIEW_SECONDS = 2.0


@dataclass(frozen=True)
class MosaicPlan:
    """How a mosaic is made.

    Attributes
    ----------
    levels : int
        Scales, at most; each has half as many samples per axis as the next.
    steps : int
        Steps per level; their size falls from ``step`` to ``last_step``.
    step, last_step : float
        In units of the spread of the patches.
    momentum : float
        Share of the last step that goes into the next one.
    stride : int
        Distance of the patches that one step looks at, px; they shift from step to step.
    noise : float
        Noise added after each refinement, in units of the standard deviation of the patches.
    pool : int
        Sets of slices that are used in turn.
    """

    levels: int = 4
    steps: int = 200
    step: float = 1.0
    last_step: float = 0.05
    momentum: float = 0.7
    stride: int = 2
    noise: float = 0.1
    pool: int = 16


def mosaic(
    patches: Tensor,
    patch: Sequence[int],
    space: Sequence[int],
    plan: MosaicPlan | None = None,
    *,
    seed: int = 0,
    should_stop: ShouldStop = never,
) -> Job:
    """Make an image (1, C, *space) with patches like these; it is the `Result`.

    Stopped early, the result is what there is, brought to its full size.

    Parameters
    ----------
    patches : Tensor
        (C prod(patch), M), columns in C order over (channel, axes).
    patch : sequence of int
        Their edges, px.
    space : sequence of int
        Shape of the image, each axis at least as long as that of the patch.

    Examples
    --------
    >>> from napari_invprior.jobs import run
    >>> cloud = torch.rand((16, 50), generator=torch.Generator().manual_seed(0))
    >>> run(mosaic(cloud, (4, 4), (12, 10), MosaicPlan(levels=1, steps=3))).shape
    torch.Size([1, 1, 12, 10])
    """
    plan, space = plan or MosaicPlan(), tuple(space)
    samples = _as_images(patches, patch, space)
    generator = torch.Generator().manual_seed(seed)
    factors = _factors(patch, plan.levels)
    stage, seen = Stage("mosaic", len(factors) * plan.steps), _PREVIEW_SECONDS / 2
    image, mean, deviation = None, float(samples.mean()), float(samples.std(correction=0))
    for number, factor in enumerate(factors):
        size = [-(-n // factor) for n in space]
        if image is None:
            image = samples.new_full((1, samples.shape[1], *size), mean)
        else:
            image = _finer(image, size)
        share = 1.0 if number == 0 else plan.noise
        noise = torch.randn(image.shape, generator=generator)
        image = image + share * deviation * noise.to(image)
        for taken in _level(image, _pooled(samples, factor), plan, generator):
            if should_stop():
                yield Result(_finer(image, space))
                return
            if stage.due():
                yield stage.progress(number * plan.steps + taken)
                if stage.seconds > seen:
                    seen = stage.seconds + _PREVIEW_SECONDS
                    yield Preview("image", image[0].cpu().numpy(), "mosaic")
    yield stage.progress(stage.total)
    yield Result(image)


def _level(
    image: Tensor, samples: Tensor, plan: MosaicPlan, generator: torch.Generator
) -> Iterator[int]:
    """Change ``image`` in place until its patches are like ``samples``, (M, C, *patch)."""
    ndim = image.ndim - 2
    block = [min(p, LARGEST_BLOCK[ndim]) for p in samples.shape[2:]]
    cloud = _blocks(samples, block, generator)
    wrapped = [n + b - 1 for n, b in zip(image.shape[2:], block, strict=True)]
    whiten, back = _whitening(cloud)
    cloud = whiten @ cloud
    draw = DirectionDraw(cloud)
    grids = _shifted_grids(wrapped, block, plan.stride)
    targets: list[SlicedTarget] = []
    velocity = torch.zeros_like(image)
    lowest, highest = float(samples.min()), float(samples.max())
    for taken in range(plan.steps):
        if len(targets) < plan.pool:
            targets.append(SlicedTarget(cloud, draw(generator), grids[0].count))
        target = targets[int(torch.randint(len(targets), (), generator=generator))]
        grid = grids[int(torch.randint(len(grids), (), generator=generator))]
        padded = _wrap(image, block)
        particles = whiten @ grid.extract(padded)
        pull = grid.adjoint(back @ target.gradient(particles).mul_(particles.shape[1]))
        counts = _unwrap(grid.multiplicity(dtype=image.dtype, device=image.device), image.shape[2:])
        share = plan.last_step ** (taken / max(1, plan.steps - 1))
        change = _unwrap(pull, image.shape[2:]) / counts.clamp_min(1)
        velocity.mul_(plan.momentum).add_(change)
        image -= plan.step * share * draw.unit * velocity
        image.clamp_(lowest, highest)
        yield taken + 1


def _whitening(cloud: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix to numbers of more equal variance, in which fine detail counts, and its inverse."""
    spread(cloud)  # refuses equal patches
    values, vectors = torch.linalg.eigh(torch.cov(cloud.double()))
    deviations = values.clamp_min(FLOOR * float(values[-1])) ** POWER
    return tuple((vectors * scale @ vectors.T).to(cloud) for scale in (1 / deviations, deviations))


def _shifted_grids(space: Sequence[int], block: Sequence[int], stride: int) -> list[PatchGrid]:
    """Grids at every offset within a stride."""
    steps = [min(stride, n - b + 1) for n, b in zip(space, block, strict=True)]
    offsets = torch.cartesian_prod(*(torch.arange(s) for s in steps)).tolist()
    return [PatchGrid(space, block, steps, offset) for offset in offsets]


def _finer(image: Tensor, space: Sequence[int]) -> Tensor:
    return F.interpolate(image, tuple(space), mode="bilinear" if image.ndim == 4 else "trilinear")


def _wrap(image: Tensor, block: Sequence[int]) -> Tensor:
    """Continue an image at its far ends by its near ones."""
    for axis, b in enumerate(block, 2):
        image = torch.cat([image, image.narrow(axis, 0, b - 1)], axis)
    return image


def _unwrap(padded: Tensor, space: Sequence[int]) -> Tensor:
    """The adjoint of `_wrap`."""
    for axis, n in enumerate(space, 2):
        inside = padded.narrow(axis, 0, n).clone()
        rest = padded.shape[axis] - n
        inside.narrow(axis, 0, rest).add_(padded.narrow(axis, n, rest))
        padded = inside
    return padded


def _factors(patch: Sequence[int], levels: int) -> list[int]:
    """Factors of the levels, the coarsest first; its patches keep enough samples."""
    fitting = [2**k for k in range(levels) if min(patch) // 2**k >= SMALLEST_BLOCK]
    return fitting[::-1] or [1]


def _pooled(samples: Tensor, factor: int) -> Tensor:
    pool = F.avg_pool2d if samples.ndim == 4 else F.avg_pool3d
    return samples if factor == 1 else pool(samples, factor)


def _blocks(samples: Tensor, block: Sequence[int], generator: torch.Generator) -> Tensor:
    """Blocks of patches at random places, as columns."""
    room = [n - b + 1 for n, b in zip(samples.shape[2:], block, strict=True)]
    found = []
    for _ in range(max(1, min(math.prod(room), MOST_TARGETS // len(samples)))):
        window = samples
        for axis, (r, b) in enumerate(zip(room, block, strict=True), 2):
            window = window.narrow(axis, int(torch.randint(r, (), generator=generator)), b)
        found.append(window.flatten(1))
    return torch.cat(found).T.contiguous()


def _as_images(patches: Tensor, patch: Sequence[int], space: Sequence[int]) -> Tensor:
    """Patches as (M, C, *patch), checked."""
    check_cloud(patches, "patches")
    if len(patches) % math.prod(patch) or len(patch) != len(space) or len(patch) not in (2, 3):
        raise InvalidInput(
            f"patches of {len(patches)} numbers for edges {tuple(patch)} px and an image of "
            f"{tuple(space)} px: give whole patches of the image's 2 or 3 axes"
        )
    if any(n < p for n, p in zip(space, patch, strict=True)):
        raise InvalidInput(
            f"an image of {tuple(space)} px is smaller than its patches of {tuple(patch)} px: "
            "give a larger one"
        )
    return patches.T.reshape(patches.shape[1], -1, *patch)
