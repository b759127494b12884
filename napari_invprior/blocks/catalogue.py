"""Which jobs there are: a list of folders that outlives the program, and how far each is.

Plans are looked at without what it takes to run them, so that a list of jobs is there at once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_data_path

from napari_invprior.blocks.folder import FOLDER, METRICS, PLAN
from napari_invprior.blocks.journal import Journal
from napari_invprior.blocks.lock import seems_held
from napari_invprior.io.files import write_atomic

LARGEST = 64 << 20
"""Bytes of a plan that is still looked at."""

State = Literal["running", "finished", "unfinished", "unreadable"]


@dataclass(frozen=True)
class JobInfo:
    """A job at a glance.

    Attributes
    ----------
    folder : Path
        Where it lies.
    title : str
        For people.
    created : str
        When it was planned.
    state : {"running", "finished", "unfinished", "unreadable"}
        What it does now.
    done, failed, total : int
        Blocks.
    """

    folder: Path
    title: str
    created: str
    state: State
    done: int
    failed: int
    total: int

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"folder": str(self.folder)}


def register(folder: Path, catalogue: Path | None = None) -> None:
    """Remember a job's folder."""
    place = _place(catalogue)
    whole = str(folder.absolute())
    name = hashlib.sha256(whole.encode()).hexdigest()[:16]
    write_atomic(place / f"{name}.json", json.dumps({"folder": whole}).encode())


def known(catalogue: Path | None = None) -> Iterator[JobInfo]:
    """All jobs whose folders are still there, the latest first."""
    found = []
    for path in _place(catalogue).glob("*.json"):
        try:
            folder = Path(str(json.loads(path.read_bytes())["folder"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if (folder / FOLDER).is_dir():
            found.append(info(folder))
    yield from sorted(found, key=lambda job: job.created, reverse=True)


def info(folder: Path) -> JobInfo:
    """How far a job is."""
    try:
        path = folder / FOLDER / PLAN
        if path.stat().st_size > LARGEST:
            raise ValueError("too large")
        plan = json.loads(path.read_bytes())
        counts = [-(-int(n) // int(c)) for n, c in zip(plan["data"], plan["core"], strict=True)]
        total = int(plan["frames"]) * math.prod(counts)
        title = str(plan["asked"].get("title") or plan["asked"]["task"])
        created = str(plan["created"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return JobInfo(folder, "", "", "unreadable", 0, 0, 0)
    journal = Journal(folder / FOLDER)
    done, failed = journal.count(), len(journal.failed())
    state: State = "unfinished"
    if seems_held(folder / FOLDER):
        state = "running"
    elif (folder / METRICS).is_file() and done == total:
        state = "finished"
    return JobInfo(folder, title, created, state, done, failed, total)


def _place(catalogue: Path | None) -> Path:
    if catalogue is not None:
        return catalogue
    return user_data_path("napari-invprior", appauthor=False) / "jobs"
