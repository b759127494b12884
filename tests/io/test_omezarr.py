"""OME-Zarr: what is written is read back, and what lies or leads outside is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from napari_invprior.errors import FileRefused, InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.io import omezarr
from napari_invprior.io.images import load
from napari_invprior.io.omezarr import attributes, pyramid, read_image, write_image
from napari_invprior.io.omezarr_read import plain
from napari_invprior.sources import Source


def placed(ndim: int) -> Geometry:
    return Geometry(
        tuple(0.5 + i for i in range(ndim)), tuple(3.0 * i - 1 for i in range(ndim)),
        ("micrometer",) * ndim, tuple("zyx"[-ndim:]),
    )  # fmt: skip


@settings(max_examples=25)
@given(
    array=arrays.arrays(
        st.sampled_from(["u1", "<u2", ">u2", "i4", "f2", "f4", ">f8", "?"]),
        arrays.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=9),
    )
)
def test_round_trip_of_odd_sizes_and_types(tmp_path, array):
    group = tmp_path / "größe mit leer.ome.zarr" / "one"
    write_image(group, array, placed(array.ndim), value_range=(0, 1))
    image = read_image(group)
    np.testing.assert_array_equal(image.array[0, 0], array)
    assert image.array.dtype == array.dtype.newbyteorder("=")
    assert image.geometry == placed(array.ndim)
    assert image.value_range == (0, 1)


@pytest.mark.parametrize(
    ("shape", "ndim", "told", "axes", "read"),
    [
        ((3, 8, 9), 2, {"channels": ["a", "b", "c"]}, "cyx", (1, 3, 8, 9)),
        ((4, 8, 9), 2, {}, "tyx", (4, 1, 8, 9)),
        ((4, 3, 8, 9), 2, {}, "tcyx", (4, 3, 8, 9)),
        ((2, 4, 3, 8, 9), 2, {}, "tcyx", (8, 3, 8, 9)),
        ((2, 5, 8, 9), 3, {}, "tzyx", (2, 1, 5, 8, 9)),
        ((8, 9, 3), 2, {"rgb": True}, "cyx", (1, 3, 8, 9)),
    ],
)
def test_frames_and_channels(tmp_path, shape, ndim, told, axes, read):
    array = np.random.default_rng(0).random(shape, np.float32)
    write_image(tmp_path / "r.zarr" / "x", array, placed(ndim), **told)
    image = read_image(tmp_path / "r.zarr", "x")
    assert image.array.shape == read
    ordered = np.moveaxis(array, -1, 0) if told.get("rgb") else array
    np.testing.assert_array_equal(image.array.ravel(), ordered.ravel())
    metadata = json.loads((tmp_path / "r.zarr" / "x" / "zarr.json").read_text())
    multiscale = metadata["attributes"]["ome"]["multiscales"][0]
    assert "".join(axis["name"] for axis in multiscale["axes"]) == axes
    assert image.geometry == placed(ndim)


def test_metadata_follow_the_specification(tmp_path):
    array = np.random.default_rng(0).random((2, 301, 600), np.float32)
    write_image(tmp_path / "r.zarr" / "x", array, placed(2), channels=["a", "b"])
    metadata = json.loads((tmp_path / "r.zarr" / "x" / "zarr.json").read_text())["attributes"]
    ome = metadata["ome"]
    assert ome["version"] == "0.5"
    multiscale = ome["multiscales"][0]
    assert multiscale["name"] == "x"
    assert multiscale["axes"] == [
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "micrometer"},
    ]
    transforms = [d["coordinateTransformations"] for d in multiscale["datasets"]]
    assert transforms[1] == [
        {"type": "scale", "scale": [1.0, 1.0, 3.0]},
        {"type": "translation", "translation": [0.0, -1 + 0.25, 2 + 0.75]},
    ]
    assert [c["label"] for c in ome["omero"]["channels"]] == ["a", "b"]
    group = zarr.open_group(tmp_path / "r.zarr", mode="r")["x"]
    assert [group[d["path"]].shape for d in multiscale["datasets"]] == [
        (2, 301, 600), (2, 151, 300), (2, 76, 150),
    ]  # fmt: skip
    np.testing.assert_allclose(
        group["1"][:, :150], array[:, :300].reshape(2, 150, 2, 300, 2).mean((2, 4)), atol=1e-6
    )


def test_a_ramp_stays_in_place_down_the_pyramid(tmp_path):
    """World coordinates of samples must not move from level to level."""
    geometry = Geometry((0.5, 2.0), (10.0, -3.0))
    ramp = geometry.translate[1] + geometry.scale[1] * np.arange(1024.0) * np.ones((4, 1))
    write_image(tmp_path / "r.zarr" / "x", ramp, geometry)
    group = zarr.open_group(tmp_path / "r.zarr" / "x", mode="r")
    for dataset in group.attrs["ome"]["multiscales"][0]["datasets"]:
        scale, shift = dataset["coordinateTransformations"]
        level = group[dataset["path"]]
        x = shift["translation"][1] + scale["scale"][1] * np.arange(level.shape[1])
        np.testing.assert_allclose(level[0], x)


def test_short_axes_are_not_halved_away(tmp_path):
    levels = pyramid(np.ones((3, 300, 10)), 3)
    assert [level.shape for level in levels] == [(3, 300, 10), (2, 150, 5), (1, 75, 3), (1, 38, 2)]
    write_image(tmp_path / "r.zarr" / "x", levels[0], Geometry.identity(3))
    group = zarr.open_group(tmp_path / "r.zarr" / "x", mode="r")
    last = group.attrs["ome"]["multiscales"][0]["datasets"][-1]["coordinateTransformations"]
    assert last[0]["scale"] == [4.0, 8.0, 8.0]


def test_labels_are_not_averaged():
    labels = np.random.default_rng(0).choice([2, 700], (600, 600))
    assert set(np.unique(pyramid(labels, 2, labels=True)[-1])) == {2, 700}


def test_large_arrays_are_sharded(tmp_path, monkeypatch):
    monkeypatch.setattr(omezarr, "SHARD_AT", 1000)
    monkeypatch.setitem(omezarr.CHUNK, 2, 16)
    array = np.random.default_rng(0).random((130, 45), np.float32)
    write_image(tmp_path / "r.zarr" / "x", array, placed(2))
    stored = zarr.open_group(tmp_path / "r.zarr" / "x", mode="r")["0"]
    assert (stored.chunks, stored.shards) == ((16, 16), (128, 48))
    assert len(list((tmp_path / "r.zarr" / "x" / "0" / "c").rglob("*"))) == 4
    np.testing.assert_array_equal(read_image(tmp_path / "r.zarr").array[0, 0], array)


def test_recipe_and_rotation_come_back(tmp_path):
    geometry = Geometry((1.0, 2.0), (0.0, 1.0), ("pixel",) * 2, None, np.array([[0, -1.0], [1, 0]]))
    recipe = {"seed": 3, "psnr": np.float32(30.5), "bad": float("nan"), "path": Path("a")}
    write_image(tmp_path / "r.zarr" / "x", np.ones((8, 9)), geometry, attributes=recipe)
    found = attributes(tmp_path / "r.zarr", "x")
    assert (found["seed"], found["psnr"], found["bad"], found["path"]) == (3, 30.5, "nan", "a")
    again = read_image(tmp_path / "r.zarr").geometry
    np.testing.assert_array_equal(again.rotate, geometry.rotate)
    assert (again.scale, again.units) == (geometry.scale, geometry.units)


def test_writing_again_replaces_all_of_it(tmp_path):
    group = tmp_path / "r.zarr" / "x"
    write_image(group, np.ones((600, 600)), placed(2))
    write_image(group, np.zeros((8, 9)), placed(2))
    write_image(tmp_path / "r.zarr" / "y", np.zeros((8, 9)), placed(2))
    assert sorted(p.name for p in (tmp_path / "r.zarr").iterdir()) == ["x", "y", "zarr.json"]
    assert sorted(p.name for p in group.iterdir()) == ["0", "zarr.json"]
    with pytest.raises(InvalidInput, match="one of x, y"):
        read_image(tmp_path / "r.zarr")
    with pytest.raises(InvalidInput, match="no 'z'"):
        read_image(tmp_path / "r.zarr", "z")


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    for array, told in ((np.zeros(5), {}), (np.zeros((2, 8, 9)), {"channels": ["a"]})):
        with pytest.raises(InvalidInput):
            write_image(tmp_path / "r.zarr" / "x", array, placed(2), **told)
    assert not (tmp_path / "r.zarr" / "x").exists()


def version_04(path: Path, array: np.ndarray, **more) -> Path:
    """A store of OME-Zarr 0.4 (zarr 2), as other programs write it."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("s0", shape=array.shape, dtype=array.dtype, chunks=(1, 2, 4, 4, 4))
    group["s0"][...] = array
    kinds = {"t": "time", "c": "channel"}
    axes = [{"name": a, "type": kinds.get(a, "space")} for a in "tczyx"]
    for axis in axes[2:]:
        axis["unit"] = "micrometer"
    scaled = [{"type": "scale", "scale": [1, 1, 2.0, 0.5, 0.25]},
              {"type": "translation", "translation": [0, 0, 4.0, 5.0, 6.0]}]  # fmt: skip
    whole = [{"type": "scale", "scale": [0.1, 1, 10, 10, 10]}]
    datasets = [{"path": "s0", "coordinateTransformations": scaled}]
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": axes, "datasets": datasets,
         "coordinateTransformations": whole, **more}
    ]  # fmt: skip
    return path


