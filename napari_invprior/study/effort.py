"""Time and memory that a piece of work takes."""

from __future__ import annotations

import threading
import time
from types import TracebackType

import psutil

INTERVAL = 0.02
"""Seconds between two looks at the memory."""


class Effort:
    """Seconds and additional memory of what runs inside a ``with`` block.

    Memory is the largest resident memory of the process, looked at every `INTERVAL` by a thread,
    above that at the beginning. Memory that the process held already and uses again does not
    count, nor does that of an accelerator; shorter peaks may be missed.

    Attributes
    ----------
    seconds : float
    peak_mb : float

    Examples
    --------
    >>> with Effort() as effort:
    ...     block = bytearray(100_000_000)
    >>> effort.seconds >= 0, effort.peak_mb > 60
    (True, True)
    """

    def __init__(self) -> None:
        self.seconds = self.peak_mb = 0.0
        self._done = threading.Event()
        self._process = psutil.Process()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def _look(self) -> None:
        self.peak_mb = max(self.peak_mb, (self._process.memory_info().rss - self._base) / 2**20)

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self._look()

    def __enter__(self) -> Effort:
        self._base = self._process.memory_info().rss
        self._begin = time.monotonic()
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.monotonic() - self._begin
        self._done.set()
        self._watcher.join()
        self._look()
