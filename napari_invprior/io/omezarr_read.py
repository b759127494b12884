"""Reader of OME-Zarr 0.4 and 0.5 (zarr 3).

Nothing outside the store is read, whatever its metadata or its links say, and only codecs that
cannot run code are used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from napari_invprior.errors import FileRefused, InvalidInput, nearest
from napari_invprior.geometry import Geometry
from napari_invprior.image import Image
from napari_invprior.io.files import existing, inside, local_path, refusing, within_limit
from napari_invprior.io.raw import Raw, image_from_raw
from napari_invprior.sources import Source

ATTRIBUTE = "napari_invprior"
"""Key of our own attributes beside ``ome``."""

CODECS = {
    "adler32", "bitround", "blosc", "bytes", "bz2", "crc32", "crc32c", "delta",
    "fixedscaleoffset", "fletcher32", "gzip", "lz4", "lzma", "quantize", "sharding_indexed",
    "shuffle", "transpose", "zlib", "zstd",
}  # fmt: skip
"""Codecs that are used; others are unknown, or run code (pickle)."""

MAX_METADATA = 8 << 20
MAX_CHUNKS = 1_000_000
COUNTED = 100_000
"""Bytes of one metadata file; chunks of one array; chunks up to which missing ones are counted."""


class ConfinedStore(LocalStore):
    """A folder whose links do not lead out of it, with bounded metadata."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        path = inside(self.root, key, self.root.name)
        if path.name in ("zarr.json", ".zarray", ".zgroup", ".zattrs") and path.is_file():
            within_limit(f"{self.root.name}/{key}", path.stat().st_size, MAX_METADATA)
        return await super().get(key, prototype, byte_range)


def read_image(
    path: str | Path, key: str | None = None, *, limit: int | None = None, **parts: Any
) -> Image:
    """Read the finest level of an OME-Zarr image.

    Parameters
    ----------
    path : str or Path
        The store, or an image group inside one.
    key : str, optional
        Group or array inside the store; needed when there are several.
    limit : int, optional
        Bytes that the array may take; a quarter of the free memory by default.
    **parts
        ``crop``, ``channel``, ``scale`` and ``dtype_range`` of a `Source`.

    Raises
    ------
    InvalidInput, FileRefused
        If there is no such image, or it is damaged, unsafe or too large.
    """
    source = Source(path=str(path), key=key, **parts)
    root = existing(local_path(path))
    with refusing(root.name):
        return image_from_raw(open_level(root, key), source, root.name, limit)


def attributes(path: str | Path, key: str | None = None) -> dict[str, Any]:
    """Our own attributes of an image group: recipe, versions, figures.

    Raises
    ------
    InvalidInput, FileRefused
        If there is no such group or it cannot be read.
    """
    root = existing(local_path(path))
    with refusing(root.name):
        return dict(_attributes(_find(root, key)).get(ATTRIBUTE, {}))


def open_level(root: Path, key: str | None) -> Raw:
    """The finest level of one image, still on disk."""
    return open_pyramid(root, key)[0]


def images_in(root: Path) -> list[str | None]:
    """Keys of the images of a store: None for one that is the store itself.

    Raises
    ------
    FileRefused
        If it is no store.
    """
    with refusing(root.name):
        node = _root(root)
        if isinstance(node, zarr.Array) or _is_image(node):
            return [None]
        return [*sorted(name for name, group in node.groups() if _is_image(group))]


def open_pyramid(root: Path, key: str | None) -> tuple[Raw, list[zarr.Array]]:
    """The finest level of one image, and all levels of it, still on disk."""
    node = _find(root, key)
    if isinstance(node, zarr.Array):
        whole = _safe(node, root.name)
        return Raw(whole, notes=_missing_chunks(node, root.name)), [whole]
    every = _attributes(node)
    ome = every.get("ome", every)
    multiscale = ome["multiscales"][0]
    labels = "".join(_axis_letter(axis) for axis in multiscale.get("axes", "tczyx"))
    level = multiscale["datasets"][0]
    levels = [_level(root, node, dataset, labels) for dataset in multiscale["datasets"]]
    array = levels[0]
    own = every.get(ATTRIBUTE, {})
    raw = Raw(
        array,
        labels=labels,
        units=_units(multiscale.get("axes", [])),
        geometry=stored_geometry(own.get("geometry")),
        value_range=_pair(own.get("value_range")),
        notes=_missing_chunks(array, root.name),
        **_transform(labels, [multiscale, level]),
    )
    return raw, levels


def _level(root: Path, node: zarr.Group, dataset: Any, labels: str) -> zarr.Array:
    """One level, checked."""
    path = str(dataset["path"])
    inside(root, path, root.name)
    array = node[path]
    if not isinstance(array, zarr.Array) or array.ndim != len(labels):
        raise FileRefused(f"{root.name}: level {path!r} has not the axes {labels!r}")
    return _safe(array, root.name)


def _find(root: Path, key: str | None) -> zarr.Group | zarr.Array:
    """The array or the group with multiscales that is meant."""
    if key is not None:
        inside(root, key, root.name)
    node = _root(root)
    if isinstance(node, zarr.Array):
        return node
    if key is None and _is_image(node):
        return node
    known = sorted(name for name, _ in node.groups()) + sorted(name for name, _ in node.arrays())
    if key is None and len(known) == 1:
        key = known[0]
    if key is None:
        raise InvalidInput(f"{root.name}: give 'key', one of {', '.join(known[:20]) or 'none'}")
    if key not in node:
        raise InvalidInput(
            f"{root.name}: holds no {key!r}{nearest(key, known)} (known: {', '.join(known[:20])})"
        )
    found = node[key]
    if isinstance(found, zarr.Group) and not _is_image(found):
        raise FileRefused(f"{root.name}: the group {key!r} is no OME-Zarr image")
    return found


