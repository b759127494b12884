"""Paths, limits, retries and writes that leave either the old file or the new one, never half.

Examples
--------
>>> import tempfile
>>> target = Path(tempfile.mkdtemp()) / "note.txt"
>>> write_atomic(target, b"done")
>>> target.read_bytes()
b'done'
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from napari_invprior.errors import DiskFull, FileRefused, InvalidInput, InvPriorError, JobError
from napari_invprior.memory import free_bytes

T = TypeVar("T")

ATTEMPTS, PAUSE = 3, 0.2
"""Reads of a file on a shaky drive, and seconds before the second one (doubled each time)."""

PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ENETDOWN}
"""Errors that may be gone a moment later (network drives)."""

MARGIN = 1 << 20
"""Bytes of disk that stay free beyond what a write needs."""

FULL = {errno.ENOSPC, errno.EDQUOT}
"""Errors that mean that there is no room."""

TEMPORARY = ".tmp"
"""Ending of files and folders that are being written."""

PICKLED = {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
"""Endings of files that may run code when they are opened."""


def memory_limit() -> int:
    """Bytes that one array may take by default: a quarter of the free memory."""
    return free_bytes() // 4


def within_limit(name: str, needed: int, limit: int | None) -> None:
    """Refuse before anything is allocated.

    Raises
    ------
    FileRefused
        If ``needed`` bytes exceed ``limit`` (default: `memory_limit`).
    """
    limit = memory_limit() if limit is None else limit
    if needed > limit:
        raise FileRefused(
            f"{name}: needs {readable(needed)}, the limit is {readable(limit)}; "
            "choose a smaller region (crop)"
        )


def readable(count: int) -> str:
    """A number of bytes for people.

    Examples
    --------
    >>> readable(1536), readable(10)
    ('1.5 KiB', '10 bytes')
    """
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def local_path(path: str | os.PathLike[str], *, folder: Path | None = None) -> Path:
    """Turn what the user gave into a path on this machine.

    Parameters
    ----------
    path : str or path-like
        Absolute, relative or with ``~``.
    folder : Path, optional
        What a relative path starts from; the working folder by default.

    Raises
    ------
    InvalidInput
        For addresses (nothing is ever fetched) and for impossible paths.
    """
    text = os.fspath(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise InvalidInput(f"{text!r} is an address; nothing is fetched: give a local file")
    if not text or "\0" in text:
        raise InvalidInput(f"{text[:80]!r} is no path")
    try:
        return (folder or Path()) / Path(text).expanduser()
    except RuntimeError as error:
        raise InvalidInput(f"{text[:80]!r}: {error}") from None


def existing(path: Path) -> Path:
    """The path, if something readable lies there.

    Raises
    ------
    InvalidInput
        If there is nothing, or it may not be read.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise InvalidInput(f"{path}: no such file (in {Path.cwd()})") from error
    except OSError as error:
        raise InvalidInput(f"{str(path)[:200]}: {error.strerror or error}") from error
    # Who opens a pipe may wait for ever, and who reads a file of the kernel, which has no size.
    if not path.is_file() and not path.is_dir():
        raise InvalidInput(f"{path}: a pipe or device; give a file or folder")
    if path.is_file() and found.st_size == 0:
        raise FileRefused(f"{path.name}: is empty")
    if not os.access(path, os.R_OK):
        raise InvalidInput(f"{path}: permission to read is missing")
    return path


def inside(root: Path, part: str, name: str) -> Path:
    """``root / part``, refused when it leaves ``root`` by ``..``, an absolute path or a link.

    Raises
    ------
    FileRefused
        Names the part that leads outside.
    """
    pieces = re.split(r"[/\\]", part)
    escapes = ".." in pieces or part.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", part)
    if escapes or "\0" in part or len(part) > 1024:
        raise FileRefused(f"{name}: the path {part[:80]!r} leads out of it")
    found = root / part
    if not found.resolve().is_relative_to(root.resolve()):
        raise FileRefused(f"{name}: {part!r} is a link that leads out of it")
    return found


@contextmanager
def refusing(name: object) -> Iterator[None]:
    """Turn whatever a decoder raises on a bad file into `FileRefused` with name and reason."""
    try:
        yield
    except InvPriorError:
        raise
    except Exception as error:
        raise FileRefused(f"{name}: cannot be read ({reason_of(error)})") from error


