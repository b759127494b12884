"""Reader of OME-Zarr 0.4 and 0.5 (zarr 3).

Nothing outside the store is read, whatever its metadata or its links say, and only codecs that
cannot run code are used.
"""

from __future__ import annotations

import errno
import json
import math
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from napari_invprior.errors import FileRefused, InvalidInput, nearest
from napari_invprior.image import Image
from napari_invprior.io.files import (
    existing,
    inside,
    local_path,
    memory_limit,
    readable,
    refusing,
)
from napari_invprior.io.metadata import numbers, stored_geometry, told
from napari_invprior.io.raw import Raw, image_from_raw
from napari_invprior.io.zarr_codecs import bounded, check_codecs
from napari_invprior.sources import Source

ATTRIBUTE = "napari_invprior"
"""Key of our own attributes beside ``ome``."""

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
MAX_METADATA = 8 << 20
MAX_CHUNKS = 1_000_000
COUNTED = 100_000
"""Bytes of one metadata file; chunks of one array; chunks up to which missing ones are counted."""

SMALL_CHUNK, SMALL_CHUNKS = 4096, 20_000
"""Bytes below which a chunk is small, and how many such chunks are handled: each takes 0.1 ms."""

MAX_LEVELS = 32

LEAST_CHUNK = 32 << 20
"""Bytes that a chunk may take however small the part is that is asked for."""


class ConfinedStore(LocalStore):
    """A folder whose links do not lead out of it, with bounded files and without pipes."""

    largest = MAX_METADATA
    """Bytes that are read at once."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self._check(key, byte_range)
        return self._there(await super().get(key, prototype, byte_range))

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        wanted = list(key_ranges)
        for key, byte_range in wanted:
            self._check(key, byte_range)
        return [self._there(b) for b in await super().get_partial_values(prototype, wanted)]

    def get_sync(self, key: str, **told: Any) -> Buffer | None:
        self._check(key, told.get("byte_range"))
        return self._there(super().get_sync(key, **told))

    def _there(self, found: Buffer | None) -> Buffer | None:
        """What was read; a chunk that is missing is none where its drive is gone."""
        if found is None and not self.root.is_dir():
            raise OSError(errno.ESTALE, "the folder is gone", str(self.root))
        return found

    def _check(self, key: str, byte_range: ByteRequest | None) -> None:
        """Refuse what lies outside, is no file, or is larger than anything that belongs here."""
        name = f"{self.root.name}/{key[-80:]}"
        path = inside(self.root, key, self.root.name)
        try:
            found = path.stat()
        except OSError:  # a chunk may be missing
            return
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise FileRefused(f"{name}: a pipe or device, not a file; nothing is read from it")
        size = found.st_size
        if isinstance(byte_range, RangeByteRequest):
            if byte_range.end > size:
                raise FileRefused(
                    f"{name}: samples {readable(byte_range.end)} from its start are named, but it "
                    f"has {readable(size)}; it is truncated or damaged: save it anew"
                )
            size = byte_range.end - byte_range.start
        elif isinstance(byte_range, OffsetByteRequest):
            size -= byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            size = min(size, byte_range.suffix)
        most = MAX_METADATA if path.name in METADATA else self.largest
        if size > most:
            raise FileRefused(
                f"{name}: has {readable(size)}, the limit for it is {readable(most)}; it is "
                "damaged: save it anew"
            )


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
        return image_from_raw(open_level(root, key, limit), source, root.name, limit)


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


def open_level(root: Path, key: str | None, limit: int | None = None) -> Raw:
    """The finest level of one image, still on disk; chunks beyond ``limit`` bytes are refused."""
    return open_pyramid(root, key, limit, finest=True)[0]


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
        found: list[str | None] = []
        for name in _members(root):
            member = node[name]
            if isinstance(member, zarr.Group) and _is_image(member):
                found.append(name)
        return found


def open_pyramid(
    root: Path, key: str | None, limit: int | None = None, *, finest: bool = False
) -> tuple[Raw, list[zarr.Array]]:
    """The finest level of one image, and all levels (or that one alone), still on disk."""
    name = root.name
    node = _find(root, key)
    if isinstance(node, zarr.Array):
        whole = _safe(node, name, limit)
        return Raw(whole, notes=_missing_chunks(node)), [whole]
    every = _attributes(node)
    multiscale = _multiscales(every, name)[0]
    axes = told(multiscale, "axes", (list, str), name, "tczyx")
    labels = "".join(_axis_letter(axis, name) for axis in axes)
    listed = told(multiscale, "datasets", list, name)
    level = told({"dataset": listed[0] if listed else None}, "dataset", Mapping, name)
    levels = [
        _level(root, node, told({"dataset": one}, "dataset", Mapping, name), labels, limit)
        for one in (listed[:1] if finest else listed[:MAX_LEVELS])
    ]
    own = told(every, ATTRIBUTE, Mapping, name, {})
    value_range = own.get("value_range")
    raw = Raw(
        levels[0],
        labels=labels,
        units=_units(axes, name),
        geometry=stored_geometry(own.get("geometry"), name),
        value_range=None if value_range is None else numbers(value_range, 2, "value_range", name),
        notes=_missing_chunks(levels[0]),
        **_transform(labels, [multiscale, level], name),
    )
    return raw, levels


def _level(
    root: Path, node: zarr.Group, dataset: Any, labels: str, limit: int | None
) -> zarr.Array:
    """One level, checked."""
    name = root.name
    place = told(dataset, "path", str, name)
    inside(root, place, name)
    array = node[place]
    if not isinstance(array, zarr.Array) or array.ndim != len(labels):
        raise FileRefused(f"{name}: level {place!r:.80} has not the axes {labels[:20]!r}")
    return _safe(array, name, limit)


def _find(root: Path, key: str | None) -> zarr.Group | zarr.Array:
    """The array or the group with multiscales that is meant."""
    if key is not None:
        inside(root, key, root.name)
    node = _root(root)
    if isinstance(node, zarr.Array):
        return node
    if key is None and _is_image(node):
        return node
    known = _members(root)
    if key is None and len(known) == 1:
        key = known[0]
    if key is None:
        raise InvalidInput(f"{root.name}: give 'key', one of {', '.join(known[:20]) or 'none'}")
    if key not in node:
        raise InvalidInput(
            f"{root.name}: holds no {key!r:.80}{nearest(key, known[:1000])} "
            f"(known: {', '.join(known[:20])})"
        )
    found = node[key]
    if isinstance(found, zarr.Group) and not _is_image(found):
        raise FileRefused(f"{root.name}: the group {key!r} is no OME-Zarr image")
    return found


def is_store(root: Path) -> bool:
    """Whether a folder has metadata of zarr."""
    return any((root / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))


def _root(root: Path) -> zarr.Group | zarr.Array:
    """What a store holds; refused where it is none."""
    if not root.is_dir():
        raise FileRefused(f"{root.name}: no folder, so no OME-Zarr")
    if not is_store(root):
        raise FileRefused(f"{root.name}: a folder without zarr metadata, so no OME-Zarr")
    return zarr.open(ConfinedStore(root, read_only=True), mode="r")


def _members(root: Path) -> list[str]:
    """Groups and arrays right below the root, without opening them: there may be very many."""
    return sorted(
        entry.name for entry in root.iterdir()
        if any((entry / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))
    )  # fmt: skip


def _is_image(group: zarr.Group) -> bool:
    return bool(_multiscales(_attributes(group), group.store_path.path))


def _multiscales(every: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The images that a group describes."""
    ome = told(every, "ome", Mapping, name, every)
    found = told(ome, "multiscales", list, name, [])
    return [told({"multiscale": image}, "multiscale", Mapping, name) for image in found]


