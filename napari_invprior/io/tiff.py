"""Reader of TIFF files; the chain of directories is walked and bounded before it is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from napari_invprior.errors import FileRefused
from napari_invprior.io.files import refusing, within_limit
from napari_invprior.io.planes import Planes
from napari_invprior.io.raw import Mapped, Raw
from napari_invprior.io.tiff_guard import (
    check_segments,
    check_texts,
    sort_in_linear_time,
    walk,
)


def read_tiff(path: Path, limit: int | None) -> Raw:
    """The first series of a TIFF, OME-TIFF or ImageJ TIFF; planes are read when they are needed.

    Sample spacing comes from OME and ImageJ metadata only; the dots per inch of plain files are
    a print size.
    """
    walk(path)
    tif = _opened(path)
    sort_in_linear_time(tif)
    check_texts(tif, path.name)
    series = tif.series[0]
    notes: tuple[str, ...] = ()
    if len(tif.series) > 1:
        notes = (f"the file holds {len(tif.series)} images; the first one is used",)
    return Raw(_samples(tif, series, path, limit), labels=series.axes, notes=notes, **_spacing(tif))


def _opened(path: Path) -> tifffile.TiffFile:
    # Files that a multi-file series names are not opened: they may lie anywhere.
    return tifffile.TiffFile(path, _multifile=False, is_ndtiff=False, is_mmstack=False)


def _samples(tif: tifffile.TiffFile, series: Any, path: Path, limit: int | None) -> Any:
    """The samples of a series, still in the file: as one map, plane by plane, or all at once."""
    shape = tuple(int(n) for n in series.shape)
    offset = series.dataoffset
    if offset is not None and offset + math.prod(shape) * series.dtype.itemsize <= (
        path.stat().st_size
    ):
        return Mapped(path, series.dtype.newbyteorder(tif.byteorder), shape, int(offset))
    check_segments(series, path, limit)
    plane = tuple(int(n) for n in series.keyframe.shape)
    count = math.prod(shape) // max(1, math.prod(plane))
    within_limit(path.name, math.prod(plane) * series.dtype.itemsize, limit)
    if shape[len(shape) - len(plane) :] != plane or count != len(series.pages):
        within_limit(path.name, math.prod(shape) * series.dtype.itemsize, limit)
        return _decoded(path.name, series.asarray)

    def read(number: int) -> np.ndarray:
        page = series.pages[number]
        if page is None:  # a plane that was never written
            return np.zeros(plane, series.dtype)
        found = _decoded(path.name, page.asarray)
        if found.shape != plane or found.dtype != series.dtype:
            raise FileRefused(
                f"{path.name}: plane {number} is {found.dtype} of shape {found.shape}, the file "
                f"promises {series.dtype} of {plane}; it is damaged: save it anew"
            )
        return found

    return Planes(shape, series.dtype, read, len(plane))


def _decoded(name: str, read: Callable[[], np.ndarray]) -> np.ndarray:
    """Samples; a compression that cannot be read is refused with what to install."""
    with refusing(name):
        try:
            return read()
        except (ValueError, KeyError, ImportError) as error:
            if isinstance(error, ImportError) or "imagecodecs" in str(error):
                raise FileRefused(
                    f"{name}: this compression needs another package: pip install imagecodecs"
                ) from None
            raise


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
