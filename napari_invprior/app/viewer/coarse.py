"""Volumes that are too large to be drawn whole, thinned out to what can be drawn (no Qt)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from napari.layers import Image, Labels, Layer

from napari_invprior.app.viewer.layers import COARSE, META, geometry_of
from napari_invprior.memory import free_bytes

SHARE = 0.25
"""Share of the free memory that a drawn volume may take: napari copies it on its way to GL."""
LAZY = 1_000_000_000
"""Bytes of a volume on disk that napari may read while the window waits."""
TEXTURE = 2048
"""Voxels per axis that every GL, software GL included, takes as one texture."""
VOXELS, EDGE = 256**3, 1024
"""Voxels of a coarse volume, and voxels along one of its axes."""
READ_SHARE, READ_LEAST = 0.25, 4e9
"""Share of a volume that is read for its coarse one, and bytes that are read in any case."""
PIECE = 64e6
"""Bytes read at once: reading stops between two pieces."""
INTERVAL = 0.5
"""Seconds between two drawings of what was read, doubled each time.

Software OpenGL takes seconds for each.
"""

LOOKS = {
    Image: ("opacity", "blending", "rendering", "interpolation3d", "iso_threshold", "attenuation",
            "depiction"),
    Labels: ("opacity", "blending", "rendering", "colormap"),
}
GREY = ("colormap", "contrast_limits", "gamma")


def level_drawn(layer: Layer) -> int:
    """Level of a pyramid that napari draws in 3D; 0 for a layer without."""
    if not layer.multiscale:
        return 0
    locked = layer.locked_data_level
    return len(layer.data) - 1 if locked is None else int(locked)


def samples(layer: Layer, level: int) -> Any:
    """The samples of a level, not yet read."""
    return layer.data[level] if layer.multiscale else layer.data


def volume_bytes(data: Any, axes: tuple[int, ...], layer: Layer) -> int:
    """Bytes of the volume along ``axes``; colours belong to it."""
    colours = data.shape[-1] if getattr(layer, "rgb", False) else 1
    return math.prod(data.shape[a] for a in axes) * colours * np.dtype(data.dtype).itemsize


def too_large(layer: Layer, axes: tuple[int, ...], free: int | None = None) -> bool:
    """Whether napari could not draw the volume along ``axes`` of a layer without harm.

    Parameters
    ----------
    layer : Layer
        Any layer; only images and labels with three such axes can be too large.
    axes : tuple of int
        Axes of the layer that are displayed.
    free : int, optional
        Bytes of memory at hand.
    """
    if not isinstance(layer, Image | Labels) or len(axes) < 3:
        return False
    data = samples(layer, level_drawn(layer))
    limit = SHARE * (free_bytes() if free is None else free)
    if not isinstance(data, np.ndarray) or isinstance(data, np.memmap):
        limit = min(limit, LAZY)
    # napari thins single volumes itself for GL, but refuses tall levels of a pyramid
    tall = layer.multiscale and max(data.shape[a] for a in axes) > TEXTURE
    return tall or volume_bytes(data, axes, layer) > limit


def steps(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Keep one voxel in so many along each axis, as alike in number as the axes allow.

    Odd steps, because the middle voxel of each group then stands for the group.

    Examples
    --------
    >>> steps((200, 200, 200)), steps((6400, 4096, 4096)), steps((20, 46000, 46000))
    ((1, 1, 1), (25, 17, 17), (1, 51, 51))
    """
    edge = float(EDGE)
    while True:
        found = tuple(2 * math.ceil((n / edge - 1) / 2) + 1 if n > edge else 1 for n in shape)
        if math.prod(math.ceil(n / k) for n, k in zip(shape, found, strict=True)) <= VOXELS:
            return found
        edge *= 0.97


def chunk_edges(data: Any) -> tuple[int, ...]:
    """Samples that are read together, per axis; whole rows where nothing is known."""
    chunks = getattr(data, "chunks", None)
    if not chunks or len(chunks) != len(data.shape):
        return (1,) * (len(data.shape) - 1) + (data.shape[-1],)
    return tuple(int(c) if np.isscalar(c) else max(c) for c in chunks)


