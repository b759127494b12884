"""Points on disk: what napari writes, what scripts write, and what must be refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_invprior.errors import InvalidInput
from napari_invprior.io.points import load_points, points_csv, read_points
from napari_invprior.points import MOST_POINTS, PointSet, point_set
from napari_invprior.sources import PointSource

finite = st.floats(-1e6, 1e6)


SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)


@given(hnp.arrays(np.float64, SHAPES, elements=finite))
def test_round_trip(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes(points_csv(array))
    assert np.allclose(read_points(path).array, array, rtol=1e-8)
    np.save(tmp_path / "points.npy", array)
    assert np.array_equal(read_points(tmp_path / "points.npy").array, array)


def test_napari_reads_and_writes_the_same(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("\ufeffindex,axis-1,axis-0,good\n0,2,1,True\n1,4,3.5,False\n", "utf-8")
    assert read_points(path).array.tolist() == [[1, 2], [3.5, 4]]
    path.write_text("1,2,3\n4,5,6\n")
    assert read_points(path).array.shape == (2, 3)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty"),
        (b"index,axis-0,axis-1\n", "no point"),
        (b"x,y\n1,2\n", "axis-0"),
        (b"index,axis-0,axis-2\n0,1,2\n", "axis-0"),
        (b"1,2\n3\n", "cannot be read"),
        (b"1,2\n3,a\n", "cannot be read"),
        (b"1,nan\n", "NaN"),
        (b"\x80\x04K\x01.", "pickled"),
        (b"\x89PNG\r\n\x1a\n\0\0", "cannot be read|unknown kind"),
        (pickle.dumps(np.ones((2, 2))), "pickled"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=match):
        read_points(path)


@given(st.binary(max_size=60))
def test_noise_is_refused_or_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "noise.csv"
    path.write_bytes(content)
    try:
        found = read_points(path)
    except InvalidInput as error:
        assert str(error)
    else:
        assert np.isfinite(found.array).all()


def test_arrays_that_are_no_points_are_refused(tmp_path: Path) -> None:
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([[1, None]], object))
    with pytest.raises(InvalidInput, match="pickled objects"):
        read_points(objects)
    for bad in (np.ones(3), np.ones((2, 2), complex), np.empty((0, 2)), np.ones((2, 500))):
        with pytest.raises(InvalidInput):
            point_set(bad, "bad")
    many = np.broadcast_to(np.float32(0), (MOST_POINTS + 1, 2))
    with pytest.raises(InvalidInput, match="at most"):
        point_set(many, "many")
    with pytest.raises(InvalidInput, match="no such file"):
        read_points(tmp_path / "missing.csv")
    with pytest.raises(InvalidInput, match="folder"):
        read_points(tmp_path)


def test_layers_by_name() -> None:
    seeds = PointSet(np.ones((1, 2)), "seeds")
    assert len(load_points(PointSource(layer="seeds"), {"seeds": seeds})) == 1
    with pytest.raises(InvalidInput, match="did you mean 'seeds'"):
        load_points(PointSource(layer="seed"), {"seeds": seeds})