def test_version_04(tmp_path):
    array = np.random.default_rng(0).integers(0, 999, (2, 3, 5, 8, 9)).astype(">u2")
    path = version_04(tmp_path / "x.zarr", array)
    image = load(Source(path=str(path)))
    np.testing.assert_array_equal(image.array, array)
    assert image.frame_axes == (2,)
    assert image.geometry.scale == pytest.approx((20, 5, 2.5))
    assert image.geometry.translate == pytest.approx((40, 50, 60))
    assert image.geometry.units == ("micrometer",) * 3
    part = load(Source(path=str(path), crop=((1, 3), (2, 5), (0, 9)), channel=2))
    np.testing.assert_array_equal(part.array[:, 0], array[:, 2, 1:3, 2:5])
    assert part.geometry.translate == pytest.approx((60, 60, 60))


def test_only_the_part_is_read(tmp_path):
    write_image(tmp_path / "r.zarr" / "x", np.ones((100, 600, 60)), Geometry.identity(3))
    with pytest.raises(FileRefused, match="limit"):
        read_image(tmp_path / "r.zarr", limit=1 << 20)
    part = read_image(tmp_path / "r.zarr", limit=1 << 20, crop=((0, 9), (0, 9), (0, 9)))
    assert part.space == (9, 9, 9)


