"""Inputs that a job must find again, on any machine and after any restart.

Files are named by their whole path. What is in memory only is written beside the plan.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from napari_invprior.blocks.inputs import OBSERVATION, Inputs
from napari_invprior.io.files import check_free, local_path, write_atomic
from napari_invprior.io.images import Arrays, load, load_list
from napari_invprior.io.omezarr import CHUNK, multiscale
from napari_invprior.io.omezarr_read import ATTRIBUTE, plain
from napari_invprior.io.planes import Planes
from napari_invprior.io.volume import Volume
from napari_invprior.recipes.model import Recipe
from napari_invprior.sources import Source

SLAB = 256 << 20
"""Bytes that are copied at once."""


def kept(recipe: Recipe, inputs: Inputs, arrays: Arrays, folder: Path) -> Recipe:
    """The recipe with inputs that are files, written into ``folder`` where they were not.

    Raises
    ------
    JobError
        If the disk has no room for them.
    """
    parameters: Any = recipe.physics.parameters
    cls: Any = recipe.physics.method.cls
    found: dict[str, Any] = {}
    assert isinstance(recipe.observation, Source)
    volumes = {OBSERVATION: (recipe.observation, inputs.observation)} | {
        f"physics.{field}": (getattr(parameters, field), volume)
        for field, volume in inputs.others.items()
    }
    for key, (source, volume) in volumes.items():
        # blocks side by side would unpack the same planes again and again
        if source.path is None or isinstance(volume.array, Planes):
            path = folder / f"{key}.ome.zarr"
            save_volume(path, volume)
            source = Source(path=str(path.absolute()), dtype_range=source.dtype_range)
        found[key] = _absolute(source)
    for field in (*cls.array_inputs, *cls.list_inputs):
        source = getattr(parameters, field)
        if not isinstance(source, Source) or f"physics.{field}" in found:
            continue
        if source.path is None:
            listed = field in cls.list_inputs
            values = load_list(source, arrays) if listed else load(source, arrays).array[0, 0]
            path = folder / f"physics.{field}.npy"
            save_array(path, values)
            source = Source(path=str(path.absolute()))
        found[f"physics.{field}"] = _absolute(source)
    return recipe.with_settings(found)


def _absolute(source: Source) -> dict[str, Any]:
    assert source.path is not None
    path = str(local_path(source.path).absolute())
    return source.model_copy(update={"path": path}).model_dump(mode="json", exclude_defaults=True)


def save_array(path: Path, values: np.ndarray) -> None:
    """Write a small array as NPY."""
    import io

    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_atomic(path, buffer.getvalue())


def save_volume(path: Path, volume: Volume) -> None:
    """Write a volume as OME-Zarr of one level, slab by slab.

    Examples
    --------
    >>> import tempfile
    >>> from napari_invprior.io.volume import open_volume
    >>> whole = open_volume(Source(sample="grey-volume-test"))
    >>> save_volume(Path(tempfile.mkdtemp()) / "a.ome.zarr", whole)
    """
    frames, channels, *space = volume.shape
    check_free(path, int(np.prod(volume.shape)) * volume.dtype.itemsize)
    ndim = len(space)
    axes = ("t" if frames > 1 else "") + ("c" if volume.axes.channel is not None else "")
    leading = [n for n, axis in ((frames, "t"), (channels, "c")) if axis in axes]
    plane = channels * math.prod(space[1:]) * volume.dtype.itemsize
    thick = max(1, min(CHUNK[ndim], space[0], SLAB // max(1, plane)))
    chunks = [thick, *(min(CHUNK[ndim], n) for n in space[1:])]
    path.parent.mkdir(parents=True, exist_ok=True)
    store = zarr.open_group(path, mode="w", zarr_format=3)
    array = store.create_array(
        "0", shape=(*leading, *space), chunks=(*(1 for _ in leading), *chunks),
        dtype=volume.dtype, compressors=ZstdCodec(level=1),
    )
    described = multiscale(
        path.stem, axes + "zyx"[-ndim:], volume.geometry, 1, array.shape
    )
    own = {"geometry": asdict(volume.geometry), "value_range": volume.given_range}
    ome = {"version": "0.5", "multiscales": [described]}
    store.attrs.put(plain({"ome": ome, ATTRIBUTE: own}))
    for frame, start in itertools.product(range(frames), range(0, space[0], thick)):
        window = (
            slice(start, min(start + thick, space[0])), *(slice(0, n) for n in space[1:])
        )
        values = volume.read(frame, window)
        index: Any = (*((frame,) if "t" in axes else ()),
                      *((slice(None),) if "c" in axes else ()), *window)
        array[index] = values if "c" in axes else values[0]
