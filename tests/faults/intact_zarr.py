"""Intact zarr stores that mutations start from: both formats, all codecs, OME-Zarr, shards."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from napari_invprior.geometry import Geometry
from napari_invprior.io.omezarr import write_image
from tests.faults.mutations import Tree, emptied, files_below

SECRET = 77
"""What fills the arrays beside the store; nobody may ever read it through the store."""


def _image(*shape: int, dtype: str = "u2") -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) % 70).astype(dtype)


def templates(folder: Path) -> list[Tree]:
    """Intact stores, each with another layout or codec."""
    trees = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, make in enumerate((*_version_3(), *_version_2(), _ome_4, _own)):
            place = emptied(folder / f"template{number}")
            make(place / "store.zarr")
            trees.append(files_below(place / "store.zarr"))
    outside = emptied(folder / "outside")
    zarr.save_array(str(outside / "array.zarr"), np.full((16, 16), SECRET, "u1"), zarr_format=2)
    zarr.save_array(str(outside / "array3.zarr"), np.full((16, 16), SECRET, "u1"), zarr_format=3)
    np.save(outside / "x.npy", np.full((16, 16), SECRET, "u1"))
    raw = np.full((8, 8), SECRET, "<u2")
    (outside / "chunk.None").write_bytes(raw.tobytes())
    for codec in ("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"):
        packed = numcodecs.get_codec({"id": codec}).encode(raw)
        (outside / f"chunk.{codec}").write_bytes(bytes(packed))
    return trees


def _version_3() -> list[Any]:
    from zarr.codecs import numcodecs as old

    stacks: list[dict[str, Any]] = [
        {"compressors": ZstdCodec()},
        {"compressors": GzipCodec()},
        {"compressors": [BloscCodec(cname="lz4"), Crc32cCodec()]},
        {"compressors": None, "serializer": BytesCodec(endian="big")},
        {"filters": TransposeCodec(order=(1, 0)), "compressors": BloscCodec(cname="zstd")},
        {"shards": (16, 16), "compressors": [BloscCodec(), Crc32cCodec()]},
        {"shards": (32, 16), "compressors": ZstdCodec(), "fill_value": 3},
        {"compressors": old.Zlib(level=1)},
        {"compressors": old.LZ4()},
        {"compressors": [old.BZ2(), old.Fletcher32()]},
        {"compressors": old.LZMA(preset=0)},
        {"filters": [old.Delta(dtype="<u2")], "compressors": old.Zstd()},
        {"filters": [old.FixedScaleOffset(offset=0, scale=1, dtype="<u2", astype="<u2")]},
    ]

    def maker(settings: dict[str, Any]) -> Any:
        def make(place: Path) -> None:
            array = zarr.create_array(
                place, shape=(30, 20), chunks=(8, 8), dtype="u2", zarr_format=3, **settings
            )
            array[...] = _image(30, 20)

        return make

    return [maker(settings) for settings in stacks]


def _version_2() -> list[Any]:
    from numcodecs import (
        BZ2,
        LZ4,
        LZMA,
        Blosc,
        Delta,
        FixedScaleOffset,
        GZip,
        Quantize,
        Shuffle,
        Zlib,
        Zstd,
    )

    stacks: list[dict[str, Any]] = [
        {"compressor": Blosc("lz4")},
        {"compressor": Zlib(), "filters": [Delta("<u2")]},
        {"compressor": GZip(), "filters": [Shuffle(2)]},
        {"compressor": Zstd(), "order": "F"},
        {"compressor": LZ4()},
        {"compressor": BZ2(), "filters": [FixedScaleOffset(0, 1, "<u2", "<u2")]},
        {"compressor": LZMA()},
        {"compressor": None, "dtype": ">f4"},
        {"compressor": Blosc("zlib"), "filters": [Quantize(2, "<f4")], "dtype": "<f4"},
    ]

    def maker(settings: dict[str, Any]) -> Any:
        def make(place: Path) -> None:
            dtype = settings.get("dtype", "<u2")
            array = zarr.open_array(
                str(place), mode="w", shape=(30, 20), chunks=(8, 8), zarr_format=2,
                **{**settings, "dtype": dtype},
            )  # fmt: skip
            array[...] = _image(30, 20, dtype=dtype)

        return make

    return [maker(settings) for settings in stacks]


def _ome_4(place: Path) -> None:
    """OME-Zarr 0.4 with two levels, labels beside them and consolidated metadata."""
    group = zarr.open_group(str(place), mode="w", zarr_format=2)
    for level, edge in enumerate((24, 12)):
        array = group.create_array(
            str(level), shape=(2, 1, edge, edge), chunks=(1, 1, 8, 8), dtype="u1"
        )
        array[...] = _image(2, 1, edge, edge, dtype="u1")
    kinds = {"t": "time", "c": "channel", "y": "space", "x": "space"}
    axes = [{"name": name, "type": kind} for name, kind in kinds.items()]
    axes[2]["unit"] = axes[3]["unit"] = "micrometer"
    datasets = [
        {"path": str(level), "coordinateTransformations": [
            {"type": "scale", "scale": [1, 1, 0.5 * 2**level, 0.5 * 2**level]},
            {"type": "translation", "translation": [0, 0, 3, 4]},
        ]}
        for level in range(2)
    ]  # fmt: skip
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    zarr.consolidate_metadata(str(place))


def _own(place: Path) -> None:
    """Our own results, OME-Zarr 0.5: two images in one store."""
    geometry = Geometry((0.5, 0.25), (1.0, 2.0), ("micrometer",) * 2, ("y", "x"), np.eye(2))
    facts = {"recipe": {"version": 1}, "figures": {"psnr": 20.5}}
    write_image(place / "one", _image(24, 30, dtype="f4"), geometry, attributes=facts)
    write_image(
        place / "two", _image(3, 24, 30, dtype="u1"), geometry, channels=["a", "b", "c"],
        value_range=(0.0, 255.0),
    )  # fmt: skip
