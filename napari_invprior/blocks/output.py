"""The result on disk: an OME-Zarr pyramid that blocks fill in, each in shards of its own.

zarr reads, changes and rewrites a shard of which a part is written; two writers of one shard would
lose data. So a block is one shard at every level, or several whole ones at the end of an axis, and
a level that is too coarse for that is made when all blocks are there.
"""

from __future__ import annotations

import errno
import itertools
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from napari_invprior.blocks.grid import Block, BlockGrid
from napari_invprior.errors import DiskFull
from napari_invprior.geometry import Geometry
from napari_invprior.io.files import (
    FULL,
    readable,
    swap,
    sync,
    sync_tree,
    write_atomic,
    writing,
)
from napari_invprior.io.omezarr import CHUNK, TOP, halved, multiscale, omero
from napari_invprior.io.omezarr_read import ATTRIBUTE, plain
from napari_invprior.parameters import Parameters, parameter

GROWING = "-incomplete"
"""Ending of the names of groups that are not whole yet."""
SMALLEST_SHARD = {2: 32, 3: 8}
"""Edge of a block at the coarsest level that it writes itself."""


class Output(Parameters):
    """One image that the blocks give together."""

    name: str = parameter(..., "Name of the group and the layer.")
    kind: Literal["image", "labels"] = parameter("image", "Labels are not averaged.")
    unit: str = parameter("image", "Of the values, as in a layer.")
    role: str = parameter("result", "As in a layer.")
    dtype: str = parameter("float32", "Type of the samples.")
    channels: int | None = parameter(None, "Channels; none for an image without that axis.")


