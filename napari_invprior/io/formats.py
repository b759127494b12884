"""Readers of PNG, NPY and NPZ files that check every size before they allocate it."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image as Pillow

from napari_invprior.errors import FileRefused, InvalidInput, nearest
from napari_invprior.io.files import read_bytes, within_limit
from napari_invprior.io.raw import Mapped, Raw

MAX_DEFLATE = 1100
"""Deflate shrinks by at most 1032; a PNG that claims more holds less than it says."""

MAX_RATIO, SMALL = 200, 16 << 20
"""Largest ratio of a zip member beyond this many bytes."""


def read_png(path: Path, limit: int | None) -> Raw:
    """A PNG file: grey, colour or palette, 1 to 16 bits."""
    data = read_bytes(path, limit)
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)  # the limit is ours
        picture: Pillow.Image = Pillow.open(io.BytesIO(data), formats=["PNG"])
    depth, colour = data[24], data[25]
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    samples = picture.width * picture.height
    within_limit(path.name, samples * max(1, bits // 8), limit)
    if samples * bits > 8 * MAX_DEFLATE * len(data):
        raise FileRefused(
            f"{path.name}: {len(data)} bytes cannot hold {picture.width} x {picture.height} samples"
        )
    if depth == 16 and colour in (2, 4, 6):
        notes.append("16-bit colours are read with 8 bits")
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGB")
    if picture.mode == "LA":
        picture = picture.convert("L")
        notes.append("transparency is ignored")
    array = np.asarray(picture)
    if picture.mode in ("I", "I;16B"):  # 16 grey bits that Pillow widened
        array = array.astype(np.uint16)
    if colour == 3 and bool((array == array[..., :1]).all()):
        array = array[..., 0]  # a palette of greys
    return Raw(array, labels="YXS" if array.ndim == 3 else "YX", notes=tuple(notes))


def read_npy(path: Path, limit: int | None) -> Raw:
    """An NPY file, mapped when a part of it is read."""
    del limit  # nothing is allocated here
    with path.open("rb") as file:
        shape, fortran, dtype = _npy_header(file, path.stat().st_size, path.name)
        offset = file.tell()
    return Raw(Mapped(path, dtype, shape, offset, "F" if fortran else "C"))


def read_npz(path: Path, limit: int | None, key: str | None) -> Raw:
    """One array of an NPZ file; ``key`` is needed when there are several."""
    with zipfile.ZipFile(path) as archive:
        members = {
            info.filename.removesuffix(".npy"): info
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }
        info = members[_choose(key, list(members), path.name)]
        name = f"{path.name}[{info.filename}]"
        within_limit(name, info.file_size, limit)
        if info.file_size > max(SMALL, MAX_RATIO * info.compress_size):
            raise FileRefused(
                f"{name}: {info.compress_size} bytes unpack to {info.file_size}; refused as a bomb"
            )
        with archive.open(info) as file:
            _npy_header(file, info.file_size, name)
        with archive.open(info) as file:
            return Raw(npy.read_array(file, allow_pickle=False))


def _choose(key: str | None, known: list[str], name: str) -> str:
    """The array to read from an archive."""
    if not known:
        raise FileRefused(
            f"{name}: holds no NumPy array (archives of PyTorch are pickled and may run code)"
        )
    if key is None and len(known) == 1:
        return known[0]
    listed = ", ".join(known[:20])
    if key is None:
        raise InvalidInput(f"{name}: holds several arrays; give 'key', one of {listed}")
    if key not in known:
        raise InvalidInput(f"{name}: no array {key!r}{nearest(key, known)} (known: {listed})")
    return key


def _npy_header(
    file: IO[bytes], size: int, name: str
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type, once they agree with the size of the file.

    Raises
    ------
    FileRefused
        For pickled objects, records, and headers that claim more or less than there is.
    """
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise FileRefused(f"{name}: NPY version {version} is unknown")
    # Version 3 differs from 2 only in field names beyond Latin-1; records are refused below.
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise FileRefused(f"{name}: holds pickled objects, which may run code")
    if dtype.names is not None or dtype.itemsize == 0:
        raise FileRefused(f"{name}: holds records ({str(dtype)[:80]}), not samples")
    claimed, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=1) < 0 or claimed != there:
        raise FileRefused(
            f"{name}: the header says shape {shape} of {dtype} ({claimed} bytes), but {there} "
            "bytes follow; the file is truncated or damaged"
        )
    if claimed == 0:
        raise FileRefused(f"{name}: shape {shape} holds no sample")
    return shape, fortran, dtype
