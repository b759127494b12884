"""A folder of TIFF slices as one volume, as cameras and reconstruction programs write them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from napari_invprior.errors import FileRefused
from napari_invprior.io.files import inside, refusing
from napari_invprior.io.planes import Planes
from napari_invprior.io.raw import Raw
from napari_invprior.io.tiff import read_tiff

ENDINGS = (".tif", ".tiff")
MOST = 100_000
"""Slices of one volume."""


def slices_in(folder: Path) -> list[Path]:
    """The TIFF files of a folder in the order of the numbers in their names; hidden ones left out.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("s10.tif", "s9.tif", ".s1.tif", "notes.txt"):
    ...     (folder / name).touch()
    >>> [path.name for path in slices_in(folder)]
    ['s9.tif', 's10.tif']
    """
    found = [
        path for path in folder.iterdir()
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
    ]
    return sorted(found, key=lambda path: [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", path.name)
    ])


def read_folder(folder: Path, limit: int | None) -> Raw:
    """The slices of a folder as a volume; a slice is read when it is needed.

    Raises
    ------
    FileRefused
        If there is none, there are too many, or one is no plane of the size and type of the first;
        of all but the first that is noticed when it is read.
    """
    files = slices_in(folder)
    if not 2 <= len(files) <= MOST:
        raise FileRefused(
            f"{folder.name}: {len(files)} TIFF files; a volume takes 2 to {MOST} slices"
        )
    for path in files:
        inside(folder, path.name, folder.name)
    first = read_tiff(files[0], limit)
    shape, dtype = tuple(first.array.shape), np.dtype(first.array.dtype)
    if len(shape) != 2:
        raise FileRefused(f"{files[0].name}: shape {shape}; slices of a volume are grey planes")

    def plane(number: int) -> np.ndarray:
        path = files[number]
        with refusing(path.name):
            found = read_tiff(path, limit).array
            if (tuple(found.shape), np.dtype(found.dtype)) != (shape, dtype):
                raise FileRefused(
                    f"{path.name}: {found.dtype} of shape {tuple(found.shape)}; the first slice, "
                    f"{files[0].name}, is {dtype} of {shape}"
                )
            return np.asarray(found)

    scale = first.scale or {}
    return Raw(
        Planes((len(files), *shape), dtype, plane, 2), labels="ZYX", units=first.units,
        scale={"Z": scale.get("X", 1.0)} | scale if scale else None, notes=_gaps(files),
    )


def _gaps(files: list[Path]) -> tuple[str, ...]:
    """A note when numbers are missing in the names."""
    numbers = [re.findall(r"\d+", path.stem) for path in files]
    if not all(numbers) or len({len(n) for n in numbers}) != 1:
        return ()
    last = [int(n[-1]) for n in numbers]
    missing = sorted(set(range(last[0], last[-1] + 1)) - set(last))
    if not missing or len(set(last)) != len(last):
        return ()
    listed = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    return (f"slices are missing: {listed}; the others are put together",)
