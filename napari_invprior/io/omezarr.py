"""Writer of OME-Zarr 0.5: pyramid, units, placement, recipe; shards when large.

Examples
--------
>>> import tempfile
>>> group = Path(tempfile.mkdtemp()) / "result.ome.zarr" / "reconstruction"
>>> write_image(group, np.ones((8, 9), np.float32), Geometry.identity(2))
>>> read_image(group.parent).array.shape
(1, 1, 8, 9)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.io.files import replacing, write_atomic
from napari_invprior.io.omezarr_read import ATTRIBUTE, attributes, plain, read_image

__all__ = ["write_image", "read_image", "attributes"]

TOP = {2: 256, 3: 64}
"""The pyramid ends when no space axis is longer than this."""

CHUNK = {2: 512, 3: 64}
SHARD_AT, CHUNKS_PER_SHARD = 64 << 20, 8
"""Arrays beyond these bytes are sharded: fewer files on network drives."""

COLOURS = ("FF0000", "00FF00", "0000FF")
UNITS = {
    "angstrom", "attometer", "centimeter", "decimeter", "femtometer", "foot", "inch", "kilometer",
    "meter", "micrometer", "mile", "millimeter", "nanometer", "parsec", "picometer", "yard",
}  # fmt: skip
"""Units of length that OME-Zarr knows (and people use); others are left out there."""


def write_image(
    group: Path,
    array: np.ndarray,
    geometry: Geometry,
    *,
    name: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    channels: Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
    rgb: bool = False,
    labels: bool = False,
) -> None:
    """Write one image group; a group of that name is replaced only once the new one is complete.

    Parameters
    ----------
    group : Path
        ``DIR/result.ome.zarr/<name>``; the root group is made when it is missing.
    array : numpy.ndarray
        (*space), (channels, *space), (frames, *space) or (frames, channels, *space); with ``rgb``
        (*space, colours) or (frames, *space, colours). More leading axes are joined to one.
    geometry : Geometry
        Placement of the space axes; their number is the number of its scales.
    name : str, optional
        Name of the image; the last part of ``group`` by default.
    attributes : mapping, optional
        Recipe, provenance, figures: anything that JSON can hold, stored as ``napari_invprior``.
    channels : sequence of str, optional
        Names of the channels. Without them one extra axis means frames.
    value_range : tuple of float, optional
        Values that map to 0 and 1; also the contrast limits of viewers.
    rgb : bool
        Whether the last axis of ``array`` holds colours; they are stored as channels.
    labels : bool
        Whether the samples are labels, which a pyramid must not average.

    Raises
    ------
    InvalidInput
        If array, geometry and channels do not fit.
    JobError
        If it cannot be written; what was there stays.
    """
    if rgb:
        array = np.moveaxis(array, -1, -1 - len(geometry.scale))
        channels = channels or ("red", "green", "blue")
    if array.ndim > len(geometry.scale) + 2:  # OME-Zarr has one axis for all kinds of frames
        array = array.reshape(-1, *array.shape[-1 - len(geometry.scale) :])
    axes = _axes(array, geometry, channels)
    root = group.parent
    if root.suffix == ".zarr" and not (root / "zarr.json").exists():
        write_atomic(root / "zarr.json", b'{"zarr_format": 3, "node_type": "group"}')
    with replacing(group, int(array.nbytes * 1.4)) as temporary:
        store = zarr.open_group(temporary, mode="w", zarr_format=3)
        for number, level in enumerate(pyramid(array, len(geometry.scale), labels)):
            native = np.ascontiguousarray(level, level.dtype.newbyteorder("="))
            create_level(store, str(number), native, len(geometry.scale))[...] = native
        described = multiscale(
            name or group.name, axes, geometry, number + 1, array.shape, labels=labels
        )
        count = array.shape[axes.index("c")] if "c" in axes else 1
        window = value_range or _extremes(array)
        own = {"geometry": asdict(geometry), "value_range": value_range}
        ome = {"version": "0.5", "multiscales": [described],
               "omero": omero(count, channels, window)}
        store.attrs.put(plain({"ome": ome, ATTRIBUTE: {**(attributes or {}), **own}}))


def _axes(array: np.ndarray, geometry: Geometry, channels: Sequence[str] | None) -> str:
    """Axis letters of the array, such as ``"tczyx"``."""
    ndim = len(geometry.scale)
    extra = array.ndim - ndim
    leading = {0: "", 1: "c" if channels else "t", 2: "tc"}.get(extra)
    if ndim not in (2, 3) or leading is None:
        raise InvalidInput(
            f"an array of shape {array.shape} does not fit a placement of {ndim} axes"
        )
    axes = leading + "zyx"[-ndim:]
    if channels and (leading.find("c") < 0 or len(channels) != array.shape[leading.find("c")]):
        raise InvalidInput(f"{len(channels)} channel names for an array of shape {array.shape}")
    return axes


def pyramid(array: np.ndarray, ndim: int, labels: bool = False) -> list[np.ndarray]:
    """The array and means over blocks of 2, 4, ... samples, until it is small.

    An odd axis is continued by its last sample; a short axis (of a thin volume) is kept.

    Examples
    --------
    >>> [level.shape for level in pyramid(np.zeros((600, 301)), 2)]
    [(600, 301), (300, 151), (150, 76)]
    """
    levels = [array]
    while max(levels[-1].shape[-ndim:]) > TOP[ndim]:
        levels.append(halved(levels[-1], ndim, labels))
    return levels


def halved(level: np.ndarray, ndim: int, labels: bool = False) -> np.ndarray:
    """The next coarser level of the last ``ndim`` axes."""
    coarse = level
    for axis in range(level.ndim - ndim, level.ndim):
        coarse = _halved(coarse, axis, labels)
    return coarse.astype(level.dtype)


def _halved(level: np.ndarray, axis: int, labels: bool) -> np.ndarray:
    length = level.shape[axis]
    even = np.take(level, range(0, length, 2), axis)
    if labels or length == 1:
        return even
    odd = np.take(level, [min(i + 1, length - 1) for i in range(0, length, 2)], axis)
    working = np.float32 if level.dtype.itemsize <= 2 else np.float64
    mean = (even.astype(working) + odd) / 2
    return mean if level.dtype.kind == "f" else np.rint(mean).astype(level.dtype)


def create_level(store: zarr.Group, path: str, like: Any, ndim: int) -> zarr.Array:
    """An empty array of one level; anything with ``shape``, ``dtype`` and ``nbytes`` will do."""
    edge = CHUNK[ndim]
    leading = (1,) * (like.ndim - ndim)
    chunks = leading + tuple(min(edge, n) for n in like.shape[-ndim:])
    shards = None
    if like.nbytes > SHARD_AT:
        shards = leading + tuple(
            c * min(CHUNKS_PER_SHARD, -(-n // c))
            for c, n in zip(chunks[-ndim:], like.shape[-ndim:], strict=True)
        )
    return store.create_array(
        path,
        shape=like.shape,
        chunks=chunks,
        shards=shards,
        dtype=like.dtype,
        compressors=ZstdCodec(level=3),
    )


def multiscale(
    name: str, axes: str, geometry: Geometry, levels: int, shape: tuple[int, ...], *,
    labels: bool = False,
) -> dict[str, Any]:
    """The description of a pyramid of so many levels over an array of this shape."""
    return {
        "name": name,
        "axes": [_axis(letter, geometry, axes) for letter in axes],
        "datasets": [
            {"path": str(n), "coordinateTransformations": _transforms(geometry, n, shape)}
            for n in range(levels)
        ],
        "type": "nearest" if labels else "mean",
    }


def _axis(letter: str, geometry: Geometry, axes: str) -> dict[str, str]:
    if letter in "tc":
        return {"name": letter, "type": {"t": "time", "c": "channel"}[letter]}
    axis = {"name": letter, "type": "space"}
    if geometry.units is not None:
        unit = str(geometry.units[axes.index(letter) - len(axes)])
        if unit in UNITS:
            axis["unit"] = unit
    return axis


def _transforms(
    geometry: Geometry, number: int, shape: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Scale and translation of a level: a mean of two samples lies half a sample further."""
    ndim = len(geometry.scale)
    factors = [_factor(n, number) for n in shape[-ndim:]]
    scale = [s * f for s, f in zip(geometry.scale, factors, strict=True)]
    shift = [
        t + s * (f - 1) / 2
        for t, s, f in zip(geometry.translate, geometry.scale, factors, strict=True)
    ]
    lead = len(shape) - ndim
    return [
        {"type": "scale", "scale": [1.0] * lead + scale},
        {"type": "translation", "translation": [0.0] * lead + shift},
    ]


def _factor(length: int, number: int) -> int:
    """Samples that one sample of a level stands for; an axis of one sample stays."""
    factor = 1
    for _ in range(number):
        if length > 1:
            length, factor = -(-length // 2), 2 * factor
    return factor


def _extremes(array: np.ndarray) -> tuple[float, float]:
    low, high = float(np.nanmin(array)), float(np.nanmax(array))
    return (low, high) if np.isfinite(low) and np.isfinite(high) else (0.0, 1.0)


def omero(
    count: int, channels: Sequence[str] | None, value_range: tuple[float, float]
) -> dict[str, Any]:
    """Names, colours and contrast of the channels, as viewers expect them."""
    names = list(channels or (f"channel {i}" for i in range(count)))
    low, high = value_range
    window = {"min": low, "max": high, "start": low, "end": high}
    return {
        "channels": [
            {
                "label": name,
                "color": COLOURS[i] if count == 3 else "FFFFFF",
                "window": window,
                "active": True,
            }
            for i, name in enumerate(names)
        ]
    }
