"""Intact TIFF files that mutations start from, and where their directories and entries lie."""

from __future__ import annotations

import io
import re
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from tests.faults.bombs import bombs
from tests.faults.mutations import emptied

SECRET = 77
"""What fills the file beside the one that is read."""


def _image(*shape: int, dtype: str = "u2") -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) % 70).astype(dtype)


LAYOUTS: tuple[tuple[Any, dict[str, Any], dict[str, Any]], ...] = (
    ((30, 20), {}, {}),
    ((30, 20), {"byteorder": ">"}, {"compression": "zlib", "rowsperstrip": 4}),
    ((30, 20), {"bigtiff": True}, {"tile": (16, 16), "compression": "zlib", "predictor": True}),
    ((4, 30, 20), {"byteorder": ">", "bigtiff": True}, {"metadata": None}),
    ((3, 30, 20), {}, {"metadata": {"axes": "ZYX"}, "tile": (16, 16)}),
    ((30, 20, 3), {}, {"photometric": "rgb", "compression": "zlib"}),
    ((3, 30, 20), {}, {"photometric": "rgb", "planarconfig": "separate", "metadata": None}),
    ((2, 3, 30, 20), {"ome": True}, {"metadata": {"axes": "CZYX", "PhysicalSizeX": 0.5}}),
    ((2, 30, 20), {"ome": True, "bigtiff": True}, {"metadata": {"axes": "TYX"}, "tile": (16, 16)}),
    ((30, 20, 3), {"ome": True}, {"photometric": "rgb", "compression": "zlib"}),
    ((2, 3, 30, 20), {"imagej": True}, {"metadata": {"axes": "ZCYX", "spacing": 2.0}}),
    ((5, 30, 20), {"imagej": True}, {"metadata": {"axes": "TYX", "unit": "um"},
                                     "resolution": (2, 2)}),
    ((30, 20), {}, {"compression": "packbits"}),
    ((30, 20), {}, {"compression": "lzma"}),
    ((2, 3, 30, 20), {}, {"metadata": {"axes": "TZYX"}, "compression": "zlib"}),
    ((30, 24), {}, {"bilevel": True}),
    ((30, 20), {}, {"subifds": 2}),
)  # fmt: skip


def templates(folder: Path) -> list[bytes]:
    """Intact files; a file with another content lies beside the case."""
    bombs()
    place = emptied(folder / "outside")
    tifffile.imwrite(place / "secret.tif", np.full((30, 20), SECRET, "u2"), ome=False)
    return [_written(*layout) for layout in LAYOUTS]


def _written(shape: tuple[int, ...], kind: dict[str, Any], options: dict[str, Any]) -> bytes:
    options = dict(options)
    array = _image(*shape, dtype="u1" if options.get("photometric") or kind.get("imagej") else "u2")
    if options.pop("bilevel", False):
        array = (array % 2).astype(bool)
    levels = options.get("subifds", 0)
    file = io.BytesIO()
    with warnings.catch_warnings(), tifffile.TiffWriter(file, **kind) as writer:
        warnings.simplefilter("ignore")
        if options.get("compression") == "packbits":
            return _packed(array)
        writer.write(array, **options)
        for level in range(levels):
            writer.write(array[:: 2 << level, :: 2 << level], subfiletype=1)
    # The library draws a new identifier each time, but a case must be the same whenever it is made.
    return re.sub(rb"urn:uuid:[0-9a-f-]{36}", b"urn:uuid:" + b"0" * 36, file.getvalue())


def _packed(array: np.ndarray) -> bytes:
    """A file in PackBits, which the library reads but does not write."""
    file = io.BytesIO()
    tifffile.imwrite(file, array.astype("u1"), metadata=None)
    data = bytearray(file.getvalue())
    raw = array.astype("u1").tobytes()
    parts = [raw[i : i + 128] for i in range(0, len(raw), 128)]
    strip = b"".join(bytes([len(part) - 1]) + part for part in parts)
    for entry in Layout(bytes(data)).entries:
        if entry.tag == 259:
            entry.write(data, value=32773)
        if entry.tag == 273:
            entry.write(data, value=len(data))
        if entry.tag == 279:
            entry.write(data, value=len(strip))
    return bytes(data) + strip


# ---- the structure of a file


@dataclass
class Entry:
    """One entry of a directory and where it lies."""

    place: int
    tag: int
    kind: int
    count: int
    order: str
    big: bool

    def write(self, data: bytearray, *, tag: Any = None, kind: Any = None, count: Any = None,
              value: Any = None) -> None:  # fmt: skip
        """Change parts of the entry; numbers are cut to the bytes there are."""
        wide = 8 if self.big else 4
        for at, size, number in ((0, 2, tag), (2, 2, kind), (4, wide, count),
                                 (4 + wide, wide, value)):
            if number is None:
                continue
            if at == 4 + wide and self.kind == 3 and number < 1 << 16:
                size = 2  # a short value lies in the first bytes
            number = int(number) % (1 << 8 * size)
            raw = number.to_bytes(size, "little" if self.order == "<" else "big")
            data[self.place + at : self.place + at + size] = raw

    def where(self, data: bytes) -> int:
        """The offset (or the value) that the entry holds."""
        start, code = self.place + (12 if self.big else 8), self.order + ("Q" if self.big else "I")
        return int(struct.unpack_from(code, data, start)[0])


class Layout:
    """Directories, links and entries of an intact file."""

    def __init__(self, data: bytes) -> None:
        self.order = "<" if data[:2] == b"II" else ">"
        self.big = data[2:4] in (b"+\0", b"\0+")
        self.links: list[int] = [8 if self.big else 4]
        self.entries: list[Entry] = []
        self.starts: list[int] = []
        link, count, size = ("Q", "Q", 20) if self.big else ("I", "H", 12)
        place = struct.unpack_from(self.order + link, data, self.links[0])[0]
        while place and len(self.starts) < 100:
            self.starts.append(place)
            number = struct.unpack_from(self.order + count, data, place)[0]
            start = place + struct.calcsize(count)
            for index in range(number):
                at = start + index * size
                form = self.order + ("HHQ" if self.big else "HHI")
                tag, kind, many = struct.unpack_from(form, data, at)
                self.entries.append(Entry(at, tag, kind, many, self.order, self.big))
            self.links.append(start + number * size)
            place = struct.unpack_from(self.order + link, data, self.links[-1])[0]

    def relink(self, data: bytearray, index: int, target: int) -> None:
        size = 8 if self.big else 4
        number = (target % (1 << 8 * size)).to_bytes(size, "little" if self.order == "<" else "big")
        data[self.links[index] : self.links[index] + size] = number
