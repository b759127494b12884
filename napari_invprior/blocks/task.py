"""One block: read its window, compute, write its shards, note that it is done, return its number.

A task holds nothing that would be missed: whoever computes a block, and however often, writes the
same bytes. Nothing but the number is returned, because a cluster computes again what a dead
worker held.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from napari_invprior import registry
from napari_invprior.blocks.folder import FOLDER, PLAN, PRIOR, STOP
from napari_invprior.blocks.grid import Block
from napari_invprior.blocks.inputs import Inputs
from napari_invprior.blocks.journal import Entry, Journal
from napari_invprior.blocks.lock import holder
from napari_invprior.blocks.output import BlockedImage, DiskFull
from napari_invprior.blocks.plan import Plan
from napari_invprior.blocks.work import Agreed, Done, compute
from napari_invprior.errors import Cancelled, InvPriorError, JobError, OutOfMemory
from napari_invprior.io.bundles import load_prior
from napari_invprior.io.files import ATTEMPTS, PASSING, PAUSE
from napari_invprior.jobs import Job, Result, ShouldStop, never, run
from napari_invprior.recipes.device import choose_device

LOOK_EVERY = 0.5
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
    DiskFull
        If there is no room to write.
    JobError
        If it failed; that is noted as well.
    """
    here = workplace(Path(folder))
    torch.set_num_threads(here.plan.threads)
    if here.journal.is_done(index):
        return index
    asked = _Asked(here.folder, token, stop)
    begin = time.monotonic()
    block = here.plan.grid.block(index)
    try:
        values, done, parts = _with_retries(lambda: _computed(here, block, asked))
        asked.check()
        files: list[tuple[str, int]] = []
        for image, array in zip(here.images, values, strict=True):
            found = _with_retries(lambda i=image, a=array: i.write(block, a))  # type: ignore[misc]
            files += [(f"{image.output.name}/{name}", size) for name, size in found]
        asked.check()
        here.journal.record(Entry(
            index=index, files=tuple(files), seconds=time.monotonic() - begin, parts=parts,
            figures=done.figures, notes=done.notes,
        ))
    except (Cancelled, DiskFull):
        raise
    except Exception as error:  # whatever it is, the other blocks can be computed
        reason = str(error) or type(error).__name__
        known = isinstance(error, InvPriorError)
        reason = reason if known else f"{type(error).__name__}: {reason}"
        here.journal.record(Entry(index=index, error=reason, seconds=time.monotonic() - begin))
        raise JobError(f"block {index}: {reason}") from error
    return index


class _Asked:
    """Whether to stop: the caller says so, the stop file is there, or the job has another owner."""

    def __init__(self, folder: Path, token: str, stop: ShouldStop) -> None:
        self._folder, self._token, self._stop = folder / FOLDER, token, stop
        self._looked, self._found = -LOOK_EVERY, False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._found and now - self._looked >= LOOK_EVERY:
            self._looked = now
            self._found = (self._folder / STOP).exists() or self._taken()
        return self._found or self._stop()

    def _taken(self) -> bool:
        found = holder(self._folder) if self._token else None
        return found is not None and found.get("token") != self._token

    def check(self) -> None:
        self._looked = -LOOK_EVERY
        if self():
            raise Cancelled("stopped; blocks that are done stay")


def _with_retries(work: Callable[[], Any]) -> Any:
    """Call ``work`` again while the drive reports errors that may pass."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return work()
        except OSError as error:
            if error.errno not in PASSING or error.errno == errno.ENOSPC:
                raise
            time.sleep(PAUSE * 2**attempt)
    return work()


def _computed(here: Workplace, block: Block, asked: ShouldStop) -> tuple[list[Any], Done, int]:
    """Arrays of the target for each image, halving the block while memory is short."""
    parts = [block]
    for halving in range(HALVINGS + 1):
        arrays: list[Any] = []
        try:
            for part in parts:
                done = run(_part(here, part, asked))
                _check(asked)
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


def _check(asked: ShouldStop) -> None:
    if asked():
        raise Cancelled("stopped; blocks that are done stay")


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
