"""What the axes of an array mean, which values are black and white, and `Image` made from both.

The rules are the same for files, layers and samples:

- colours are the last axis of length 3 or 4 (alpha is dropped); they are never taken for depth;
- a volume of one slice is an image;
- a leading axis of 2 to 4 entries may be channels or slices: that is asked, not guessed;
- time, position and the like become frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.image import Image

Range = tuple[float, float]
Box = Sequence[tuple[int, int]]

SAMPLED = 1_000_000
"""Values looked at for percentiles."""

LOW, HIGH = 0.1, 99.9
"""Percentiles that map to 0 and 1 where the data type does not say."""

SLACK = 0.25
"""How far the central 98 % of [0, 1] data may leave it through noise."""


@dataclass(frozen=True)
class Axes:
    """The part that each axis of an array plays.

    Attributes
    ----------
    frames : tuple of int
        Axes that become frames.
    channel : int or None
        The axis of channels or colours.
    space : tuple of int
        The two or three space axes.
    rgb : bool
        Whether the channels are colours.
    """

    frames: tuple[int, ...]
    channel: int | None
    space: tuple[int, ...]
    rgb: bool = False


def axes_of(
    shape: Sequence[int],
    *,
    name: str,
    rgb: bool | None = None,
    channel_axis: int | None = None,
    ndim: int | None = None,
) -> Axes:
    """Find out what the axes mean, from what is told and else from the shape.

    Parameters
    ----------
    shape : sequence of int
        Shape of the array.
    name : str
        For messages.
    rgb : bool, optional
        Whether the last axis holds colours.
    channel_axis : int, optional
        The axis that holds channels.
    ndim : int, optional
        Number of space axes (2 or 3), the last ones.

    Raises
    ------
    InvalidInput
        If the shape can be read in several ways; the message says what to give.

    Examples
    --------
    >>> axes_of((60, 70, 3), name="photo")
    Axes(frames=(), channel=2, space=(0, 1), rgb=True)
    """
    total = len(shape)
    if ndim not in (None, 2, 3):
        raise InvalidInput(f"{name}: {ndim} space axes; two or three can be handled")
    if channel_axis is not None and not -total <= channel_axis < total:
        raise InvalidInput(f"{name}: channel axis {channel_axis} of an array of shape {shape}")
    if rgb is None and channel_axis is None:
        free = ndim is None or total > ndim
        rgb = total >= 3 and free and shape[-1] in (3, 4) and min(shape[-3:-1]) > 4
        rgb = rgb and (total == 3 or ndim is not None)
    if rgb:
        channel_axis = total - 1
    channel = None if channel_axis is None else channel_axis % total
    rest = [axis for axis in range(total) if axis != channel]
    if ndim is None:
        ndim = _space_axes(shape, rest, channel, name)
    if len(rest) < ndim:
        raise InvalidInput(f"{name}: shape {tuple(shape)} has fewer than {ndim} space axes")
    return Axes(tuple(rest[:-ndim]), channel, tuple(rest[-ndim:]), bool(rgb))


def _space_axes(shape: Sequence[int], rest: list[int], channel: int | None, name: str) -> int:
    """How many of the remaining axes are space, where nobody said."""
    sizes = [shape[axis] for axis in rest]
    if len(rest) < 2:
        raise InvalidInput(f"{name}: shape {tuple(shape)} is no image; it takes two or three axes")
    if len(rest) == 2:
        return 2
    if len(rest) == 3 and (channel is not None or not 2 <= sizes[0] <= 4 or min(sizes[1:]) <= 4):
        return 3
    if len(rest) == 3:
        question = f"are the first {sizes[0]} channels or slices?"
    else:
        question = "which axes are time, channels and depth?"
    raise InvalidInput(
        f"{name}: shape {tuple(shape)} is ambiguous, {question} Give 'channel' to use one channel, "
        "'crop' with one interval per space axis, or a file that names its axes "
        "(OME-Zarr, OME-TIFF)"
    )


def named_axes(labels: str, shape: Sequence[int]) -> Axes | None:
    """Axes from letters such as ``"TCZYX"`` (``S`` for colours); None if they do not say enough.

    Examples
    --------
    >>> named_axes("tcyx", (5, 2, 60, 70))
    Axes(frames=(0,), channel=1, space=(2, 3), rgb=False)
    """
    letters = labels.upper()
    space = tuple(i for i, letter in enumerate(letters) if letter in "ZYX")
    known = all(letter in "TCSZYX" for letter in letters)
    if len(letters) != len(shape) or len(space) not in (2, 3) or not known:
        return None
    rgb = "S" in letters and shape[letters.index("S")] in (3, 4)
    channel = letters.find("S" if "S" in letters else "C")
    frames = tuple(i for i in range(len(letters)) if i not in space and i != channel)
    return Axes(frames, None if channel < 0 else channel, space, rgb)


def selection(
    shape: Sequence[int], axes: Axes, crop: Box | None, channel: int | None, name: str
) -> tuple[tuple[slice, ...], tuple[int, ...], list[str]]:
    """Slices for each axis, where the crop begins, and notes.

    Raises
    ------
    InvalidInput
        If the crop has the wrong number of intervals or misses the image, or the channel is none.
    """
    slices, notes = [slice(None)] * len(shape), []
    space = [shape[axis] for axis in axes.space]
    start = (0,) * len(space)
    if crop is not None:
        if len(crop) != len(space):
            raise InvalidInput(
                f"{name}: crop has {len(crop)} intervals, the image has {len(space)} space axes "
                f"{tuple(space)}"
            )
        kept = [(low, min(high, n)) for (low, high), n in zip(crop, space, strict=True)]
        if any(high <= low for low, high in kept):
            raise InvalidInput(f"{name}: crop {list(crop)} lies outside the image {tuple(space)}")
        wanted = math.prod(high - low for low, high in crop)
        share = math.prod(high - low for low, high in kept) / wanted
        if share < 1:
            notes.append(f"the crop was cut to the image; {share:.0%} of it remains")
        start = tuple(low for low, _ in kept)
        for axis, (low, high) in zip(axes.space, kept, strict=True):
            slices[axis] = slice(low, high)
    if channel is not None:
        count = 1 if axes.channel is None else shape[axes.channel]
        if channel >= count:
            raise InvalidInput(f"{name}: channel {channel} of {count}; the first one is 0")
        if axes.channel is not None:
            slices[axes.channel] = slice(channel, channel + 1)
    return tuple(slices), start, notes


def checked(array: Any, name: str) -> np.ndarray:
    """The array in the machine's byte order; kinds that are no samples are refused.

    Raises
    ------
    InvalidInput
        For complex numbers, objects, texts, dates, records and empty arrays.
    """
    array = np.asarray(array)
    if array.dtype.kind == "c":
        raise InvalidInput(f"{name}: complex samples; give the magnitude or one part of them")
    if array.dtype.kind not in "buif":
        raise InvalidInput(f"{name}: samples of type {array.dtype} are no intensities")
    if array.size == 0:
        raise InvalidInput(f"{name}: shape {array.shape} holds no sample")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def value_range_of(array: np.ndarray, name: str) -> Range:
    """The values that map to 0 and 1.

    ``bool``: 0 and 1. ``uint8``: 0 and 255. Floats that lie in [0, 1], noise apart: 0 and 1. All
    else (cameras of 12 bits in 16, CT numbers): the percentiles 0.1 and 99.9 of the finite samples.

    Raises
    ------
    InvalidInput
        If no sample is finite.

    Examples
    --------
    >>> value_range_of(np.arange(256, dtype=np.uint8), "ramp")
    (0.0, 255.0)
    """
    if array.dtype.kind == "b":
        return 0.0, 1.0
    if array.dtype == np.uint8:
        return 0.0, 255.0
    values = _some(array)
    if values.size == 0:
        raise InvalidInput(f"{name}: no sample is finite")
    if array.dtype.kind == "f":
        low, high = np.percentile(values, (1, 99))
        if low >= -SLACK and high <= 1 + SLACK:
            return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (LOW, HIGH)))
    if low == high:  # hardly anything but one value
        low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low, low + 1.0)


def _some(array: np.ndarray) -> np.ndarray:
    """Finite samples in float64, thinned evenly along every axis when there are many."""
    step = math.ceil((array.size / SAMPLED) ** (1 / array.ndim))
    values = array[tuple(slice(None, None, min(step, n)) for n in array.shape)]
    found = values[np.isfinite(values)]
    if found.size == 0:
        found = array[np.isfinite(array)]
    return found.astype(np.float64)


def image_from_array(
    array: Any,
    *,
    name: str,
    geometry: Geometry | None = None,
    rgb: bool | None = None,
    channel_axis: int | None = None,
    ndim: int | None = None,
    value_range: Range | None = None,
) -> Image:
    """Make an `Image` from an array of a file, a layer or a script.

    Parameters
    ----------
    array : array-like
        Any real type, byte order and memory layout; it is not written to.
    name : str
        For messages.
    geometry : Geometry, optional
        Placement; of more axes than space has, the last ones count. Unit spacing by default.
    rgb, channel_axis, ndim
        See `axes_of`.
    value_range : tuple of float, optional
        Values that map to 0 and 1; see `value_range_of` for the default.

    Returns
    -------
    Image
        ``facts["notes"]`` holds sentences that the user should see (without the image's name).

    Raises
    ------
    InvalidInput
        If the array is no image or can be read in several ways.

    Examples
    --------
    >>> image = image_from_array(np.zeros((1, 8, 9), np.uint8), name="slice")
    >>> image.array.shape, image.facts["notes"]
    ((1, 1, 8, 9), ('one slice only; used as an image of 8 x 9',))
    """
    array = checked(array, name)
    axes = axes_of(array.shape, name=name, rgb=rgb, channel_axis=channel_axis, ndim=ndim)
    return arranged(array, axes, name=name, geometry=geometry, value_range=value_range)


def arranged(
    array: np.ndarray,
    axes: Axes,
    *,
    name: str,
    geometry: Geometry | None = None,
    value_range: Range | None = None,
    notes: Sequence[str] = (),
) -> Image:
    """`image_from_array` for axes that are known."""
    array, notes = checked(array, name), list(notes)
    if axes.rgb and axes.channel is not None and array.shape[axes.channel] == 4:
        array = np.take(array, range(3), axis=axes.channel)
        notes.append("transparency (the fourth channel) is ignored")
    space = tuple(array.shape[axis] for axis in axes.space)
    if math.prod(space) == 1:
        raise InvalidInput(f"{name}: a single sample is no image")
    placed = trailing(geometry or Geometry.identity(len(space)), len(space))
    if len(space) == 3 and space.count(1) == 1:
        flat = space.index(1)
        axes = replace(axes, space=tuple(a for i, a in enumerate(axes.space) if i != flat))
        array, axes = without(array, axes)
        placed, space = _dropped(placed, flat), space[:flat] + space[flat + 1 :]
        notes.append(f"one slice only; used as an image of {space[0]} x {space[1]}")
    channels = () if axes.channel is None else (axes.channel,)
    ordered = array.transpose(*axes.frames, *channels, *axes.space)
    frames = ordered.shape[: len(axes.frames)]
    stacked = ordered.reshape(math.prod(frames), -1 if channels else 1, *space).view()
    stacked.flags.writeable = False
    return Image(
        array=stacked,
        geometry=placed,
        value_range=valid_range(value_range, name) or value_range_of(stacked, name),
        name=name,
        frame_axes=frames,
        channel_axis=axes.channel,
        rgb=axes.rgb,
        facts={"notes": tuple(notes)},
    )


def without(array: np.ndarray, axes: Axes) -> tuple[np.ndarray, Axes]:
    """Take out the one axis that plays no part any more."""
    used = {*axes.frames, *axes.space, axes.channel}
    gone = next(axis for axis in range(array.ndim) if axis not in used)

    def moved(axis: int) -> int:
        return axis - (axis > gone)

    channel = None if axes.channel is None else moved(axes.channel)
    frames, space = tuple(map(moved, axes.frames)), tuple(map(moved, axes.space))
    return array.squeeze(gone), Axes(frames, channel, space, axes.rgb)


def valid_range(value_range: Range | None, name: str) -> Range | None:
    """The range, refused unless it is finite and rising; None stays None."""
    if value_range is None:
        return None
    low, high = (float(value) for value in value_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InvalidInput(f"{name}: value range [{low}, {high}]; give two rising finite numbers")
    return low, high


def trailing(geometry: Geometry, ndim: int) -> Geometry:
    """The placement of the last ``ndim`` axes."""
    return _kept(geometry, list(range(len(geometry.scale) - ndim, len(geometry.scale))))


def _dropped(geometry: Geometry, axis: int) -> Geometry:
    return _kept(geometry, [i for i in range(len(geometry.scale)) if i != axis])


def _kept(geometry: Geometry, axes: list[int]) -> Geometry:
    """The placement along some of the axes."""
    total = len(geometry.scale)
    if axes == list(range(total)):
        return geometry
    if len(axes) > total or min(axes) < 0:
        raise InvalidInput(f"a placement of {total} axes does not fit {len(axes)} space axes")
    matrices: dict[str, Any] = {}
    if geometry.rotate is not None:
        matrices["rotate"] = np.asarray(geometry.rotate)[np.ix_(axes, axes)]
    if geometry.affine is not None:
        matrices["affine"] = np.asarray(geometry.affine)[np.ix_([*axes, -1], [*axes, -1])]
    if geometry.shear is not None:
        upper = np.eye(total)
        upper[np.triu_indices(total, 1)] = np.ravel(geometry.shear)
        matrices["shear"] = upper[np.ix_(axes, axes)][np.triu_indices(len(axes), 1)]
    labels = geometry.axis_labels
    return Geometry(
        scale=tuple(geometry.scale[i] for i in axes),
        translate=tuple(geometry.translate[i] for i in axes),
        units=None if geometry.units is None else tuple(geometry.units[i] for i in axes),
        axis_labels=None if labels is None else tuple(labels[i] for i in axes),
        **matrices,
    )