def spread(count: int) -> list[int]:
    """``range(count)``, ordered so that the first few are spread over the whole.

    Examples
    --------
    >>> spread(7)
    [3, 1, 5, 0, 2, 4, 6]
    """
    found: list[int] = []
    gaps = [(0, count)]
    while gaps:
        found += [(a + b) // 2 for a, b in gaps if b > a]
        gaps = [
            part for a, b in gaps if b > a for part in ((a, (a + b) // 2), ((a + b) // 2 + 1, b))
        ]
    return found


class CoarseVolume:
    """Every k-th voxel of a layer along the displayed axes, read piece by piece.

    Parts that are spread over the volume are read first and stand for what is between them, so
    that there is soon something to see. Of a large volume no more than `READ_SHARE` is read.

    Parameters
    ----------
    layer : Layer
        An image or labels layer.
    axes : tuple of int
        Three axes of the layer; others stay at one place, see `go_to`.

    Attributes
    ----------
    factor : tuple of int
        Voxels of the layer per coarse voxel, for each of its axes.
    values : ndarray
        The coarse volume; the other axes have length one.
    fault : str
        Why reading failed.
    """

    def __init__(self, layer: Layer, axes: tuple[int, ...]) -> None:
        self.axes = tuple(sorted(axes))
        locked = level_drawn(layer)
        self.level = len(layer.data) - 1 if layer.multiscale else locked
        self.data = samples(layer, self.level)
        self._source, self.ndim = layer.data, layer.ndim
        kept = dict(zip(self.axes, steps(tuple(self.data.shape[a] for a in self.axes)),
                        strict=True))
        self.step = tuple(kept.get(a, 1) for a in range(self.ndim))
        self._levels = (
            tuple(layer.downsample_factors[self.level]) if layer.multiscale else (1,) * self.ndim
        )
        self.factor = tuple(
            k * f if a in self.axes else 1
            for a, (k, f) in enumerate(zip(self.step, self._levels, strict=True))
        )
        self._whole = tuple(samples(layer, 0).shape)
        shape = [
            len(self._places(a)) if a in self.axes else 1 for a in range(self.ndim)
        ] + list(self.data.shape[self.ndim :])
        self.values = np.full(shape, _dark(layer), self.data.dtype)
        self.size = volume_bytes(self.data, self.axes, layer)
        self.place: dict[int, int] = {}
        self.fault = ""
        self._todo: list[int] = []
        self._read = 0.0

    @property
    def shown(self) -> np.ndarray:
        """The coarse volume at every place of the other axes, as a layer needs it."""
        shape = [n if a in self.axes or a >= self.ndim else self._whole[a]
                 for a, n in enumerate(self.values.shape)]
        return np.broadcast_to(self.values, shape)

    def is_of(self, layer: Layer, axes: tuple[int, ...]) -> bool:
        """Whether it was made for these axes of the present data of a layer."""
        return self._source is layer.data and self.axes == tuple(sorted(axes))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to read."""
        return not self._todo

    def _places(self, axis: int) -> range:
        """Voxels that are kept along an axis: the middle ones of groups."""
        step = self.step[axis]
        return range((step - 1) // 2, self.data.shape[axis], step)

    def go_to(self, place: Mapping[int, float]) -> bool:
        """Where the other axes stand, in samples of the layer; True when all is to be read anew."""
        there = {
            a: int(np.clip(round(place[a] / self._levels[a]), 0, self.data.shape[a] - 1))
            for a in range(self.ndim) if a not in self.axes
        }
        if self._read and there == self.place:
            return False
        self.place, self._read, self.fault = there, 0.0, ""
        lead = self.axes[0]
        edge = chunk_edges(self.data)[lead]
        slabs = sorted({p // edge for p in self._places(lead)})
        self._todo = [slabs[i] for i in spread(len(slabs))]
        self._known = np.zeros(len(self._places(lead)), bool)
        return True

    def fill(self) -> Iterator[bool]:
        """Read what is missing, piece by piece; True where it is time to draw.

        May be left at any time and called again. Runs in a thread: what goes wrong is kept in
        ``fault``, because a worker swallows some errors.
        """
        todo = self._todo  # `go_to` makes a new list: this one is then out of date
        last, wait = float("-inf"), INTERVAL
        limit = max(READ_LEAST, READ_SHARE * self.size)
        try:
            while todo and todo is self._todo:
                for _ in self._read_slab(todo[0], todo):
                    yield False
                if todo is not self._todo:
                    return
                todo.pop(0)
                if self._read >= limit:
                    todo.clear()
                due = not todo or time.monotonic() - last >= wait
                if due:
                    last, wait = time.monotonic(), 2 * wait
                yield due
        except Exception as error:  # whatever a file or a graph may raise
            self.fault = str(error) or type(error).__name__
            todo.clear()
            yield True

    def _read_slab(self, slab: int, todo: list[int]) -> Iterator[None]:
        """Read the kept voxels within one row of chunks along the first axis."""
        lead, second, _ = self.axes
        edges = chunk_edges(self.data)
        rows = self._within(lead, slab * edges[lead], (slab + 1) * edges[lead])
        strip = math.prod(edges) / edges[self.axes[-1]] * self.data.shape[self.axes[-1]]
        strip *= np.dtype(self.data.dtype).itemsize
        height = edges[second] * max(1, int(PIECE / strip))
        for top in range(0, self.data.shape[second], height):
            columns = self._within(second, top, top + height)
            if len(columns) == 0:
                continue
            index = [slice(None)] * len(self.data.shape)
            for a in range(self.ndim):
                index[a] = slice(self._places(a).start, None, self.step[a])
            for a, n in self.place.items():
                index[a] = slice(n, n + 1)
            target = [slice(None)] * len(self.data.shape)
            for axis, part in ((lead, rows), (second, columns)):
                places = self._places(axis)
                index[axis] = slice(places[part[0]], places[part[-1]] + 1, self.step[axis])
                target[axis] = slice(part[0], part[-1] + 1)
            piece = np.asarray(self.data[tuple(index)])
            if todo is not self._todo:
                return
            self.values[tuple(target)] = piece
            self._read += strip * math.ceil((columns[-1] - columns[0] + 1) * self.step[second]
                                            / edges[second])
            yield
        self._known[rows] = True
        self._stand_in(lead)

    def _within(self, axis: int, start: int, stop: int) -> range:
        """Indices of kept voxels in [start, stop)."""
        places = self._places(axis)
        low, step = places.start, places.step
        first = max(0, -(-(start - low) // step))
        return range(first, min(len(places), max(first, -(-(stop - low) // step))))

    def _stand_in(self, lead: int) -> None:
        """Planes that are not read yet show the nearest one that is."""
        known = np.flatnonzero(self._known)
        missing = np.flatnonzero(~self._known)
        nearest = known[np.abs(missing[:, None] - known).argmin(1)]
        planes = np.moveaxis(self.values, lead, 0)
        planes[missing] = planes[nearest]


def _dark(layer: Layer) -> Any:
    """The value of what is not read yet: black, or no label."""
    if isinstance(layer, Labels) or layer.rgb:
        return 0
    low = layer.contrast_limits[0]
    return low if np.dtype(layer.dtype).kind == "f" else math.ceil(low)


def coarse_layer(layer: Layer, volume: CoarseVolume) -> Layer:
    """A layer of the coarse volume that looks like its original and lies exactly on it."""
    # group i of F samples has its middle at F i + (F - 1) / 2; napari draws pyramids that way too
    offset = tuple((f - 1) / 2 for f in volume.factor)
    place = geometry_of(layer).sampled(volume.factor, offset)
    kind = Labels if isinstance(layer, Labels) else Image
    names = LOOKS[kind]
    options: dict[str, Any] = {}
    if kind is Image:
        options["rgb"] = layer.rgb
        names += () if layer.rgb else GREY
    options |= {name: getattr(layer, name) for name in names}
    made = kind(
        volume.shown, name=f"{layer.name} (coarse)", multiscale=False, cache=False,
        scale=place.scale, translate=place.translate, rotate=place.rotate, shear=place.shear,
        affine=place.affine, units=place.units, axis_labels=place.axis_labels,
        metadata={META: {"role": COARSE, "of": layer.name}}, **options,
    )
    if kind is Image and not layer.rgb:
        made.contrast_limits_range = layer.contrast_limits_range
    made.editable = False  # what is drawn on it would be lost
    return made