def _attributes(node: zarr.Group | zarr.Array) -> dict[str, Any]:
    return dict(node.attrs.asdict())


def _axis_letter(axis: Any, name: str) -> str:
    """T, C, Z, Y, X or Q (something else) for an axis of version 0.3 or later."""
    if isinstance(axis, str):
        axis = {"name": axis}
    axis = told({"axis": axis}, "axis", Mapping, name)
    kinds = {"time": "T", "channel": "C"}
    title = told(axis, "name", str, name, "?")
    letter = title.upper() if title.lower() in tuple("tczyx") else "Q"
    return kinds.get(told(axis, "type", (str, type(None)), name, None), letter)


def _units(axes: Any, name: str) -> dict[str, str]:
    return {
        _axis_letter(axis, name): told(axis, "unit", str, name)
        for axis in axes
        if isinstance(axis, Mapping) and axis.get("unit")
    }


def _transform(labels: str, holders: list[Any], name: str) -> dict[str, Any]:
    """Scale and translation of a level by axis letter; the last ``holders`` act first."""
    scale, shift = np.ones(len(labels)), np.zeros(len(labels))
    for holder in reversed(holders):
        for step in told(holder, "coordinateTransformations", list, name, []):
            kind = told({"step": step}, "step", Mapping, name).get("type")
            if kind in ("scale", "translation"):
                values = np.array(numbers(step.get(kind), len(labels), kind, name))
                if kind == "scale":
                    scale, shift = scale * values, shift * values
                else:
                    shift = shift + values
    return {
        "scale": dict(zip(labels, scale.tolist(), strict=True)),
        "translate": dict(zip(labels, shift.tolist(), strict=True)),
    }


def _safe(array: zarr.Array, name: str, limit: int | None) -> zarr.Array:
    """The array with bounded codecs; refuses unsafe ones, objects, and chunks that lie."""
    check_codecs(array, name)
    if array.dtype.kind not in "buifc":
        raise FileRefused(f"{name}: holds {str(array.dtype)[:80]}, not samples")
    shape, chunks = tuple(array.shape), tuple(array.chunks)
    if min(chunks, default=0) < 1 or min(shape, default=0) < 1:
        raise FileRefused(f"{name}: shape {_shown(shape)} in chunks of {_shown(chunks)}")
    count = math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))
    each = math.prod(chunks) * array.dtype.itemsize
    if count > MAX_CHUNKS or (count > SMALL_CHUNKS and each < SMALL_CHUNK):
        raise FileRefused(
            f"{name}: {count} chunks of {readable(each)}; at most {MAX_CHUNKS}, or {SMALL_CHUNKS} "
            f"of less than {readable(SMALL_CHUNK)}, are handled: save it with larger chunks"
        )
    limit = memory_limit() if limit is None else max(limit, LEAST_CHUNK)
    stored = math.prod(array.shards or chunks) * array.dtype.itemsize
    if stored > limit or stored > MAX_CHUNKS * each:
        raise FileRefused(
            f"{name}: one chunk needs {readable(stored)}, the limit is {readable(limit)} and "
            f"{MAX_CHUNKS} chunks in a shard; save it with smaller chunks"
        )
    store: Any = array.store
    # Packing makes noise a little longer, and a shard has an index of its chunks.
    store.largest = max(store.largest, MAX_METADATA + 2 * stored)
    return bounded(array, name, limit)


def _shown(shape: tuple[int, ...]) -> str:
    return str(shape) if len(str(shape)) <= 80 else f"{str(shape)[:77]}..."


def _missing_chunks(array: zarr.Array) -> tuple[str, ...]:
    """A note when chunks are missing; they read as the fill value."""
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
