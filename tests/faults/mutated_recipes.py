"""Damaged and hostile recipes: JSON text, keys, values, and what a check makes of them."""

from __future__ import annotations

import json
import os
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from napari_invprior import registry
from napari_invprior.image import Image
from napari_invprior.io.images import image_from_array
from napari_invprior.points import PointSet
from napari_invprior.recipes.check import check_recipe
from napari_invprior.recipes.examples import examples, load_example
from napari_invprior.recipes.model import Recipe
from tests.faults.mutations import (
    UNFIT,
    Case,
    Token,
    emptied,
    hostile,
    mutate_bytes,
    mutate_json,
    text_of,
)

LAYER = {"layer": "low"}
METHODS = ("physics", "noise", "prior", "solver", "sampler", "flow")


def templates(folder: Path) -> list[dict[str, Any]]:
    """Recipes that are valid: every example on tiny layers, and one of each method."""
    place = emptied(folder / "files")
    np.save(place / "low.npy", _texture())
    (place / "text.json").write_text("{}")
    os.mkfifo(place / "pipe")
    found = [_tiny(load_example(e["name"]).to_dict()) for e in examples()]
    base: dict[str, Any] = {
        "observation": LAYER, "physics": {"kind": "denoising"}, "prior": None,
        "solver": {"kind": "total_variation"},
    }  # fmt: skip
    found += [
        {**base, "prior": {"kind": "gmm"}, kind: {"kind": method.name}}
        for kind in METHODS for method in registry.methods(kind)
    ]  # fmt: skip
    found.append({**base, "observation": {"path": str(place / "low.npy"),
                                          "crop": [[0, 20], [2, 18]]}})
    found.append({**base, "observation": {"simulate_from": LAYER}, "truth": LAYER})
    valid = []
    for data in found:
        Recipe.parse(data)  # a template that is not valid would test little
        valid.append(json.loads(json.dumps(data)))
    return valid


def _tiny(data: Any) -> Any:
    """The recipe with layers of a few pixels in place of samples and files."""
    if isinstance(data, dict):
        if {"sample", "path"} & set(data) and "kind" not in data:
            kept = {k: v for k, v in data.items() if k not in ("sample", "path", "crop", "key")}
            return {**_tiny(kept), **LAYER,
                    "regions": []} if "regions" in data else {**_tiny(kept), **LAYER}
        return {key: _tiny(value) for key, value in data.items()}
    return [_tiny(value) for value in data] if isinstance(data, list) else data


def _texture() -> np.ndarray:
    return (np.add.outer(np.arange(24), np.arange(20) ** 2) % 17).astype("u1")


def layers() -> dict[str, Image]:
    """What the layers of the recipes hold."""
    return {
        "low": image_from_array(_texture(), name="low"),
        "volume": image_from_array(np.stack([_texture()] * 5).astype("f4"), name="volume"),
        "nothing": image_from_array(np.zeros((2, 2)), name="nothing"),
    }


# ---- mutations


def make(number: int, rng: random.Random, folder: Path, intact: list[Any], limit: int) -> Case:
    """The case of that number."""
    del limit
    data = deepcopy(rng.choice(intact))
    done = [str(data.get("task", "reconstruct"))]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        action = rng.choice((_anywhere, _anywhere, _anywhere, _source, _setting, _setting,
                             _setting, _add))
        try:
            what = action(data, rng, folder / "files")
        except UNFIT:
            what = "nothing to change"  # an earlier mutation left no such part
        done.append(f"{action.__name__[1:]}: {what}")
    text = text_of(data)
    if rng.random() < 0.12:
        raw, what = mutate_bytes(text.encode("utf-8", "surrogatepass"), rng)
        text = raw.decode("utf-8", rng.choice(("replace", "surrogateescape", "ignore")))
        done.append(f"text: {what}")
    held = layers()
    points = {"points": PointSet(np.arange(12.0).reshape(6, 2) % 7, name="points")}

    def run() -> Any:
        recipe = Recipe.parse(text)
        again = Recipe.parse(json.loads(json.dumps(recipe.to_dict())))
        if again.to_dict() != recipe.to_dict():
            raise AssertionError("the recipe is another one after it was written")
        return check_recipe(recipe, held, points)

    return Case(run, len(text), done)


