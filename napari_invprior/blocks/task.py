"""One block: read its window, compute, write its shards, note that it is done, return its number.

A task holds nothing that would be missed: whoever computes a block, and however often, writes the
same bytes. Nothing but the number is returned, because a cluster computes again what a dead
worker held.
"""

from __future__ import annotations

import errno
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from napari_invprior import registry
from napari_invprior.blocks.folder import FOLDER, PLAN, PRIOR
from napari_invprior.blocks.grid import Block
from napari_invprior.blocks.inputs import Inputs
from napari_invprior.blocks.journal import Entry, Journal
from napari_invprior.blocks.output import BlockedImage
from napari_invprior.blocks.plan import Plan
from napari_invprior.blocks.stopping import Asked, check
from napari_invprior.blocks.work import Agreed, Done, compute
from napari_invprior.errors import (
    Cancelled,
    InvPriorError,
    JobError,
    OutOfMemory,
    StorageError,
)
from napari_invprior.io.bundles import load_prior
from napari_invprior.io.files import PASSING, PAUSE
from napari_invprior.jobs import Job, Result, ShouldStop, never, run
from napari_invprior.recipes.device import choose_device

T = TypeVar("T")

GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENOTCONN, errno.ENODEV}
"""Errors of a drive that is not there: nothing can be read or written."""
MAY_PASS = PASSING | GONE
PATIENCE = 5
"""Attempts again, after 0.2, 0.4, ... s: six seconds in all."""
HALVINGS = 4
"""So often a block is halved when memory runs out."""


@dataclass(frozen=True)
class Workplace:
    """An opened job: what a worker keeps from one block to the next."""

    folder: Path
    plan: Plan
    agreed: Agreed
    inputs: Inputs
    images: list[BlockedImage]
    device: torch.device

    @property
    def journal(self) -> Journal:
        """Of the job."""
        return Journal(self.folder / FOLDER)

    @classmethod
    def open(cls, folder: Path) -> Workplace:
        """Open a job.

        Raises
        ------
        InvalidInput
            If it or its inputs cannot be read.
        """
        registry.load()
        plan = Plan.load(folder)
        recipe = plan.parsed
        device, _ = choose_device(recipe.device)
        prior = None
        if plan.has_prior:
            prior, _ = load_prior(folder / FOLDER / PRIOR, device=str(device))
        agreed = Agreed(recipe, plan.scale, plan.value_range, plan.noise_level, prior)
        return cls(folder, plan, agreed, Inputs.open(recipe, {}), plan.images(folder), device)


_kept = threading.local()


def workplace(folder: Path) -> Workplace:
    """The job of a folder, opened once per thread: priors work in buffers of their own.

    It is opened again when its plan is another one.
    """
    stamp = folder, (folder / FOLDER / PLAN).stat().st_mtime_ns
    if getattr(_kept, "stamp", None) != stamp:
        _kept.place, _kept.stamp = Workplace.open(folder), stamp
    place: Workplace = _kept.place
    return place


def run_block(folder: str, index: int, token: str = "", stop: ShouldStop = never) -> int:
    """Compute a block of a job and return its number.

    Parameters
    ----------
    folder : str
        Of the job.
    index : int
        Number of the block; one that is done is not computed again.
    token : str
        Of the client that asked; a block of a client that lost the job is given up.
    stop
        Polled beside the file that asks all workers to stop.

    Raises
    ------
    Cancelled
        If it was stopped.
    StorageError
        If the disk is full, or a drive is gone and does not come back in a few seconds; no other
        block can be computed either.
    InvalidInput
        If the job or its input cannot be used any more.
    JobError
        If it failed; that is noted as well.
    """
    asked = Asked(Path(folder), token, stop)
    asked.check()
    begin = time.monotonic()
    here = _with_retries(lambda: workplace(Path(folder)), asked)
    if here.journal.is_done(index):
        return index
    torch.set_num_threads(here.plan.threads)
    try:
        entry = _done(here, index, asked, begin)
        _with_retries(lambda: here.journal.record(entry), asked)
    except (Cancelled, StorageError):
        raise
    except Exception as error:  # whatever it is, the other blocks can be computed
        reason = str(error) or type(error).__name__
        known = isinstance(error, InvPriorError)
        reason = reason if known else f"{type(error).__name__}: {reason}"
        with suppress(JobError):  # the client notes it once more
            here.journal.record(Entry(index=index, error=reason, seconds=time.monotonic() - begin))
        raise JobError(f"block {index}: {reason}") from error
    return index


