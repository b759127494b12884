"""How a client stops its workers, wherever they are, and nobody else's.

It names itself in a file below ``job``. A worker also stops when its client has lost the lock of
the job, or is gone with it: whoever works on without it could write into a result that another
client has finished.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from napari_invprior.blocks.folder import FOLDER, STOP
from napari_invprior.blocks.lock import JobLock, belongs_to
from napari_invprior.errors import Cancelled
from napari_invprior.jobs import ShouldStop

LOOK_EVERY = 0.5
"""Seconds between two looks at the files."""


class Stopping:
    """A client's side: whether it stops; its workers are told as soon as it does.

    Parameters
    ----------
    folder : Path
        Of the job.
    lock : JobLock
        Held.
    should_stop
        Asked each time.
    """

    def __init__(self, folder: Path, lock: JobLock, should_stop: ShouldStop) -> None:
        self._file, self._lock, self._should_stop = folder / FOLDER / STOP, lock, should_stop
        self._stopping = False

    def __call__(self) -> bool:
        if not self._stopping and (self._should_stop() or self._lock.is_lost()):
            self.now()
        return self._stopping

    def now(self) -> None:
        """Stop, and tell the workers; a client that has lost the job writes nothing."""
        if not self._stopping and self._lock.is_held():
            with suppress(OSError):  # on a full disk they end soon anyway
                self._file.write_text(self._lock.token)
        self._stopping = True

    def over(self) -> None:
        """Nothing runs any more."""
        if self._stopping and self._lock.is_held():
            with suppress(OSError):
                self._file.unlink(missing_ok=True)


class Asked:
    """A worker's side: the caller says so, the client or somebody else by the file, or no client.

    Parameters
    ----------
    folder : Path
        Of the job.
    token : str
        Of the client; empty for none.
    stop
        Asked each time.
    """

    def __init__(self, folder: Path, token: str, stop: ShouldStop) -> None:
        self._folder, self._token, self._stop = folder / FOLDER, token, stop
        self._looked, self._found = -LOOK_EVERY, False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._found and now - self._looked >= LOOK_EVERY:
            self._looked = now
            self._found = self._is_told() or self._is_alone()
        return self._found or self._stop()

    def _is_told(self) -> bool:
        try:
            return (self._folder / STOP).read_text() in ("", self._token)
        except OSError:
            return False

    def _is_alone(self) -> bool:
        return bool(self._token) and not belongs_to(self._folder, self._token)

    def check(self) -> None:
        """Look now, whenever the last time was.

        Raises
        ------
        Cancelled
            If it is stopped.
        """
        self._looked = -LOOK_EVERY
        check(self)

    def wait(self, seconds: float) -> None:
        """Sleep, unless it is stopped."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            check(self)
            time.sleep(min(0.1, seconds))


def check(asked: ShouldStop) -> None:
    """Raise `Cancelled` if it is stopped."""
    if asked():
        raise Cancelled("stopped; blocks that are done stay")
