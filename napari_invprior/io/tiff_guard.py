"""What is checked before a TIFF is decoded: directories, texts, and what segments unpack to.

Libraries follow what a file says. Here the sizes that it names are added up first, so that a small
file cannot keep the program busy or fill the memory.
"""

from __future__ import annotations

import lzma
import math
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import tifffile

from napari_invprior.errors import FileRefused
from napari_invprior.io.files import memory_limit, readable

MAX_DIRECTORIES = 100_000
MAX_TAGS = 4096
MAX_KINDS = 1000
"""Images of another size or type in one file; finding pyramids among them takes their square."""

MAX_COMPARED, MAX_SORTED = 1000, 10_000
"""Directories that are compared with each other, and that are sorted at all."""

MAX_PLANES = 1_000_000
"""Planes that OME metadata may name, in all and per entry."""

MAX_XML = 32 << 20
MAX_DEPTH = 100
"""Bytes of an OME description, and elements inside one another."""

SUB_DIRECTORIES, DESCRIPTION = 330, 270
KIND = {256, 257, 258, 259, 262, 266, 277, 278, 284, 317, 322, 323, 338, 339, 32997, 32998}
"""Tags whose values tell one kind of image from another."""

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES |= {16: 8, 17: 8, 18: 8}
"""Bytes per value of each TIFF type."""

SPARE = 64 << 10
"""Bytes by which values may exceed twice the file, and segments what they hold."""

DEFLATE, PACKBITS, LZMA = (8, 32946, 50013), 32773, 34925
LARGEST_RATIO = {**dict.fromkeys(DEFLATE, 1032), PACKBITS: 64, LZMA: 10_000}
"""Bytes that one packed byte can become, for what is unpacked without knowing its size."""


# ---- directories


def walk(path: Path) -> int:
    """Follow the chain of image file directories and those below them; return their number.

    Raises
    ------
    FileRefused
        If the chain loops, leaves the file, is endless, or values are longer than the file; if
        there are more kinds of images than can be sorted.
    """
    with path.open("rb") as file:
        return _Directories(file, path).count()


class _Directories:
    """The directories of one file."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file, self.name, self.size = file, path.name, path.stat().st_size
        self.head = file.read(16)
        self.order = "<" if self.head[:2] == b"II" else ">"
        self.big = self.head[2:4] in (b"+\0", b"\0+")
        self.link = self.order + ("Q" if self.big else "I")
        self.form = self.order + ("HHQ" if self.big else "HHI")
        self.count_form = self.order + ("Q" if self.big else "H")
        self.wide = struct.calcsize(self.link)
        self.seen: set[int] = set()
        self.values = 0
        self.kinds: set[bytes] = set()
        self.described = 0

    def count(self) -> int:
        start = 8 if self.big else 4
        if len(self.head) < start + self.wide:
            raise FileRefused(f"{self.name}: cannot be read; truncated to {self.size} bytes")
        below: list[int] = []
        offset = struct.unpack_from(self.link, self.head, start)[0]
        while offset:
            offset = self._directory(offset, below)
        for inner in below:
            if inner:
                self._directory(inner, [])
        # Where the first directory says so, each one with a description begins a new image.
        many = max(len(self.kinds), self.described)
        if many > MAX_KINDS:
            raise FileRefused(
                f"{self.name}: {many} images of different kinds; at most {MAX_KINDS} are sorted: "
                "save the one that you need"
            )
        return len(self.seen)

    def _directory(self, offset: int, below: list[int]) -> int:
        """Check one directory; return where the next one lies, and collect those below it."""
        if offset in self.seen or len(self.seen) + len(below) >= MAX_DIRECTORIES:
            reason = "loop" if offset in self.seen else f"are more than {MAX_DIRECTORIES}"
            raise FileRefused(f"{self.name}: its image directories {reason}; save it anew")
        self.seen.add(offset)
        raw = self._read(offset, struct.calcsize(self.count_form))
        tags = struct.unpack(self.count_form, raw)[0]
        if tags > MAX_TAGS:
            raise FileRefused(f"{self.name}: a directory of {tags} entries; at most {MAX_TAGS}")
        step = struct.calcsize(self.form) + self.wide
        table = self._read(self.file.tell(), tags * step + self.wide)
        kind_of_image = []
        for place in range(0, tags * step, step):
            tag, kind, number = struct.unpack_from(self.form, table, place)
            length = number * SIZES.get(kind, 1)
            self.values += length if length > self.wide else 0
            # Values that lie on top of each other are read once for every entry that names them.
            if length > self.size or self.values > 2 * self.size + SPARE:
                raise FileRefused(
                    f"{self.name}: an entry is longer than the file, or all together than twice "
                    "the file; it is damaged: save it anew"
                )
            if tag in KIND and number <= 8:
                start = place + step - self.wide
                kind_of_image.append(table[place : place + step - self.wide])
                kind_of_image.append(self._value(table, start, length))
            if tag == DESCRIPTION and (self.described or len(self.seen) == 1):
                text = self._value(table, place + step - self.wide, min(length, 12))
                self.described += self.described > 0 or text.startswith((b'{"shape', b"shape=("))
            if tag == SUB_DIRECTORIES and kind in (4, 13, 16, 18):
                below += self._offsets(table, place + step - self.wide, kind, number)
        self.kinds.add(b"".join(kind_of_image))
        return int(struct.unpack_from(self.link, table, tags * step)[0])

    def _offsets(self, table: bytes, place: int, kind: int, number: int) -> list[int]:
        """Values of an entry that are places in the file."""
        data = self._value(table, place, number * SIZES[kind])
        return list(struct.unpack(f"{self.order}{number}{'I' if SIZES[kind] == 4 else 'Q'}", data))

    def _value(self, table: bytes, place: int, length: int) -> bytes:
        """Bytes of an entry's values: in the table where they fit, else where it points to."""
        if length <= self.wide:
            return table[place : place + length]
        return self._read(struct.unpack_from(self.link, table, place)[0], length)

    def _read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise FileRefused(f"{self.name}: truncated; a directory lies beyond its end")
        self.file.seek(offset)
        return self.file.read(length)


