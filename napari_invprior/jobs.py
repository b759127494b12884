"""Long work as generators of events.

A job yields `Progress`, `Preview`, `Message` and `Sample` events and, at last, one `Result`. The
window wraps it in a worker thread, the command line in a progress bar, a test in a for loop. Every
job passes `guard`, because napari's generator workers swallow ``RuntimeError`` silently.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from napari_invprior.errors import Cancelled, JobError, OutOfMemory

MIN_INTERVAL, MAX_INTERVAL = 0.1, 0.5
"""Seconds between two events: never closer than the first, wanted within the second."""

ShouldStop = Callable[[], bool]


def never() -> bool:
    """The default ``should_stop``."""
    return False


@dataclass(frozen=True)
class Progress:
    """How far a stage is.

    Attributes
    ----------
    stage : str
        What runs, for people: ``"train"``, ``"weight"``, ``"reconstruct"``.
    step, total : int
        Steps done and planned.
    seconds : float
        Seconds since the stage began.
    eta : float or None
        Seconds left, estimated.
    losses : mapping of str to float
        Figures to plot (for example ``held_out``, ``gaussian``, ``residual``).
    """

    stage: str
    step: int
    total: int
    seconds: float
    eta: float | None = None
    losses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Preview:
    """An intermediate picture; ``array`` is NumPy.

    ``kind`` is ``"image"`` or ``"patches"``, or ``"posterior"`` for mean and standard deviation so
    far, stacked.

    ``value_range`` holds the user's numbers that 0 and 1 stand for, where they are known.
    """

    kind: str
    array: Any
    stage: str = ""
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Message:
    """A sentence for the user; ``level`` is ``"info"`` or ``"warning"``."""

    text: str
    level: str = "info"


@dataclass(frozen=True)
class Result:
    """The last event of a job."""

    value: Any


@dataclass(frozen=True)
class Sample:
    """One plausible image (C, *space), to be kept at ``slot``; it may replace an earlier one."""

    slot: int
    image: Any


@dataclass(frozen=True)
class Blocks:
    """What became of blocks of a large volume: ``"running"``, ``"done"``, ``"failed"``.

    ``"left"`` are those that wait to be computed.
    """

    indices: tuple[int, ...]
    state: str


@dataclass(frozen=True)
class Planned:
    """Where a large job lies, once its images can be looked at, with its `blocks.plan.Plan`."""

    folder: Any
    plan: Any


Event = Progress | Preview | Message | Sample | Blocks | Planned | Result
Job = Iterator[Event]


class Stage:
    """Counts steps of one stage and says when an event is due.

    Examples
    --------
    >>> stage = Stage("train", total=10)
    >>> event = stage.progress(5, loss=1.0)
    >>> event.step, event.losses["loss"]
    (5, 1.0)
    """

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self._start = time.monotonic()
        self._last = float("-inf")

    @property
    def seconds(self) -> float:
        """Seconds since the stage began (monotonic clock)."""
        return time.monotonic() - self._start

    def due(self) -> bool:
        """Whether `MIN_INTERVAL` has passed since the last event of this stage."""
        return time.monotonic() - self._last >= MIN_INTERVAL

    def progress(self, step: int, **losses: float) -> Progress:
        """The event for ``step`` steps done."""
        self._last = time.monotonic()
        seconds = self.seconds
        eta = seconds / step * (self.total - step) if step else None
        return Progress(self.name, step, self.total, seconds, eta, losses)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on the CPU or on an accelerator."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate" in text)
    )


def guard(job: Job) -> Job:
    """Re-raise ``RuntimeError`` and ``MemoryError`` of a job as `JobError`, chained.

    Closing the guarded generator closes the job.
    """
    try:
        yield from job
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"memory ran out ({error}); choose a smaller region or close other programs"
            ) from error
        raise JobError(f"the job failed: {error}") from error


def check_stop(should_stop: ShouldStop) -> None:
    """Raise `Cancelled` if the user asked to stop."""
    if should_stop():
        raise Cancelled("stopped by the user; the best state so far is kept")


def run(job: Job, on_event: Callable[[Event], None] | None = None) -> Any:
    """Run a job to its end and return the value of its `Result`."""
    value = None
    for event in guard(job):
        if isinstance(event, Result):
            value = event.value
        if on_event is not None:
            on_event(event)
    return value


def forward(job: Job) -> Generator[Event, None, Any]:
    """Pass a sub-job's events on and return the value of its `Result`.

    Use as ``value = yield from forward(job)`` inside another job.
    """
    value = None
    for event in job:
        if isinstance(event, Result):
            value = event.value
        else:
            yield event
    return value


def halve_on_out_of_memory(work: Callable[[int], Any], size: int, halvings: int = 4) -> Any:
    """Call ``work(size)``; on out-of-memory halve ``size``, up to ``halvings`` times.

    Raises
    ------
    OutOfMemory
        When the smallest size does not fit either.
    """
    for _ in range(halvings + 1):
        try:
            return work(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            last = error
            size = max(1, size // 2)
    raise OutOfMemory(
        f"memory ran out even with batches of {size}; choose a smaller region"
    ) from last
