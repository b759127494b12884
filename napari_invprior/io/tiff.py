"""Reader of TIFF files; the chain of directories is walked and bounded before it is decoded."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import tifffile

from napari_invprior.errors import FileRefused
from napari_invprior.io.files import within_limit
from napari_invprior.io.raw import Raw

MAX_DIRECTORIES = 100_000
MAX_TAGS = 4096
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES |= {16: 8, 17: 8, 18: 8}
"""Bytes per value of each TIFF type."""


def read_tiff(path: Path, limit: int | None) -> Raw:
    """The first series of a TIFF, OME-TIFF or ImageJ TIFF.

    Sample spacing comes from OME and ImageJ metadata only; the dots per inch of plain files are
    a print size.
    """
    walk(path)
    # Files that a multi-file series names are not opened: they may lie anywhere.
    with tifffile.TiffFile(path, _multifile=False, is_ndtiff=False, is_mmstack=False) as tif:
        series = tif.series[0]
        shape, name = tuple(int(n) for n in series.shape), path.name
        within_limit(name, math.prod(shape) * series.dtype.itemsize, limit)
        _check_data(series, path)
        notes: tuple[str, ...] = ()
        if len(tif.series) > 1:
            notes = (f"the file holds {len(tif.series)} images; the first one is used",)
        try:
            array = series.asarray()
        except (ValueError, KeyError) as error:
            if "imagecodecs" in str(error):
                raise FileRefused(
                    f"{name}: this compression needs another package: pip install imagecodecs"
                ) from None
            raise
        return Raw(array, labels=series.axes, notes=notes, **_spacing(tif))


def _check_data(series: Any, path: Path) -> None:
    """Refuse strips and tiles that lie outside the file."""
    size = path.stat().st_size
    for page in series.pages:
        if page is None:
            continue
        ends = zip(page.dataoffsets, page.databytecounts, strict=True)
        if any(offset < 0 or offset + count > size for offset, count in ends):
            raise FileRefused(f"{path.name}: truncated; samples lie beyond the end of the file")


def _spacing(tif: tifffile.TiffFile) -> dict[str, Any]:
    """Spacing and units by axis letter."""
    if tif.is_ome and tif.ome_metadata:
        metadata: Any = tifffile.xml2dict(tif.ome_metadata)
        image = metadata["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
        found = {a: pixels.get(f"PhysicalSize{a}") for a in "ZYX"}
        scale = {a: float(value) for a, value in found.items() if value is not None}
        units = {a: str(pixels.get(f"PhysicalSize{a}Unit", "micrometer")) for a in scale}
        return {"scale": scale, "units": {a: _unit(unit) for a, unit in units.items()}}
    if tif.is_imagej and tif.imagej_metadata:
        metadata = tif.imagej_metadata
        scale = {"Z": float(metadata.get("spacing", 1.0))}
        for axis, tag in (("Y", "YResolution"), ("X", "XResolution")):
            if tag in tif.pages[0].tags:  # type: ignore[union-attr]
                count, length = tif.pages[0].tags[tag].value  # type: ignore[union-attr]
                scale[axis] = length / count if count else 1.0
        unit = _unit(str(metadata.get("unit", "pixel")))
        return {"scale": scale, "units": dict.fromkeys("ZYX", unit)}
    return {}


def _unit(text: str) -> str:
    """A unit's name as napari and OME-Zarr write it."""
    known = {"µm": "micrometer", "um": "micrometer", "μm": "micrometer", "micron": "micrometer"}
    known |= {"nm": "nanometer", "mm": "millimeter", "cm": "centimeter", "m": "meter"}
    known |= {"Å": "angstrom", "pm": "picometer", "inch": "inch"}
    text = text.replace("\\u00B5", "µ")
    return known.get(text, text if text in known.values() else "pixel")


def walk(path: Path) -> int:
    """Follow the chain of image file directories; return their number.

    Raises
    ------
    FileRefused
        If the chain loops, leaves the file, is endless, or a value is longer than the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = head[2:4] in (b"+\0", b"\0+")
        link, count_format, entry = ("Q", "Q", "HHQQ") if big else ("I", "H", "HHII")
        start = 8 if big else 4
        width = struct.calcsize(order + link)
        offset = struct.unpack(order + link, head[start : start + width])[0]
        seen: set[int] = set()
        while offset:
            if offset in seen or len(seen) >= MAX_DIRECTORIES:
                reason = "loop" if offset in seen else f"are more than {MAX_DIRECTORIES}"
                raise FileRefused(f"{path.name}: its image directories {reason}")
            seen.add(offset)
            file.seek(offset)
            raw = file.read(struct.calcsize(order + count_format))
            if offset + len(raw) > size or len(raw) < struct.calcsize(order + count_format):
                raise FileRefused(f"{path.name}: truncated; a directory lies beyond its end")
            tags = struct.unpack(order + count_format, raw)[0]
            if tags > MAX_TAGS:
                raise FileRefused(f"{path.name}: a directory of {tags} entries")
            table = file.read(tags * struct.calcsize(order + entry))
            for _, kind, count, _ in struct.iter_unpack(order + entry, table):
                if count * SIZES.get(kind, 1) > size:
                    raise FileRefused(f"{path.name}: an entry is longer than the file")
            offset = struct.unpack(order + link, file.read(width))[0]
    return len(seen)