def _anywhere(data: Any, rng: random.Random, files: Path) -> str:
    """One value or key of the recipe."""
    return mutate_json(data, rng)


PARTS = ("observation", "truth", "references", "initial", "points", "target_points", "atoms")


def _source(data: Any, rng: random.Random, files: Path) -> str:
    """Where an array comes from, and which part of it is used."""
    part = rng.choice(PARTS)
    source: dict[str, Any] = dict(rng.choice((
        LAYER, {"layer": "volume"}, {"layer": "nothing"}, {"layer": "x"}, {"sample": "x"},
        {"path": str(files / "low.npy")}, {"path": str(files)}, {"path": str(files / "pipe")},
        {"path": "/dev/zero"}, {"path": "/dev/stdin"}, {"path": "/proc/self/mem"},
        {"path": "/proc/kmsg"},
        {"path": "~nobody/x"}, {"path": "\0"}, {"path": "x" * 4096}, {"path": "http://127.0.0.1/x"},
        {"path": str(files / "text.json")}, {"path": "../../etc/passwd"}, {},
        {"layer": "low", "path": "x"},
        {"positions": [[1, 2], [3, 4]]}, {"positions": [[1, 2], [3]]},
        {"positions": [[1e308, -1e308]] * 3},
        {"positions": [[0, 0]] * 5000}, {"preset": "random", "count": 20_000}, {"preset": "x"},
        {"patch_size": 64},
    )))  # fmt: skip
    if rng.random() < 0.5:
        key = rng.choice(("crop", "channel", "scale", "dtype_range", "key", "regions", "weight",
                          "polygon"))
        source[key] = rng.choice((
            hostile(rng), [[0, 8], [0, 8]], [[0, 2**62], [5, 2**63]], [[3, 2], [0, 9]],
            [[0, 10**400], [0, 9]],
            [1, 1], [0, 0], [-1, 1], [1e-300, 1e300], [1e308, -1e308], [0, 255], 10**9,
            [[[0, 8], [0, 8]]],
            [[[0, 10**12], [0, 10**12]]], [{"polygon": [[0, 0], [1e308, 1e308], [0, 9]]}],
            [[1, 2, 3]] * 3,
            [[0, 4], [0, 4], [0, 4]],
        ))  # fmt: skip
    if rng.random() < 0.05:
        data[part] = Token("[" + ",".join(["0"] * rng.choice((9000, 200_000))) + "]")
    elif part == "references":
        data[part] = [source] * rng.choice((1, 1, 2, 300))
    else:
        data[part] = source if rng.random() < 0.8 else {"simulate_from": source}
    return f"{part} {str(data[part])[:70]}"


def _setting(data: Any, rng: random.Random, files: Path) -> str:
    """A parameter of a method at an end of what is allowed, or beyond it."""
    kind = rng.choice(METHODS)
    method = rng.choice(registry.methods(kind))
    chosen: dict[str, Any] = {"kind": method.name}
    fields = method.parameters.model_json_schema()["properties"]
    for name, field in fields.items():
        if rng.random() < min(0.5, 2 / len(fields)):
            forms = [field, *field.get("anyOf", ())]
            words = ("maximum", "minimum", "enum", "default")
            ends = [form[word] for form in forms for word in words if word in form]
            end = rng.choice([*ends] * 4 + [hostile(rng), 1, 0.5, [2, 2], 10**6])
            some = isinstance(end, list) and end and rng.random() < 0.5
            chosen[name] = rng.choice(end) if some else end
    if kind == "prior" and rng.random() < 0.2:
        chosen["path"] = rng.choice((str(files / "low.npy"), str(files / "pipe"), "/dev/zero", "x",
                                     hostile(rng)))
    data[kind] = chosen
    return f"{kind} {str(chosen)[:90]}"


def _add(data: Any, rng: random.Random, files: Path) -> str:
    """A key of the language with a value of any kind."""
    key = rng.choice(list(Recipe.model_fields))
    field = Recipe.model_fields[key]
    data[key] = rng.choice((hostile(rng), hostile(rng), 1, -1, [0.5], [[0.1, 0.9]] * 30, "x", True,
                            {},
                            {"kind": "x"}, [{}], [{"prior": "gmm"}] * 120, 1e300,
                            str(field.default)[:50]))  # fmt: skip
    return f"{key} {str(data[key])[:70]}"
