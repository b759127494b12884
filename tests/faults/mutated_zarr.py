"""Damaged and hostile zarr stores: both formats, OME-Zarr 0.4 and 0.5, shards, all codecs."""

from __future__ import annotations

import json
import random
import struct
from copy import deepcopy
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np

from napari_invprior.io.images import load
from napari_invprior.io.omezarr import attributes
from napari_invprior.io.omezarr_read import ATTRIBUTE
from napari_invprior.sources import Source
from tests.faults.bombs import bombs
from tests.faults.hostile_zarr import CHUNKS, FILLS, OTHER_CODECS, SETTINGS, SHAPES, TYPES
from tests.faults.intact_zarr import SECRET, templates
from tests.faults.mutations import (
    NUMBERS,
    UNFIT,
    Case,
    Content,
    Link,
    Pipe,
    Sparse,
    Tree,
    emptied,
    hostile,
    mutate_bytes,
    mutate_json,
    text_of,
    write_tree,
)  # fmt: skip

__all__ = ["templates", "make"]

METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
# ---- mutations


def make(number: int, rng: random.Random, folder: Path, intact: list[Tree], limit: int) -> Case:
    """The case of that number."""
    tree = dict(rng.choice(intact))
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        action = rng.choice((_value, _value, _value, _targeted, _targeted, _targeted, _codec, _text,
                             _chunk, _chunk, _bomb, _files, _files, _path))  # fmt: skip
        try:
            what = action(tree, rng)
        except UNFIT:
            what = "nothing to change"  # an earlier mutation left no such part
        done.append(f"{action.__name__[1:]}: {what}")
    store = emptied(folder / "case") / "store.zarr"
    size = write_tree(store, tree)
    keys = [None, None, None, "0", "one", "two", "1", "../outside/array.zarr", "", "/", "one/0"]
    key = rng.choice(keys) if rng.random() < 0.5 else None
    if key is None and "one/zarr.json" in tree and rng.random() < 0.8:
        key = rng.choice(("one", "two"))
    crop = rng.choice((None, None, None, [[1, 9], [0, 7]], [[0, 2**62], [0, 2**62]]))
    channel = rng.choice((None, None, None, None, 0, 1))

    def run() -> Any:
        source = Source(path=str(store), key=key, crop=crop, channel=channel)
        try:
            image = load(source, limit=limit)
            if np.count_nonzero(image.array == SECRET) >= 16:  # intact ones hold none
                raise AssertionError("something outside the store was read")
            return image
        finally:
            if number % 3 == 0:
                attributes(store, key)

    return Case(run, size, [*done, f"key {key!r} crop {crop} channel {channel}"])


def _json_files(tree: Tree) -> list[str]:
    return [n for n, c in tree.items() if n.rpartition("/")[2] in METADATA and isinstance(c, bytes)]


def _chunks(tree: Tree) -> list[str]:
    return [
        n for n, c in tree.items() if n.rpartition("/")[2] not in METADATA and isinstance(c, bytes)
    ]


def _parsed(tree: Tree, rng: random.Random, *names: str) -> tuple[str, Any]:
    """One metadata file (with one of the names) and its data; nothing where all are broken."""
    found = [n for n in _json_files(tree) if not names or n.rpartition("/")[2] in names]
    rng.shuffle(found)
    for name in found:
        content = tree[name]
        assert isinstance(content, bytes)
        try:
            return name, json.loads(content)
        except (ValueError, RecursionError):
            continue
    return "", None


def _write(tree: Tree, name: str, data: Any) -> None:
    tree[name] = text_of(data).encode("utf-8", "surrogatepass")


def _value(tree: Tree, rng: random.Random) -> str:
    """One value or key anywhere in the metadata."""
    name, data = _parsed(tree, rng)
    if data is None:
        return "nothing to change"
    done = mutate_json(data, rng)
    _write(tree, name, data)
    return f"{name} {done}"


