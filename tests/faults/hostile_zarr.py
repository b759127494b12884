"""Shapes, chunks, types, fill values and codecs that zarr metadata may name, and should not."""

from __future__ import annotations

from typing import Any

SHAPES = (
    [10**12, 10**12], [0, 8], [8, 0], [-1, 8], [60_000, 60_000], [8000, 8000], [1] * 33, [], [1],
    [2**31, 2**31], [2**63, 1], [30], [30, 20, 1], [1, 1], [1, 10**9], [10**6, 60], [1.5, 8],
    [10**7, 1], [1, 2**40], ["30", "20"], [True, 20], [None, 20], [30, 20, 3],
    [10**5, 10**5, 10**5],
)  # fmt: skip
CHUNKS = (
    [0, 8], [8, 0], [-8, 8], [1, 1], [10**9, 10**9], [2**31, 1], [2**63, 2**63], [8], [8, 8, 8], [],
    [30_000, 30_000], [8000, 8000], [100_000, 1000], [1.5, 8], ["8", "8"], [True, 8], [7, 5],
    [2**20, 2**20], [1, 10**8],
)  # fmt: skip
TYPES = (
    "|O", "<U1000000000", "|S2147483647", "|V1000000000", "<M8[ns]", "<m8[D]", "<c16", "|b1", "<f2",
    "<f16", "<u16", ">i8", "|u1", "<U0", "|S0", "xyz", "<u3", [["a", "<u2"]],
    [["a", "<u2", [9999] * 3]],
    [["", "|u1"]], "i", "object", "bool", "int8", "uint64", "float16", "float64", "complex64",
    "string",
    "variable_length_bytes", "r16", "r80000000000", "bytes", "uint2",
    {"name": "numpy.datetime64", "configuration": {"unit": "s", "scale_factor": 2**31}},
    {"name": "fixed_length_utf32", "configuration": {"length_bytes": 4 * 10**9}},
    {"name": "null_terminated_bytes", "configuration": {"length_bytes": 2**40}},
    {"name": "raw_bytes", "configuration": {"length_bytes": 2**31}},
    {"name": "structured", "configuration": {"fields": [["a", "uint8"]] * 3000}},
)  # fmt: skip
FILLS = (
    0, -1, 2**64, 10**400, 1e30, "NaN", "Infinity", "-Infinity", "0x7fc00000", "", "a" * 10**6,
    None,
    [], [0, 0], {}, True, "AAAA", [1] * 10**5, "0b" + "1" * 10**5, 1.5,
)  # fmt: skip

OTHER_CODECS = (
    "pickle", "json2", "msgpack2", "vlen-utf8", "vlen-bytes", "vlen-array", "categorize", "zfpy",
    "pcodec", "astype", "packbits", "base64", "delta", "fixedscaleoffset", "quantize", "shuffle",
    "bitround", "blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma", "crc32", "adler32",
    "fletcher32", "jenkins_lookup3", "crc32c", "n5_wrapper", "imagecodecs_jpeg2k", "x", "", None, 7,
    "transpose", "bytes", "sharding_indexed", "vlen-utf8", "scale_offset", "cast_value",
)  # fmt: skip
SETTINGS: tuple[tuple[str, Any], ...] = (
    ("level", 10**6), ("level", -5), ("level", "9"), ("dtype", "<u2"), ("dtype", "|S100000"),
    ("dtype", "<U100000"), ("dtype", "|O"), ("astype", "|S100000"), ("astype", "|V200000"),
    ("astype", "<f8"), ("encode_dtype", "<u2"), ("decode_dtype", "|S100000"), ("elementsize", 0),
    ("elementsize", 2**31), ("elementsize", -1), ("scale", 0), ("scale", 1e308), ("offset", "x"),
    ("digits", 10**9), ("keepbits", -1), ("format", 3), ("format", 2),
    ("filters", [{"id": 33, "dict_size": 2**32 - 1}]),
    ("preset", 9), ("cname", "x"), ("cname", "snappy"), ("shuffle", 99), ("blocksize", 2**31 - 1),
    ("typesize", 0), ("typesize", 2**31), ("clevel", 99), ("order", [0, 0]), ("order", [5, 1]),
    ("order", "F"), ("endian", "middle"), ("acceleration", -1), ("labels", ["a"]),
    ("chunk_shape", [0, 0]),
    ("chunk_shape", [2**40, 2**40]), ("codecs", []), ("index_codecs", []),
    ("index_location", "middle"),
    ("index_location", "start"), ("checksum", "x"), ("bit_depth", 10**9), ("location", "end"),
)  # fmt: skip