# ---- sorting


def sort_in_linear_time(tif: Any) -> None:
    """Let a file sort its directories in linear time where they are of several kinds.

    The library compares each one with all others of its kind, and keeps every entry of them.
    """
    usual = tif._series_generic

    def sorted_series() -> Any:
        count = len(tif.pages)
        if count <= MAX_COMPARED:
            return usual()
        if count > MAX_SORTED:
            raise FileRefused(
                f"{tif.filename}: {count} directories of several kinds, or with damaged metadata; "
                f"at most {MAX_SORTED} of those are sorted: save them as one stack"
            )
        tif.pages.useframes = False
        kinds: dict[int, dict[int, Any]] = {}
        for page in tif.pages:
            kinds.setdefault(page.hash, {})[page.offset] = page
        every = [list(pages.values()) for pages in kinds.values()]
        return [
            tifffile.TiffPageSeries(
                pages, (len(pages), *pages[0].shape), pages[0].dtype, "I" + pages[0].axes
            )
            for pages in every if pages[0].shape
        ]  # fmt: skip

    tif._series_generic = sorted_series


# ---- texts


def check_texts(tif: tifffile.TiffFile, name: str) -> None:
    """Refuse descriptions with entities, and OME metadata that name more planes than can be.

    Raises
    ------
    FileRefused
        Names what is too large.
    """
    text = tif.pages.first.description
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text[:MAX_XML], re.IGNORECASE):
        raise FileRefused(f"{name}: its description defines XML entities, which are not read")
    if not tif.is_ome:
        return
    if len(text) > MAX_XML:
        raise FileRefused(
            f"{name}: its OME description has {readable(len(text))}; at most {readable(MAX_XML)}"
        )
    planes = 0
    for element in _elements(text, name):
        kind = element.tag.rpartition("}")[2]
        told = element.attrib
        if kind == "Pixels":
            _number(math.prod(int(told.get(f"Size{a}", 1)) for a in "ZCT"), "planes", name)
        elif kind == "TiffData":
            for key in ("IFD", "FirstZ", "FirstC", "FirstT"):
                _number(int(told.get(key, 0)), key, name)
            number = int(told.get("PlaneCount", told.get("NumPlanes", 1 if "IFD" in told else 0)))
            planes += number or len(tif.pages)
            _number(min(planes, number) if number < 0 else planes, "planes of TiffData", name)
        elif kind.startswith("ModuloAlong") and "Start" in told:
            step = float(told.get("Step", 1))
            steps = (float(told.get("End", 0)) - float(told["Start"])) / step if step else math.inf
            _number(abs(steps), f"steps of {kind[:20]}", name)


def _elements(text: str, name: str) -> Iterator[ElementTree.Element]:
    """Every element of an XML text; one that is broken has none (and is ignored later on)."""
    parser: Any = ElementTree.XMLPullParser(("start", "end"))
    depth = 0
    try:
        for start in range(0, len(text), 1 << 16):
            parser.feed(text[start : start + (1 << 16)])
            for event, element in parser.read_events():
                depth += 1 if event == "start" else -1
                if depth > MAX_DEPTH:
                    raise FileRefused(f"{name}: its OME description is nested too deeply")
                if event == "start":
                    yield element
    except ElementTree.ParseError:
        return


