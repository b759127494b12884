"""A run's results on disk: ``result.ome.zarr``, ``recipe.json``, ``metrics.json``, tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from napari_invprior.io.bundles import save_prior
from napari_invprior.io.files import write_atomic
from napari_invprior.io.omezarr import write_image
from napari_invprior.io.points import points_csv
from napari_invprior.io.shapes import geojson, obj, tracks_csv, vectors_csv
from napari_invprior.recipes.cells_figure import cells_png, cells_svg
from napari_invprior.recipes.layers import OutputLayer
from napari_invprior.recipes.outcome import Outcome
from napari_invprior.recipes.picture import table_png
from napari_invprior.study.table import Row, as_csv

TABLES: dict[str, tuple[str, Callable[[OutputLayer], bytes]]] = {
    "points": ("csv", lambda layer: points_csv(layer.array)),
    "tracks": ("csv", lambda layer: tracks_csv(layer.array)),
    "vectors": ("csv", lambda layer: vectors_csv(layer.array[:, 0], layer.array[:, 1])),
    "shapes": ("geojson", lambda layer: geojson(layer.array, _rows(layer))),
    "surface": ("obj", lambda layer: obj(
        layer.array, [f"{key} {value}" for row in _rows(layer) for key, value in row.items()]
    )),
}
"""Endings and contents of the files of layers that are no images."""


def _rows(layer: OutputLayer) -> list[dict[str, Any]]:
    """The features of each shape."""
    columns = layer.features
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def summary(outcome: Outcome) -> dict[str, Any]:
    """The figures of a run as plain data."""
    return {
        "metrics": outcome.metrics,
        "seconds": round(outcome.seconds, 3),
        "peak_memory_mb": round(outcome.peak_memory_mb, 1),
    }


def table_csv(outcome: Outcome) -> bytes:
    """The table of a study as comma-separated values."""
    return as_csv([Row.from_dict(data) for data in outcome.metrics["table"]]).encode()


def write_outcome(outcome: Outcome, folder: str | Path) -> dict[str, str]:
    """Write every layer, the prior, the recipe and the figures; return the paths by name."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    outputs: dict[str, str] = {}
    for layer in outcome.layers:
        if layer.kind in TABLES:
            ending, encoded = TABLES[layer.kind]
            path = folder / f"{layer.name}.{ending}"
            write_atomic(path, encoded(layer))
            outputs[layer.name] = str(path)
            continue
        group = folder / "result.ome.zarr" / layer.name
        outputs[layer.name] = str(group)
        if not isinstance(layer.array, np.ndarray):  # written while it came
            continue
        # OME-Zarr has one axis for all kinds of frames; a second one would be read as channels
        joined = layer.array.reshape(-1, *layer.array.shape[max(1, layer.frames) :])
        write_image(
            group,
            joined if layer.frames > 1 else layer.array,
            layer.geometry,
            name=layer.name,
            attributes=layer.metadata | {"kind": layer.kind},
            rgb=layer.rgb,
            labels=layer.kind == "labels",
        )
    if outcome.prior is not None:
        path = folder / "prior.safetensors"
        save_prior(path, outcome.prior, outcome.facts)
        outputs["prior"] = str(path)
    if outcome.recipe.task == "study":
        for kind, content in (("csv", table_csv(outcome)), ("png", table_png(outcome))):
            write_atomic(folder / f"table.{kind}", content)
            outputs[f"table.{kind}"] = str(folder / f"table.{kind}")
    if outcome.recipe.task == "tessellate":
        for kind, content in (
            ("svg", cells_svg(outcome.detail)), ("png", cells_png(outcome.detail))
        ):
            write_atomic(folder / f"figure.{kind}", content)
            outputs[f"figure.{kind}"] = str(folder / f"figure.{kind}")
    texts = {
        "recipe": json.dumps(outcome.recipe.to_dict(), indent=2),
        "metrics": json.dumps(summary(outcome), indent=2),
    }
    for name, text in texts.items():
        path = folder / f"{name}.json"
        write_atomic(path, (text + "\n").encode())
        outputs[name] = str(path)
    return outputs

