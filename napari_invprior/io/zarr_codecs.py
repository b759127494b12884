"""Codecs of zarr arrays: which ones are used, and how much they may unpack.

A chunk of a few bytes can claim to be gigabytes, and libraries believe it. Here every unpacking
codec is replaced by one that looks first: nothing that is larger than a chunk is unpacked.
"""

from __future__ import annotations

import asyncio
import bz2
import lzma
import math
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numcodecs
import numpy as np
import zarr
from numcodecs import blosc, lz4, zstd
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.codecs import ShardingCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer

from napari_invprior.errors import FileRefused
from napari_invprior.io.files import readable

CODECS = {
    "adler32", "bitround", "blosc", "bytes", "bz2", "crc32", "crc32c", "delta",
    "fixedscaleoffset", "fletcher32", "gzip", "lz4", "lzma", "quantize", "sharding_indexed",
    "shuffle", "transpose", "zlib", "zstd",
}  # fmt: skip
"""Codecs that are used; others are unknown, or run code (pickle)."""

MAX_CODECS = 16

SLACK = 4096
"""Bytes by which an unpacked chunk may exceed its samples (checksums)."""

WINDOW = 8 << 20
"""Largest window of a zstd stream that is nothing out of the ordinary."""

BLOCK = 128 << 10
"""Largest block of zstd."""


def check_codecs(array: zarr.Array, name: str) -> None:
    """Refuse codecs that are unknown, unsafe, or make samples of another kind.

    Raises
    ------
    FileRefused
        Names the codec.
    """
    metadata: Any = array.metadata.to_dict()
    if array.metadata.zarr_format == 2:
        codecs = [metadata.get("compressor"), *(metadata.get("filters") or [])]
    else:
        codecs = list(metadata["codecs"])
    every = _flat(codecs)
    for codec in every:
        kind = _kind(codec)
        if kind not in CODECS:
            raise FileRefused(
                f"{name}: codec {kind[:40]!r} is unknown or unsafe; save it with zstd"
            )
        _check_settings(codec, kind, name)
    if len(every) > MAX_CODECS or sum(_kind(c) == "sharding_indexed" for c in every) > 1:
        raise FileRefused(
            f"{name}: {len(every)} codecs; at most {MAX_CODECS}, and one level of shards, are "
            "used: save it with zstd"
        )


def _kind(codec: Mapping[str, Any]) -> str:
    return str(codec.get("name", codec.get("id"))).removeprefix("numcodecs.")


def _flat(codecs: list[Any]) -> list[Mapping[str, Any]]:
    """Every codec, those inside shards too."""
    found: list[Mapping[str, Any]] = []
    for codec in codecs:
        if codec is None:
            continue
        found.append(codec)
        for nested in ("codecs", "index_codecs"):
            found += _flat(list(_settings(codec).get(nested, ())))
    return found