class BlockedImage:
    """An image group that grows in ``<name>-incomplete`` until `finish` puts it in its place.

    Parameters
    ----------
    group : Path
        ``DIR/result.ome.zarr/<name>``.
    output : Output
        What it holds.
    grid : BlockGrid
        The blocks.
    """

    def __init__(self, group: Path, output: Output, grid: BlockGrid) -> None:
        self.group, self.output, self.grid = group, output, grid
        self.growing = group.with_name(group.name + GROWING)
        self._ndim = len(grid.image)
        self._edges = tuple(  # of the blocks, in image samples
            c * f if n > c else image
            for c, f, n, image in zip(
                grid.core, grid.factor, grid.data, grid.image, strict=True
            )
        )
        self._cut = tuple(n > c for c, n in zip(grid.core, grid.data, strict=True))
        self._levels: list[Any] = []

    @property
    def axes(self) -> str:
        """Axis letters, such as ``"tzyx"``."""
        frames = "t" if self.grid.frames > 1 else ""
        channels = "" if self.output.channels is None else "c"
        return frames + channels + "zyx"[-self._ndim :]

    @property
    def own_levels(self) -> int:
        """Levels that blocks write themselves."""
        count = 1
        while self._shape(count - 1) != self._shape(count) and self._fits(count):
            count += 1
        return count

    def _fits(self, level: int) -> bool:
        """Whether every block is a whole number of shards at a level."""
        return max(self._shape(level - 1)) > TOP[self._ndim] and all(
            not cut or (edge % 2**level == 0 and edge >> level >= SMALLEST_SHARD[self._ndim])
            for edge, cut in zip(self._edges, self._cut, strict=True)
        )

    def _shape(self, level: int) -> tuple[int, ...]:
        """Space shape of a level."""
        shape = self.grid.image
        for _ in range(level):
            shape = tuple(-(-n // 2) for n in shape)
        return shape

    def create(self, geometry: Geometry, attributes: dict[str, Any],
               value_range: tuple[float, float]) -> None:
        """Make the empty levels; what an earlier run left unfinished there is removed.

        Raises
        ------
        DiskFull, JobError
            If they cannot be written.
        """
        root = self.group.parent
        with writing(self.growing):
            root.mkdir(parents=True, exist_ok=True)
            if not (root / "zarr.json").exists():
                write_atomic(root / "zarr.json", b'{"zarr_format": 3, "node_type": "group"}')
            if self.growing.exists():
                shutil.rmtree(self.growing)
            self._make_levels(geometry, attributes, value_range)
        self._levels = []

    def _make_levels(self, geometry: Geometry, attributes: dict[str, Any],
                     value_range: tuple[float, float]) -> None:
        store = zarr.open_group(self.growing, mode="w", zarr_format=3)
        leading = self._leading()
        for level in range(self.own_levels):
            shards = tuple(
                max(1, edge >> level) if cut else -(-n // c) * c
                for edge, cut, n, c in zip(
                    self._edges, self._cut, self._shape(level), self._chunks(level), strict=True
                )
            )
            store.create_array(
                str(level), shape=(*leading, *self._shape(level)), dtype=self.output.dtype,
                chunks=(*(1 for _ in leading), *self._chunks(level)),
                shards=(*(1 for _ in leading), *shards), compressors=ZstdCodec(level=3),
                # viewers draw what is not there yet as nothing, not as black
                fill_value=np.nan if np.dtype(self.output.dtype).kind == "f" else 0,
            )
        self._describe(store, geometry, attributes, value_range, self.own_levels, complete=False)

    def _leading(self) -> tuple[int, ...]:
        frames = () if self.grid.frames == 1 else (self.grid.frames,)
        return frames if self.output.channels is None else (*frames, self.output.channels)

    def _chunks(self, level: int) -> tuple[int, ...]:
        """Chunks that divide a block's shard evenly."""
        most = CHUNK[self._ndim]
        return tuple(
            _largest_divisor(max(1, edge >> level), most) if cut else min(most, n)
            for edge, cut, n in zip(self._edges, self._cut, self._shape(level), strict=True)
        )

    def _describe(
        self, store: zarr.Group, geometry: Geometry, attributes: dict[str, Any],
        value_range: tuple[float, float], levels: int, *, complete: bool,
    ) -> None:
        shape = (*self._leading(), *self.grid.image)
        labels = self.output.kind == "labels"
        scales = multiscale(self.output.name, self.axes, geometry, levels, shape, labels=labels)
        ome = {"version": "0.5", "multiscales": [scales],
               "omero": omero(self.output.channels or 1, None, value_range)}
        own = {"geometry": asdict(geometry), "value_range": value_range, "complete": complete,
               "kind": self.output.kind, "unit": self.output.unit, "role": self.output.role}
        store.attrs.put(plain({"ome": ome, ATTRIBUTE: {**attributes, **own}}))

    @property
    def is_finished(self) -> bool:
        """Whether `finish` has put it in its place."""
        return self.group.is_dir()

    @property
    def place(self) -> Path:
        """Where its files are now."""
        return self.group if self.is_finished else self.growing

    @property
    def levels(self) -> list[Any]:
        """The arrays, the finest first: those that blocks write, or all of the finished ones."""
        if not self._levels:
            place, count = self.place, self.own_levels
            while self.is_finished and (place / str(count)).is_dir():
                count += 1
            self._levels = [
                zarr.open_array(place / str(level), mode="r+") for level in range(count)
            ]
        return self._levels

    # --- blocks -----------------------------------------------------------------------------

    def _places(self, block: Block, level: int) -> tuple[slice, ...]:
        """Samples of a level that a block gives."""
        return tuple(
            slice(t.start >> level, n if t.stop == whole else t.stop >> level)
            for t, n, whole in zip(
                block.target, self._shape(level), self.grid.image, strict=True
            )
        )

    def write(self, block: Block, values: np.ndarray) -> list[tuple[str, int]]:
        """Write a block at every level that it has shards of; its files and their sizes.

        Parameters
        ----------
        values : numpy.ndarray
            ([C,] *space) of the target.

        Raises
        ------
        DiskFull
            If there is no room; the block counts as not done.
        FileNotFoundError
            If the image does not grow here any more: its drive is gone, or it is finished.
        """
        if not self.growing.is_dir():  # zarr would make the folders anew
            raise FileNotFoundError(errno.ENOENT, "the image is gone", str(self.growing))
        frame = () if self.grid.frames == 1 else (block.frame,)
        channels = () if self.output.channels is None else (slice(None),)
        files: list[tuple[str, int]] = []
        try:
            for level, array in enumerate(self.levels[: self.own_levels]):
                if level:
                    values = halved(values, self._ndim, self.output.kind == "labels")
                places = self._places(block, level)
                shards = list(self._shards(array, level, frame, places))
                for name in shards:
                    # zarr would read a shard at the border to change it, and one may be damaged
                    (self.growing / name).unlink(missing_ok=True)
                array[(*frame, *channels, *places)] = values
                files += self._flushed(shards)
        except OSError as error:
            if error.errno in FULL:
                needed = self.bytes // self.grid.count
                raise DiskFull(
                    f"{self.growing}: the disk is full; a block needs up to {readable(needed)}"
                ) from error
            raise
        return files

    def _flushed(self, shards: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Names and sizes of shards, flushed to the disk.

        A shard of labels that holds nothing but zeros has no file.
        """
        for name in shards:
            path = self.growing / name
            if path.exists():
                sync(path)
                yield name, path.stat().st_size

    def _shards(
        self, array: Any, level: int, frame: tuple[int, ...], places: Sequence[slice]
    ) -> Iterator[str]:
        """Names of the shards below some places of a level."""
        space = array.shards[-self._ndim :]
        ranges = [
            range(p.start // s, -(-p.stop // s)) for p, s in zip(places, space, strict=True)
        ]
        channels = () if self.output.channels is None else range(self.output.channels)
        lead: list[Any] = [*([f] for f in frame), *([channels] if channels else [])]
        for corner in itertools.product(*lead, *ranges):
            yield f"{level}/{array.metadata.encode_chunk_key(corner)}"

    @property
    def bytes(self) -> int:
        """Bytes of all levels, not compressed."""
        samples = math.prod(self._leading()) * math.prod(self.grid.image)
        return int(samples * np.dtype(self.output.dtype).itemsize * (8 if self._ndim == 3 else 4)
                   / (7 if self._ndim == 3 else 3))

    def clean(self) -> None:
        """Remove what writers that were killed left behind."""
        if self.is_finished:
            shutil.rmtree(self.growing, ignore_errors=True)
        for path in self.growing.rglob("*.partial"):
            path.unlink(missing_ok=True)

    # --- the end ----------------------------------------------------------------------------

    def finish(self, geometry: Geometry, attributes: dict[str, Any],
               value_range: tuple[float, float]) -> None:
        """Make the levels that are left, and put the group in its place.

        Raises
        ------
        DiskFull, JobError
            If they cannot be written; what the blocks have written stays.
        """
        with writing(self.growing):
            store = zarr.open_group(self.growing, mode="r+")
            level = self.own_levels
            while max(self._shape(level - 1)) > TOP[self._ndim]:
                self._coarser(store, level)
                level += 1
            self._describe(store, geometry, attributes, value_range, level, complete=True)
            self.clean()
            sync_tree(self.growing)  # all of it is on the disk before it counts as whole
            swap(self.growing, self.group)
            sync(self.group.parent)
        self._levels = []

    def reopen(self) -> None:
        """Let a finished image grow again: some of its files are gone."""
        with writing(self.growing):
            if self.growing.exists():
                shutil.rmtree(self.growing)
            self.group.rename(self.growing)
        self._levels = []

    def _coarser(self, store: zarr.Group, level: int) -> None:
        """A level from the one before, chunk by chunk."""
        fine: Any = store[str(level - 1)]
        shape, most = self._shape(level), CHUNK[self._ndim]
        leading = self._leading()
        chunks = tuple(min(most, n) for n in shape)
        coarse = store.create_array(
            str(level), shape=(*leading, *shape), dtype=self.output.dtype, overwrite=True,
            chunks=(*(1 for _ in leading), *chunks), compressors=ZstdCodec(level=3),
        )
        corners: Iterator[Any] = itertools.product(
            *(range(n) for n in leading),
            *(range(0, n, c) for n, c in zip(shape, chunks, strict=True)),
        )
        for corner in corners:
            lead: Any = corner[: len(leading)]
            start = corner[len(leading) :]
            stop = [min(a + c, n) for a, c, n in zip(start, chunks, shape, strict=True)]
            source = tuple(
                slice(a, b) if n == whole else slice(2 * a, 2 * b)
                for a, b, n, whole in zip(
                    start, stop, shape, self._shape(level - 1), strict=True
                )
            )
            values = halved(fine[(*lead, *source)], self._ndim, self.output.kind == "labels")
            coarse[(*lead, *(slice(a, b) for a, b in zip(start, stop, strict=True)))] = values


def is_begun(path: Path) -> bool:
    """Whether something in ``result.ome.zarr`` holds no image that is whole.

    Examples
    --------
    >>> is_begun(Path("a.zarr/mean-incomplete")), is_begun(Path("a.zarr/mean"))
    (True, False)
    """
    return path.name.endswith(GROWING) or path.name == "zarr.json"


def _largest_divisor(edge: int, most: int) -> int:
    """The largest divisor of an edge that is not larger than ``most``.

    Examples
    --------
    >>> _largest_divisor(96, 64), _largest_divisor(128, 64), _largest_divisor(7, 64)
    (48, 64, 7)
    """
    return next(d for d in range(min(edge, most), 0, -1) if edge % d == 0)
