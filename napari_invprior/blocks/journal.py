"""Which blocks are done: one small file for each, written whole or not at all.

An entry says its block and carries a checksum. One that is damaged, or lies under another name,
counts as none: its block is computed again.

Examples
--------
>>> import tempfile
>>> journal = Journal(Path(tempfile.mkdtemp()))
>>> journal.record(Entry(index=3, files=(("0/c/0/0", 10),)))
>>> [entry.index for entry in journal.done()], journal.failed()
([3], {})
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import Field, ValidationError

from napari_invprior.blocks.folder import DONE, FAILED
from napari_invprior.blocks.sealed import sealed, unsealed
from napari_invprior.io.files import leftovers, write_atomic
from napari_invprior.io.omezarr_read import plain
from napari_invprior.parameters import Parameters, parameter

LARGEST_ENTRY = 1 << 20


class Entry(Parameters):
    """What is known of one block.

    Attributes
    ----------
    files : tuple of (str, int)
        Its shards, relative to the growing group of each image, and their sizes.
    """

    index: int = parameter(..., "Number of the block.", ge=0)
    files: tuple[tuple[str, int], ...] = ()
    seconds: float = parameter(0.0, "How long it took.", ge=0)
    parts: int = parameter(1, "Parts that it was computed in, more than one after a shortage.")
    figures: dict[str, float] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str = parameter("", "Why it failed.")


class Journal:
    """The files below ``folder``: ``done/000012.json`` and ``failed/000012.json``.

    Parameters
    ----------
    folder : Path
        ``DIR/job``.
    """

    def __init__(self, folder: Path) -> None:
        self._done, self._failed = folder / DONE, folder / FAILED

    def record(self, entry: Entry) -> None:
        """Note that a block is done, or failed where the entry has an error."""
        place = self._failed if entry.error else self._done
        text = sealed(plain(entry.model_dump(mode="json")))
        write_atomic(place / _name(entry.index), text)
        if not entry.error:
            self.forget_failure(entry.index)

    def clean(self) -> None:
        """Remove what writers that were killed left behind, and entries that cannot be read."""
        for folder in (self._done, self._failed):
            unreadable = [path for path in folder.glob("*.json") if _entry(path) is None]
            for path in (*leftovers(folder), *unreadable):
                with suppress(OSError):
                    path.unlink()

    def forget_failure(self, index: int) -> None:
        """A block is to be tried again."""
        with suppress(OSError):
            (self._failed / _name(index)).unlink()

    def forget(self, index: int) -> None:
        """A block is not done after all."""
        with suppress(OSError):
            (self._done / _name(index)).unlink()

    def done(self) -> Iterator[Entry]:
        """Blocks that are done, in order; entries that cannot be read count as none."""
        return _entries(self._done)

    def is_done(self, index: int) -> bool:
        """Whether a block is."""
        return _entry(self._done / _name(index)) is not None

    def count(self) -> int:
        """How many are done."""
        return sum(1 for _ in self._done.glob("*.json"))

    def failed(self) -> dict[int, str]:
        """Why blocks failed, by their number."""
        return {entry.index: entry.error for entry in _entries(self._failed)}


def _name(index: int) -> str:
    return f"{index:06d}.json"


def _entries(folder: Path) -> Iterator[Entry]:
    for path in sorted(folder.glob("*.json")):
        entry = _entry(path)
        if entry is not None:
            yield entry


def _entry(path: Path) -> Entry | None:
    """What a file says, if it can be believed."""
    try:
        if path.stat().st_size > LARGEST_ENTRY:
            return None
        entry = Entry.model_validate(unsealed(path.read_bytes()))
    except (OSError, ValueError, ValidationError):
        return None
    return entry if path.name == _name(entry.index) else None