def _settings(codec: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is set of a codec: beside its name (zarr 2) or below it (zarr 3)."""
    return codec.get("configuration") or (codec if "id" in codec else {})


def _check_settings(codec: Mapping[str, Any], kind: str, name: str) -> None:
    """Refuse types that are no samples, and streams without a header that bounds their memory."""
    settings = _settings(codec)
    for key in ("dtype", "astype"):
        if settings.get(key) is None:
            continue
        try:
            made = np.dtype(settings[key]).kind
        except (TypeError, ValueError):
            made = "?"
        if made not in "buifc":
            raise FileRefused(f"{name}: codec {kind!r} makes {settings[key]!r:.40}, not samples")
    if kind == "lzma" and (settings.get("format", 1) not in (0, 1, 2) or settings.get("filters")):
        raise FileRefused(f"{name}: raw lzma without a header is not read; save it with zstd")


def bounded(array: zarr.Array, name: str, limit: int) -> zarr.Array:
    """The array with codecs that unpack no more than its chunks hold.

    Parameters
    ----------
    array : zarr.Array
        Its codecs passed `check_codecs`.
    name : str
        For messages.
    limit : int
        Bytes that chunks in work may take; how many are unpacked at once follows from it.
    """
    sizes = [np.dtype(array.dtype).itemsize]
    metadata: Any = array.metadata
    stored: Any = metadata.to_dict()
    for codec in _flat(list(stored.get("codecs") or stored.get("filters") or [])):
        sizes += [np.dtype(_settings(codec)[k]).itemsize for k in ("dtype", "astype")
                  if _settings(codec).get(k) is not None]  # fmt: skip
    item = max(sizes)
    chunk = _budget(name, math.prod(array.chunks) * item, limit)
    if metadata.zarr_format == 2:
        packed = metadata.compressor
        settings = None if packed is None else packed.get_config()
        if settings is not None and settings["id"] in _UNPACK:
            packed = _Bounded2(settings, chunk)
        filters = metadata.filters and tuple(
            _Bounded2(f.get_config(), chunk) if f.codec_id in _UNPACK else f
            for f in metadata.filters
        )
        changed = replace(metadata, compressor=packed, filters=filters or None)
    else:
        shards = array.shards
        count = 1 if shards is None else math.prod(shards) // math.prod(array.chunks)
        # A shard holds its chunks, packed badly at worst, and an index of 16 bytes for each.
        whole = (
            chunk if shards is None
            else _budget(name, math.prod(shards) * item + count * (SLACK + 16), limit)
        )  # fmt: skip
        changed = replace(
            metadata, codecs=tuple(_bounded3(c, chunk, whole) for c in metadata.codecs)
        )
    return zarr.Array(zarr.AsyncArray(changed, array.store_path))


@dataclass(frozen=True)
class _Budget:
    """What one chunk may unpack to, and how many are unpacked at the same time."""

    name: str
    most: int
    memory: int
    turns: threading.Semaphore

    def check(self, claimed: int) -> None:
        if claimed > self.most:
            raise FileRefused(
                f"{self.name}: a chunk unpacks to {readable(claimed)} or more, but its samples "
                f"take {readable(self.most)} at most; the file is damaged: save it anew"
            )

    def damage(self, reason: str) -> FileRefused:
        return FileRefused(f"{self.name}: a chunk cannot be unpacked ({reason}); save it anew")


def _budget(name: str, size: int, limit: int) -> _Budget:
    together = min(max(1, limit // max(1, 2 * size)), 16)
    memory = max(limit // 4, 16 << 20)
    return _Budget(name, size + SLACK, memory, threading.Semaphore(together))


def _bounded3(codec: Codec, chunk: _Budget, outer: _Budget) -> Codec:
    """One codec of format 3; those inside a shard unpack chunks, those around it shards."""
    if isinstance(codec, ShardingCodec):
        inner = tuple(_bounded3(c, chunk, chunk) for c in codec.codecs)
        return replace(codec, codecs=inner)
    described = codec.to_dict()
    if _kind(described) in _UNPACK and isinstance(codec, BytesBytesCodec):
        return _Bounded3(described, outer)
    return codec


class _Bounded3(BytesBytesCodec):
    """An unpacking codec of format 3."""

    is_fixed_size = False

    def __init__(self, described: Mapping[str, Any], budget: _Budget) -> None:
        self.described, self.budget = dict(described), budget

    def to_dict(self) -> dict[str, Any]:
        return self.described

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        held: Any = np.ascontiguousarray(chunk_bytes.as_numpy_array())
        data = memoryview(held).cast("B")
        made = _unpacked(_kind(self.described), _settings(self.described), data, self.budget)
        return chunk_spec.prototype.buffer.from_bytes(made)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError


class _Bounded2(numcodecs.abc.Codec):  # type: ignore[misc]
    """An unpacking codec of format 2."""

    codec_id: ClassVar[str] = "bounded"

    def __init__(self, settings: Mapping[str, Any], budget: _Budget) -> None:
        self.settings, self.budget = dict(settings), budget

    def get_config(self) -> dict[str, Any]:
        return self.settings

    def encode(self, buf: Any) -> Any:
        raise NotImplementedError

    def decode(self, buf: Any, out: Any = None) -> Any:
        data = memoryview(numcodecs.compat.ensure_contiguous_ndarray(buf)).cast("B")
        made = _unpacked(str(self.settings["id"]), self.settings, data, self.budget)
        return numcodecs.compat.ndarray_copy(made, out)


def _unpacked(
    kind: str, settings: Mapping[str, Any], data: memoryview, budget: _Budget
) -> bytes:
    """The bytes of a chunk, refused before more of them are made than it can hold."""
    with budget.turns:
        return _UNPACK[kind](data, budget, settings)


def _claiming(
    claimed: Callable[[memoryview, int], int], unpack: Callable[[Any], bytes]
) -> Callable[..., bytes]:
    """For codecs whose header says how large the result will be."""

    def unpacked(data: memoryview, budget: _Budget, settings: Mapping[str, Any]) -> bytes:
        del settings
        try:
            size = claimed(data, budget.most)
        except ValueError as error:
            raise budget.damage(str(error)) from error
        budget.check(size)
        return unpack(data)

    return unpacked


def _streaming(new: Callable[[int, int], Any]) -> Callable[..., bytes]:
    """For codecs that do not know: unpacked to one byte more than may be, and no further."""

    def unpacked(data: memoryview, budget: _Budget, settings: Mapping[str, Any]) -> bytes:
        parts: list[bytes] = []
        rest: Any = data
        size = 0
        while rest:
            stream = new(settings.get("format", 1), budget.memory)
            try:
                parts.append(stream.decompress(rest, budget.most + 1 - size))
            except (zlib.error, lzma.LZMAError, OSError) as error:
                raise budget.damage(str(error)) from error
            size += len(parts[-1])
            budget.check(size)
            if not stream.eof:
                raise budget.damage("truncated")
            rest = stream.unused_data.lstrip(b"\0")  # padding, as gzip and xz allow it
        return parts[0] if len(parts) == 1 else b"".join(parts)

    return unpacked


def _number(data: memoryview, start: int, length: int = 4) -> int:
    return int.from_bytes(data[start : start + length], "little")


def _blosc_size(data: memoryview, most: int) -> int:
    """What blosc unpacks to; refuses chunks that are cut, beyond which the library would read."""
    del most
    claimed = _number(data, 12)
    if len(data) < 16 or not 16 <= claimed <= len(data):
        raise ValueError(f"it has {len(data)} bytes and claims {claimed}")
    return _number(data, 4)


def _zstd_size(data: memoryview, most: int) -> int:
    """Upper bound of what zstd frames unpack to.

    Examples
    --------
    >>> _zstd_size(memoryview(zstd.compress(bytes(1000))), 1000)
    1000
    """
    total, blocks, place = 0, 0, 0
    while place + 6 <= len(data) and _number(data, place) == 0xFD2FB528:
        described = data[place + 4]
        single, kind = described >> 5 & 1, described >> 6
        length = (single, 2, 4, 8)[kind]
        start = place + 5 + (1 - single) + (0, 1, 2, 4)[described & 3]
        told = _number(data, start, length) + 256 * (kind == 1)
        if length and place == 0:  # the library makes room for this much, and for no more
            return told
        eighths = data[place + 5]
        window = told if single else (1 << 10 + (eighths >> 3)) * (8 + (eighths & 7)) // 8
        if window > max(WINDOW, most):
            return window
        place, last = start + length, False
        while not last and place + 3 <= len(data):
            header = _number(data, place, 3)
            last, form, size = bool(header & 1), header >> 1 & 3, header >> 3
            total += min(window, BLOCK) if form == 2 else size
            place += 3 + (1 if form == 1 else size)
            blocks += 1
            if total > most + BLOCK or 64 * blocks > most + (64 << 10):
                return total + 64 * blocks
        place += 4 * (described >> 2 & 1)
    # A packed block may hold less than it could: the last one is not counted in full.
    return min(total, most)


_UNPACK: dict[str, Callable[..., bytes]] = {
    "blosc": _claiming(_blosc_size, blosc.decompress),
    "lz4": _claiming(lambda data, _: _number(data, 0), lz4.decompress),
    "zstd": _claiming(_zstd_size, zstd.decompress),
    "gzip": _streaming(lambda *_: zlib.decompressobj(31)),
    "zlib": _streaming(lambda *_: zlib.decompressobj(15)),
    "bz2": _streaming(lambda *_: bz2.BZ2Decompressor()),
    "lzma": _streaming(lzma.LZMADecompressor),
}
