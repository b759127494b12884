"""Damaged and hostile saved priors: the container, its header, and what the header promises."""

from __future__ import annotations

import json
import random
import struct
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from napari_invprior import jobs, registry
from napari_invprior.io.bundles import KEY, checksum, load_prior, read_header, save_prior
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.physics.superresolution import SuperResolution, SuperResolutionParameters
from napari_invprior.priors.base import Measurement, Reference
from tests.faults.mutations import (
    NUMBERS,
    TEXTS,
    UNFIT,
    Case,
    emptied,
    hostile,
    mutate_bytes,
    mutate_json,
    text_of,
    tweaked,
)  # fmt: skip

QUICK: dict[str, dict[str, Any]] = {
    "patchnr": {"hidden": 8, "blocks": 1, "steps": 50, "batch": 16},
    "gmm": {"components": 2, "steps": 1},
    "wasserstein": {"reference_patches": 100},
    "adversarial": {"steps": 10, "width": 4},
    "sinkhorn": {"reference_patches": 100, "blur": 0.1},
    "semi_unbalanced": {"reference_patches": 100, "blur": 0.1},
    "pca_gmm": {"components": 2, "rank": 2, "steps": 1},
    "wppnet": {"reference_patches": 100, "steps": 1, "tile": 8, "tiles": 1},
    "wppflow": {"reference_patches": 100, "steps": 1, "centre_steps": 1, "tile": 8, "tiles": 1},
    "conditional_mmd": {
        "pairs": 100, "centre_steps": 1, "networks": 1, "steps": 1, "first_flow": 1, "batch": 4,
    },
    "smooth_tv": {},
}
"""Parameters that make a fit take a moment."""


@dataclass
class Saved:
    """A saved prior in its parts."""

    header: dict[str, Any]
    state: dict[str, torch.Tensor]

    def sealed(self) -> bytes:
        """The file, with the checksum of the numbers as they are now."""
        header = {**self.header, "sha256": checksum(self.state)}
        return self.packed(text_of(header))

    def packed(self, header: str) -> bytes:
        """The container with its arrays in an order of ours: the library's is another each time."""
        table, body = _split(safetensors.torch.save(self.state, metadata={KEY: header}))
        ordered: dict[str, Any] = {"__metadata__": table.pop("__metadata__")}
        parts: list[bytes] = []
        start = 0
        for name, entry in sorted(table.items(), key=lambda item: (-_width(item[1]), item[0])):
            low, high = entry["data_offsets"]
            parts.append(body[low:high])
            ordered[name] = {**entry, "data_offsets": [start, start + high - low]}
            start += high - low
        return _joined(text_of(ordered).encode("utf-8", "surrogatepass"), b"".join(parts))


def templates(folder: Path) -> list[Saved]:
    """One small fitted prior of each kind that can be fitted at this size."""
    made = []
    place = emptied(folder / "templates")
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((1, 48, 44), generator=generator)
    physics = SuperResolution(SuperResolutionParameters(factor=2), 2)
    data = Measurement(
        physics.A(image[None]), physics, GaussianNoise(GaussianParameters(sigma=0.02))
    )
    for method in registry.methods("prior"):
        options = QUICK.get(method.name, {})
        known = method.parameters.model_fields
        size = {"patch_size": 4} if "patch_size" in known else {}
        prior: Any = method.cls(method.parameters(**{**size, **options}), ndim=2, channels=1)
        told = {"measurement": data} if prior.needs_measurement else {}
        jobs.run(prior.fit([Reference(image)], seed=1, **told))
        path = place / f"{method.name}.safetensors"
        save_prior(path, prior, {"scale": (1.0, 2.0), "value_range": (0, 255),
                                 "units": ("px",) * 2})
        header = read_header(path)
        header["versions"] = {"python": "3"}  # the same on every machine
        state = safetensors.torch.load(path.read_bytes())  # in another order each time
        made.append(Saved(header, dict(sorted(state.items()))))
        path.write_bytes(made[-1].sealed())
        load_prior(path)  # else a mutation would only show that nothing can be read
    return made


# ---- mutations


