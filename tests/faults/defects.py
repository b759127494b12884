"""Readers that are wrong on purpose: the runner must find each of them."""

from __future__ import annotations

import ctypes
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

from napari_invprior.errors import FileRefused
from tests.faults.mutations import Case


def reads() -> Any:
    return np.ones(10)


def refuses() -> None:
    raise FileRefused("x.tif: truncated; save it again")


def wrong_error() -> None:
    raise TypeError("unhashable")


def recurses() -> None:
    recurses()


def crashes() -> None:
    ctypes.string_at(0)


def hangs() -> None:
    time.sleep(1000)


def spins() -> None:
    while True:
        pass


def touches_memory() -> None:
    np.ones(200 << 20, np.uint8)
    raise FileRefused("x.tif: too large")


def asks_for_memory() -> None:
    try:
        np.empty(1 << 40, np.uint8)
    except MemoryError as error:
        raise FileRefused("x.tif: too large") from error


class Unreadable(FileRefused):
    def __str__(self) -> str:
        return "x.tif: \x1b[31m\n"


def unreadable_message() -> None:
    raise Unreadable


def exits() -> None:
    raise SystemExit(0)


EXPECTED = {
    reads: "read", refuses: "refused", wrong_error: "error", recurses: "error", crashes: "crash",
    hangs: "hang", spins: "hang", touches_memory: "memory", asks_for_memory: "memory",
    unreadable_message: "message", exits: "error",
}  # fmt: skip


def templates(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def make(number: int, rng: random.Random, folder: Path, intact: Any, limit: int) -> Case:
    del rng, folder, intact, limit
    run = list(EXPECTED)[number] if number >= 0 else reads
    return Case(run, 0, [run.__name__])
