"""The file behind a lazy layer, so that other processes can read it too (no Qt)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Layer

from napari_invprior.app.viewer.layers import META, Snapshot, is_lazy
from napari_invprior.errors import InvPriorError
from napari_invprior.io.volume import open_volume, volume_of
from napari_invprior.sources import Source

LOOKED_AT = 4, 4096
"""Windows, and samples in them, that must be the same in file and layer."""


def file_behind(layer: Layer, ndim: int) -> dict[str, Any] | None:
    """``path`` (and ``key``) of a source that reads the same samples; None where there is none.

    Only layers that are not in memory are looked for: those in memory may have been edited.
    """
    if not is_lazy(layer):
        return None
    told = layer.metadata.get(META)
    path, key = getattr(layer.source, "path", None), None
    if isinstance(told, dict) and told.get("path"):
        path, key = told["path"], told.get("key")
    if not path or not Path(path).exists():
        return None
    try:
        there = open_volume(Source(path=str(path), key=key))
        here = volume_of(Snapshot.of(layer, ndim).raw(), layer.name)
    except InvPriorError:
        return None
    if (there.shape, there.dtype) != (here.shape, here.dtype):
        return None
    for place in there.windows(*LOOKED_AT):
        if not np.array_equal(there.read(*place), here.read(*place), equal_nan=True):
            return None
    found: dict[str, Any] = {"path": str(Path(path).absolute())}
    return found if key is None else found | {"key": key}
