"""Round trips, refusals and fuzz of the files that images come from."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from napari_invprior.errors import FileRefused, InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.io.images import image_from_array, load
from napari_invprior.io.tiff import walk
from napari_invprior.sources import Source

RAMP = np.arange(7 * 11, dtype=np.uint8).reshape(7, 11) * 3


def loaded(path: Path, **parts):
    limit = parts.pop("limit", 1 << 24)
    return load(Source(path=str(path), **parts), limit=limit)


def save(path: Path, array: np.ndarray) -> Path:
    """Write with the libraries, not with our own code."""
    kind = path.suffix
    if kind == ".png":
        Pillow.fromarray(array).save(path)
    elif kind == ".tif":
        tifffile.imwrite(path, array)
    elif kind == ".npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, a=array)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".npz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
@pytest.mark.parametrize("shape", [(7, 11), (1, 5), (6, 1), (64, 33)])
def test_grey_images_come_back_exactly(tmp_path, suffix, dtype, shape):
    array = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    image = loaded(save(tmp_path / f"x{suffix}", array))
    assert image.array.dtype == dtype
    np.testing.assert_array_equal(image.array[0, 0], array)
    assert image.facts["path"] == str(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".npz"])
@pytest.mark.parametrize("dtype", [">u2", ">f4", "<f8", "<f2", "<i4"])
def test_volumes_come_back_exactly(tmp_path, suffix, dtype):
    array = (np.random.default_rng(0).random((7, 9, 11)) * 100).astype(dtype)
    image = loaded(save(tmp_path / f"x{suffix}", array))
    np.testing.assert_array_equal(image.array[0, 0], array)


def test_fortran_order_npy(tmp_path):
    array = np.asfortranarray(np.random.default_rng(0).random((9, 7)))
    np.testing.assert_array_equal(loaded(save(tmp_path / "x.npy", array)).array[0, 0], array)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
@pytest.mark.parametrize("colours", [3, 4])
def test_colours_are_channels_never_depth(tmp_path, suffix, colours):
    array = np.random.default_rng(0).integers(0, 255, (12, 9, colours)).astype(np.uint8)
    image = loaded(save(tmp_path / f"x{suffix}", array))
    assert (image.ndim, image.channels, image.rgb) == (2, 3, True)
    assert bool(image.facts["notes"]) == (colours == 4)
    np.testing.assert_array_equal(np.moveaxis(image.array[0], 0, -1), array[..., :3])
    grey = loaded(tmp_path / f"x{suffix}", channel=1)
    assert (grey.channels, grey.rgb, grey.channel_axis) == (1, False, None)
    np.testing.assert_array_equal(grey.array[0, 0], array[..., 1])


def test_png_palettes_and_transparency(tmp_path):
    grey = Pillow.fromarray(RAMP).convert("P")
    grey.putpalette([v for i in range(256) for v in (i, i, i)])
    grey.save(tmp_path / "grey.png")
    assert loaded(tmp_path / "grey.png").channels == 1
    colour = Pillow.fromarray(np.dstack([RAMP, RAMP.T.reshape(7, 11), RAMP * 2])).quantize(9)
    colour.save(tmp_path / "colour.png")
    assert loaded(tmp_path / "colour.png").channels == 3
    Pillow.fromarray(RAMP).convert("LA").save(tmp_path / "la.png")
    image = loaded(tmp_path / "la.png")
    assert "transparency" in image.facts["notes"][0]
    np.testing.assert_array_equal(image.array[0, 0], RAMP)


@pytest.mark.parametrize("name", ["a b.png", "größe-µ-図.npy", "it's;$(x).tif", "con.npz"])
def test_paths_with_odd_letters(tmp_path, name):
    folder = tmp_path / "Ordner mit Leerzeichen é"
    folder.mkdir()
    assert loaded(save(folder / name, RAMP)).space == (7, 11)


def test_relative_paths_start_at_the_folder(tmp_path, monkeypatch):
    save(tmp_path / "x.npy", RAMP)
    assert load(Source(path="x.npy"), folder=tmp_path).space == (7, 11)
    monkeypatch.chdir(tmp_path)
    assert load(Source(path="x.npy")).space == (7, 11)


def test_an_image_survives_its_file(tmp_path):
    path = save(tmp_path / "x.npy", RAMP)
    image = loaded(path)
    path.write_bytes(b"")
    np.testing.assert_array_equal(image.array[0, 0], RAMP)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".npz"])
def test_crop_is_placed(tmp_path, suffix):
    image = loaded(
        save(tmp_path / f"x{suffix}", RAMP), crop=((2, 5), (3, 100)), scale=(2.0, 0.5)
    )
    np.testing.assert_array_equal(image.array[0, 0], RAMP[2:5, 3:])
    assert image.geometry.scale == (2.0, 0.5)
    assert image.geometry.translate == (4.0, 1.5)
    assert "8%" in image.facts["notes"][0]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"crop": ((0, 5), (20, 30))}, "outside"),
        ({"crop": ((0, 5), (0, 5), (0, 5))}, "fewer than 3"),
        ({"channel": 1}, "channel 1 of 1"),
        ({"scale": (1.0, 2.0, 3.0)}, "fewer than 3"),
        ({"scale": (1.0, 0.0)}, "positive"),
        ({"dtype_range": (1.0, 1.0)}, "value range"),
        ({"key": "a"}, "'key' is for"),
    ],
)
def test_parts_that_do_not_exist(tmp_path, parts, words):
    with pytest.raises(InvalidInput, match=words):
        loaded(save(tmp_path / "x.npy", RAMP), **parts)


def test_leading_channels_can_be_chosen(tmp_path):
    array = np.random.default_rng(0).random((3, 20, 30))
    path = save(tmp_path / "x.npy", array)
    with pytest.raises(InvalidInput, match="'channel'"):
        loaded(path)
    np.testing.assert_array_equal(loaded(path, channel=2).array[0, 0], array[2])
    assert loaded(path, crop=((0, 3), (0, 20), (0, 30))).ndim == 3


def test_layers_and_samples():
    layer = image_from_array(RAMP, name="my layer", geometry=Geometry((2.0, 2.0), (1.0, 1.0)))
    source = Source(layer="my layer", crop=((1, 3), (2, 4)), dtype_range=(0, 10))
    part = load(source, {"my layer": layer})
    np.testing.assert_array_equal(part.array[0, 0], RAMP[1:3, 2:4])
    assert part.geometry.translate == (3.0, 5.0)
    assert part.value_range == (0, 10)
    with pytest.raises(InvalidInput, match="did you mean 'my layer'"):
        load(Source(layer="my layr"), {"my layer": layer})
    assert load(Source(sample="gravel-test")).space == (512, 256)
    with pytest.raises(InvalidInput, match="gravel"):
        load(Source(sample="gravle-test"))


def test_spacing_and_units_of_tiffs(tmp_path):
    path, array = tmp_path / "x.tif", np.zeros((5, 6, 7), np.uint16)
    array[0, 0, 0] = 9
    tifffile.imwrite(path, array, imagej=True, resolution=(4, 5),
                     metadata={"axes": "ZYX", "spacing": 2.5, "unit": "um"})  # fmt: skip
    geometry = loaded(path).geometry
    assert geometry.scale == pytest.approx((2.5, 0.2, 0.25))
    assert geometry.units == ("micrometer",) * 3
    assert geometry.axis_labels == ("z", "y", "x")
    sizes = {"PhysicalSizeX": 0.1, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.3}
    tifffile.imwrite(path, np.stack([array, array + 1]), ome=True,
                     metadata={"axes": "CZYX", **sizes})  # fmt: skip
    image = loaded(path)
    assert (image.channels, image.geometry.scale) == (2, (1.0, 0.3, 0.1))
    assert image.geometry.units == ("pixel", "micrometer", "nanometer")


def test_time_series_tiff_becomes_frames(tmp_path):
    path, array = tmp_path / "x.tif", np.random.default_rng(0).random((5, 6, 7), np.float32)
    tifffile.imwrite(path, array, imagej=True, metadata={"axes": "TYX"})
    image = loaded(path)
    assert image.frame_axes == (5,)
    np.testing.assert_array_equal(image.array[:, 0], array)


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["https://example.org/x.png", "s3://bucket/x.zarr", "file:///etc/passwd", "ftp://a/b"]
)
def test_addresses_are_never_opened(address):
    with pytest.raises(InvalidInput, match="nothing is fetched"):
        load(Source(path=address))


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000, "~nobody-here-at-all/x.png"])
def test_impossible_paths(path):
    with pytest.raises(InvalidInput):
        load(Source(path=path))


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(InvalidInput, match=r"none\.png: no such file"):
        loaded(tmp_path / "none.png")
    with pytest.raises(FileRefused, match="no OME-Zarr"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello", "unknown kind"),
        (b"\x80\x04\x95pickle", "run code"),
        (b"\xff\xd8\xff\xe0JFIF", "unknown kind"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read"),
        (b"\x93NUMPY\x01\x00", "cannot be read"),
        (b"II*\0", "cannot be read"),
        (b"PK\3\4", "cannot be read"),
    ],
)
def test_other_contents(tmp_path, content, words):
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(FileRefused, match=rf"x\.bin.*{words}"):
        loaded(path)


def test_pickles_are_refused(tmp_path):
    import torch

    torch.save({"a": torch.zeros(3)}, tmp_path / "x.pt")
    with pytest.raises(FileRefused, match="run code"):
        loaded(tmp_path / "x.pt")
    (tmp_path / "x.pt").rename(tmp_path / "x.npz")
    with pytest.raises(FileRefused, match="no NumPy array"):
        loaded(tmp_path / "x.npz")
    np.save(tmp_path / "o.npy", np.array([[{}]]), allow_pickle=True)
    np.savez(tmp_path / "o.npz", a=np.array([[{}]]))
    for name in ("o.npy", "o.npz"):
        with pytest.raises(FileRefused, match="pickled objects"):
            loaded(tmp_path / name)


def npy_with(shape: str, descr: str = "'<f8'", data: bytes = b"\0" * 64) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("shape", "descr"),
    [
        ("(1000000, 1000000)", "'<f8'"),
        ("(4, 4)", "'<f8'"),
        ("(-8, -1)", "'<f8'"),
        ("(8, 0)", "'<f8'"),
        ("(8, 1.0)", "'<f8'"),
        ("(2, 4)", "[('a', '<f8')]"),
        ("(2, 4)", "'V8'"),
        ("(2, 4)", "'U2'"),
        ("(2, 4)", "'<c8'"),
        ("__import__('os')", "'<f8'"),
        ("(" * 5000, "'<f8'"),
    ],
)
def test_npy_headers_that_lie(tmp_path, shape, descr):
    for name, content in (("x.npy", npy_with(shape, descr)), ("x.npz", None)):
        path = tmp_path / name
        if content is None:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("a.npy", npy_with(shape, descr))
        else:
            path.write_bytes(content)
        with pytest.raises(InvalidInput, match=name):
            loaded(path)


@pytest.mark.parametrize("shape", ["(4, 4)", "(2, 2)", "(1000000, 1000000)"])
@pytest.mark.parametrize("packed", [False, True])
def test_npy_sizes_that_differ_are_named(tmp_path, shape, packed):
    path = tmp_path / "x.bin"
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", npy_with(shape))
    else:
        path.write_bytes(npy_with(shape))
    with pytest.raises(FileRefused, match="truncated or damaged"):
        loaded(path)


def test_limits_hold_before_anything_is_allocated(tmp_path):
    array = np.zeros((300, 300))
    array[0] = 1
    for suffix in (".npy", ".npz", ".tif"):
        path = save(tmp_path / f"x{suffix}", array)
        with pytest.raises(FileRefused, match=r"x.*703\.. KiB.*limit is 97\.7 KiB.*smaller region"):
            loaded(path, limit=100_000)
    assert loaded(tmp_path / "x.npy", limit=100_000, crop=((0, 50), (0, 50))).space == (50, 50)
    with pytest.raises(FileRefused, match="limit"):
        loaded(save(tmp_path / "x.png", array.astype(np.uint8)), limit=50_000)


def test_zip_bombs_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros((6000, 6000)))
    with pytest.raises(FileRefused, match="bomb"):
        loaded(tmp_path / "bomb.npz", limit=1 << 40)


def test_several_arrays_need_a_key(tmp_path):
    np.savez(tmp_path / "x.npz", first=RAMP, second=RAMP + 1)
    with pytest.raises(InvalidInput, match="first, second"):
        loaded(tmp_path / "x.npz")
    with pytest.raises(InvalidInput, match="did you mean 'second'"):
        loaded(tmp_path / "x.npz", key="secnd")
    np.testing.assert_array_equal(loaded(tmp_path / "x.npz", key="second").array[0, 0], RAMP + 1)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_png_headers_that_lie(tmp_path):
    for width, height in ((30_000, 5_000), (2**31 - 1, 2**31 - 1), (0, 5)):
        head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        body = png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")
        (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(FileRefused, match=r"x\.png"):
                loaded(tmp_path / "x.png", limit=1 << 40)


def tiff_with(entries: list[tuple[int, int, int, int]], following: int) -> bytes:
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + struct.pack("<I", following)


SHAPE = [(256, 4, 1, 100_000), (257, 4, 1, 100_000), (258, 3, 1, 8), (277, 3, 1, 1)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tiff_with(SHAPE, 8), "loop"),
        (tiff_with(SHAPE, 7_000_000), "truncated"),
        (tiff_with(SHAPE, 0), "limit"),
        (tiff_with([(273, 4, 2**31, 8)], 0), "longer than the file"),
        (b"II*\0\x08\0\0\0\xff\xff", "65535 entries"),
    ],
)
def test_tiff_directories_that_lie(tmp_path, content, words):
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(FileRefused, match=words):
        loaded(tmp_path / "x.tif")


def test_endless_tiff_directories(tmp_path):
    count = 100_001
    chain = b"".join(
        struct.pack("<HI", 0, 8 + 6 * (i + 1) if i < count else 0) for i in range(count + 1)
    )
    (tmp_path / "x.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + chain)
    with pytest.raises(FileRefused, match="more than 100000"):
        walk(tmp_path / "x.tif")


def test_big_tiff_and_many_pages(tmp_path):
    path = tmp_path / "x.tif"
    stack = np.random.default_rng(0).integers(0, 99, (40, 8, 9)).astype(np.uint8)
    tifffile.imwrite(path, stack, bigtiff=True, metadata=None, compression="zlib")
    assert walk(path) == 40
    np.testing.assert_array_equal(loaded(path).array[0, 0], stack)


def test_truncated_tiff(tmp_path):
    path = save(tmp_path / "x.tif", np.random.default_rng(0).random((50, 50)))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(FileRefused, match=r"x\.tif.*truncated"):
        loaded(path)


def encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix == ".png":
        Pillow.fromarray(RAMP).save(buffer, "PNG")
    elif suffix == ".tif":
        tifffile.imwrite(buffer, RAMP, compression="zlib")
    elif suffix == ".npy":
        np.save(buffer, RAMP)
    else:
        np.savez_compressed(buffer, a=RAMP)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".npz"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_never_raise_anything_else(tmp_path, suffix):
    good, path = encoded(suffix), tmp_path / f"x{suffix}"

    @settings(max_examples=150)
    @given(
        st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=4),
        st.integers(0, len(good)),
    )
    @example([], len(good))
    def damaged(flips, length):
        content = bytearray(good)
        for place, value in flips:
            content[place] = value
        path.write_bytes(content[:length])
        try:
            image = loaded(path)
        except InvalidInput as error:
            assert path.name in str(error)
        else:
            assert image.array.nbytes < 1 << 24

    damaged()


MAGIC = [b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0+", b"\x93NUMPY\x01\x00", b"PK\3\4"]


@given(st.binary(max_size=300), st.sampled_from(MAGIC))
@pytest.mark.filterwarnings("ignore")
def test_noise_behind_a_good_beginning(tmp_path_factory, noise, magic):
    path = tmp_path_factory.getbasetemp() / "noise.bin"
    path.write_bytes(magic + noise)
    with pytest.raises(InvalidInput, match=r"noise\.bin"):
        loaded(path)
