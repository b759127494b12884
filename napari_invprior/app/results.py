"""`invprior open`: the results of a run, placed in the viewer as they were written."""

from __future__ import annotations

from pathlib import Path

import napari
import numpy as np

from napari_invprior.app.demo import dock, errors_reported
from napari_invprior.app.layers import META, result_layer
from napari_invprior.errors import InvalidInput
from napari_invprior.io.omezarr import attributes, read_image
from napari_invprior.recipes.layers import restored_axes


def add_results(viewer: napari.Viewer, folder: Path) -> list[str]:
    """Add every image of ``folder/result.ome.zarr`` as a layer; return the layers' names.

    Raises
    ------
    InvalidInput
        If the folder holds no result.
    """
    store = folder / "result.ome.zarr"
    groups = sorted(p for p in store.glob("*") if p.is_dir()) if store.is_dir() else []
    if not groups:
        raise InvalidInput(f"{folder} holds no result.ome.zarr; give the folder that a run wrote")
    for group in groups:
        image = read_image(group)
        array = restored_axes(np.asarray(image.array), image)
        layer = result_layer(
            array, image.geometry, None, name=group.name, rgb=image.rgb,
            metadata={META: attributes(group)},
        )
        viewer.add_layer(layer)
    return [group.name for group in groups]


def open_results(folder: str | Path) -> None:
    """Open napari with the results of a run and the workbench."""
    with errors_reported():
        viewer = napari.Viewer(title=str(folder))
        dock(viewer)
        add_results(viewer, Path(folder))
        napari.run()