def _number(value: float, what: str, name: str) -> None:
    if not 0 <= value <= MAX_PLANES:
        raise FileRefused(
            f"{name}: its OME description names {value:g} {what}; 0 to {MAX_PLANES} are possible"
        )


# ---- segments


def check_segments(series: Any, path: Path, limit: int | None) -> None:
    """Refuse strips and tiles that lie outside the file, or unpack to more than they hold.

    Raises
    ------
    FileRefused
        Names the size.
    """
    limit = memory_limit() if limit is None else limit
    size, seen = path.stat().st_size, set()
    with path.open("rb") as file:
        for page in series.pages:
            if page is None:
                continue
            key = page.keyframe
            if not all(isinstance(n, int) for n in (*key.chunks, key.compression)):
                raise FileRefused(
                    f"{path.name}: segments of {key.chunks!s:.80} with compression "
                    f"{key.compression!s:.40}; it is damaged: save it anew"
                )
            samples = math.prod(key.chunks)
            segment = samples * key.dtype.itemsize if key.dtype is not None else 0
            if segment > limit:
                raise FileRefused(
                    f"{path.name}: one tile needs {readable(segment)}, the limit is "
                    f"{readable(limit)}; save it with smaller tiles"
                )
            if len(page.dataoffsets) != len(page.databytecounts):
                raise FileRefused(
                    f"{path.name}: {len(page.dataoffsets)} offsets of segments and "
                    f"{len(page.databytecounts)} sizes; it is damaged: save it anew"
                )
            if not {*map(type, page.dataoffsets), *map(type, page.databytecounts)} <= {int}:
                raise FileRefused(
                    f"{path.name}: offsets of segments that are no numbers; it is damaged: save it "
                    "anew"
                )
            bits = key.bitspersample if isinstance(key.bitspersample, int) else 8
            packed = min(segment, -(-samples * bits // 8))  # single bits are spread out afterwards
            packing = _Packing(path.name, int(key.compression), packed, limit)
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                if offset < 0 or offset + count > size:
                    raise FileRefused(
                        f"{path.name}: truncated; samples lie beyond the end of the file"
                    )
                if packing.is_suspect(count) and (offset, count) not in seen:
                    seen.add((offset, count))
                    file.seek(offset)
                    packing.check(file.read(count))


@dataclass(frozen=True)
class _Packing:
    """How the segments of a page are packed, and what one may unpack to."""

    name: str
    compression: int
    segment: int
    limit: int

    @property
    def most(self) -> int:
        return 2 * self.segment + SPARE

    def is_suspect(self, count: int) -> bool:
        """Whether a segment of that many bytes could become so large that it must be measured."""
        ratio = LARGEST_RATIO.get(self.compression, 0)
        usual = self.compression != LZMA  # whose dictionary can be large, too
        return ratio > 0 and not (usual and count * ratio <= max(self.most, self.limit // 64))

    def check(self, data: bytes) -> None:
        try:
            found = self._measured(data)
        except (zlib.error, lzma.LZMAError) as error:
            raise FileRefused(f"{self.name}: a segment cannot be unpacked ({error})") from None
        if found > self.most:
            raise FileRefused(
                f"{self.name}: a segment unpacks to {readable(found)} or more, but holds "
                f"{readable(self.segment)}; it is damaged: save it anew"
            )

    def _measured(self, data: bytes) -> int:
        """Bytes that a segment unpacks to, counted no further than they may be."""
        if self.compression == PACKBITS:
            return _packbits_size(data, self.most)
        if self.compression == LZMA:
            memory = max(self.limit // 4, 16 << 20)
            return len(lzma.LZMADecompressor(memlimit=memory).decompress(data, self.most + 1))
        stream, total = zlib.decompressobj(), 0
        while data and total <= self.most and not stream.eof:
            total += len(stream.decompress(data, min(1 << 20, self.most + 1)))
            data = stream.unconsumed_tail
        return total


def _packbits_size(data: bytes, most: int) -> int:
    """Bytes that PackBits unpack to.

    Examples
    --------
    >>> _packbits_size(bytes([2, 5, 6, 7, 255, 9]), 100)
    5
    """
    place, total = 0, 0
    while place < len(data) and total <= most:
        code = data[place]
        total += code + 1 if code < 128 else 257 - code if code > 128 else 0
        place += 1 + (code + 1 if code < 128 else code > 128)
    return total