def make(number: int, rng: random.Random, folder: Path, intact: list[Saved], limit: int) -> Case:
    """The case of that number."""
    saved = deepcopy(rng.choice(intact))
    done = [str(saved.header["method"])]
    data = b""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        action = rng.choice((_header, _header, _parameters, _parameters, _bounds, _bounds, _tensor,
                             _tensor, _tensor, _numbers, _shape))  # fmt: skip
        try:
            what = action(saved, rng)
        except UNFIT:
            what = "nothing to change"  # an earlier mutation left no such part
        done.append(f"{action.__name__[1:]}: {what}")
    if rng.random() < 0.35:
        saved = deepcopy(rng.choice(intact))
        done = [str(saved.header["method"])]
    data = saved.sealed()
    if len(done) == 1 or rng.random() < 0.15:
        action = rng.choice((_container, _container, _container, _length, _blind, _text))
        data, what = action(saved, data, rng)
        done.append(f"{action.__name__[1:]}: {what}")
    place = emptied(folder / "case")
    name = rng.choice(("x.safetensors",) * 20 + ("x.pt", "x.safetensors.bak", "x"))
    path = place / name
    path.write_bytes(data)
    backup = rng.random()
    if backup < 0.1:
        path.with_name(name + ".bak").write_bytes(intact[0].sealed())
    elif backup < 0.2:
        path.with_name(name + ".bak").write_bytes(mutate_bytes(data, rng)[0])
    size = 2 * len(data)

    def run() -> Any:
        try:
            return load_prior(path, limit=limit)
        finally:
            if number % 3 == 0:
                read_header(path)

    return Case(run, size, [*done, f"{name} backup {backup < 0.2}"])


def _header(saved: Saved, rng: random.Random) -> str:
    """Any place of our own header."""
    return mutate_json(saved.header, rng)


def _parameters(saved: Saved, rng: random.Random) -> str:
    """Parameters, kind and size of the prior that the header promises."""
    header = saved.header
    what = rng.choice(("parameters", "parameters", "parameters", "method", "ndim", "channels"))
    if what == "method":
        header["method"] = rng.choice((*[m.name for m in registry.methods("prior")], "tiny", "", 7,
                                       None))
        return f"method {header['method']}"
    if what in ("ndim", "channels"):
        header[what] = rng.choice((0, -1, 1, 2, 3, 4, 5, 16, 1000, 10**6, 10**9, 2**63, True, 2.0,
                                   "2",
                                   None, [2], 1e30))  # fmt: skip
        return f"{what} {header[what]}"
    if not isinstance(header.get("parameters"), dict) or not header["parameters"]:
        return "nothing to change"
    done = []
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(list(header["parameters"]))
        value = header["parameters"][name]
        header["parameters"][name] = rng.choice((
            tweaked(value, rng), rng.choice(NUMBERS), hostile(rng), 64, 100, 512, 1024, 4096, 16,
            10_000,
            10**6, [16, 16], [64, 64], 0, 3,
        ))  # fmt: skip
        done.append(f"{name} {str(value)[:20]} -> {str(header['parameters'][name])[:40]}")
    return ", ".join(done)


def _bounds(saved: Saved, rng: random.Random) -> str:
    """Parameters at the ends of what is allowed, and many channels: a prior that would be huge."""
    header = saved.header
    try:
        method = registry.get("prior", str(header["method"]))
        given = header["parameters"]
        done = []
        for name, field in method.parameters.model_json_schema()["properties"].items():
            if rng.random() < 0.4 and isinstance(given, dict):
                forms = [field, *field.get("anyOf", ())]
                ends = [form[e] for form in forms for e in ("maximum", "minimum",
                                                            "enum") if e in form]
                if ends:
                    end = rng.choice(ends)
                    given[name] = rng.choice(end) if isinstance(end, list) else end
                    done.append(f"{name} {given[name]}")
        if rng.random() < 0.4:
            header["channels"] = rng.choice((3, 64, 10_000, 10**7))
            given["channels"] = "joint"
    except (KeyError, TypeError, ValueError):
        return "nothing to change"
    return ", ".join(done)


KINDS = (
    torch.int64, torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.float64, torch.int8,
    torch.complex64,
)  # fmt: skip


