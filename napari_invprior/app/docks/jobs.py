"""One job at a time in a napari worker thread: start, pause, resume, cancel, and always an end."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from napari.qt.threading import create_worker
from qtpy.QtCore import QObject, Qt, Signal

from napari_invprior.errors import Cancelled
from napari_invprior.jobs import Blocks, Event, Job, Message, Planned, Result, ShouldStop, guard

State = Literal["idle", "running", "paused", "stopping"]
MakeJob = Callable[[ShouldStop], Job]

GRACE = 0.8
"""Seconds a job may take after Cancel to hand over its best state, before it is closed."""

TURN = 0.001
"""Seconds after which a busy job lets the window have its turn (Python's default is 5 ms)."""

TOLD = (Message, Blocks, Planned)
"""Events of which none may be left out."""

BACKLOG = 2
"""Progress and preview events that may wait for the window; of more, only the last is kept."""


@dataclass(frozen=True)
class JobEnd:
    """How a job ended.

    Attributes
    ----------
    name : str
        The name given to `JobRunner.start`.
    how : {"done", "cancelled", "failed"}
        A cancelled job may still carry a value: the best state it had.
    value : object
        Value of the `Result` event, None when there was none.
    error : Exception or None
        What went wrong, for ``"failed"``.
    """

    name: str
    how: Literal["done", "cancelled", "failed"]
    value: Any = None
    error: Exception | None = None


class _Thread:
    """The part of a job that lives in the worker thread."""

    def __init__(self, name: str, make: MakeJob, threads: int) -> None:
        self.name, self.make, self.threads = name, make, threads
        self.stop, self.go, self.done = threading.Event(), threading.Event(), threading.Event()
        self.go.set()
        self.sent = self.seen = 0  # one writer each: the worker and the window
        self.grace = GRACE
        self.end: JobEnd | None = None
        self.worker: Any = None
        self.job = guard(self._started())

    def should_stop(self) -> bool:
        # napari itself quits workers when a viewer closes; that counts as Cancel
        return self.stop.is_set() or bool(self.worker is not None and self.worker.abort_requested)

    def events(self) -> Iterator[Event]:
        """Events of the job, thinned out. Never raises: the end is kept in ``end``.

        Errors are not left to the worker because it swallows ``RuntimeError`` for ever.
        """
        value: Any = None
        late: dict[type[Event], Event] = {}
        turn = sys.getswitchinterval()
        sys.setswitchinterval(TURN)
        try:
            deadline = float("inf")
            for event in self.job:
                if isinstance(event, Result):
                    value = event.value
                elif isinstance(event, TOLD) or self.sent - self.seen < BACKLOG:
                    self.sent += 1
                    late.pop(type(event), None)
                    yield event
                else:
                    late[type(event)] = event
                while not self.go.wait(0.05) and not self.should_stop():
                    pass
                if self.should_stop():
                    deadline = min(deadline, time.monotonic() + self.grace)
                    if time.monotonic() >= deadline:
                        break
            for event in late.values():  # the last of each kind, so that no picture is stale
                self.sent += 1
                yield event
            self.end = JobEnd(self.name, "cancelled" if self.should_stop() else "done", value)
        except Cancelled:
            self.end = JobEnd(self.name, "cancelled", value)
        except Exception as error:
            self.end = JobEnd(self.name, "failed", value, error)
        finally:
            sys.setswitchinterval(turn)
            self.close()

    def close(self) -> None:
        """Release what the job holds."""
        self.job.close()  # type: ignore[attr-defined]
        self.done.set()

    def _started(self) -> Job:
        import torch

        torch.set_num_threads(self.threads)
        yield from self.make(self.should_stop)


class JobRunner(QObject):
    """Runs one job at a time for one dock; in the whole process only one job runs at once.

    Signals
    -------
    event : Progress, Preview or Message
    ended : JobEnd
        Emitted exactly once per job, when the runner is idle again.
    state_changed : str
        ``"idle"``, ``"running"``, ``"paused"`` or ``"stopping"``.
    """

    event = Signal(object)
    ended = Signal(object)
    state_changed = Signal(str)
    _owner: ClassVar[weakref.ref[_Thread] | None] = None

    def __init__(self, parent: QObject | None = None, threads: Callable[[], int] = lambda: 1):
        super().__init__(parent)
        self._threads = threads
        self._thread: _Thread | None = None
        self._state: State = "idle"

    @property
    def state(self) -> State:
        """What the runner does now."""
        return self._state

    @property
    def name(self) -> str:
        """Name of the running job, empty when idle."""
        return self._thread.name if self._thread else ""

    @classmethod
    def process_is_busy(cls) -> bool:
        """Whether any dock of this process runs a job."""
        owner = cls._owner() if cls._owner is not None else None
        return owner is not None and not owner.done.is_set()

    def start(self, name: str, make: MakeJob) -> bool:
        """Start ``make(should_stop)`` in a thread; False when a job is running already."""
        if self._thread is not None or self.process_is_busy():
            return False
        thread = _Thread(name, make, self._threads())
        self._thread = thread
        JobRunner._owner = weakref.ref(thread)
        thread.worker = create_worker(thread.events, _start_thread=False)
        thread.worker.yielded.connect(self._on_event)
        thread.worker.finished.connect(self._on_finished)
        # napari quits workers when a viewer closes and leaves their generator hanging at a yield
        thread.worker.aborted.connect(thread.close, Qt.ConnectionType.DirectConnection)
        self._set_state("running")
        thread.worker.start()
        return True

    def pause(self) -> None:
        """Hold the job at its next event."""
        if self._thread is not None and self._state == "running":
            self._thread.go.clear()
            self._set_state("paused")

    def resume(self) -> None:
        """Go on after `pause`."""
        if self._thread is not None and self._state == "paused":
            self._thread.go.set()
            self._set_state("running")

    def cancel(self) -> None:
        """Stop the job, in less than a second; `ended` follows."""
        if self._thread is not None and self._state in ("running", "paused"):
            self._thread.stop.set()
            self._set_state("stopping")

    def shutdown(self, seconds: float = 2.0) -> bool:
        """Stop and wait, for a dock that closes; True when no thread is left."""
        thread = self._thread
        if thread is None:
            return True
        self.blockSignals(True)
        thread.grace = 0.0  # nobody waits for the best state
        thread.stop.set()
        self._thread = None
        self._state = "idle"
        thread.worker.quit()
        if not thread.worker.is_running:  # still queued: now it never begins
            thread.close()
        return thread.done.wait(seconds)

    def _set_state(self, state: State) -> None:
        self._state = state
        self.state_changed.emit(state)

    def _on_event(self, event: Event) -> None:
        if self._thread is None:
            return
        self._thread.seen += 1
        if self._state != "stopping":
            self.event.emit(event)

    def _on_finished(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._set_state("idle")
        self.ended.emit(thread.end or JobEnd(thread.name, "cancelled"))


def read_along(
    read: Callable[[], Iterator[Any]], seen: Callable[[Any], None]
) -> Callable[[], None]:
    """Run a generator in a thread beside all jobs; returns what stops it at its next yield.

    It must keep its own errors, because the worker swallows some. ``seen`` is called in the
    window's thread.
    """
    worker = create_worker(read, _start_thread=False)
    worker.yielded.connect(seen)
    worker.start()
    return worker.quit
