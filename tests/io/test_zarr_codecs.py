"""Chunks that unpack to more than they hold are refused before they are unpacked."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import json
import lzma
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype

from napari_invprior.errors import FileRefused
from napari_invprior.io.images import load
from napari_invprior.io.metadata import numbers, stored_geometry, told
from napari_invprior.io.omezarr_read import ConfinedStore
from napari_invprior.io.zarr_codecs import _budget, _zstd_size
from napari_invprior.sources import Source
from tests.faults.bombs import bombs

SAMPLES = (np.arange(64).reshape(8, 8) % 50).astype("u2")
LIMIT = 64 << 20


def stored(path: Path, codec: str, chunk: bytes, version: int = 2, **settings: object) -> Path:
    """An array of one chunk that holds these bytes."""
    path.mkdir()
    common = {"shape": [8, 8], "fill_value": 0, "zarr_format": version}
    if version == 2:
        told = {"chunks": [8, 8], "dtype": "<u2", "order": "C", "filters": None,
                "compressor": {"id": codec, **settings}}  # fmt: skip
        (path / ".zarray").write_text(json.dumps(common | told))
        (path / "0.0").write_bytes(chunk)
        return path
    name = codec if codec in ("gzip", "zstd") else f"numcodecs.{codec}"
    told = {
        "node_type": "array", "data_type": "uint16", "attributes": {},
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8, 8]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}},
                   {"name": name, "configuration": settings}],
    }  # fmt: skip
    (path / "zarr.json").write_text(json.dumps(common | told))
    (path / "c" / "0").mkdir(parents=True)
    (path / "c" / "0" / "0").write_bytes(chunk)
    return path


def frame(data: bytes, block: int = 40) -> bytes:
    """A zstd frame of unknown length, of blocks that are not packed."""
    parts = [data[i : i + block] for i in range(0, len(data), block)]
    blocks = [
        struct.pack("<I", (i == len(parts) - 1) | len(part) << 3)[:3] + part
        for i, part in enumerate(parts)
    ]
    return b"\x28\xb5\x2f\xfd\x00\x58" + b"".join(blocks)


RAW = SAMPLES.astype("<u2").tobytes()
WRITTEN = {
    "gzip": (gzip.compress(RAW), gzip.compress(RAW[:60]) + gzip.compress(RAW[60:]),
             gzip.compress(RAW) + b"\0" * 20),
    "zlib": (zlib.compress(RAW),),
    "bz2": (bz2.compress(RAW), bz2.compress(RAW[:9]) + bz2.compress(RAW[9:])),
    "lzma": (lzma.compress(RAW), lzma.compress(RAW[:9]) + lzma.compress(RAW[9:])),
    "zstd": (numcodecs.Zstd().encode(RAW), frame(RAW), frame(RAW[:50]) + frame(RAW[50:], 7)),
    "lz4": (numcodecs.LZ4().encode(RAW),),
    "blosc": (numcodecs.Blosc().encode(RAW), numcodecs.Blosc("zlib").encode(RAW)),
}  # fmt: skip


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("codec", "number"),
    [(codec, number) for codec, chunks in WRITTEN.items() for number in range(len(chunks))],
)
def test_what_other_programs_write_is_read(tmp_path, codec, number, version):
    path = stored(tmp_path / "x.zarr", codec, WRITTEN[codec][number], version)
    np.testing.assert_array_equal(load(Source(path=str(path))).array[0, 0], SAMPLES)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("bomb", list(bombs()))
def test_bombs_take_no_memory(tmp_path, bomb, version):
    codec = {"endless": "zstd", "window": "zstd", "lzma dictionary": "lzma"}.get(
        bomb, bomb.split()[-1]
    )
    settings = {"format": 2} if bomb == "lzma dictionary" else {}
    path = stored(tmp_path / "x.zarr", codec, bombs()[bomb], version, **settings)
    tracemalloc.start()
    with pytest.raises(FileRefused, match=r"x\.zarr.*chunk (unpacks to|cannot be unpacked)"):
        load(Source(path=str(path)), limit=LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("codec", ["gzip", "zlib", "bz2", "lzma", "zstd", "blosc", "lz4"])
@pytest.mark.parametrize("cut", [0, 1, 5, 20])
def test_truncated_chunks(tmp_path, codec, cut):
    path = stored(tmp_path / "x.zarr", codec, WRITTEN[codec][0][:cut])
    with pytest.raises(FileRefused, match=r"x\.zarr"):
        load(Source(path=str(path)))


@pytest.mark.parametrize("claimed", [2**31, 2**32 - 1, 15, 0, 17])
def test_blosc_reads_nothing_beyond_a_chunk(tmp_path, claimed):
    """The library is not told where a chunk ends: it would read on, and crash now and then."""
    chunk = WRITTEN["blosc"][0][:12] + struct.pack("<I", claimed)
    path = stored(tmp_path / "x.zarr", "blosc", chunk)
    with pytest.raises(FileRefused, match=f"it has 16 bytes and claims {claimed}"):
        load(Source(path=str(path)))


def test_a_chunk_a_little_too_long(tmp_path):
    path = stored(tmp_path / "x.zarr", "gzip", gzip.compress(bytes(128 + 4097)))
    with pytest.raises(FileRefused, match=r"a chunk unpacks to 4\.1 KiB or more"):
        load(Source(path=str(path)))


def test_sizes_of_zstd_frames():
    assert _zstd_size(memoryview(frame(RAW)), 4096) == len(RAW)
    assert _zstd_size(memoryview(frame(bytes(10_000), 5)), 4096) > 4096
    assert _zstd_size(memoryview(bombs()["window"]), 4096) > 2**30
    assert _zstd_size(memoryview(b""), 4096) == 0
    assert _zstd_size(memoryview(b"\x28\xb5\x2f\xfd"), 4096) == 0


def test_fewer_large_chunks_are_unpacked_at_once():
    assert _budget("x", 1000, LIMIT).turns._value == 16
    assert _budget("x", LIMIT // 8, LIMIT).turns._value == 4
    assert _budget("x", LIMIT, LIMIT).turns._value == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"filters": [{"id": "fixedscaleoffset", "dtype": "<f4", "astype": "|S9999",
                       "scale": 1, "offset": 0}]}, "makes '|S9999', not samples"),
        ({"filters": [{"id": "delta", "dtype": "what"}]}, "what"),
        ({"compressor": {"id": "lzma", "format": 3, "filters": [{"id": 33}]}}, "raw lzma"),
        ({"filters": [{"id": "shuffle", "elementsize": 2}] * 40}, "41 codecs; at most 16"),
        ({"chunks": [40_000, 40_000]}, "one chunk needs 3.0 GiB"),
        ({"shape": [9000, 9000], "chunks": [1, 1]}, "save it with larger chunks"),
        ({"dtype": "<U100000", "fill_value": ""}, "x.zarr"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(tmp_path, settings, words):
    path = stored(tmp_path / "x.zarr", "zlib", zlib.compress(RAW))
    held = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps(held | settings))
    with pytest.raises(FileRefused, match=words.replace("|", r"\|")):
        load(Source(path=str(path)), limit=LIMIT)


def test_shards_within_shards(tmp_path):
    inner = zarr.codecs.ShardingCodec(chunk_shape=(2, 2))
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=(8, 8), chunks=(4, 4), shards=(8, 8), dtype="u2",
        serializer=inner,
    )  # fmt: skip
    array[...] = SAMPLES
    with pytest.raises(FileRefused, match="one level of shards"):
        load(Source(path=str(tmp_path / "x.zarr")))


def test_a_shard_whose_index_points_beyond_it(tmp_path):
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=(8, 8), chunks=(4, 4), shards=(8, 8), dtype="u2"
    )
    array[...] = SAMPLES
    shard = tmp_path / "x.zarr" / "c" / "0" / "0"
    data = shard.read_bytes()
    index = struct.pack("<QQ", 0, 2**40) * 4
    shard.write_bytes(data[:-68] + bytes(numcodecs.CRC32C().encode(index)))
    with pytest.raises(FileRefused, match="it is truncated or damaged: save it anew"):
        load(Source(path=str(tmp_path / "x.zarr"), crop=[[0, 3], [0, 3]]))


# ---- the store


def get(store: ConfinedStore, key: str, **told: object) -> object:
    return asyncio.run(store.get(key, default_buffer_prototype(), **told))


def test_pipes_and_huge_files_in_a_store(tmp_path):
    store = ConfinedStore(tmp_path, read_only=True)
    os.mkfifo(tmp_path / "c")
    with pytest.raises(FileRefused, match="a pipe or device"):
        get(store, "c")
    (tmp_path / "d").touch()
    os.truncate(tmp_path / "d", 1 << 40)
    with pytest.raises(FileRefused, match=r"has 1\.0 TiB, the limit"):
        get(store, "d")
    with pytest.raises(FileRefused, match="it is truncated or damaged"):
        get(store, "d", byte_range=RangeByteRequest(0, 1 << 41))
    assert get(store, "missing") is None


def test_no_way_around_the_walls(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "in" / "link").symlink_to("../secret")
    store = ConfinedStore(tmp_path / "in", read_only=True)
    for key in ("../secret", "link"):
        ways = (
            lambda key=key: get(store, key),
            lambda key=key: store.get_sync(key),
            lambda key=key: asyncio.run(
                store.get_partial_values(default_buffer_prototype(), [(key, None)])
            ),
        )
        for way in ways:
            with pytest.raises(FileRefused, match="leads out of it"):
                way()


# ---- metadata


def test_entries_of_metadata():
    with pytest.raises(FileRefused, match="x: 'path' in its metadata is 3, where a text is needed"):
        told({"path": 3}, "path", str, "x")
    with pytest.raises(FileRefused, match="missing"):
        told({}, "path", str, "x")
    for value in ([1], [1, "2"], [1, None], [1, True], "12", None, [1, 10**400], {}):
        with pytest.raises(FileRefused, match="2 numbers are needed"):
            numbers(value, 2, "scale", "x")


GOOD = {"scale": [1, 2.0], "translate": [0, 0], "units": ["m", "m"], "rotate": [[1, 0], [0, 1]],
        "shear": [0.5], "affine": None}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"scale": None}, {"scale": [1]}, {"scale": 3}, {"translate": [1, "x"]}, {"units": ["m"]},
        {"units": [1, 2]}, {"rotate": [[1]]}, {"rotate": [[1, 0]]}, {"rotate": "x"},
        {"shear": [1, 2]}, {"shear": [[1, 2]]}, {"affine": [[1, 0], [0, 1]]}, {"axis_labels": "yx"},
    ],
)  # fmt: skip
def test_placements_that_do_not_fit(change):
    good = stored_geometry(GOOD, "x")
    assert good is not None and good.scale == (1.0, 2.0)
    assert stored_geometry(GOOD | {"shear": [[1, 0.5], [0, 1]]}, "x") is not None
    with pytest.raises(FileRefused, match=r"x: .* in its metadata"):
        stored_geometry(GOOD | change, "x")