def test_plain_arrays(tmp_path):
    stored = zarr.create_array(tmp_path / "x.zarr", shape=(8, 9), dtype="f4", chunks=(4, 4))
    stored[:4] = 0.5
    image = read_image(tmp_path / "x.zarr")
    assert image.array.shape == (1, 1, 8, 9)
    assert image.facts["notes"] == ("3 of 6 chunks are missing; read as 0.0",)


# --- what is refused ------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path) -> Path:
    root = tmp_path / "r.zarr"
    write_image(root / "x", np.arange(72.0).reshape(8, 9), placed(2))
    return root


def edit(path: Path, *keys, value) -> None:
    """Change one entry of a metadata file."""
    data = json.loads(path.read_text())
    place = data
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("shape",), [10**12, 10**12], "limit|chunks"),
        (("shape",), [10**6, 10**6], "chunks"),
        (("shape",), [0, 9], "shape"),
        (("shape",), "wide", "cannot be read"),
        (("chunk_grid", "configuration", "chunk_shape"), [0, 9], "chunks of"),
        (("chunk_grid", "configuration", "chunk_shape"), [10**9, 10**9], "chunk|limit"),
        (("codecs",), [{"name": "bytes"}, {"name": "made_up"}], "made_up"),
        (("codecs",), [{"name": "bytes"}, {"name": "numcodecs.pickle"}], "pickle"),
        (("data_type",), "complex64", "cannot be read"),
        (("data_type",), "object", "cannot be read"),
        (("fill_value",), "text", "cannot be read"),
        (("zarr_format",), 7, "cannot be read"),
    ],
)
def test_array_metadata_that_lie(store, keys, value, words):
    edit(store / "x" / "0" / "zarr.json", *keys, value=value)
    with pytest.raises(InvalidInput, match=rf"r\.zarr.*({words})"):
        read_image(store)


