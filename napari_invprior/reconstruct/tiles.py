"""Reconstruct within the memory there is: whole, or in tiles with a halo."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from napari_invprior.errors import OutOfMemory
from napari_invprior.jobs import Job, Message, Preview, Result, forward, is_out_of_memory
from napari_invprior.memory import free_bytes, require
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise
from napari_invprior.physics.piece import take_piece
from napari_invprior.priors.base import Prior
from napari_invprior.priors.patchwise import PatchPrior
from napari_invprior.reconstruct.base import Solver

BYTES_PER_SAMPLE = 240
"""Peak working memory of the solvers per image sample and channel (measured, rounded up)."""

BYTES_HELD = 16
"""Memory that a run holds per image sample in any case: first image, result, preview, layer."""

HALVINGS = 4


def estimated_bytes(y: Tensor, physics: Physics) -> int:
    """Peak working memory to reconstruct from ``y`` in one piece."""
    return BYTES_PER_SAMPLE * y.shape[0] * y.shape[1] * math.prod(physics.in_shape(y.shape[2:]))


def require_room(physics: Physics, shape: Sequence[int], name: str) -> None:
    """Refuse data (frames, C, *space) whose image cannot be held, before it is made.

    Raises
    ------
    OutOfMemory
        With the size, and what to change.
    """
    frames, channels, *space = shape
    image = physics.in_shape(space)
    each = BYTES_HELD if any(physics.divisible()) else BYTES_PER_SAMPLE
    require(
        each * frames * channels * math.prod(image),
        f"the image of {image} px that {name} asks for",
        "crop the data, or choose a coarser grid in the physics",
    )


def solve_within_memory(
    solver: Solver,
    y: Tensor,
    physics: Physics,
    noise: Noise,
    prior: Prior | None,
    *,
    memory: int | None = None,
    **options: Any,
) -> Job:
    """`Solver.solve`, in tiles when memory asks for it.

    Parameters
    ----------
    memory : int, optional
        Bytes that may be used; half of what is free by default.
    **options
        Passed to `Solver.solve`.
    """
    memory = free_bytes() // 2 if memory is None else memory
    space = tuple(y.shape[2:])
    tile = space
    while estimated_bytes(y[(..., *(slice(0, n) for n in tile))], physics) > memory:  # type: ignore[index]
        if max(_divisible(tile, physics), default=0) <= (16 if all(physics.divisible()) else 1):
            raise OutOfMemory(f"even tiles of {tile} samples need more than {memory} bytes")
        tile = _halved(tile, physics)
    for _ in range(HALVINGS + 1):
        try:
            if tile == space:
                image = yield from forward(solver.solve(y, physics, noise, prior, **options))
            else:
                yield Message(f"working in tiles of {tile} data samples to fit the memory")
                image = yield from forward(
                    _solve_tiles(solver, y, physics, noise, prior, tile, options)
                )
            yield Result(image)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if max(_divisible(tile, physics), default=0) <= 1:
                raise
            last = error
            tile = _halved(tile, physics)
            yield Message(f"memory ran out; trying again in tiles of {tile}", "warning")
    raise OutOfMemory(f"memory ran out even with tiles of {tile} samples") from last


def _divisible(tile: tuple[int, ...], physics: Physics) -> list[int]:
    """Edges of the tile along which the data may be cut."""
    return [n for n, cut in zip(tile, physics.divisible(), strict=True) if cut]


def _halved(tile: tuple[int, ...], physics: Physics) -> tuple[int, ...]:
    """The tile with the longest edge that may be cut halved."""
    axes = [axis for axis, cut in enumerate(physics.divisible()) if cut]
    longest = max(axes, key=tile.__getitem__)
    return tuple(max(1, -(-n // 2)) if a == longest else n for a, n in enumerate(tile))


def _solve_tiles(
    solver: Solver,
    y: Tensor,
    physics: Physics,
    noise: Noise,
    prior: Prior | None,
    tile: tuple[int, ...],
    options: dict[str, Any],
) -> Job:
    """Solve tile by tile; each sees a halo, only its core is kept."""
    space = tuple(y.shape[2:])
    shape = physics.in_shape(space)
    options = dict(options)
    start = options.pop("start", None)
    whole = (physics.start(y) if start is None else start).clone()
    factor = [max(1, round(n / m)) for n, m in zip(shape, space, strict=True)]
    patch = prior.patch if isinstance(prior, PatchPrior) else (4,) * len(space)
    halo = [
        -(-(r + 4 * p) // f) for r, p, f in zip(physics.reach(), patch, factor, strict=True)
    ]
    for core in _cores(space, tile):
        window = tuple(
            slice(max(0, c.start - h), min(n, c.stop + h))
            for c, h, n in zip(core, halo, space, strict=True)
        )
        piece = take_piece(physics, window, space)
        job = solver.solve(y[piece.data_index], piece.physics, noise, prior, **options)
        image = yield from forward(e for e in job if not isinstance(e, Preview))
        target, source = [], []
        for axis, c in enumerate(core):
            low = 0 if c.start == 0 else c.start * factor[axis]
            high = shape[axis] if c.stop == space[axis] else c.stop * factor[axis]
            origin = piece.image_start[axis]
            high = min(high, origin + piece.image_shape[axis])
            low = max(low, origin)
            target.append(slice(low, high))
            source.append(slice(low - origin, high - origin))
        whole[(slice(None), slice(None), *target)] = image[(slice(None), slice(None), *source)]
        yield Preview("image", whole.numpy(force=True).copy(), "reconstruct")
        should_stop = options.get("should_stop")
        if should_stop is not None and should_stop():
            break
    yield Result(whole)


def _cores(space: tuple[int, ...], tile: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    lines = [
        [slice(a, min(a + t, n)) for a in range(0, n, t)] for n, t in zip(space, tile, strict=True)
    ]
    yield from itertools.product(*lines)