def _arrays(tree: Tree, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """The metadata of one array."""
    for _ in range(8):
        name, data = _parsed(tree, rng, ".zarray", "zarr.json")
        if isinstance(data, dict) and "shape" in data:
            return name, data
    return "", {}


def _targeted(tree: Tree, rng: random.Random) -> str:
    """Shape, chunks, type, fill value or layout of an array that lies."""
    name, data = _arrays(tree, rng)
    if not name:
        return "nothing to change"
    what = rng.choice(("shape", "shape", "chunks", "chunks", "both", "dtype", "fill", "other"))
    chunks, grid = rng.choice(CHUNKS), data.get("chunk_grid")
    if what in ("shape", "both"):
        data["shape"] = rng.choice(SHAPES)
    if what in ("chunks", "both"):
        chunks = data["shape"] if rng.random() < 0.3 else chunks
        inner = _sharding(data)
        if inner is not None and rng.random() < 0.6:
            inner["chunk_shape"] = chunks
        elif isinstance(grid, dict):
            data["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": chunks}}
        else:
            data["chunks"] = chunks
    if what == "dtype":
        data["dtype" if "dtype" in data else "data_type"] = rng.choice(TYPES)
        data["fill_value"] = rng.choice((data.get("fill_value"), *FILLS))
    if what == "fill":
        data["fill_value"] = rng.choice(FILLS)
    if what == "other":
        key, values = rng.choice((
            ("dimension_separator", ("/", ".", "..", "", None, "\0", "/../")),
            ("chunk_key_encoding", ({"name": "v2"}, {"name": "default", "configuration":
                                    {"separator": "/../"}}, {"name": "x"}, "default", None)),
            ("chunk_grid", ({"name": "rectangular"}, {"name": "regular"}, {"name": "rectilinear",
                            "configuration": {"chunk_shapes": [[10**9], [10**9]]}}, None, [])),
            ("storage_transformers", ([{"name": "x"}], [], None, {})),
            ("zarr_format", (1, 2, 3, 4, "3", None, 3.0, True)),
            ("node_type", ("group", "array", "link", None, 1)),
            ("order", ("C", "F", "A", "K", None, 1)),
            ("dimension_names", (["a"], ["x"] * 50, [None, "x"], "xy", {}, ["x", "x"])),
            ("must_understand", (True, False)),
            ("x_extension", ({"must_understand": True}, {"must_understand": False}, 1)),
        ))  # fmt: skip
        data[key] = rng.choice(values)
        what = key
    _write(tree, name, data)
    return f"{name} {what} {str(data.get(what, ''))[:60]}"


