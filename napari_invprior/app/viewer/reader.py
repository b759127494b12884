"""Reader of OME-Zarr for File > Open: pyramids that stay on disk, placed and scaled (no Qt)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zarr

from napari_invprior.app.viewer.layers import META, placed_alone
from napari_invprior.errors import InvPriorError
from napari_invprior.io.files import refusing
from napari_invprior.io.omezarr import attributes
from napari_invprior.io.omezarr_read import images_in, open_pyramid
from napari_invprior.io.volume import Volume, volume_of

LayerData = tuple[Any, dict[str, Any], str]
Read = Callable[[str | Sequence[str]], list[LayerData]]


def reader_for(path: str | Sequence[str]) -> Read | None:
    """What reads a path, for napari; None for what is no OME-Zarr image."""
    if not isinstance(path, str) or not Path(path).is_dir():
        return None
    try:
        found = images_in(Path(path))
    except InvPriorError:
        return None
    return _read if found else None


def _read(path: str | Sequence[str]) -> list[LayerData]:
    """Every image of a store as a layer."""
    root = Path(str(path))
    return [pyramid_layer(root, key) for key in images_in(root)]


def pyramid_layer(root: Path, key: str | None) -> LayerData:
    """An image of a store as layer data: its levels, still on disk.

    Raises
    ------
    InvalidInput, FileRefused
        If it cannot be read.
    """
    with refusing(root.name):
        raw, levels = open_pyramid(root, key)
        volume = volume_of(raw, Path(key or root.name).name)
        facts = attributes(root, key)
    kind = "labels" if facts.get("kind") == "labels" else "image"
    options = placed_alone(volume.geometry, len(raw.array.shape)) | {
        "name": volume.name, "metadata": {META: facts | {"path": str(root), "key": key}},
    }
    if kind == "image":
        options |= shown(volume, levels)
    data: Any = levels if len(levels) > 1 else levels[0]
    return data, options | {"multiscale": len(levels) > 1}, kind


def shown(volume: Volume, levels: Sequence[zarr.Array]) -> dict[str, Any]:
    """Contrast as the file says, or as samples from all over the image do."""
    options: dict[str, Any] = {"contrast_limits": volume.value_range()}
    if volume.axes.channel is not None and not volume.axes.rgb:
        options["axis_labels"] = volume_labels(volume, len(levels[0].shape))
    return options


def volume_labels(volume: Volume, ndim: int) -> tuple[str, ...]:
    """Names of all axes of the array."""
    names = ["t"] * ndim
    if volume.axes.channel is not None:
        names[volume.axes.channel] = "c"
    for axis, name in zip(volume.axes.space, "zyx"[-len(volume.axes.space) :], strict=True):
        names[axis] = name
    return tuple(names)
