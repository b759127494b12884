"""One client at a time for one job: a lock with an owner and a heartbeat.

The owner rewrites the file every few seconds. Another client watches it by its own monotonic
clock and takes it over when nothing changes, so that clocks of two machines need not agree and a
laptop that slept loses nothing but the lock. A client that was stopped for long notices that the
lock has another owner, and stops. On one machine the owner's process is looked for instead: one
that is merely stopped is not gone.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from napari_invprior.blocks.folder import LOCK
from napari_invprior.errors import JobError
from napari_invprior.io.files import writing

BEAT = 2.0
"""Seconds between two heartbeats."""
DEAD = 15.0
"""Seconds without one after which an owner on another machine counts as gone."""


class Locked(JobError):
    """Another client works on the job."""


class JobLock:
    """The lock ``job/lock.json``, to be used in a ``with`` statement.

    Parameters
    ----------
    folder : Path
        ``DIR/job``.
    beat, dead : float
        Seconds between heartbeats, and without one until an owner counts as gone.

    Raises
    ------
    Locked
        If another client holds it.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with JobLock(folder) as lock:
    ...     holder(folder)["token"] == lock.token
    True
    >>> holder(folder) is None
    True
    """

    def __init__(self, folder: Path, beat: float = BEAT, dead: float = DEAD) -> None:
        self._path, self._beat, self._dead = folder / LOCK, beat, dead
        self.token = uuid.uuid4().hex
        self._started = _started(psutil.Process())
        self._count = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost = threading.Event()

    def __enter__(self) -> JobLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._create():
            self._take_over()
        self._thread = threading.Thread(target=self._keep, name="job lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)  # a full disk leaves it
            if not self.is_held():
                return
            # what clients that were killed have left: at the end, when none takes over any more
            for path in self._path.parent.glob(f"{self._path.stem}.*"):
                if path != self._path:
                    path.unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)

    def is_held(self) -> bool:
        """Whether this client still owns the lock, as the file says."""
        return belongs_to(self._path.parent, self.token)

    def is_lost(self) -> bool:
        """Whether another client has taken it over; asked often, it reads nothing."""
        return self._lost.is_set()

    @property
    def _temporary(self) -> Path:
        return self._path.with_suffix(f".{self.token}")

    def _content(self) -> bytes:
        self._count += 1
        return json.dumps({
            "token": self.token, "host": platform.node(), "pid": os.getpid(),
            "started": self._started, "space": _process_space(), "beat": self._count,
        }).encode()

    def _create(self) -> bool:
        """Make the file, unless there is one."""
        with writing(self._path, len(self._content())):
            try:
                handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                return False
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(self._content())
            except OSError:
                self._path.unlink()
                raise
        return True

    def _take_over(self) -> None:
        """Replace the lock of an owner that is gone."""
        judged = _token(self._path)
        if not owner_is_gone(self._path, self._dead):
            raise self._locked("works on this job; wait for it or cancel it there")
        # Moved aside before it is removed: another client may have been faster, and what lies
        # there now be its lock, which it gets back.
        with suppress(OSError):
            self._path.rename(self._temporary)
            if _token(self._temporary) != judged:
                os.link(self._temporary, self._path)
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)
        if not self._create():
            raise self._locked("has just taken this job over")

    def _locked(self, what: str) -> Locked:
        found = _read(self._path) or {}
        who = f"process {found.get('pid')} on {found.get('host')!r}"
        return Locked(f"{self._path.parent.parent}: {who} {what}")

    def _keep(self) -> None:
        """Beat until the end; look first whether the lock is still ours."""
        while not self._stop.wait(self._beat):
            if not self.is_held():
                self._lost.set()
                return
            with suppress(OSError):  # a full disk must not end the job: the lock just ages
                self._temporary.write_bytes(self._content())
                self._temporary.replace(self._path)


def holder(folder: Path) -> dict[str, Any] | None:
    """Who holds the lock of ``DIR/job``: token, host and process; None for nobody."""
    return _read(folder / LOCK)


def belongs_to(folder: Path, token: str) -> bool:
    """Whether a client holds the lock of ``DIR/job``.

    A drive that does not answer, or is gone with all of the folder, is given the benefit of the
    doubt; a lock that is gone alone belongs to nobody.
    """
    try:
        found = json.loads((folder / LOCK).read_bytes())
    except FileNotFoundError:
        return not folder.is_dir()
    except OSError:
        return True
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("token") == token


def seems_held(folder: Path) -> bool:
    """Whether somebody works on ``DIR/job``, told at once; another machine's clock is trusted."""
    path, found = folder / LOCK, holder(folder)
    if found is None:
        return False
    if _is_here(found):
        return not owner_is_gone(path)
    with suppress(OSError):
        return time.time() - path.stat().st_mtime < 2 * DEAD
    return False


def owner_is_gone(
    path: Path, dead: float = DEAD, sleep: Callable[[float], None] = time.sleep
) -> bool:
    """Whether the owner of a lock file does nothing any more.

    On this machine its process is looked for; another machine's heartbeat is waited for.
    """
    found = _read(path)
    if found is None:
        return not path.exists() or _unchanged(path, dead, sleep)
    if _is_here(found):
        try:
            process = psutil.Process(int(found["pid"]))
            same = abs(_started(process) - float(found["started"])) < 2
            return not same or process.status() == psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
            return True
        except psutil.AccessDenied:
            return False
    return _unchanged(path, dead, sleep)


def _is_here(found: dict[str, Any]) -> bool:
    """Whether the owner's process, if it lives, can be seen from here."""
    return found.get("host") == platform.node() and found.get("space") == _process_space()


def _process_space() -> str:
    """What tells containers apart that share the name of a machine but not its processes."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (a name, not a path)
    except OSError:
        return ""


def _started(process: psutil.Process) -> float:
    """When a process began, by a clock that is never set.

    Linux counts from the boot, and what it says in seconds of the day moves with the clock.
    """
    since = float(process.create_time())
    return since - psutil.boot_time() if psutil.LINUX else since


def _unchanged(path: Path, dead: float, sleep: Callable[[float], None]) -> bool:
    """Whether a file stays as it is for so many seconds of this machine's monotonic clock."""
    before, end = _bytes(path), time.monotonic() + dead
    while time.monotonic() < end:
        sleep(min(0.5, dead / 10))
        if _bytes(path) != before:
            return False
    return True


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _token(path: Path) -> Any:
    return (_read(path) or {}).get("token")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