@pytest.mark.parametrize(
    "level", ["../../secret", "/etc", "..\\secret", "C:\\x", "0\0", "x" * 5000, "nothing", ""]
)
def test_levels_that_lead_outside_or_nowhere(store, level):
    path = ("attributes", "ome", "multiscales", 0, "datasets", 0, "path")
    edit(store / "x" / "zarr.json", *path, value=level)
    with pytest.raises(FileRefused, match=r"r\.zarr"):
        read_image(store)


@pytest.mark.parametrize("key", ["../r.zarr/x", "/etc", "C:/x", "x/../../r.zarr"])
def test_keys_that_lead_outside(store, key):
    with pytest.raises(FileRefused, match="leads out"):
        read_image(store, key)


def test_links_that_lead_outside(store, tmp_path):
    shutil.copytree(store / "x", tmp_path / "secret")
    (store / "y").symlink_to(tmp_path / "secret")
    with pytest.raises(FileRefused, match="link that leads out"):
        read_image(store, "y")
    chunk = next(p for p in (store / "x" / "0" / "c").rglob("*") if p.is_file())
    chunk.rename(tmp_path / "chunk")
    chunk.symlink_to(tmp_path / "chunk")
    with pytest.raises(FileRefused, match="link that leads out"):
        read_image(store, "x")


@pytest.mark.parametrize("part", ["filters", "compressor"])
def test_pickling_codecs_of_zarr_2_run_no_code(tmp_path, part):
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return Path.touch, (ran,)

    path = version_04(tmp_path / "x.zarr", np.ones((1, 1, 2, 8, 9), "u1"))
    codec = {"id": "pickle", "protocol": 5}
    edit(path / "s0" / ".zarray", "compressor", value=None)
    edit(path / "s0" / ".zarray", part, value=[codec] if part == "filters" else codec)
    for chunk in (path / "s0").glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FileRefused, match="pickle"):
        read_image(path)
    assert not ran.exists()


def test_only_listed_codecs_are_used(tmp_path):
    path = version_04(tmp_path / "x.zarr", np.ones((1, 1, 2, 8, 9), "u1"))
    edit(path / "s0" / ".zarray", "filters", value=[{"id": "base64"}])
    with pytest.raises(FileRefused, match="codec 'base64' is unknown or unsafe"):
        read_image(path)


def test_missing_and_damaged_chunks(store):
    chunk = next(p for p in (store / "x" / "0" / "c").rglob("*") if p.is_file())
    good = chunk.read_bytes()
    chunk.write_bytes(good[:-7])
    with pytest.raises(FileRefused, match=r"r\.zarr"):
        read_image(store)
    chunk.unlink()
    assert "1 of 1 chunks are missing" in read_image(store).facts["notes"][0]


def test_huge_metadata(store):
    (store / "x" / "zarr.json").write_text(" " * (9 << 20))
    with pytest.raises(FileRefused, match="limit"):
        read_image(store)


@pytest.mark.parametrize("place", ["zarr.json", "x/zarr.json", "x/0/zarr.json", "x/0/c/0/0"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_stores_never_raise_anything_else(store, place):
    path = store / place
    good = path.read_bytes()

    @settings(max_examples=40)
    @given(
        st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=3),
        st.integers(0, len(good)) | st.just(len(good)),
    )
    def damaged(flips, length):
        content = bytearray(good)
        for position, value in flips:
            content[position] = value
        path.write_bytes(content[:length])
        try:
            image = read_image(store)
        except InvalidInput as error:
            assert "r.zarr" in str(error)
        else:
            assert image.array.size < 1 << 20

    damaged()


def test_complex_arrays(tmp_path):
    zarr.create_array(tmp_path / "r.zarr", shape=(8, 9), dtype="c8")
    with pytest.raises(InvalidInput, match="complex"):
        read_image(tmp_path / "r.zarr")


def test_plain_data():
    data = {1: np.arange(2), "b": {3.5}, "c": np.inf, "d": None, "e": object}
    assert plain(data) == {
        "1": [0, 1], "b": [3.5], "c": "inf", "d": None, "e": "<class 'object'>",
    }  # fmt: skip
