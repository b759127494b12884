"""Damaged and hostile TIFF files: both byte orders, classic and Big, OME, ImageJ and shaped."""

from __future__ import annotations

import random
import re
import struct
import zlib
from pathlib import Path
from typing import Any

from napari_invprior.io.images import load
from napari_invprior.sources import Source
from tests.faults.bombs import bombs
from tests.faults.intact_tiff import SECRET, Layout, templates
from tests.faults.mutations import NUMBERS, TEXTS, UNFIT, Case, Token, emptied, mutate_bytes

__all__ = ["templates", "make"]

# ---- mutations


def make(number: int, rng: random.Random, folder: Path, intact: list[bytes], limit: int) -> Case:
    """The case of that number."""
    data = rng.choice(intact)
    done = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        action = rng.choice((_entry, _entry, _entry, _entry, _link, _blind, _blind, _cut, _sizes,
                             _sizes, _segments, _segments, _text, _text, _text, _vendor,
                             _bomb, _copies))  # fmt: skip
        try:
            data, what = action(data, rng)
        except (struct.error, *UNFIT):  # an earlier mutation left no layout
            data, what = mutate_bytes(data, rng, head=200)
        done.append(f"{action.__name__[1:]}: {what}")
    place = emptied(folder / "case")
    endings = (".tif", ".tif", ".tif", ".ome.tif", ".btf", ".lsm", ".stk", ".svs", "")
    name = f"x{rng.choice(endings)}"
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


def _copies(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The last directory very many times over: every copy names the same strips, and its texts."""
    layout, changed = Layout(data), bytearray(data)
    wide, start = (8 if layout.big else 4), len(data)
    directory = data[layout.starts[-1] : layout.links[-1]]
    count = rng.choice((2, 100, 3000))
    order: Any = "little" if layout.order == "<" else "big"
    nexts = [start + (i + 1) * (len(directory) + wide) for i in range(count - 1)]
    copies = b"".join(directory + place.to_bytes(wide, order) for place in [*nexts, 0])
    layout.relink(changed, -1, start)
    return bytes(changed) + copies, f"{count} copies of a directory"


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
            for index in range(min(entry.count, 10_000)):
                at = start + index * size
                changed[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
    return bytes(changed[: len(data)]) + packed, f"compression {code}, {len(packed)} bytes"
