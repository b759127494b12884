"""Seeded damage for JSON texts and bytes, and the files of one case.

A case is named by kind and number: the same pair makes the same files again, alone or in a batch.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = ("zarr", "tiff", "safetensors", "recipe")

UNFIT = (
    LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError,
    RuntimeError, AssertionError,
)  # fmt: skip
"""What a mutation raises where an earlier one left nothing that it could change."""


@dataclass(frozen=True)
class Token:
    """Text that stands in a JSON file as it is; most of it is not JSON."""

    text: str


@dataclass(frozen=True)
class Link:
    """A symbolic link instead of a file."""

    target: str


@dataclass(frozen=True)
class Pipe:
    """A named pipe instead of a file: whoever opens it waits for ever."""


@dataclass(frozen=True)
class Sparse:
    """A file of so many bytes that takes no room on the disk."""

    size: int


Content = bytes | Link | Pipe | Sparse
Tree = dict[str, Content]


@dataclass
class Case:
    """Files on disk and what is done with them.

    Attributes
    ----------
    run : callable
        Reads the files; returns what it read.
    size : int
        Bytes of the files.
    done : list of str
        The mutations, for reports.
    """

    run: Callable[[], Any]
    size: int
    done: list[str] = field(default_factory=list)


def generator(kind: str, number: int) -> random.Random:
    """The random numbers of one case."""
    return random.Random(f"{kind} {number}")


# ---- JSON

NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 7, 255, 4096, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**12,
    -(2**31), -(2**63), 10**30, 1e30, -1e30, 1e308, -1e308, 0.5, -0.0, 1e-320, 3.0,
    Token("NaN"), Token("Infinity"), Token("-Infinity"), Token("1e999"), Token("1" * 5000),
    Token("-0"), Token("00"), Token("0x10"),
)  # fmt: skip

TEXTS: tuple[Any, ...] = (
    "", "0", "1", "NaN", "Infinity", "none", "\0", "a\0b", "a" * 4096, "a" * 300_000, "é" * 300,
    "a\nb", "a\u2028b\x1b[31m", "\u202etxt", "🦀", Token('"\\ud800"'), "%s%n{}{0}{x}", "<b>x</b>",
    "..", "../outside", "../outside/array.zarr", "0/../../outside/array.zarr", "/etc/passwd",
    "C:\\x", "..\\x", "~", "~nobody/x", "file:///etc/passwd", "http://127.0.0.1/x", ".", "/", "//",
    "0/", "./0", "0//0",
)  # fmt: skip

NESTED: tuple[Any, ...] = (
    [], {}, [[]], [None], {"": ""}, [0] * 33, [1] * 65, ["a", 1, None], {"a": {"b": [1, 2]}},
    Token("[" * 1000 + "]" * 1000), Token("[" * 100_000), Token('{"a":' * 1000 + "1" + "}" * 1000),
    Token("[" * 150 + "]" * 150), Token("[" + "0," * 20_000 + "0]"),
    Token("{" + ",".join(f'"k{n}":{n}' for n in range(5000)) + "}"),
)  # fmt: skip

CONSTANTS: tuple[Any, ...] = (None, True, False)

REPEATED = "@@again@@"
"""Prefix of a key that is written without it: so a key can stand twice in one object."""


def hostile(rng: random.Random) -> Any:
    """A value that nobody expects."""
    return rng.choice(rng.choice((NUMBERS, NUMBERS, TEXTS, NESTED, CONSTANTS)))


def text_of(data: Any) -> str:
    """JSON text, with tokens and repeated keys."""
    tokens: list[str] = []

    def held(value: Any) -> str:
        tokens.append(value.text)
        return f"@@token{len(tokens) - 1}@@"

    text = json.dumps(data, default=held).replace(REPEATED, "")
    for number, token in enumerate(tokens):
        text = text.replace(f'"@@token{number}@@"', token)
    return text


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of nested data."""
    found: list[tuple[Any, Any]] = []
    inner: Sequence[tuple[Any, Any]] = ()
    if isinstance(data, dict):
        inner = list(data.items())
    elif isinstance(data, list):
        inner = list(enumerate(data))
    for key, value in inner:
        found.append((data, key))
        found += places(value)
    return found


