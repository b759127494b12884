"""Points on disk: CSV as napari writes it, and NPY.

Examples
--------
>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "seeds.csv"
>>> _ = path.write_bytes(points_csv(np.array([[1.0, 2.5]])))
>>> read_points(path).array.tolist()
[[1.0, 2.5]]
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from napari_invprior.errors import FileRefused, InvalidInput, nearest
from napari_invprior.io.files import PICKLED, existing, local_path, read_bytes, refusing, retrying
from napari_invprior.io.formats import read_npy
from napari_invprior.points import PointSet, point_set
from napari_invprior.sources import PointSource

NOTHING: Mapping[str, PointSet] = MappingProxyType({})
AXIS = re.compile(r"axis-(\d+)")
TEXT_LIMIT = 1 << 28
"""Bytes of a CSV file: a million points take a tenth of it."""


def load_points(source: PointSource, points: Mapping[str, PointSet] = NOTHING) -> PointSet:
    """Load the points that a source names.

    Parameters
    ----------
    points : mapping of str to PointSet
        What ``{"layer": name}`` refers to.

    Raises
    ------
    InvalidInput
        If there is no such thing, or it holds no finite points.
    FileRefused
        If a file is damaged, unsafe, too large or of an unknown kind.
    """
    if source.positions is not None:
        lengths = {len(row) for row in source.positions}
        if len(lengths) > 1:
            raise InvalidInput(
                f"positions have rows of {sorted(lengths)} coordinates; give as many for each"
            )
        return point_set(np.array(source.positions, np.float64), "positions")
    if source.layer is None:
        assert source.path is not None
        return read_points(local_path(source.path))
    if source.layer not in points:
        known = ", ".join(repr(name) for name in points) or "none"
        raise InvalidInput(
            f"no points {source.layer!r}{nearest(source.layer, points)} (given: {known})"
        )
    return point_set(points[source.layer].array, source.layer)


def read_points(path: Path) -> PointSet:
    """Points of a CSV or NPY file, chosen by what it begins with."""
    path = existing(path)
    if path.is_dir():
        raise FileRefused(f"{path.name}: is a folder; points are read from CSV and NPY files")
    with refusing(path.name):
        with path.open("rb") as file:
            head = file.read(8)
        if path.suffix.lower() in PICKLED or head[:1] == b"\x80":
            raise FileRefused(f"{path.name}: pickled files may run code and are never opened")
        if head.startswith(b"\x93NUMPY"):
            raw = retrying(lambda: read_npy(path, None))
            return point_set(raw.array, path.name)
        text = read_bytes(path, TEXT_LIMIT).decode("utf-8-sig")
        return point_set(_columns(text, path.name), path.name)


def _columns(text: str, name: str) -> np.ndarray:
    """The columns ``axis-0``, ``axis-1``, ... of a CSV; all columns where it has no header."""
    if "\0" in text:
        raise FileRefused(f"{name}: is of an unknown kind; points are read from CSV and NPY files")
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if not rows:
        raise FileRefused(f"{name}: is empty")
    chosen = list(range(len(rows[0])))
    if not all(map(_is_number, rows[0])):
        found = {int(m[1]): i for i, cell in enumerate(rows[0]) if (m := AXIS.fullmatch(cell))}
        if sorted(found) != list(range(len(found))) or not found:
            raise FileRefused(
                f"{name}: the columns are {', '.join(rows[0])[:80]}; points need axis-0, axis-1, "
                "... as napari writes them, or no header at all"
            )
        chosen, rows = [found[axis] for axis in sorted(found)], rows[1:]
    if not rows:
        raise InvalidInput(f"{name}: holds no point")
    return np.array([[float(row[i]) for i in chosen] for row in rows])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def points_csv(array: np.ndarray) -> bytes:
    """Points (n, d) as napari writes and reads them.

    Examples
    --------
    >>> points_csv(np.array([[0.0, 1.5]])).decode().splitlines()
    ['index,axis-0,axis-1', '0,0,1.5']
    """
    lines = [",".join(["index", *(f"axis-{k}" for k in range(array.shape[1]))])]
    lines += [",".join([str(i), *(f"{v:.9g}" for v in row)]) for i, row in enumerate(array)]
    return ("\n".join(lines) + "\n").encode()
