"""TIFF files that name more than they hold are refused before they are decoded."""

from __future__ import annotations

import lzma
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_invprior.errors import FileRefused
from napari_invprior.io import tiff_guard
from napari_invprior.io.images import load
from napari_invprior.io.tiff_guard import _packbits_size, check_texts, walk
from napari_invprior.sources import Source
from tests.faults.bombs import bombs
from tests.faults.intact_tiff import Layout

RAMP = (np.arange(600).reshape(30, 20) % 70).astype("u1")
LIMIT = 64 << 20


def refused(path: Path, words: str) -> None:
    tracemalloc.start()
    with pytest.raises(FileRefused, match=words):
        load(Source(path=str(path)), limit=LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def rewritten(path: Path, strip: bytes, compression: int) -> Path:
    """A file of one strip of these bytes."""
    tifffile.imwrite(path, RAMP, metadata=None)
    data = bytearray(path.read_bytes())
    for entry in Layout(bytes(data)).entries:
        value = {259: compression, 273: len(data), 279: len(strip)}.get(entry.tag)
        if value is not None:
            entry.write(data, kind=4)
            entry.kind = 4
            entry.write(data, value=value)
    path.write_bytes(bytes(data) + strip)
    return path


def described(path: Path, text: str) -> Path:
    """A file with this description."""
    tifffile.imwrite(path, RAMP, description=text.encode(), metadata=None)
    return path


@pytest.mark.parametrize(
    ("compression", "strip"),
    [
        (8, bombs()["zlib"]), (32946, bombs()["zlib"]), (34925, bombs()["lzma"]),
        (32773, b"\x81\0" * (1 << 18)),
    ],
    ids=["deflate", "old deflate", "lzma", "packbits"],
)  # fmt: skip
def test_bombs_take_no_memory(tmp_path, compression, strip):
    refused(rewritten(tmp_path / "x.tif", strip, compression), r"x\.tif: a segment unpacks to")


def test_a_dictionary_of_gigabytes(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    strip = lzma.compress(RAMP.tobytes(), filters=filters)
    refused(rewritten(tmp_path / "x.tif", strip, 34925), "cannot be unpacked .*limit exceeded")


@pytest.mark.parametrize("compression", ["zlib", "lzma"])
def test_large_segments_that_hold_what_they_say_are_read(tmp_path, compression):
    image = np.zeros((4000, 4000), np.uint8)
    image[:1500] = np.random.default_rng(0).integers(0, 255, (1500, 4000))
    tifffile.imwrite(tmp_path / "x.tif", image, compression=compression, rowsperstrip=4000)
    read = load(Source(path=str(tmp_path / "x.tif")), limit=LIMIT)
    np.testing.assert_array_equal(read.array[0, 0], image)


def test_runs_of_packbits():
    assert _packbits_size(b"", 10) == 0
    assert _packbits_size(b"\x80\x80", 10) == 0
    assert _packbits_size(b"\x81\0" * 1000, 500) > 500


def test_packbits_is_read(tmp_path):
    raw = RAMP.tobytes()
    parts = [raw[i : i + 128] for i in range(0, len(raw), 128)]
    strip = b"".join(bytes([len(part) - 1]) + part for part in parts)
    path = rewritten(tmp_path / "x.tif", strip, 32773)
    np.testing.assert_array_equal(load(Source(path=str(path))).array[0, 0], RAMP)


OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image '
    'ID="I:0"><Pixels DimensionOrder="XYZCT" Type="uint8" SizeX="20" SizeY="30" SizeZ="1" '
    'SizeC="1" SizeT="{sizes}">{inside}</Pixels></Image>{after}</OME>'
)


@pytest.mark.parametrize(
    ("sizes", "inside", "after", "words"),
    [
        ("1000000000", "<TiffData/>", "", "1e\\+09 planes"),
        ("-1", "<TiffData/>", "", "-1 planes"),
        ("1", '<TiffData PlaneCount="1000000000"/>', "", "planes of TiffData"),
        ("1", '<TiffData NumPlanes="-3"/>', "", "planes of TiffData"),
        ("1", '<TiffData IFD="4000000000" PlaneCount="2"/>', "", "4e\\+09 IFD"),
        ("1", '<TiffData FirstZ="-1"/>', "", "-1 FirstZ"),
        ("1", '<TiffData PlaneCount="600000"/>' * 2, "", "1.2e\\+06 planes of TiffData"),
        ("1", "<a>" * 200 + "</a>" * 200, "", "nested too deeply"),
        ("1", "<TiffData/>", '<M><ModuloAlongT Start="0" End="1e10"/></M>', "1e\\+10 steps"),
        ("1", "<TiffData/>", '<M><ModuloAlongT Start="0" End="1" Step="0"/></M>', "inf steps"),
    ],
)  # fmt: skip
def test_ome_metadata_that_name_too_much(tmp_path, sizes, inside, after, words):
    text = OME.format(sizes=sizes, inside=inside, after=after)
    refused(described(tmp_path / "x.tif", text), words)


def test_ome_metadata_that_name_what_there_is(tmp_path):
    image = np.stack([RAMP] * 6).reshape(2, 3, 30, 20)
    tifffile.imwrite(tmp_path / "x.ome.tif", image, metadata={"axes": "CZYX"})
    with tifffile.TiffFile(tmp_path / "x.ome.tif") as tif:
        check_texts(tif, "x")
    assert load(Source(path=str(tmp_path / "x.ome.tif"))).array.shape == (1, 2, 3, 30, 20)


@pytest.mark.parametrize("head", ["<!DOCTYPE x [<!ENTITY a 'b'>]>", "<!doctype x SYSTEM 'y'>"])
def test_entities(tmp_path, head):
    text = OME.format(sizes=1, inside="<TiffData/>", after="").replace("?>", f"?>{head}")
    refused(described(tmp_path / "x.tif", text), "XML entities")


# ---- directories


def test_directories_below_others_are_walked(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        writer.write(RAMP, subifds=2)
        for step in (2, 4):
            writer.write(RAMP[::step, ::step], subfiletype=1)
    assert walk(tmp_path / "x.tif") == 3
    data = bytearray((tmp_path / "x.tif").read_bytes())
    layout = Layout(bytes(data))
    entry = next(e for e in layout.entries if e.tag == 330)
    place = entry.where(bytes(data))
    data[place : place + 8] = struct.pack("<II", layout.starts[0], layout.starts[0])
    (tmp_path / "x.tif").write_bytes(data)
    refused(tmp_path / "x.tif", "loop")


def test_values_on_top_of_each_other(tmp_path):
    """One table that many directories name would be read for each of them."""
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((4000, 1), "u1"), rowsperstrip=1, metadata=None)
    data = bytearray((tmp_path / "x.tif").read_bytes())
    layout = Layout(bytes(data))
    directory = bytes(data[layout.starts[0] : layout.links[-1]])
    start, step = len(data), len(directory) + 4
    copies = b"".join(
        directory + struct.pack("<I", start + (i + 1) * step if i < 19 else 0) for i in range(20)
    )
    layout.relink(data, -1, start)
    (tmp_path / "x.tif").write_bytes(bytes(data) + copies)
    refused(tmp_path / "x.tif", "twice the file")


def test_very_many_kinds_of_images(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        for width in range(1, 1003):
            writer.write(np.zeros((1, width), "u1"), metadata=None)
    refused(tmp_path / "x.tif", "1002 images of different kinds; at most 1000")


def test_very_many_images_with_a_shape_each(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        for _ in range(1002):
            writer.write(RAMP[:2, :2], contiguous=False)
    refused(tmp_path / "x.tif", "1002 images of different kinds; at most 1000")


def test_some_kinds_of_images_are_read(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        for width in range(20, 40):
            writer.write(np.zeros((5, width), "u1"), metadata=None)
    image = load(Source(path=str(tmp_path / "x.tif")))
    assert image.space == (5, 20)
    assert "20 images; the first one is used" in image.facts["notes"][0]


def test_a_deflate_stream_that_ends_early(tmp_path):
    path = rewritten(tmp_path / "x.tif", zlib.compress(RAMP.tobytes())[:-9], 8)
    with pytest.raises(FileRefused, match=r"x\.tif"):
        load(Source(path=str(path)))


@pytest.mark.parametrize("count", [400, 1200])
def test_pages_of_two_kinds(tmp_path, count):
    """Above a thousand they are sorted here, below by the library: the result is the same."""
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        for page in range(count):
            writer.write(np.full((4, 5 if page == 7 else 4), page % 251, "u1"), metadata=None)
    image = load(Source(path=str(tmp_path / "x.tif")))
    assert image.space == (count - 1, 4, 4)
    assert image.array[0, 0, 6:9, 0, 0].tolist() == [6, 8, 9]
    assert "2 images; the first one is used" in image.facts["notes"][0]


def test_too_many_pages_of_two_kinds(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff_guard, "MAX_COMPARED", 5)
    monkeypatch.setattr(tiff_guard, "MAX_SORTED", 9)
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        for page in range(10):
            writer.write(np.zeros((4, 5 if page == 7 else 4), "u1"), metadata=None)
    refused(tmp_path / "x.tif", "10 directories of several kinds")


def test_single_bits_are_measured_as_such(tmp_path):
    """Eight times what a segment of single bits holds would be spread out to 64 times."""
    path = rewritten(tmp_path / "x.tif", zlib.compress(bytes(16 << 20)), 8)
    data = bytearray(path.read_bytes())
    for entry in Layout(bytes(data)).entries:
        value = {256: 8000, 257: 1600, 278: 1600, 258: 1}.get(entry.tag)
        if value is not None:
            entry.write(data, value=value)
    path.write_bytes(data)
    refused(path, r"a segment unpacks to .* holds 1\.5 MiB")
