"""An image that stays where it is and is read window by window.

Examples
--------
>>> volume = open_volume(Source(sample="grey-volume-test", crop=((8, 48), (0, 48), (0, 48))))
>>> volume.shape, volume.read(0, (slice(0, 2), slice(4, 9), slice(0, 3))).shape
((1, 1, 40, 48, 48), (1, 2, 5, 3))
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.image import Image
from napari_invprior.io.arrays import Axes, Range, checked, selection, valid_range, value_range_of
from napari_invprior.io.images import NOTHING, Arrays, opened
from napari_invprior.io.raw import Raw, axes_for, cropped, scaled
from napari_invprior.sources import Source

Window = tuple[slice, ...]

LOOKED_AT, WINDOWS = 1_000_000, 48
"""Samples, in so many windows, from which the range of values is told."""
FINGERPRINT, WHOLE = 12, 1 << 24
"""Windows whose samples go into the digest, and samples up to which all of them do."""


@dataclass(frozen=True)
class Volume:
    """A lazily opened image.

    Attributes
    ----------
    array : array-like
        Has ``shape``, ``dtype`` and slicing; what is not sliced is not read.
    axes : Axes
        What its axes mean.
    crop : tuple of slice
        One slice per axis of ``array``: the part in use.
    geometry : Geometry
        Placement of the space axes of that part.
    name : str
        For messages.
    given_range : tuple of float or None
        The values that map to 0 and 1, where file or source say so.
    notes : tuple of str
        What the user should know.
    """

    array: Any
    axes: Axes
    crop: Window
    geometry: Geometry
    name: str
    given_range: Range | None = None
    notes: tuple[str, ...] = ()

    @property
    def frame_axes(self) -> tuple[int, ...]:
        """Lengths of the leading axes that count frames."""
        return tuple(self._length(axis) for axis in self.axes.frames)

    @property
    def channels(self) -> int:
        """Channels; 1 for a grey image, and a fourth one of colours is left out."""
        count = 1 if self.axes.channel is None else self._length(self.axes.channel)
        return 3 if self.axes.rgb and count == 4 else count

    @property
    def space(self) -> tuple[int, ...]:
        """Shape of the space axes."""
        return tuple(self._length(axis) for axis in self.axes.space)

    @property
    def shape(self) -> tuple[int, ...]:
        """(frames, channels, *space)."""
        return (math.prod(self.frame_axes), self.channels, *self.space)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the samples, in the byte order of the machine."""
        return np.dtype(self.array.dtype).newbyteorder("=")

    def _length(self, axis: int) -> int:
        return len(range(*self.crop[axis].indices(self.array.shape[axis])))

    def read(self, frame: int, window: Sequence[slice]) -> np.ndarray:
        """Samples of a window of one frame, (C, *sizes), a copy in the machine's byte order.

        Raises
        ------
        InvalidInput
            If the window leaves the image.
        """
        for part, n in zip(window, self.space, strict=True):
            if not 0 <= part.start < part.stop <= n:
                raise InvalidInput(f"{self.name}: window {window} leaves the image {self.space}")
        index: list[Any] = list(self.crop)
        places = np.unravel_index(frame, self.frame_axes) if self.frame_axes else ()
        for axis, place in zip(self.axes.frames, places, strict=True):
            index[axis] = self._start(axis) + int(place)
        for axis, part in zip(self.axes.space, window, strict=True):
            start = self._start(axis)
            index[axis] = slice(start + part.start, start + part.stop)
        found = checked(np.asarray(self.array[tuple(index)]), self.name)
        left = [axis for axis in range(len(index)) if axis not in self.axes.frames]
        order = [left.index(axis) for axis in self.axes.space]
        if self.axes.channel is None:
            return found.transpose(order)[None]
        found = found.transpose(left.index(self.axes.channel), *order)
        return found[: self.channels]

    def _start(self, axis: int) -> int:
        return self.crop[axis].indices(self.array.shape[axis])[0]

    def image(self, frame: int, window: Sequence[slice], value_range: Range) -> Image:
        """A window of one frame as an image of its own, where it lies in the world."""
        start = [part.start for part in window]
        return Image(
            array=self.read(frame, window)[None],
            geometry=cropped(self.geometry, start),
            value_range=value_range,
            name=self.name,
            channel_axis=None if self.axes.channel is None else 0,
        )

    def windows(self, count: int, samples: int, seed: int = 0) -> Iterator[tuple[int, Window]]:
        """So many windows at random places, of about ``samples`` samples together."""
        generator = np.random.default_rng(seed)
        edge = max(1, round((samples / count / self.channels) ** (1 / len(self.space))))
        sizes = [min(edge, n) for n in self.space]
        for _ in range(count):
            start = [int(generator.integers(n - s + 1)) for n, s in zip(
                self.space, sizes, strict=True
            )]
            window = tuple(slice(a, a + s) for a, s in zip(start, sizes, strict=True))
            yield int(generator.integers(self.shape[0])), window

    def value_range(self) -> Range:
        """The values that map to 0 and 1: as given, else from windows all over the image."""
        if self.given_range is not None:
            return self.given_range
        some = [self.read(*place) for place in self.windows(WINDOWS, LOOKED_AT)]
        return value_range_of(np.concatenate([values.ravel() for values in some]), self.name)

    def digest(self) -> str:
        """SHA-256 of shape, type and samples: all of them, or those of windows all over it."""
        digest = hashlib.sha256(f"{self.shape}{self.dtype.str}".encode())
        everything = tuple(slice(0, n) for n in self.space)
        places = self.windows(FINGERPRINT, LOOKED_AT // 4, seed=1)
        if math.prod(self.shape) <= WHOLE:
            places = ((frame, everything) for frame in range(self.shape[0]))
        for place in places:
            digest.update(np.ascontiguousarray(self.read(*place)).data)
        return digest.hexdigest()


def open_volume(source: Source, arrays: Arrays = NOTHING) -> Volume:
    """Open what a source names without reading it.

    Raises
    ------
    InvalidInput, FileRefused
        As `images.load`, except that it may be of any size.
    """
    raw, name = opened(source, arrays)
    return volume_of(raw, name, source)


def volume_of(raw: Raw, name: str, source: Source | None = None) -> Volume:
    """The part of ``raw`` that a source asks for; all of it without one."""
    source = source or Source(layer=name)
    axes = axes_for(raw, source, name)
    crop, start, notes = selection(raw.array.shape, axes, source.crop, source.channel, name)
    geometry = raw.placement(axes) or Geometry.identity(len(axes.space))
    if source.channel is not None and axes.channel is not None:  # one channel is a grey image
        axes = replace(axes, frames=(*axes.frames, axes.channel), channel=None, rgb=False)
    given = valid_range(source.dtype_range, name) or raw.value_range
    return Volume(
        raw.array, axes, tuple(crop), cropped(scaled(geometry, source.scale, name), start), name,
        given, (*raw.notes, *notes),
    )
