"""One small tree of errors. Every message names the value, the allowed range and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 1000
"""Characters of a message."""


class InvPriorError(Exception):
    """Base of every error that this package raises on purpose; its text is one printable line."""

    def __str__(self) -> str:
        return one_line(super().__str__())


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


def one_line(text: str) -> str:
    r"""The text without line breaks, control characters and lone surrogates, cut in the middle.

    Names and values in a message may come from a hostile file: they must not move the cursor of a
    terminal, reverse the text or fill the window.

    Examples
    --------
    >>> one_line("x\x1b[31m.tif:\n damaged")
    'x [31m.tif:  damaged'
    """
    text = text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 305]} ... {text[-300:]}"