def _sharding(data: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of the sharding codec, where there is one."""
    for codec in data.get("codecs") or []:
        if isinstance(codec, dict) and codec.get("name") == "sharding_indexed":
            settings = codec.get("configuration")
            return settings if isinstance(settings, dict) else None
    return None


def _codec(tree: Tree, rng: random.Random) -> str:
    """Another codec, one more, or other settings."""
    name, data = _arrays(tree, rng)
    if not name:
        return "nothing to change"
    kind = rng.choice(OTHER_CODECS)
    settings = dict(rng.choice(SETTINGS) for _ in range(rng.choice((0, 1, 1, 2))))
    done = (_codec_2 if "codecs" not in data else _codec_3)(data, kind, settings, rng)
    _write(tree, name, data)
    return f"{name} {done}"


def _codec_2(data: dict[str, Any], kind: Any, settings: dict[str, Any], rng: random.Random) -> str:
    place = rng.choice(("compressor", "filters"))
    codec = {"id": kind, **settings}
    if rng.random() < 0.4 and isinstance(data.get(place), dict):
        data[place] = {**data[place], **settings}
    else:
        data[place] = codec if place == "compressor" else [codec] * rng.choice((1, 1, 2, 50))
    return f"{place} {str(data[place])[:90]}"


def _codec_3(data: dict[str, Any], kind: Any, settings: dict[str, Any], rng: random.Random) -> str:
    stack = data["codecs"]
    inner = _sharding(data)
    if inner is not None and rng.random() < 0.6:
        stack = inner.setdefault(rng.choice(("codecs", "codecs", "index_codecs")), [])
    if not isinstance(stack, list):
        return "nothing to change"
    prefix = rng.choice(("", "numcodecs."))
    codec = {"name": f"{prefix}{kind}" if isinstance(kind, str) else kind,
             "configuration": settings}
    action = rng.choice(("append", "replace", "settings", "many", "none", "nested"))
    if action == "append":
        stack.insert(rng.randrange(len(stack) + 1), codec)
    elif action == "replace" and stack:
        stack[rng.randrange(len(stack))] = rng.choice((codec, kind, prefix + str(kind)))
    elif action == "settings" and stack and isinstance(stack[-1], dict):
        stack[-1] = {**stack[-1], "configuration": settings}
    elif action == "many":
        stack += [codec] * 200
    elif action == "nested":
        for _ in range(rng.choice((2, 5, 60))):
            data["codecs"] = [{"name": "sharding_indexed", "configuration": {
                "chunk_shape": [8, 8], "codecs": deepcopy(data["codecs"]),
                "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            }}]  # fmt: skip
            if len(str(data)) > 100_000:
                break
    else:
        stack.clear()
    return f"{action} {str(codec)[:90]}"


def _text(tree: Tree, rng: random.Random) -> str:
    """The text of a metadata file, cut or turned to junk."""
    names = _json_files(tree)
    if not names:
        return "nothing to change"
    name = rng.choice(names)
    content = tree[name]
    assert isinstance(content, bytes)
    odd = (b"[" * 100_000, b"null", b"[]", b"1", b'""', b"{}", b'{"zarr_format": 2}', b"\0" * 4096,
           b'{"zarr_format": 3, "node_type": "group"}', b" " * 2**20 + content,
           b"\x80\x04N.")  # fmt: skip
    if rng.random() < 0.3:
        tree[name] = rng.choice(odd)
        return f"{name} is {tree[name][:30]!s}"  # type: ignore[index]
    tree[name], done = mutate_bytes(content, rng)
    return f"{name} {done}"


def _chunk(tree: Tree, rng: random.Random) -> str:
    """Bytes of a chunk: by chance, or the sizes in the header of its codec."""
    names = _chunks(tree)
    if not names:
        return "nothing to change"
    name = rng.choice(names)
    content = tree[name]
    assert isinstance(content, bytes)
    if rng.random() < 0.6:
        changed, done = mutate_bytes(content, rng, head=rng.choice((0, 4, 16)))
    else:
        size = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**27, 129, 2**24))
        at = rng.choice((0, 4, 8, 12, 1, 5, 6))
        end = rng.choice((len(content), at + 4))
        changed = content[:at] + struct.pack("<I", size) + content[at + 4 : max(end, 16)]
        done = f"size {size} at {at}"
    for other in names if rng.random() < 0.3 else [name]:
        tree[other] = changed
    return f"{name} {done}"


def _bomb(tree: Tree, rng: random.Random) -> str:
    """Chunks that unpack to far more than the array holds, of the codec that the array names."""
    name, data = _arrays(tree, rng)
    if not name:
        return "nothing to change"
    folder = name.rpartition("/")[0]
    kind = rng.choice(list(bombs()))
    codec = {"endless": "zstd", "window": "zstd"}.get(kind, kind.split()[-1])
    codec = "lzma" if kind == "lzma dictionary" else codec
    if "codecs" in data:
        spelled = codec if codec in ("gzip", "zstd") else f"numcodecs.{codec}"
        settings = {"format": 2} if kind == "lzma dictionary" else {}
        packer = {"name": spelled, "configuration": settings}
        inner = _sharding(data)
        if inner is not None and rng.random() < 0.5:
            inner["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}, packer]
            chunk = bombs()[kind]
            count = int(np.prod(np.array(data["chunk_grid"]["configuration"]["chunk_shape"])
                                // np.array(inner["chunk_shape"])))  # fmt: skip
            index = struct.pack("<QQ", 0, len(chunk)) * count
            return _place(tree, rng, name, data, folder,
                          chunk + bytes(numcodecs.CRC32C().encode(index)), kind)
        data["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}, packer]
    else:
        data["compressor"] = {"id": codec, **({"format": 2} if kind == "lzma dictionary" else {})}
        data["filters"] = None
    return _place(tree, rng, name, data, folder, bombs()[kind], kind)


def _place(
    tree: Tree, rng: random.Random, name: str, data: Any, folder: str, chunk: bytes, kind: str
) -> str:
    """Put the chunk at every place of one array, and sometimes widen its chunks to the limit."""
    if "chunks" in data and rng.random() < 0.2:
        data["chunks"] = [8000, 8000]
    _write(tree, name, data)
    mine = [n for n in _chunks(tree) if n.startswith(folder)]
    for other in mine:
        tree[other] = chunk
    return f"{kind} in {len(mine)} chunks of {name}"


def _files(tree: Tree, rng: random.Random) -> str:
    """Files missing, doubled, in the wrong place, or no files at all."""
    names = list(tree)
    if not names:
        return "nothing to change"
    name = rng.choice(_json_files(tree) or names) if rng.random() < 0.4 else rng.choice(names)
    action = rng.choice(("remove", "link", "link", "pipe", "sparse", "mix", "folder", "copy", "all",
                         "device", "loop", "case"))  # fmt: skip
    outside = rng.choice(("array.zarr/.zarray", "array3.zarr/zarr.json", "x.npy"))
    if name.rpartition("/")[2] not in METADATA:
        outside = f"chunk.{_packer(tree, name)}"
    special: dict[str, Content] = {
        "link": Link("../" * (2 + name.count("/")) + f"outside/{outside}"),
        "pipe": Pipe(),
        "device": Link(rng.choice(("/dev/zero", "/dev/urandom", "/dev/full", "/etc/passwd", "/"))),
        "loop": Link(name.rpartition("/")[2]),
        "sparse": Sparse(rng.choice((9 << 20, 1 << 33, 1 << 40))),
    }
    if action in special:
        tree[name] = special[action]
    elif action == "remove":
        del tree[name]
    elif action == "mix":
        other = rng.choice((".zarray", ".zgroup", ".zattrs", "zarr.json", ".zmetadata"))
        tree[other] = rng.choice((b'{"zarr_format": 2}', b"{}", b"[]", tree[name]))
    elif action == "folder":
        tree[f"{name}/x"] = tree.pop(name)
    elif action == "copy":
        tree[rng.choice(names)] = tree[name]
    elif action == "case":
        tree[name.upper()] = tree.pop(name)
    else:
        for other in _chunks(tree):
            del tree[other]
    return f"{action} {name}"


def _packer(tree: Tree, chunk: str) -> Any:
    """The codec that unpacks a chunk, as its array names it; None for no codec."""
    for name in _json_files(tree):
        if chunk.startswith(name.rpartition("/")[0]) and name.endswith((".zarray", "zarr.json")):
            _, data = _parsed({name: tree[name]}, random.Random(0))
            if "shape" in data and "codecs" in data:
                last = str(data["codecs"][-1]["name"]).removeprefix("numcodecs.")
                return None if last == "bytes" else last
            if "shape" in data:
                return (data["compressor"] or {}).get("id")
    return None


def _path(tree: Tree, rng: random.Random) -> str:
    """The path of a level, or of a member in consolidated metadata, leads elsewhere."""
    for _ in range(8):
        name, data = _parsed(tree, rng, ".zattrs", "zarr.json")
        held = data.get("attributes", data) if isinstance(data, dict) else {}
        held = held.get("ome", held) if isinstance(held, dict) else {}
        if isinstance(held, dict) and held.get("multiscales"):
            break
    else:
        return "nothing to change"
    places = ("../outside/array.zarr", "../../outside/array3.zarr", "0/../../outside/array.zarr",
              "..", ".", "/etc", "0\0", "a" * 4096, "0/" * 400, "..\\outside", "", "1", "x", 0,
              None)  # fmt: skip
    multiscale = held["multiscales"][0] if isinstance(held["multiscales"], list) else {}
    what = rng.choice(("path", "axes", "transform", "linked", "own"))
    try:
        level = multiscale["datasets"][0]
        if what == "path":
            level["path"] = rng.choice(places)
        elif what == "axes":
            multiscale["axes"] = rng.choice((["y", "x"], "yx", [{"name": "y"}] * 2, [], None,
                                             [{}] * 4,
                                             ["q"] * 2, hostile(rng),
                                             [{"name": None, "type": []}] * 2))  # fmt: skip
        elif what == "transform":
            step = {"type": rng.choice(("scale", "translation", "x", "identity")),
                    rng.choice(("scale", "translation")): rng.choice(
                        ([0, 0], [1e308] * 2, "1", [1], rng.choice(NUMBERS),
                         [rng.choice(NUMBERS)] * 2,
                         [rng.choice(NUMBERS)] * 4, None, [[1, 1]], {}))}  # fmt: skip
            rng.choice((level,
                        multiscale))["coordinateTransformations"] = [step] * rng.choice((1, 500))
        elif what == "own":
            own = data.get("attributes", data).setdefault(ATTRIBUTE, {})
            own[rng.choice(("geometry", "value_range"))] = hostile(rng)
            own.get("geometry", {})[rng.choice(("scale", "rotate", "affine", "shear", "units"))] = (
                rng.choice((hostile(rng), [rng.choice(NUMBERS)] * 2, [[1]],
                            [[float("nan")] * 2] * 2))
            )
        else:
            level["path"] = "linked"
            tree[name.rpartition("/")[0] + "/linked" if "/" in name else "linked"] = Link(
                "../" * (1 + name.count("/")) + "../outside/array.zarr"
            )
    except (AttributeError, KeyError, TypeError, IndexError):
        return "nothing to change"
    _write(tree, name, data)
    return f"{name} {what} {str(level)[:80] if isinstance(level, dict) else ''}"