def _root(root: Path) -> zarr.Group | zarr.Array:
    """What a store holds; refused where it is none."""
    if not root.is_dir():
        raise FileRefused(f"{root.name}: no folder, so no OME-Zarr")
    if not any((root / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray")):
        raise FileRefused(f"{root.name}: a folder without zarr metadata, so no OME-Zarr")
    return zarr.open(ConfinedStore(root, read_only=True), mode="r")


def _is_image(group: zarr.Group) -> bool:
    every = _attributes(group)
    return bool(every.get("ome", every).get("multiscales"))


def _attributes(node: zarr.Group | zarr.Array) -> dict[str, Any]:
    return dict(node.attrs.asdict())


def _axis_letter(axis: Any) -> str:
    """T, C, Z, Y, X or Q (something else) for an axis of version 0.3 or later."""
    name = axis if isinstance(axis, str) else str(axis.get("name", "?"))
    kinds = {"time": "T", "channel": "C"}
    kind = None if isinstance(axis, str) else kinds.get(axis.get("type", ""))
    letter = name.upper() if name.lower() in "tczyx" else "Q"
    return kind or letter


def _units(axes: Any) -> dict[str, str]:
    return {
        _axis_letter(axis): str(axis["unit"])
        for axis in axes
        if isinstance(axis, Mapping) and axis.get("unit")
    }


def _transform(labels: str, holders: list[Any]) -> dict[str, Any]:
    """Scale and translation of a level by axis letter; the last ``holders`` act first."""
    scale, shift = np.ones(len(labels)), np.zeros(len(labels))
    for holder in reversed(holders):
        for step in holder.get("coordinateTransformations", []):
            if step["type"] == "scale":
                factor = np.asarray(step["scale"], float)
                scale, shift = scale * factor, shift * factor
            elif step["type"] == "translation":
                shift = shift + np.asarray(step["translation"], float)
    return {
        "scale": dict(zip(labels, scale.tolist(), strict=True)),
        "translate": dict(zip(labels, shift.tolist(), strict=True)),
    }


def _pair(data: Any) -> tuple[float, float] | None:
    return None if data is None else (float(data[0]), float(data[1]))


def stored_geometry(data: Any) -> Geometry | None:
    """The placement that we wrote; OME-Zarr itself knows no rotation."""
    if not isinstance(data, Mapping):
        return None
    known: dict[str, Any] = {
        name: tuple(kind(value) for value in data[name]) if data.get(name) is not None else None
        for name, kind in (
            ("scale", float),
            ("translate", float),
            ("units", str),
            ("axis_labels", str),
        )
    }
    for name in ("rotate", "shear", "affine"):
        known[name] = None if data.get(name) is None else np.asarray(data[name], float)
    return Geometry(**known)


def _safe(array: zarr.Array, name: str) -> zarr.Array:
    """Refuse codecs that are unknown or unsafe, objects, and chunks that cannot be meant."""
    metadata: Any = array.metadata.to_dict()
    if array.metadata.zarr_format == 2:
        codecs = [metadata.get("compressor"), *(metadata.get("filters") or [])]
    else:
        codecs = list(metadata["codecs"])
    for codec in _flat(codecs):
        kind = str(codec.get("name", codec.get("id"))).removeprefix("numcodecs.")
        if kind not in CODECS:
            raise FileRefused(f"{name}: codec {kind!r} is unknown or unsafe; save it with zstd")
    if array.dtype.kind not in "buifc":
        raise FileRefused(f"{name}: holds {array.dtype}, not samples")
    if min(array.chunks, default=1) < 1 or min(array.shape, default=0) < 1:
        raise FileRefused(f"{name}: shape {array.shape} in chunks of {array.chunks}")
    stored = array.shards or array.chunks
    within_limit(f"{name}, one chunk", math.prod(stored) * array.dtype.itemsize, None)
    return array


def _flat(codecs: list[Any]) -> list[Mapping[str, Any]]:
    """Every codec, those inside shards too."""
    found: list[Mapping[str, Any]] = []
    for codec in codecs:
        if codec is None:
            continue
        found.append(codec)
        settings = codec.get("configuration") or {}
        for nested in ("codecs", "index_codecs"):
            found += _flat(list(settings.get(nested, ())))
    return found


def _missing_chunks(array: zarr.Array, name: str) -> tuple[str, ...]:
    """A note when chunks are missing; they read as the fill value."""
    if array.nchunks > MAX_CHUNKS:
        raise FileRefused(f"{name}: {array.nchunks} chunks; at most {MAX_CHUNKS} are handled")
    missing = array.nchunks - array.nchunks_initialized if array.nchunks <= COUNTED else 0
    if missing <= 0:
        return ()
    return (f"{missing} of {array.nchunks} chunks are missing; read as {array.fill_value}",)


def plain(data: Any) -> Any:
    """Attributes as JSON holds them: arrays become lists, NaN and infinity become texts.

    Examples
    --------
    >>> plain({"psnr": np.float32(1.5), "bad": float("nan"), "shape": (1, 2)})
    {'psnr': 1.5, 'bad': 'nan', 'shape': [1, 2]}
    """
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, np.ndarray | np.generic):
        data = data.tolist()
    if isinstance(data, list | tuple | set):
        return [plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    try:
        json.dumps(data)
    except TypeError:
        return str(data)
    return data