def _done(here: Workplace, index: int, asked: Asked, begin: float) -> Entry:
    """Compute a block and write its shards; what is to be noted of it."""
    block = here.plan.grid.block(index)
    values, done, parts = _with_retries(lambda: _computed(here, block, asked), asked)
    files: list[tuple[str, int]] = []
    for image, array in zip(here.images, values, strict=True):
        asked.check()
        write = partial(image.write, block, array)
        found = _with_retries(write, asked)
        files += [(f"{image.output.name}/{name}", size) for name, size in found]
    asked.check()
    return Entry(
        index=index, files=tuple(files), seconds=time.monotonic() - begin, parts=parts,
        figures=done.figures, notes=done.notes,
    )


def _with_retries(work: Callable[[], T], asked: Asked) -> T:
    """Call ``work`` again while a drive reports errors that may pass, or files are not there.

    Raises
    ------
    StorageError
        If files are still not there.
    Cancelled
        If it was stopped in between.
    """
    for attempt in range(PATIENCE):
        try:
            return work()
        except (OSError, InvPriorError) as error:
            if _number(error) not in MAY_PASS:
                raise
            asked.wait(PAUSE * 2**attempt)
    try:
        return work()
    except (OSError, InvPriorError) as error:
        if _number(error) not in GONE:
            raise
        raise StorageError(f"{platform.node()}: {error}; is the drive there?") from error


def _number(error: BaseException | None) -> int | None:
    """Number of the operating system's error that is behind one of ours."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return None if error is None else error.errno


def _computed(here: Workplace, block: Block, asked: ShouldStop) -> tuple[list[Any], Done, int]:
    """Arrays of the target for each image, halving the block while memory is short."""
    parts = [block]
    for halving in range(HALVINGS + 1):
        arrays: list[Any] = []
        try:
            for part in parts:
                done = run(_part(here, part, asked))
                check(asked)
                arrays = arrays or [
                    np.empty((*a.shape[: a.ndim - len(block.target)], *_size(block)), a.dtype)
                    for a in done[1]
                ]
                where = tuple(
                    slice(p.start - t.start, p.stop - t.start)
                    for p, t in zip(part.target, block.target, strict=True)
                )
                for whole, piece in zip(arrays, done[1], strict=True):
                    whole[(..., *where)] = piece
            return arrays, done[0], len(parts)
        except OutOfMemory:
            if halving == HALVINGS:
                raise
        parts = [half for part in parts for half in _halves(here.plan, part)]
    raise AssertionError


def _size(block: Block) -> tuple[int, ...]:
    return tuple(t.stop - t.start for t in block.target)


def _part(here: Workplace, block: Block, asked: ShouldStop) -> Job:
    """A block, or a part of one; the `Result` is (`Done`, arrays of the target)."""
    done: Done | None = None
    for event in compute(
        here.agreed, here.inputs, block, here.plan.image, here.device, asked
    ):
        if isinstance(event, Result):
            done = event.value
        else:
            yield event
    assert done is not None
    found = {layer.name: layer.array for layer in done.layers}
    yield Result((done, [
        np.ascontiguousarray(found[image.output.name][(..., *block.inner)])
        for image in here.images
    ]))


def _halves(plan: Plan, block: Block) -> list[Block]:
    """The block's two halves along its longest axis, each with the same halo."""
    grid = plan.grid
    lengths = [
        c.stop - c.start if cut else 0
        for c, cut in zip(block.core, grid.divisible, strict=True)
    ]
    axis = max(range(len(lengths)), key=lengths.__getitem__)
    core = block.core[axis]
    middle = (core.start + core.stop) // 2
    if middle == core.start:
        return [block]
    f, image = grid.factor[axis], grid.image[axis]
    halves = []
    for low, high in ((core.start, middle), (middle, core.stop)):
        begin = max(0, low - grid.halo[axis]) // grid.period * grid.period
        end = min(grid.data[axis], high + grid.halo[axis])
        last = image if high == grid.data[axis] else high * f
        halves.append(replace(
            block, core=_put(block.core, axis, slice(low, high)),
            window=_put(block.window, axis, slice(begin, end)),
            target=_put(block.target, axis, slice(low * f, last)),
            start=(*block.start[:axis], begin * f, *block.start[axis + 1 :]),
        ))
    return halves


def _put(parts: tuple[Any, ...], axis: int, value: Any) -> tuple[Any, ...]:
    return (*parts[:axis], value, *parts[axis + 1 :])
