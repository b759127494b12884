"""Values in the metadata of a file, checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from napari_invprior.errors import FileRefused
from napari_invprior.geometry import Geometry

KINDS = {list: "a list", str: "a text", Mapping: "a table"}
MISSING = object()


def told(
    holder: Mapping[str, Any], key: str, kind: Any, name: str, default: Any = MISSING
) -> Any:
    """An entry of the right kind.

    Raises
    ------
    FileRefused
        If it is missing and has no default, or is of another kind.

    Examples
    --------
    >>> told({"path": "0"}, "path", str, "x.zarr")
    '0'
    """
    value = holder.get(key, default)
    if value is MISSING or not isinstance(value, kind):
        first = kind[0] if isinstance(kind, tuple) else kind
        given = "missing" if value is MISSING else f"{value!r:.60}"
        raise FileRefused(
            f"{name}: {key!r} in its metadata is {given}, where {KINDS[first]} is needed"
        )
    return value


def numbers(value: Any, count: int, what: str, name: str) -> Any:
    """So many numbers, as a tuple.

    Raises
    ------
    FileRefused
        If there are more or less, or they are none.

    Examples
    --------
    >>> numbers([1, 2.5], 2, "scale", "x.zarr")
    (1.0, 2.5)
    """
    held = value if isinstance(value, list | tuple) else ()
    # A whole number of JSON may be too large for a float.
    if len(held) != count or not all(
        type(v) is float or (type(v) is int and abs(v) < 1e300) for v in held
    ):
        raise FileRefused(
            f"{name}: {what!r} in its metadata is {value!r:.60}, where {count} numbers are needed"
        )
    return tuple(float(v) for v in held)


def stored_geometry(data: Any, name: str) -> Geometry | None:
    """The placement that we wrote; OME-Zarr itself knows no rotation.

    Raises
    ------
    FileRefused
        If its parts do not fit each other.
    """
    if not isinstance(data, Mapping):
        return None
    scale = told(data, "scale", list, name)
    count = len(scale)
    known: dict[str, Any] = {
        key: numbers(data.get(key), count, key, name) for key in ("scale", "translate")
    }
    for key in ("units", "axis_labels"):
        texts = data.get(key)
        if texts is not None and (
            not isinstance(texts, list) or [type(t) for t in texts] != [str] * count
        ):
            raise FileRefused(
                f"{name}: {key!r} in its metadata is {texts!r:.60}, where {count} texts are needed"
            )
        known[key] = None if texts is None else tuple(texts)
    for key, rows in (("rotate", count), ("affine", count + 1)):
        if data.get(key) is not None:
            known[key] = _matrix(data, key, rows, name)
    shear = data.get("shear")
    if shear is not None:  # what stands above the diagonal of a matrix, or the whole of it
        flat = not (isinstance(shear, list) and shear and isinstance(shear[0], list))
        known["shear"] = (
            np.array(numbers(shear, count * (count - 1) // 2, "shear", name)) if flat
            else _matrix(data, "shear", count, name)
        )  # fmt: skip
    return Geometry(**known)


def _matrix(data: Mapping[str, Any], key: str, rows: int, name: str) -> np.ndarray:
    """A square matrix of numbers."""
    lines = told(data, key, list, name)
    if len(lines) != rows:
        raise FileRefused(
            f"{name}: {key!r} in its metadata has {len(lines)} rows, where {rows} are needed"
        )
    return np.array([numbers(line, rows, key, name) for line in lines])
