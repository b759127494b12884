"""A large job from its recipe to its result: settle, divide, compute, finish; or go on with it."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from napari_invprior.blocks import catalogue
from napari_invprior.blocks.agree import agree
from napari_invprior.blocks.folder import (
    FOLDER,
    INPUTS,
    METRICS,
    PLAN,
    PRIOR,
    RECIPE,
    RESULT,
    STOP,
)
from napari_invprior.blocks.inputs import Inputs
from napari_invprior.blocks.journal import Entry, Journal
from napari_invprior.blocks.keep import kept
from napari_invprior.blocks.lock import JobLock
from napari_invprior.blocks.output import BlockedImage, is_begun
from napari_invprior.blocks.plan import Plan, plan, summary
from napari_invprior.blocks.pool import Pool, Threads, memory_per_worker
from napari_invprior.blocks.stopping import Stopping
from napari_invprior.blocks.work import TASKS
from napari_invprior.errors import Cancelled, DiskFull, InvalidInput, JobError, StorageError
from napari_invprior.io.bundles import save_prior
from napari_invprior.io.files import check_free, check_output, leftovers, memory_limit, readable
from napari_invprior.io.images import Arrays
from napari_invprior.io.volume import open_volume
from napari_invprior.jobs import (
    Blocks,
    Job,
    Message,
    Planned,
    Result,
    ShouldStop,
    Stage,
    forward,
    guard,
    never,
)
from napari_invprior.memory import free_bytes
from napari_invprior.parameters import per_axis
from napari_invprior.priors.base import Prior
from napari_invprior.recipes.device import choose_device
from napari_invprior.recipes.layers import OutputLayer
from napari_invprior.recipes.model import Recipe
from napari_invprior.recipes.outcome import Outcome, peak_memory_mb
from napari_invprior.recipes.outputs import write_outcome
from napari_invprior.reconstruct.tiles import BYTES_HELD
from napari_invprior.sources import Source

LISTED = 20
"""Failed blocks that a message names."""

MakePool = Callable[[], Pool]


@dataclass(frozen=True)
class BlockedDetail:
    """`Outcome.detail` of a job: where it lies, its plan, and the files that it wrote, by name."""

    folder: Path
    plan: Plan
    outputs: dict[str, str]


def start(
    recipe: Recipe | Mapping[str, Any] | str,
    folder: Path,
    *,
    arrays: Arrays | None = None,
    prior: Prior | None = None,
    pool: MakePool = Threads,
    memory: int | None = None,
    should_stop: ShouldStop = never,
) -> Job:
    """Plan a job for a volume of any size and run it; the `Result` is an `Outcome`.

    Parameters
    ----------
    recipe : Recipe, mapping or str
        Task ``reconstruct`` or ``sample`` with an observation; ``blocks`` says how it is divided.
    folder : Path
        Where everything goes: the result, and ``job/`` with the plan and the journal.
    arrays : mapping, optional
        Arrays for sources of the form ``{"layer": name}``; they are copied beside the plan.
    prior : Prior, optional
        A prior to use.
    pool : callable
        Makes the `Pool` that computes the blocks; called when they begin.
    memory : int, optional
        Bytes that all workers of a machine may use together; half of what is free by default.
    should_stop
        Polled; blocks that are done stay, and `resume` goes on.

    Raises
    ------
    InvalidInput
        If the recipe cannot be run in blocks, or the folder holds another job or result.
    JobError
        If blocks failed, the disk is full, or another client works on the job.
    """
    return guard(_start(
        Recipe.parse(recipe), Path(folder), arrays or {}, prior, pool, memory, should_stop
    ))


def resume(
    folder: Path, *, pool: MakePool = Threads, should_stop: ShouldStop = never
) -> Job:
    """Go on with a job: blocks that are not done, and those that failed, are computed.

    Raises
    ------
    InvalidInput
        If the folder holds no job, or its input has changed.
    JobError
        As `start`.
    """
    return guard(_resume(Path(folder), pool, should_stop))


def _start(
    recipe: Recipe, folder: Path, arrays: Arrays, prior: Prior | None,
    pool: MakePool, memory: int | None, should_stop: ShouldStop,
) -> Job:
    begin = time.monotonic()
    _require_free_place(recipe, folder)
    device, message = choose_device(recipe.device)
    if message is not None:
        yield message
    inputs = Inputs.open(recipe, arrays)
    for note in inputs.observation.notes:
        yield Message(f"{inputs.observation.name}: {note}")
    with JobLock(folder / FOLDER) as lock, pool() as workers:
        settlement = yield from forward(
            agree(recipe, inputs, device, prior=prior, should_stop=should_stop)
        )
        found = plan(recipe, settlement, inputs,
                     memory=memory_per_worker(free_bytes(), workers.workers, memory),
                     threads=workers.threads)
        settled = kept(settlement.agreed.recipe, inputs, arrays, folder / FOLDER / INPUTS)
        found = found.model_copy(update={"recipe": settled.to_dict()})
        images = found.images(folder)
        check_free(folder, sum(image.bytes for image in images))
        if settlement.agreed.prior is not None:
            save_prior(folder / FOLDER / PRIOR, settlement.agreed.prior, {
                "intensity_scale": list(found.scale), "recipe": found.recipe,
                "training_data": settlement.facts["digests"],
            })
        for image in images:
            image.create(found.placement, found.attributes, found.scale)
        found.save(folder)
        try:
            catalogue.register(folder)
        except JobError as error:  # a list of jobs is not worth a job
            yield Message(f"the job is not listed: {error}", "warning")
        told = summary(found, workers.workers)
        yield Message(
            f"{told['blocks']} blocks of {_edges(found)} with a halo of {max(found.halo)}; about "
            f"{told['memory_gb']:.2g} GB of memory, {_clock(told['seconds'])}"
        )
        yield from _work(folder, found, workers, lock, should_stop, begin)


def _resume(folder: Path, pool: MakePool, should_stop: ShouldStop) -> Job:
    begin = time.monotonic()
    found = Plan.load(folder)
    inputs = Inputs.open(found.parsed, {})
    changed = [
        part for part, digest in inputs.digest().items() if found.digests.get(part) != digest
    ]
    if changed:
        raise InvalidInput(
            f"{', '.join(changed)} of the job in {folder} changed since it began; start a new job "
            "in another folder"
        )
    with JobLock(folder / FOLDER) as lock:
        left = unfinished(found, found.images(folder), Journal(folder / FOLDER))
        with pool() if left else Threads() as workers:
            yield from _work(folder, found, workers, lock, should_stop, begin)


def _require_free_place(recipe: Recipe, folder: Path) -> None:
    """Refuse a folder that holds a job, a result or the input."""
    source = recipe.observation
    given = [Path(source.path)] if isinstance(source, Source) and source.path else []
    check_output(folder / RESULT, given)
    if (folder / FOLDER / PLAN).exists():
        raise InvalidInput(
            f"{folder} holds a job already; go on with it ('invprior resume {folder}'), or choose "
            "another folder"
        )
    # what a client left that was killed before there was a plan is no result
    if any(not is_begun(path) for path in (folder / RESULT).glob("*")):
        raise InvalidInput(f"{folder} holds a result already; choose another folder")


def _work(
    folder: Path, found: Plan, workers: Pool, lock: JobLock, should_stop: ShouldStop,
    begin: float,
) -> Job:
    """Compute what is left, finish the images, write the figures."""
    images, journal = found.images(folder), Journal(folder / FOLDER)
    left = _prepared(folder, found, images, journal)
    total = found.grid.count
    if len(left) < total:
        yield Message(f"{total - len(left)} of {total} blocks are done already")
    yield Planned(folder, found)
    yield Blocks(tuple(sorted(set(range(total)) - set(left))), "done")
    if left:
        yield from _compute(folder, found, workers, lock, should_stop, left)
    failed = journal.failed()
    if failed:
        listed = "; ".join(f"{i}: {e}" for i, e in list(failed.items())[:LISTED])
        raise JobError(
            f"{len(failed)} of {total} blocks failed, the others are done ({listed}); "
            f"'invprior resume {folder}' tries them again"
        )
    # Whatever happened to blocks on the way, nothing is finished that is not whole.
    missing = unfinished(found, images, journal)
    if missing:
        raise JobError(
            f"{len(missing)} of {total} blocks are not done ({missing[:LISTED]}); "
            f"'invprior resume {folder}' goes on"
        )
    if not lock.is_held():
        raise _taken(folder)
    for image in images:
        if not image.is_finished:
            image.finish(found.placement, found.attributes, found.scale)
    yield Result(_outcome(folder, found, images, begin))


def _prepared(
    folder: Path, found: Plan, images: list[BlockedImage], journal: Journal
) -> list[int]:
    """Remove what clients that were killed have left behind; blocks to compute.

    Raises
    ------
    JobError
        If the images cannot be written into any more.
    """
    (folder / FOLDER / STOP).unlink(missing_ok=True)
    journal.clean()
    for path in (*leftovers(folder / FOLDER), *leftovers(folder, RECIPE, METRICS)):
        path.unlink(missing_ok=True)
    if not all(image.place.is_dir() for image in images):
        raise JobError(f"{folder}: the images of the job are gone; start it again elsewhere")
    left = unfinished(found, images, journal)
    for index in left:
        journal.forget(index)
    for index in journal.failed():
        journal.forget_failure(index)
    for image in images:
        if left and image.is_finished:
            image.reopen()
        image.clean()
    return left


def unfinished(found: Plan, images: list[BlockedImage], journal: Journal) -> list[int]:
    """Blocks that are not noted as done, or whose shards are not what was noted."""
    places = {image.output.name: image.place for image in images}
    done = {entry.index for entry in journal.done() if _is_whole(entry, places)}
    return [index for index in range(found.grid.count) if index not in done]


def _is_whole(entry: Entry, places: Mapping[str, Path]) -> bool:
    """Whether the shards of a block are there, as long as they were."""
    try:
        for name, size in entry.files:
            group, _, shard = name.partition("/")
            if (places[group] / shard).stat().st_size != size:
                return False
    except (OSError, KeyError):
        return False
    return True


def _taken(folder: Path) -> JobError:
    return JobError(f"{folder}: another client has taken this job over")


def _compute(
    folder: Path, found: Plan, workers: Pool, lock: JobLock, should_stop: ShouldStop,
    left: list[int],
) -> Job:
    """Run the blocks that are left."""
    total, journal = found.grid.count, Journal(folder / FOLDER)
    stage, ended = Stage("blocks", len(left)), 0
    stopping = Stopping(folder / FOLDER, lock, should_stop)
    happenings = workers.run(str(folder.absolute()), left, lock.token, stopping)
    try:
        for happened in happenings:
            if happened is None:
                if stage.due():
                    yield stage.progress(ended, done=total - len(left) + ended)
                continue
            if not happened.ended:
                yield Blocks((happened.index,), "running")
                continue
            if isinstance(happened.error, StorageError | InvalidInput):
                raise _for_all(happened.error, folder, found, len(left) - ended)
            if isinstance(happened.error, Cancelled):
                stopping.now()  # somebody else has told it to
                yield Blocks((happened.index,), "left")
                continue
            ended += 1
            if happened.error is not None:
                _note(journal, happened.index, happened.error)
                yield Message(str(happened.error), "warning")
            yield Blocks((happened.index,), "failed" if happened.error else "done")
            yield stage.progress(ended, done=total - len(left) + ended)
    except BaseException:
        stopping.now()
        raise
    finally:
        happenings.close()
        stopping.over()
    if not lock.is_held():
        raise _taken(folder)
    if stopping():
        raise Cancelled(
            f"stopped; {journal.count()} of {total} blocks are done, 'invprior "
            f"resume {folder}' goes on"
        )


def _for_all(error: Exception, folder: Path, found: Plan, left: int) -> Exception:
    """What to raise for an error that no other block would escape."""
    if not isinstance(error, DiskFull):
        return error
    rest = sum(image.bytes for image in found.images(folder)) * left // found.grid.count
    return DiskFull(
        f"{error}; the {left} blocks that are left need up to {readable(rest)}: make room, and "
        f"'invprior resume {folder}' goes on"
    )


def _note(journal: Journal, index: int, error: Exception) -> None:
    """Note a failure that its worker may not have noted: it died, or could not start."""
    if index not in journal.failed():
        with suppress(JobError):
            journal.record(Entry(index=index, error=str(error) or type(error).__name__))


def _outcome(folder: Path, found: Plan, images: list[BlockedImage], begin: float) -> Outcome:
    """Layers on disk, and the figures of all blocks; written beside them."""
    recipe, entries = found.parsed, list(Journal(folder / FOLDER).done())
    layers = tuple(
        OutputLayer(
            image.output.name, image.levels[0], found.placement, kind=image.output.kind,
            metadata=found.attributes, role=image.output.role, unit=image.output.unit,
            frames=int(found.frames > 1),
        )
        for image in images
    )
    outcome = Outcome(
        recipe=recipe, layers=layers, metrics=figures(found, entries), prior=None,
        seconds=time.monotonic() - begin, peak_memory_mb=peak_memory_mb(),
    )
    return replace(outcome, detail=BlockedDetail(folder, found, write_outcome(outcome, folder)))


def figures(found: Plan, entries: list[Entry]) -> dict[str, Any]:
    """Figures of the whole: those of the blocks, weighed by their size."""
    sizes = {
        block.index: math.prod(c.stop - c.start for c in block.core) for block in found.grid
    }
    names = {name for entry in entries for name in entry.figures}
    result: dict[str, Any] = dict(found.facts)
    for name in sorted(names):
        known = [(sizes[e.index], e.figures[name]) for e in entries if name in e.figures]
        result[name] = sum(s * v for s, v in known) / sum(s for s, _ in known)
    result["blocks"] = len(entries)
    result["block_seconds"] = sum(entry.seconds for entry in entries)
    result["agreement"] = found.level
    return result


def _edges(found: Plan) -> str:
    return " x ".join(
        str(min(n, c * f)) for c, f, n in zip(found.core, found.factor, found.image, strict=True)
    )


def _clock(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 1.5:
        return f"{hours:.1f} hours"
    return f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{seconds:.0f} s"


def needs_blocks(recipe: Recipe, arrays: Arrays | None = None) -> bool:
    """Whether a recipe asks for blocks, or memory has no room for its observation and result."""
    if recipe.blocks is not None:
        return True
    if recipe.task not in TASKS or not isinstance(recipe.observation, Source):
        return False
    volume = open_volume(recipe.observation, arrays or {})
    held = math.prod(volume.shape)
    factor = getattr(recipe.physics.parameters, "factor", 1)
    grown = math.prod(per_axis(factor, len(volume.space), "physics.factor"))
    too_large = held * volume.dtype.itemsize > memory_limit()
    return too_large or BYTES_HELD * held * grown > free_bytes()


def discard(folder: Path) -> None:
    """Remove a job that nobody works on, its unfinished images too; a finished result stays."""
    found = Plan.load(folder)
    with JobLock(folder / FOLDER):
        for image in found.images(folder):
            shutil.rmtree(image.growing, ignore_errors=True)
    shutil.rmtree(folder / FOLDER)
