"""Packed data of a few kilobytes that unpack to far more, or only claim to."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from functools import cache

import numcodecs
import numpy as np

BOMB = 256 << 20
"""Bytes that a bomb unpacks to."""


def _run(length: int, last: bool = False) -> bytes:
    """A block of zstd that repeats one zero."""
    return struct.pack("<I", last | 2 | (length << 3))[:3] + b"\0"


@cache
def bombs() -> dict[str, bytes]:
    """Small chunks that unpack to `BOMB` zeros, by codec; some only claim to."""
    part = bytes(16 << 20)
    times, zeros = BOMB // len(part), np.zeros(BOMB, np.uint8)
    packer = zlib.compressobj(9)
    first = packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH)
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = raw.compress(part) + raw.flush(zlib.Z_FULL_FLUSH)
    gzipper = zlib.compressobj(9, zlib.DEFLATED, 31)
    made = {
        "zlib": first + block * (times - 1),
        "gzip": (gzipper.compress(part) + gzipper.flush()) * times,
        "bz2": bz2.compress(part) * times,
        "lzma": lzma.compress(part, preset=0) * times,
        "zstd": numcodecs.Zstd().encode(zeros),
        "lz4": numcodecs.LZ4().encode(zeros),
        "blosc": numcodecs.Blosc("zstd").encode(zeros),
        # Frames of unknown length: each block of four bytes stands for 128 KiB.
        "endless": b"\x28\xb5\x2f\xfd\x00\x58" + _run(1 << 17) * (BOMB >> 17) + _run(1, last=True),
        "claims lz4": struct.pack("<i", 2**31 - 1) + b"\0" * 40,
        "claims blosc": (
            b"\x02\x01\x21\x01" + struct.pack("<III", 2**31 - 17, 2**18, 40) + b"\0" * 24
        ),
        "claims zstd": b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**40) + b"\x01\0\0",
        "window": b"\x28\xb5\x2f\xfd\x00\xff" + b"\x01\0\0",
        "lzma dictionary": b"\x5d" + struct.pack("<I", 2**32 - 1) + b"\xff" * 8 + b"\0" * 16,
    }  # fmt: skip
    return {name: bytes(data) for name, data in made.items()}
