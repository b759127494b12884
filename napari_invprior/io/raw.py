"""What a reader hands over: an array that may still be on disk, and what the file says about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.image import Image
from napari_invprior.io.arrays import Axes, Range, arranged, axes_of, named_axes, selection, without
from napari_invprior.io.files import within_limit
from napari_invprior.sources import Source


@dataclass(frozen=True)
class Raw:
    """An array as a file holds it.

    Attributes
    ----------
    array : array-like
        Has ``shape``, ``dtype`` and slicing; nothing is read before it is sliced.
    labels : str
        One letter per axis, as far as the file names them (``"TCZYX"``, ``S`` for colours).
    scale, translate : dict of str to float
        By axis letter.
    units : dict of str to str
        By axis letter.
    geometry : Geometry or None
        The full placement of the space axes, where the file holds one (our own results).
    value_range : tuple of float or None
        Where the file holds one.
    notes : tuple of str
        What the user should know.
    """

    array: Any
    labels: str = ""
    scale: dict[str, float] | None = None
    translate: dict[str, float] | None = None
    units: dict[str, str] | None = None
    geometry: Geometry | None = None
    value_range: Range | None = None
    notes: tuple[str, ...] = ()

    def placement(self, axes: Axes) -> Geometry | None:
        """Geometry of the space axes, or None where the file says nothing."""
        named = len(self.labels) == len(self.array.shape)
        if self.geometry is not None or not named or not self.scale:
            return self.geometry
        letters = [self.labels[axis].upper() for axis in axes.space]
        units = self.units or {}
        return Geometry(
            scale=tuple(_spacing(self.scale.get(letter, 1.0)) for letter in letters),
            translate=tuple(_finite((self.translate or {}).get(letter, 0.0)) for letter in letters),
            units=tuple(units.get(letter, "pixel") for letter in letters) if units else None,
            axis_labels=tuple(letter.lower() for letter in letters),
        )


class Mapped:
    """An array in a file that is mapped for each read alone.

    Pages of a map that stays open count as memory of the process, until all of the file does.

    Parameters
    ----------
    path : Path
        The file.
    dtype, shape, offset, order
        As in `numpy.memmap`.
    """

    def __init__(
        self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int,
        order: Literal["C", "F"] = "C",
    ) -> None:
        self._path, self._offset, self._order = path, offset, order
        self.dtype, self.shape, self.ndim = np.dtype(dtype), tuple(shape), len(shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        """A copy, not a map: a file that is cut short later would end the process."""
        mapped = np.memmap(
            self._path, dtype=self.dtype, mode="r", offset=self._offset, shape=self.shape,
            order=self._order,
        )
        found = np.array(mapped[index])
        del mapped
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype=dtype)


def _spacing(value: float) -> float:
    """A positive finite spacing; files with none hold 0 or worse."""
    return float(value) if math.isfinite(value) and value > 0 else 1.0


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else 0.0


def image_from_raw(raw: Raw, source: Source, name: str, limit: int | None = None) -> Image:
    """Read the part of ``raw`` that ``source`` asks for.

    Raises
    ------
    InvalidInput
        If the array is no image, is ambiguous, or the part does not exist.
    FileRefused
        If that part is larger than ``limit`` bytes.
    """
    axes = axes_for(raw, source, name)
    slices, start, notes = selection(raw.array.shape, axes, source.crop, source.channel, name)
    counts = [
        len(range(*part.indices(n))) for part, n in zip(slices, raw.array.shape, strict=True)
    ]
    within_limit(name, math.prod(counts) * np.dtype(raw.array.dtype).itemsize, limit)
    geometry = raw.placement(axes) or Geometry.identity(len(axes.space))
    array = np.asarray(raw.array[slices])
    if source.channel is not None and axes.channel is not None:  # one channel is a grey image
        array, axes = without(array, Axes(axes.frames, None, axes.space))
    return arranged(
        array,
        axes,
        name=name,
        geometry=cropped(scaled(geometry, source.scale, name), start),
        value_range=source.dtype_range or raw.value_range,
        notes=(*raw.notes, *notes),
    )


def axes_for(raw: Raw, source: Source, name: str) -> Axes:
    """The parts of the axes: named by the file, else told by the source, else by the shape."""
    shape = tuple(raw.array.shape)
    named = named_axes(raw.labels, shape) if raw.labels else None
    if named is not None:
        return named
    ndim = None if source.crop is None else len(source.crop)
    if ndim is None and source.scale is not None:
        ndim = len(source.scale)
    last_is_colour = len(shape) >= 3 and shape[-1] in (3, 4)
    leading = source.channel is not None and len(shape) >= 3 and not last_is_colour
    if leading and (ndim is None or len(shape) > ndim):
        frames = len(shape) - 1 - (ndim or len(shape) - 1)
        return axes_of(shape, name=name, channel_axis=frames, ndim=ndim)
    return axes_of(shape, name=name, ndim=ndim)


def scaled(geometry: Geometry, scale: Sequence[float] | None, name: str) -> Geometry:
    """The geometry with another sample spacing, refused unless positive and one per axis."""
    if scale is None:
        return geometry
    if len(scale) != len(geometry.scale):
        raise InvalidInput(
            f"{name}: scale has {len(scale)} numbers, the image has {len(geometry.scale)} space "
            "axes"
        )
    if min(scale) <= 0:
        raise InvalidInput(f"{name}: scale {tuple(scale)}; spacings are positive")
    return Geometry(**{**vars(geometry), "scale": tuple(float(s) for s in scale)})


def cropped(geometry: Geometry, start: Sequence[int]) -> Geometry:
    """The geometry of a part of the image that begins at sample ``start``.

    Examples
    --------
    >>> cropped(Geometry((2.0, 1.0), (0.0, 5.0)), (3, 4)).translate
    (6.0, 9.0)
    """
    if not any(start):
        return geometry
    return geometry.resampled((1,) * len(start), tuple(-float(s) for s in start))
