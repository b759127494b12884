"""TIFF stacks that stay on disk: only the planes that are asked for are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_invprior.errors import FileRefused
from napari_invprior.io import planes
from napari_invprior.io.images import load, opened
from napari_invprior.io.planes import Planes
from napari_invprior.io.raw import Mapped
from napari_invprior.io.tiff_folder import read_folder
from napari_invprior.io.volume import open_volume
from napari_invprior.sources import Source

STACK = np.arange(12 * 30 * 40, dtype=np.uint16).reshape(12, 30, 40)


def saved(path: Path, **options) -> Path:
    tifffile.imwrite(path, STACK, **options)
    return path


KINDS = {
    "plain": {"photometric": "minisblack"},
    "big endian": {"photometric": "minisblack", "byteorder": ">"},
    "ImageJ": {"imagej": True, "metadata": {"axes": "ZYX", "spacing": 2.5}},
    "OME": {"ome": True, "metadata": {"axes": "ZYX"}},
    "packed": {"photometric": "minisblack", "compression": "zlib"},
    "packed tiles": {"photometric": "minisblack", "compression": "zlib", "tile": (16, 16)},
    "BigTIFF": {"photometric": "minisblack", "bigtiff": True, "compression": "zlib"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_is_what_was_saved(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path / ("x.ome.tif" if kind == "OME" else "x.tif"), **KINDS[kind])
    raw, _ = opened(Source(path=str(path)))
    assert isinstance(raw.array, Planes if "packed" in kind or kind == "BigTIFF" else Mapped)
    for index in ((slice(3, 7), slice(2, 9), slice(0, 40, 3)), 5, (slice(None), 4), (-1, ..., 2),
                  (slice(8, 2, -2), 1, slice(0, 2))):
        np.testing.assert_array_equal(raw.array[index], STACK[index])
    volume = open_volume(Source(path=str(path), crop=((2, 10), (0, 30), (5, 25))))
    np.testing.assert_array_equal(
        volume.read(0, (slice(1, 3), slice(4, 9), slice(0, 5)))[0], STACK[3:5, 4:9, 5:10]
    )
    whole = load(Source(path=str(path), crop=((0, 12), (0, 30), (0, 40))))
    np.testing.assert_array_equal(whole.array[0, 0], STACK)


def test_other_planes_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def plane(number: int) -> np.ndarray:
        read.append(number)
        return STACK[number]

    stack = Planes(STACK.shape, STACK.dtype, plane, 2)
    assert stack[4:6, 0, 0].shape == (2,)
    assert stack[4:6].shape == (2, 30, 40)
    assert read == [4, 5]
    monkeypatch.setattr(planes, "HELD", 0)
    small = Planes(STACK.shape, STACK.dtype, plane, 2)
    assert len([small[i] for i in (0, 1, 0)]) == 3
    assert read == [4, 5, 0, 1, 0]


@settings(deadline=None)
@given(st.data())
def test_planes_are_sliced_as_arrays_are(data: st.DataObject) -> None:
    lead = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=2)))
    shape = (*lead, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)))
    array = np.arange(np.prod(shape)).reshape(shape)
    flat = array.reshape(-1, *shape[-2:])
    stack = Planes(shape, array.dtype, lambda number: flat[number], 2)
    index = tuple(
        data.draw(st.one_of(st.integers(-n, n - 1), st.slices(n)))
        for n in shape[: data.draw(st.integers(0, len(shape)))]
    )
    np.testing.assert_array_equal(stack[index], array[index])


def test_a_folder_of_slices_is_a_volume(tmp_path: Path) -> None:
    folder = tmp_path / "slices of å"
    folder.mkdir()
    for number, plane in enumerate(STACK):
        tifffile.imwrite(folder / f"scan_{number + 8}.tif", plane)  # 8, 9, 10: not as texts
    (folder / "notes.txt").write_text("hello")
    (folder / ".hidden.tif").write_text("junk")
    image = load(Source(path=str(folder)))
    np.testing.assert_array_equal(image.array[0, 0], STACK)
    assert image.facts["notes"] == ()
    (folder / "scan_12.tif").unlink()
    (folder / "scan_13.tif").unlink()
    assert "slices are missing: 12, 13" in load(Source(path=str(folder))).facts["notes"][0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: tifffile.imwrite(f / "s9.tif", STACK[0, :20]), r"s9\.tif: uint16 of shape"),
        (lambda f: tifffile.imwrite(f / "s9.tif", STACK[0].astype("f4")), r"s9\.tif: float32"),
        (lambda f: (f / "s9.tif").write_bytes(b"II*\0junk"), "s9"),
        (lambda f: tifffile.imwrite(f / "s0.tif", STACK[:2], photometric="minisblack"), "s0.*grey"),
        (lambda f: (f / "s9.tif").symlink_to("/etc/hostname"), "link that leads out"),
    ],
)
def test_slices_that_do_not_fit(make, words: str, tmp_path: Path) -> None:
    for number in (1, 2):
        tifffile.imwrite(tmp_path / f"s{number}.tif", STACK[number])
    make(tmp_path)
    with pytest.raises(FileRefused, match=words):
        load(Source(path=str(tmp_path)))


def test_one_slice_is_no_volume(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK[0])
    with pytest.raises(FileRefused, match="1 TIFF files; a volume takes 2"):
        read_folder(tmp_path, None)


def test_a_stack_larger_than_the_limit_is_read_in_parts(tmp_path: Path) -> None:
    for compression in (None, "zlib"):
        path = tmp_path / f"{compression}.tif"
        saved(path, photometric="minisblack", compression=compression)
        part = load(Source(path=str(path), crop=((0, 2), (0, 30), (0, 40))), limit=5000)
        np.testing.assert_array_equal(part.array[0, 0], STACK[:2])
        with pytest.raises(FileRefused, match=r"the limit is 4\.9 KiB"):
            load(Source(path=str(path)), limit=5000)