def tweaked(value: Any, rng: random.Random) -> Any:
    """A value near the given one; a hostile one where there is nothing near."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice((value + 1, value - 1, -value, value * 1000, value * 10**9, value / 3,
                           str(value), [value], value * 2, float(value)))  # fmt: skip
    if isinstance(value, str):
        return rng.choice((value + "x", value[:-1], value.upper(), value * 100, [value],
                           "\0" + value,
                           {"name": value}, "../" + value, "/" + value))  # fmt: skip
    if isinstance(value, list):
        return rng.choice((value[:-1], [*value, *value], value[::-1], [value], value * 40,
                           [*value, 1],
                           [*value, None], {"0": value}, dict(enumerate(value))))  # fmt: skip
    return hostile(rng)


def mutate_json(data: Any, rng: random.Random) -> str:
    """Change one place of nested data; say what was done."""
    container, key = rng.choice(places(data) or [({"": data}, "")])
    value = container[key]
    action = rng.choice(("hostile", "hostile", "hostile", "tweak", "tweak", "remove", "rename",
                         "again", "add", "swap"))  # fmt: skip
    if action == "hostile":
        container[key] = hostile(rng)
    elif action == "tweak":
        container[key] = tweaked(value, rng)
    elif action == "remove":
        del container[key]
    elif action == "swap":
        other, place = rng.choice(places(data) or [(container, key)])
        container[key] = json.loads(json.dumps(other.get(place) if isinstance(other, dict)
                                               else other[place], default=str))  # fmt: skip
    elif isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), hostile(rng))
    elif action == "rename":
        container[rng.choice((str(key) + "x", "", str(key).upper(), "a" * 4096, "\0"))] = (
            container.pop(key)
        )
    elif action == "again":
        container[REPEATED + str(key)] = hostile(rng)
    else:
        container[rng.choice(("x", "_", "__class__", "__proto__", "path", "kind"))] = hostile(rng)
    return f"{action} {str(key)[:40]}"


# ---- bytes


def mutate_bytes(data: bytes, rng: random.Random, head: int = 0) -> tuple[bytes, str]:
    """Change bytes without knowing what they mean; ``head`` are those to prefer."""
    span = max(1, min(head, len(data)) if head and rng.random() < 0.7 else len(data))
    place, count = rng.randrange(span), rng.choice((1, 1, 2, 4, 8, 64))
    before, after = data[:place], data[place + count :]
    filler = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\x01"))
    action = rng.choice(("flip", "flip", "flip", "set", "cut", "cut", "junk", "insert", "delete",
                         "empty", "repeat", "append", "utf16", "bom", "zeros"))  # fmt: skip
    changed = {
        "flip": lambda: _flipped(data, [rng.randrange(span) for _ in range(count)], rng),
        "set": lambda: before + filler * len(data[place : place + count]) + after,
        "cut": lambda: data[: rng.randrange(max(1, len(data)))],
        "junk": lambda: rng.randbytes(rng.choice((1, 7, 64, 5000))),
        "insert": lambda: before + rng.randbytes(count) + data[place:],
        "delete": lambda: before + after,
        "empty": lambda: b"",
        "repeat": lambda: data * rng.choice((2, 3)),
        "append": lambda: data + rng.randbytes(rng.choice((1, 100, 5000))),
        "utf16": lambda: data.decode("latin-1").encode("utf-16"),
        "bom": lambda: b"\xef\xbb\xbf" + data,
        "zeros": lambda: bytes(len(data)),
    }
    return changed[action](), action


def _flipped(data: bytes, places: list[int], rng: random.Random) -> bytes:
    """The bytes with one bit turned at each of the places."""
    changed = bytearray(data)
    for place in places if data else ():
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


# ---- files


def files_below(folder: Path) -> Tree:
    """Name and content of every file."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_tree(folder: Path, tree: Tree) -> int:
    """Put files below a folder, as far as their names allow; return their bytes on disk."""
    total = 0
    for name, content in tree.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
                total += len(content)
            elif isinstance(content, Link):
                path.symlink_to(content.target)
            elif isinstance(content, Pipe):
                os.mkfifo(path)
            else:
                path.touch()
                os.truncate(path, content.size)
        except (OSError, ValueError):  # a file where a folder should be: other files tell enough
            continue
    return total


def emptied(folder: Path) -> Path:
    """The folder, new."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