def _tensor(saved: Saved, rng: random.Random) -> str:
    """An array missing, doubled, under another name, of another shape or type."""
    if not saved.state:
        return "nothing to change"
    name = rng.choice(list(saved.state))
    tensor = saved.state.pop(name)
    flat, many = tensor.reshape(-1), bool(tensor.ndim)
    shapes = [(-1,), (1, -1), (-1, 1), (*tensor.shape, 1), (1,) * 30 + tuple(tensor.shape)]
    other = rng.choice((name + "x", "", "\u202e", "a" * 3000, name.upper()))
    actions: dict[str, Any] = {
        "remove": dict,
        "rename": lambda: {other: tensor},
        "again": lambda: {name: tensor, name + rng.choice(("2", ".0", "0")): tensor.clone()},
        "shape": lambda: {name: tensor.reshape(rng.choice(shapes)).contiguous()},
        "type": lambda: {name: tensor.to(rng.choice(KINDS))},
        "empty": lambda: {name: flat[:0].clone()},
        "scalar": lambda: {name: flat[0].clone() if len(flat) else tensor},
        "cut": lambda: {name: tensor[: len(tensor) // 2].clone() if many else tensor},
        "long": lambda: {name: torch.cat([tensor, tensor]) if many else tensor},
        "many": lambda: {name: tensor, **{f"{name}{i}": flat[:1].clone() for i in range(2000)}},
        "other": lambda: {name: next(iter(saved.state.values()), tensor).clone()},
    }
    action = rng.choice([*actions, "shape"])
    saved.state |= actions[action]()
    return f"{action} {name}"


def _numbers(saved: Saved, rng: random.Random) -> str:
    """Numbers that are no numbers, or far from what a fit gives."""
    if not saved.state:
        return "nothing to change"
    name = rng.choice(list(saved.state))
    tensor = saved.state[name].clone()
    value = rng.choice((float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e30, -1e30, 1e-40,
                        1e9, 2.0**62))
    flat = tensor.reshape(-1)
    if not flat.numel():
        return "nothing to change"
    every = rng.random() < 0.4
    place: Any = slice(None) if every else rng.randrange(flat.numel())
    whole = not (tensor.is_floating_point() or tensor.is_complex())
    flat[place] = int(max(min(value, 2**62), -(2**62))) if whole and value == value else (
        0 if whole else value
    )  # fmt: skip
    saved.state[name] = flat.reshape(tensor.shape)
    return f"{name} {'all' if every else 'one'} {value}"


def _shape(saved: Saved, rng: random.Random) -> str:
    """Very many entries of one array along one axis: few bytes for a type that is small."""
    if not saved.state:
        return "nothing to change"
    name = rng.choice(list(saved.state))
    tensor = saved.state[name]
    times = rng.choice((2, 3, 50))
    axis = rng.randrange(max(1, tensor.ndim))
    if tensor.ndim and tensor.numel() * times < 1 << 20:
        saved.state[name] = tensor.repeat(*[times if i == axis else 1 for i in range(tensor.ndim)])
    return f"{name} {times} times along {axis}"


def _width(entry: dict[str, Any]) -> int:
    """Bytes per number, as far as their order in the file matters."""
    return {"I64": 8, "F64": 8, "C64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(entry["dtype"], 1)


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack_from("<Q", data)[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _joined(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def _container(saved: Saved, data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The table of the container: types, shapes and offsets that lie, overlap or leave holes."""
    table, body = _split(data)
    names = [name for name in table if name != "__metadata__"]
    action = rng.choice(("json", "entry", "entry", "entry", "metadata", "overlap", "hole", "huge",
                         "arrays"))  # fmt: skip
    done = action
    if action == "json":
        done = mutate_json(table, rng)
    elif action == "arrays":
        one = {"dtype": "U8", "shape": [1, 0], "data_offsets": [len(body)] * 2}
        table |= {str(number): one for number in range(rng.choice((3000, 150_000)))}
    elif action == "metadata":
        table["__metadata__"] = rng.choice((hostile(rng), {KEY: hostile(rng)},
                                            {KEY: rng.choice(TEXTS)},
                                            {"x": "y"}, None, {KEY: "[" * 100_000},
                                            {KEY: "9" * 5000}))  # fmt: skip
    elif names:
        entry = table[rng.choice(names)]
        if action == "entry":
            key = rng.choice(("dtype", "shape", "data_offsets"))
            entry[key] = rng.choice((
                hostile(rng), "F64", "U8", "BF16", "F8_E4M3", "F4", "C64", "X", [2**40, 2**40],
                [0], [],
                [0, 2**63], [2**64 - 1, 4], [4, 0], [0, len(body) + 1], [-1, 4], [1] * 70,
            ))  # fmt: skip
            done = f"{key} {str(entry[key])[:40]}"
        elif action == "overlap":
            entry["data_offsets"] = [0, min(len(body), 64)]
        elif action == "hole":
            body = body + b"\0" * 64
        else:
            entry["shape"], entry["dtype"] = [2**31, 2**31, 4], "U8"
    return _joined(text_of(table).encode("utf-8", "surrogatepass"), body), done


def _length(saved: Saved, data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The length of the table."""
    true = struct.unpack_from("<Q", data)[0]
    number = rng.choice((0, 1, 2, true - 1, true + 1, len(data), len(data) - 8, 10**8, 10**8 + 1,
                         2**31,
                         2**32, 2**63, 2**64 - 1))  # fmt: skip
    return struct.pack("<Q", number % 2**64) + data[8:], f"length {number} of {true}"


def _blind(saved: Saved, data: bytes, rng: random.Random) -> tuple[bytes, str]:
    return mutate_bytes(data, rng, head=rng.choice((0, 8, 200, 2000)))


def _text(saved: Saved, data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The text of our own header, cut or turned to junk, while the container is intact."""
    text, done = mutate_bytes(text_of(saved.header).encode("utf-8", "replace"), rng)
    return saved.packed(text.decode("utf-8", "replace")), done
