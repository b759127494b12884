"""One small tree of errors. Every message names the value, the allowed range and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InvPriorError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidInput(InvPriorError, ValueError):
    """The user's data or parameters cannot be used (command line exit code 2)."""


class FileRefused(InvalidInput):
    """A file is damaged, unsafe or of another kind than asked for."""


class JobError(InvPriorError):
    """A running job failed (command line exit code 3).

    It is *not* a ``RuntimeError``: napari's generator workers take any ``RuntimeError`` for
    a deleted worker and swallow it.
    """


class StorageError(JobError):
    """A drive is full or gone: nothing is wrong with the work, which can go on when that ends."""


class DiskFull(StorageError):
    """There is no room to write."""


class OutOfMemory(JobError):
    """Memory ran out even with the smallest batch or tile."""


class Cancelled(InvPriorError):
    """The user stopped the job (command line exit code 130)."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
