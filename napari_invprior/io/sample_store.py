"""Where samples go while they come: memory, or an OME-Zarr image that grows on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from napari_invprior.geometry import Geometry
from napari_invprior.image import Image, denormalised
from napari_invprior.io.omezarr_stack import StackWriter

SLAB_BYTES = 64 << 20
"""Bytes of all samples that are looked at in one go."""


class SampleStore(ABC):
    """Samples of all frames of an image, each in its slot.

    Attributes
    ----------
    capacity : int
        Slots.
    shape : tuple of int
        One sample of all frames: (frames, C, *space).
    kept : int
        Slots that are filled in every frame; the first ones.
    """

    def __init__(self, capacity: int, shape: tuple[int, ...]) -> None:
        self.capacity, self.shape, self.kept = capacity, shape, 0

    @abstractmethod
    def put(self, slot: int, frame: int, image: np.ndarray) -> None:
        """Keep a normalised image (C, *space); it may replace an earlier one."""

    @abstractmethod
    def finish(self, kept: int) -> None:
        """Only the first ``kept`` slots count; nothing is put any more."""

    @abstractmethod
    def _part(self, part: slice) -> np.ndarray:
        """Normalised samples of a part of the first space axis: (kept, frames, C, *part)."""

    def slabs(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All samples in parts of the first space axis, (kept, frames, C, *part)."""
        row = 4 * max(self.kept, 1) * int(np.prod(self.shape)) // self.shape[2]
        step = max(1, SLAB_BYTES // row)
        for start in range(0, self.shape[2], step):
            part = slice(start, min(start + step, self.shape[2]))
            yield part, self._part(part)


class MemoryStore(SampleStore):
    """Samples in memory, for images that are small beside it.

    Examples
    --------
    >>> store = MemoryStore(4, (1, 1, 2, 3))
    >>> store.put(0, 0, np.ones((1, 2, 3)))
    >>> store.finish(1)
    >>> store.values.shape, [part.shape for _, part in store.slabs()]
    ((1, 1, 1, 2, 3), [(1, 1, 1, 2, 3)])
    """

    def __init__(self, capacity: int, shape: tuple[int, ...]) -> None:
        super().__init__(capacity, shape)
        self.values = np.zeros((capacity, *shape), np.float32)

    def put(self, slot: int, frame: int, image: np.ndarray) -> None:
        self.values[slot, frame] = image

    def finish(self, kept: int) -> None:
        self.kept, self.values = kept, self.values[:kept]

    def _part(self, part: slice) -> np.ndarray:
        return self.values[:, :, :, part]


class DiskStore(SampleStore):
    """Samples in an OME-Zarr image, in the user's numbers; readable while it grows.

    Parameters
    ----------
    group : Path
        Where the image is made.
    source : Image
        What the samples are laid out like (its channels and colours).
    geometry : Geometry
        Placement of the space axes.
    value_range : tuple of float
        The user's numbers that mean 0 and 1.
    """

    def __init__(
        self, group: Path, capacity: int, shape: tuple[int, ...], source: Image,
        geometry: Geometry, value_range: tuple[float, float], attributes: dict[str, Any],
    ) -> None:
        super().__init__(capacity, shape)
        self.group, self._range = group, value_range
        self._colours = source.channel_axis is not None
        each = shape[1:] if self._colours else shape[2:]
        self._writer = StackWriter(
            group, capacity * shape[0], each, geometry, rgb=source.rgb,
            channels=self._colours, value_range=value_range, attributes=attributes,
        )

    def put(self, slot: int, frame: int, image: np.ndarray) -> None:
        values = denormalised(image, self._range)
        place = slot * self.shape[0] + frame
        self._writer.put(place, values if self._colours else values[0])

    def finish(self, kept: int) -> None:
        self.kept = kept
        self._writer.finish(kept * self.shape[0])

    @property
    def values(self) -> Any:
        """The zarr array on disk, (kept * frames, [C,] *space), in the user's numbers."""
        return self._writer.finest

    def _part(self, part: slice) -> np.ndarray:
        low, high = self._range
        index = (slice(None), slice(None), part) if self._colours else (slice(None), part)
        values = (np.asarray(self.values[index]) - low) / (high - low)
        space = values.shape[-(len(self.shape) - 2) :]
        return values.reshape(self.kept, *self.shape[:2], *space).astype(np.float32)
