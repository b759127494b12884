"""Damaged and hostile TIFF files: both byte orders, classic and Big, OME, ImageJ and shaped."""

from __future__ import annotations

import io
import random
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from napari_invprior.io.images import load
from napari_invprior.sources import Source
from tests.faults.bombs import bombs
from tests.faults.mutations import NUMBERS, TEXTS, Case, Token, emptied, mutate_bytes

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
    strip = b"".join(bytes([len(part) - 1]) + part for part in parts) + b"\xfb\x05" * 0
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


# ---- mutations


def make(number: int, rng: random.Random, folder: Path, intact: list[bytes], limit: int) -> Case:
    """The case of that number."""
    data = rng.choice(intact)
    done = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        action = rng.choice((_entry, _entry, _entry, _entry, _link, _blind, _blind, _cut, _sizes,
                             _sizes, _segments, _segments, _text, _text, _text, _vendor,
                             _bomb))  # fmt: skip
        try:
            data, what = action(data, rng)
        except (struct.error, IndexError, OverflowError,
                ValueError):  # an earlier mutation broke the layout
            data, what = mutate_bytes(data, rng, head=200)
        done.append(f"{action.__name__[1:]}: {what}")
    place = emptied(folder / "case")
    name = rng.choice(("x.tif", "x.tif", "x.tif", "x.ome.tif", "x.btf", "x.lsm", "x.stk", "x.svs",
                       "x"))
    (place / name).write_bytes(data)
    crop = rng.choice((None, None, None, None, [[1, 9], [0, 7]], [[0, 2**62], [0, 2**62]]))
    channel = rng.choice((None,) * 8 + (0, 1))

    def run() -> Any:
        source = Source(path=str(place / name), crop=crop, channel=channel)
        image = load(source, limit=limit)
        if image.array.size >= 16 and bool((image.array == SECRET).all()):
            raise AssertionError("another file was read")
        return image

    return Case(run, len(data), [*done, f"{name} crop {crop} channel {channel}"])


COUNTS = (0, 1, 2, 3, 255, 256, 4095, 4097, 65535, 65536, 2**24, 2**27, 2**31 - 1, 2**31, 2**32 - 1,
          2**40, 2**62, 2**63, 2**64 - 1)  # fmt: skip


