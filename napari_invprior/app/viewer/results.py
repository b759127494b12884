"""`invprior open`: the results of a run, placed in the viewer as they were written."""

from __future__ import annotations

from pathlib import Path

import napari
import numpy as np
from napari.layers import Layer

from napari_invprior.app.demo import dock, errors_reported
from napari_invprior.app.viewer.layers import META, result_layer
from napari_invprior.app.viewer.points import dot_size, points_layer
from napari_invprior.app.viewer.reader import pyramid_layer
from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.io.omezarr import attributes, read_image
from napari_invprior.io.points import read_points
from napari_invprior.recipes.layers import restored_axes

POINT_TABLES = {"particles": 1, "dots": 0}
"""Tables of points that a run writes, and how many of their first columns count frames."""


def add_results(viewer: napari.Viewer, folder: Path) -> list[str]:
    """Add every image of ``folder/result.ome.zarr`` and all points; return the layers' names.

    Raises
    ------
    InvalidInput
        If the folder holds no result.
    """
    store = folder / "result.ome.zarr"
    groups = sorted(p for p in store.glob("*") if p.is_dir()) if store.is_dir() else []
    tables = [folder / f"{name}.csv" for name in POINT_TABLES]
    tables = [path for path in tables if path.exists()]
    if not groups and not tables:
        raise InvalidInput(f"{folder} holds no result.ome.zarr; give the folder that a run wrote")
    for group in groups:
        facts = attributes(group)
        if "blocks" in facts:  # large, and perhaps not finished
            data, options, kind = pyramid_layer(group, None)
            viewer.add_layer(Layer.create(data, options, kind))
            continue
        image = read_image(group)
        array = restored_axes(np.asarray(image.array), image)
        layer = result_layer(
            array, image.geometry, None, name=group.name, rgb=image.rgb,
            kind=facts.get("kind", "image"), metadata={META: facts},
        )
        viewer.add_layer(layer)
    for path in tables:
        rows, frames = read_points(path).array, POINT_TABLES[path.stem]
        viewer.add_layer(points_layer(
            rows, Geometry.identity(rows.shape[1] - frames), name=path.stem, frames=frames,
            size=dot_size(None, rows[:, frames:], len(rows) // (1 + int(rows[-1, 0]) * frames)),
        ))
    return [*(group.name for group in groups), *(path.stem for path in tables)]


def open_results(folder: str | Path) -> None:
    """Open napari with the results of a run and the workbench."""
    with errors_reported():
        viewer = napari.Viewer(title=str(folder))
        dock(viewer)
        add_results(viewer, Path(folder))
        napari.run()