def reason_of(error: BaseException) -> str:
    r"""What a decoder complains of, in one line.

    Examples
    --------
    >>> reason_of(ValueError("no\n  header")), reason_of(KeyError("scale"))
    ('no header', "'scale' is missing")
    """
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = str(error).partition("Exception raised from")[0]  # torch adds where in its own code
    text = " ".join(said.split())[:300] or type(error).__name__
    return f"{text} is missing" if type(error) is KeyError else text


def retrying(read: Callable[[], T]) -> T:
    """Call ``read`` up to `ATTEMPTS` times while the drive reports passing errors."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return read()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            time.sleep(PAUSE * 2**attempt)
    return read()


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """All bytes of a file, within a limit, with retries."""
    within_limit(path.name, path.stat().st_size, limit)
    return retrying(path.read_bytes)


def check_output(output: Path, inputs: Iterable[Path] = (), needed: int = 0) -> None:
    """Refuse an output place before the work starts.

    Parameters
    ----------
    output : Path
        File or folder that will be written.
    inputs : iterable of Path
        What is read; none of them may be the output.
    needed : int
        Bytes that will be written.

    Raises
    ------
    InvalidInput
        If the output is an input, or its folder may not be written to.
    DiskFull
        If too little space is free.
    """
    for given in inputs:
        if output.resolve() == given.resolve():
            raise InvalidInput(f"{output}: output and input are the same; choose another output")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InvalidInput(f"{output}: {folder} may not be written to; choose another output")
    check_free(output, needed)


def check_free(path: Path, needed: int) -> None:
    """Raise `DiskFull` if fewer than ``needed`` bytes (and a margin) are free at ``path``."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed and free < needed + MARGIN:
        raise DiskFull(
            f"{path}: {readable(needed)} are needed, {readable(free)} are free on that disk"
        )


@contextmanager
def replacing(path: Path, needed: int = 0) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``, a file or folder to be written, then rename it.

    If the body fails, what was at ``path`` stays and the sibling is removed.

    Raises
    ------
    DiskFull
        If the disk is full (with the bytes needed).
    JobError
        If it refuses the write.
    """
    mark = f"{os.getpid()}.{time.monotonic_ns():x}"
    temporary = path.with_name(f".{path.name[:80]}.{mark}{TEMPORARY}")
    try:
        with writing(path, needed, "; what was there before is unchanged"):
            path.parent.mkdir(parents=True, exist_ok=True)
            check_free(path, needed)
            yield temporary
            sync_tree(temporary)
            swap(temporary, path)
            sync(path.parent)
    finally:
        _remove(temporary)


def leftovers(folder: Path, *names: str) -> list[Path]:
    """What writers that were killed have left of files of these names, of any without one."""
    return [path for name in names or ("*",) for path in folder.glob(f".{name}.*{TEMPORARY}")]


@contextmanager
def writing(path: Path, needed: int = 0, more: str = "") -> Iterator[None]:
    """Turn what a drive says to a write into `DiskFull`, or `JobError` with the reason."""
    try:
        yield
    except OSError as error:
        need = f"; {readable(needed)} are needed" if needed else ""
        full = error.errno in FULL
        reason = "the disk is full" if full else error.strerror or str(error)
        raise (DiskFull if full else JobError)(
            f"{path}: could not be written ({reason}{need}){more}"
        ) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename it.

    Raises
    ------
    JobError
        If it cannot be written; a file of that name stays as it was.
    """
    with replacing(path, len(data)) as temporary, temporary.open("wb") as file:
        file.write(data)


def swap(temporary: Path, path: Path) -> None:
    """Put ``temporary`` at ``path``; a folder that is there is moved aside and then removed."""
    if not path.is_dir():
        temporary.replace(path)
        return
    aside = temporary.with_suffix(".old")
    path.rename(aside)
    try:
        temporary.rename(path)
    except OSError:
        aside.rename(path)
        raise
    _remove(aside)


def sync_tree(path: Path) -> None:
    """Flush a file, or all files below a folder, to the disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            sync(Path(folder, name))
    sync(path)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