def _entry(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Tag, type, count or value of one entry."""
    layout, changed = Layout(data), bytearray(data)
    entry = rng.choice(layout.entries)
    what = rng.choice(("tag", "kind", "count", "count", "value", "value", "value", "swap", "copy"))
    number: Any = rng.choice((*COUNTS, len(data), len(data) - 1, entry.count + 1, entry.place, 8))
    if what == "tag":
        number = rng.choice((*range(254, 300), *range(315, 345), 330, 700, 33550, 34665, 65000))
    if what == "kind":
        number = rng.randrange(20)
    if what == "swap":
        other = rng.choice(layout.entries)
        size = 20 if layout.big else 12
        first, second = entry.place, other.place
        changed[first : first + size], changed[second : second + size] = (
            data[second : second + size], data[first : first + size],
        )  # fmt: skip
        number = other.tag
    elif what == "copy":
        size = 20 if layout.big else 12
        other = rng.choice(layout.entries)
        changed[other.place + 2 : other.place + size] = data[entry.place + 2 : entry.place + size]
        number = other.tag
    else:
        entry.write(changed, **{what: number})
    return bytes(changed), f"{what} of tag {entry.tag} {number}"


def _link(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Links between directories: loops, ends, places outside the file."""
    layout, changed = Layout(data), bytearray(data)
    index = rng.randrange(len(layout.links))
    target = rng.choice((*layout.starts, 0, 1, 8, len(data), len(data) - 1, 2**31, 2**32 - 1, 2**63,
                         layout.entries[0].place, rng.randrange(len(data))))  # fmt: skip
    if rng.random() < 0.15:  # a chain of very many empty directories
        wide = 8 if layout.big else 4
        form = layout.order + ("Q" if layout.big else "H")
        step = struct.calcsize(form) + wide
        count, start = rng.choice((300, 60_000, 110_000)), len(data)
        links = (start + (i + 1) * step if i + 1 < count else 0 for i in range(count))
        order = "little" if layout.order == "<" else "big"
        chain = b"".join(
            struct.pack(form,
                        0) + (n % (1 << 8 * wide)).to_bytes(wide,
                                                            order) for n in links  # type: ignore[arg-type]
        )
        layout.relink(changed, -1, start)
        return bytes(changed) + chain, f"a chain of {count} directories"
    layout.relink(changed, index, target)
    return bytes(changed), f"link {index} to {target}"


def _blind(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    return mutate_bytes(data, rng, head=rng.choice((0, 8, 16, 400)))


def _cut(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    end = rng.choice((rng.randrange(len(data)), len(data) - 1, 8, 16, len(data) // 2))
    return data[:end], f"cut at {end} of {len(data)}"


SIZES = (0, 1, 3, 17, 255, 4096, 8000, 20_000, 46_341, 65_535, 65_536, 10**6, 2**31 - 1, 2**31,
         2**32 - 1)


def _sizes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Width, length, depth, tiles, bits and samples that lie."""
    layout, changed = Layout(data), bytearray(data)
    done = []
    for entry in layout.entries:
        values: tuple[int, ...] = ()
        if entry.tag in (256, 257, 278, 322, 323, 32997, 32998):
            values = SIZES
        elif entry.tag in (258, 277, 339, 259, 262, 284, 266, 317, 254):
            values = (0, 1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 32, 33, 64, 100, 255, 65535, 32773, 32946,
                      34925, 50000, 65001, 34712, 33003)  # fmt: skip
        if values and rng.random() < 0.25:
            number = rng.choice(values)
            if rng.random() < 0.5:
                entry.write(changed, kind=4)
                entry.kind = 4
            entry.write(changed, value=number)
            done.append(f"{entry.tag}={number}")
    return bytes(changed), " ".join(done)


def _segments(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Offsets and byte counts of strips and tiles."""
    layout, changed = Layout(data), bytearray(data)
    found = [e for e in layout.entries if e.tag in (273, 279, 324, 325, 330)]
    entry = rng.choice(found)
    size = {3: 2, 4: 4, 16: 8, 18: 8}.get(entry.kind, 4)
    inline = entry.count * size <= (8 if layout.big else 4)
    start = entry.place + (12 if layout.big else 8) if inline else entry.where(data)
    number = rng.choice((*COUNTS, len(data), len(data) - 1, 8))
    every = rng.random() < 0.5
    order = "little" if layout.order == "<" else "big"
    raw = (number % (1 << 8 * size)).to_bytes(size, order)  # type: ignore[arg-type]
    for index in range(min(entry.count, 10_000)):
        if every or index == 0:
            changed[start + index * size : start + (index + 1) * size] = raw
    return bytes(changed[: len(data)]), f"tag {entry.tag} {'all' if every else 'first'} {number}"


BOMBS = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
    ) + "]>",
    '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE x [<!ENTITY a "' + "a" * 50_000 + '">]>',
    '<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd">',
)  # fmt: skip


def _text(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The description: OME-XML, ImageJ's lines, the shape as JSON."""
    layout = Layout(data)
    found = [e for e in layout.entries if e.tag == 270 and e.count > 8]
    if not found:
        return mutate_bytes(data, rng, head=300)
    entry = rng.choice(found)
    start = entry.where(data)
    text = data[start : start + entry.count].rstrip(b"\0").decode("utf-8", "replace")
    text, what = _rewritten(text, rng)
    raw = text.encode("utf-8", "surrogatepass") + b"\0"
    changed = bytearray(data)
    entry.write(changed, kind=2, count=len(raw), value=len(data))
    return bytes(changed) + raw, what


def _rewritten(text: str, rng: random.Random) -> tuple[str, str]:
    """A description with one thing changed."""
    if text.startswith("<?xml") and rng.random() < 0.15:
        head, _, body = text.partition("?>")
        entity = rng.choice(("&j;", "&a;" * 2000, "&a;", "&b;"))
        body = re.sub(r'Name="[^"]*"', f'Name="{entity}"', body, count=1)
        return f"{head}?>{rng.choice(BOMBS)}{body}", "entities"
    action = rng.choice(("number", "number", "number", "word", "remove", "insert", "junk"))
    numbers = list(re.finditer(r"\d+(\.\d+)?", text))
    if action == "number" and numbers:
        place = rng.choice(numbers)
        value = rng.choice((*NUMBERS, *TEXTS[:12], 3000, 10**5, 10**7, 10**8, -3))
        shown = value.text if isinstance(value, Token) else str(value)
        return text[: place.start()] + shown + text[place.end() :], f"{place[0]} -> {shown[:40]}"
    if action == "word":
        words = list(re.finditer(r"\w+", text))
        place = rng.choice(words)
        word = rng.choice(("XYCZT", "TCZYX", "XY", "X", "Q" * 30, "SizeX", "TiffData", "uint64",
                           "bit",
                           "true", "images", "frames", "hyperstack", "shape", "truncated",
                           "a" * 5000))  # fmt: skip
        return text[: place.start()] + word + text[place.end() :], f"{place[0]} -> {word[:30]}"
    if action == "remove" and len(text) > 4:
        start = rng.randrange(len(text) - 1)
        end = min(len(text), start + rng.choice((1, 5, 50, 500)))
        return text[:start] + text[end:], f"without {start} to {end}"
    if action == "insert":
        extra = rng.choice((
            '<TiffData IFD="0" PlaneCount="1000000000"/>', '<TiffData FirstT="1000000000"/>',
            '<TiffData IFD="4000000000" PlaneCount="2"/>', '<TiffData IFD="-5"/>',
            '<TiffData IFD="0"><UUID FileName="../outside/secret.tif">urn:uuid:1</UUID></TiffData>',
            '<TiffData IFD="0"><UUID FileName="/etc/passwd">urn:uuid:2</UUID></TiffData>',
            '<Channel SamplesPerPixel="0"/>', '<Channel SamplesPerPixel="1000000"/>', "<a>" * 3000,
            '<BinaryOnly MetadataFile="../outside/secret.tif" UUID="x"/>', "<" * 1000,
            "&amp;" * 20_000,
            "images=1000000000\nslices=1000000000\n", "frames=-1\n",
            "images=100000\nframes=100000\n",
            "order=zct\nchannels=0\n", "spacing=nan\n", "spacing=1e999\n", "loop=" + "x" * 10_000,
        ))  # fmt: skip
        places = [m.end() for m in re.finditer(r"(<Pixels[^>]*>|\n|\{)", text)] or [len(text)]
        at = rng.choice(places)
        if "<Pixels" in text and "Along" not in text and rng.random() < 0.1:
            return text.replace("</OME>", MODULO + "</OME>").replace(
                "</Image>", '<AnnotationRef ID="A:1"/></Image>'
            ), "modulo"
        return text[:at] + extra + text[at:], f"insert {extra[:40]!r}"
    return rng.choice(("", "\0", "<OME", '<?xml version="1.0"?><OME/>', "ImageJ=1.11a\nimages=1\n",
                       "ImageJ=", "ImageJ=1\n" + "a=b\n" * 20_000, '{"shape": []}',
                       '{"shape": [0, 0]}',
                       '{"shape": [1000000000, 30, 20]}', '{"shape": [-1, 30, 20]}',
                       '{"shape": "x"}',
                       '{"shape": [1e30, 2]}', '{"shape": [' + "1," * 500 + "30, 20]}",
                       '{"shape": [30, 20], "axes": 5}',
                       '{"shape": [30, 20], "axes": "' + "Y" * 9000 + '"}',
                       '{"shape": ' + "[" * 2000, '{"shape": [100000, 30, 20], "truncated": true}',
                       "shape=(1000000000, 30, 20)", "shape=(" + "9" * 5000 + ",)",
                       "x" * 10**6)), "other text"  # fmt: skip


MODULO = (
    '<StructuredAnnotations><XMLAnnotation ID="A:1" Namespace="openmicroscopy.org/omero/dimension/'
    'modulo"><Value><Modulo><ModuloAlongT Type="lifetime" Start="0" End="10000000000" Step="1"/>'
    "</Modulo></Value></XMLAnnotation></StructuredAnnotations>"
)
"""An axis of ten thousand million labels."""

VENDORS = (34412, 33628, 33629, 34361, 34362, 33560, 51023, 50839, 50838, 65420, 65442, 33445,
           33446, 33471, 34118, 42112, 42113, 33550, 34735, 37724, 34377, 320, 347, 530, 532, 529,
           338, 32934)  # fmt: skip
"""Tags of microscope vendors and odd kinds of images; libraries read them in ways of their own."""


def _vendor(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """An entry becomes that of a vendor, with a block of numbers behind it."""
    layout, changed = Layout(data), bytearray(data)
    spare = [e for e in layout.entries if e.tag in (254, 282, 283, 296, 305, 306, 269, 270, 33432)]
    entry = rng.choice(spare or layout.entries)
    tag, kind = rng.choice(VENDORS), rng.choice((1, 2, 3, 4, 5, 7, 12, 13, 16))
    words = rng.choice((2, 8, 64, 512))
    block = b"".join(
        struct.pack(layout.order + "I", rng.choice((0, 1, 2, 8, 30, 255, 2**16, 2**24, 2**31 - 1,
                                                    2**32 - 1, 50350412, 67127628, len(data))))
        for _ in range(words)
    )  # fmt: skip
    size = {1: 1, 2: 1, 3: 2, 5: 8, 7: 1, 12: 8, 16: 8}.get(kind, 4)
    count = rng.choice((len(block) // size, len(block) // size, 1, 10_000, 2**24))
    entry.write(changed, tag=tag, kind=kind, count=count, value=len(data))
    return bytes(changed) + block, f"{entry.tag} becomes {tag} of type {kind} and {count} values"


def _bomb(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Every strip or tile unpacks to far more than it holds."""
    layout, changed = Layout(data), bytearray(data)
    code, packed = rng.choice((
        (8, bombs()["zlib"]), (32946, bombs()["zlib"]), (8, zlib.compress(bytes(1 << 24))),
        (34925, bombs()["lzma"]), (32773, b"\x81\0" * (1 << 18)), (50000, bombs()["zstd"]),
        (5, b"\x80\0" * 5000), (7, b"\xff\xd8\xff\xe0" + b"\0" * 100),
    ))  # fmt: skip
    order = "little" if layout.order == "<" else "big"
    for entry in layout.entries:
        if entry.tag == 259:
            entry.write(changed, value=code)
        size = {3: 2, 4: 4, 16: 8}.get(entry.kind, 4)
        if entry.tag in (273, 324, 279, 325) and entry.count:
            number = len(data) if entry.tag in (273, 324) else len(packed)
            wide = 8 if layout.big else 4
            inline = entry.count * size <= wide
            start = entry.place + 4 + wide if inline else entry.where(data)
            if size == 2 and number > 65_535:
                if not inline or entry.count > 1:
                    continue
                entry.write(changed, kind=4)
                size = 4
            for index in range(entry.count):
                at = start + index * size
                changed[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
    return bytes(changed[: len(data)]) + packed, f"compression {code}, {len(packed)} bytes"
