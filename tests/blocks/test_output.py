"""Blocks fill a pyramid in any order and side by side; it is the one that is written at once."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_invprior.blocks.grid import BlockGrid
from napari_invprior.blocks.output import BlockedImage, Output
from napari_invprior.errors import DiskFull
from napari_invprior.geometry import Geometry
from napari_invprior.io.omezarr import attributes, read_image, write_image


def filled(
    folder: Path, array: np.ndarray, core: tuple[int, ...], *, factor: int = 1,
    channels: int | None = None, frames: int = 1, labels: bool = False, order: int = 0,
) -> BlockedImage:
    """The image after all blocks of ``array`` were written by two threads."""
    space = array.shape[-len(core) :]
    data = tuple(-(-n // factor) for n in space)
    cut = tuple(c < n for c, n in zip(core, data, strict=True))
    core = tuple(min(c, n) for c, n in zip(core, data, strict=True))
    grid = BlockGrid(frames, data, space, (factor,) * len(core), core, (2,) * len(core), 1, cut)
    output = Output(
        name="image", dtype=str(array.dtype), channels=channels,
        kind="labels" if labels else "image",
    )
    image = BlockedImage(folder / "result.ome.zarr" / "image", output, grid)
    geometry = Geometry.identity(len(core))
    image.create(geometry, {"who": "test"}, (0.0, 1.0))
    blocks = [grid.block(int(i)) for i in np.random.default_rng(order).permutation(grid.count)]

    def write(block):
        where = (block.frame,) if frames > 1 else ()
        channel = () if channels is None else (slice(None),)
        return image.write(block, array[(*where, *channel, *block.target)])

    with ThreadPoolExecutor(2) as pool:
        files = [name for names in pool.map(write, blocks) for name, _ in names]
    assert len(files) == len(set(files))  # no shard belongs to two blocks
    image.finish(geometry, {"who": "test"}, (0.0, 1.0))
    return image


def same_as_at_once(folder: Path, array: np.ndarray, image: BlockedImage, channels=None) -> None:
    write_image(
        folder / "whole.ome.zarr" / "image", array, Geometry.identity(len(image.grid.image)),
        channels=None if channels is None else [str(i) for i in range(channels)],
        labels=image.output.kind == "labels",
    )
    whole = zarr.open_group(folder / "whole.ome.zarr" / "image", mode="r")
    assert len(image.levels) == len(list(whole.arrays()))
    for number, level in enumerate(image.levels):
        np.testing.assert_array_equal(level[...], whole[str(number)][...])


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70)),
    core=st.sampled_from([(16, 16, 16), (32, 16, 24), (8, 64, 20), (70, 70, 70)]),
    order=st.integers(0, 5),
)
def test_volumes_of_any_shape(tmp_path_factory, shape, core, order) -> None:
    folder = tmp_path_factory.mktemp("volume")
    array = np.random.default_rng(1).random(shape, np.float32)
    same_as_at_once(folder, array, filled(folder, array, core, order=order))


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    core=st.sampled_from([(128, 128), (64, 256), (100, 60)]),
    factor=st.sampled_from([1, 2]),
)
def test_planes_of_any_shape(tmp_path_factory, shape, core, factor) -> None:
    folder = tmp_path_factory.mktemp("plane")
    array = np.random.default_rng(1).random(shape, np.float32)
    same_as_at_once(folder, array, filled(folder, array, core, factor=factor))


def test_channels_frames_and_labels(tmp_path) -> None:
    colours = np.random.default_rng(1).random((3, 300, 280), np.float32)
    image = filled(tmp_path / "c", colours, (128, 128), channels=3)
    same_as_at_once(tmp_path / "c", colours, image, channels=3)
    movie = np.random.default_rng(1).random((4, 70, 66, 68), np.float32)
    same_as_at_once(tmp_path / "t", movie, filled(tmp_path / "t", movie, (32,) * 3, frames=4))
    labels = np.random.default_rng(1).integers(0, 9, (70, 66, 68), np.int32)
    same_as_at_once(tmp_path / "l", labels, filled(tmp_path / "l", labels, (32,) * 3, labels=True))


def test_it_is_read_as_any_result(tmp_path) -> None:
    array = np.random.default_rng(1).random((90, 100, 80), np.float32)
    filled(tmp_path, array, (32, 32, 32))
    group = tmp_path / "result.ome.zarr" / "image"
    np.testing.assert_array_equal(read_image(group).array[0, 0], array)
    told = attributes(group)
    assert (told["who"], told["complete"], told["value_range"]) == ("test", True, [0.0, 1.0])
    assert not (tmp_path / "result.ome.zarr" / "image-incomplete").exists()


def test_blocks_of_zeros_are_whole(tmp_path) -> None:
    for folder, kind in ((tmp_path / "image", np.float32), (tmp_path / "labels", np.int32)):
        array = np.zeros((64, 64, 64), kind)
        array[:32] = 1
        image = filled(folder, array, (32, 32, 32), labels=kind is np.int32)
        np.testing.assert_array_equal(image.levels[0][...], array)


def test_what_is_not_there_yet_is_nothing(tmp_path) -> None:
    grid = BlockGrid(1, (64,) * 3, (64,) * 3, (1,) * 3, (32,) * 3, (0,) * 3, 1, (True,) * 3)
    image = BlockedImage(tmp_path / "result.ome.zarr" / "image", Output(name="image"), grid)
    image.create(Geometry.identity(3), {}, (0.0, 1.0))
    image.write(grid.block(0), np.zeros((32,) * 3, np.float32))
    found = image.levels[0][...]
    assert (found[:32, :32, :32] == 0).all()
    assert np.isnan(found).sum() == found.size - 32**3


def test_a_full_disk_names_what_is_needed(tmp_path, monkeypatch) -> None:
    grid = BlockGrid(1, (64,) * 3, (64,) * 3, (1,) * 3, (32,) * 3, (0,) * 3, 1, (True,) * 3)
    image = BlockedImage(tmp_path / "result.ome.zarr" / "image", Output(name="image"), grid)
    image.create(Geometry.identity(3), {}, (0.0, 1.0))

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zarr.storage._local._put", full)
    with pytest.raises(DiskFull, match=r"the disk is full; a block needs up to 146\.3 KiB"):
        image.write(grid.block(0), np.ones((32,) * 3, np.float32))
