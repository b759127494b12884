"""Outlines, surfaces, paths and arrows on disk, read back by other means."""

from __future__ import annotations

import csv
import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_invprior.errors import InvalidInput
from napari_invprior.io.points import read_points
from napari_invprior.io.shapes import geojson, obj, tracks_csv, vectors_csv
from napari_invprior.jobs import never, run
from napari_invprior.study.tessellation import TessellationParameters, tessellate
from napari_invprior.transport.cells.atoms import Atoms
from napari_invprior.transport.cells.laguerre import LaguerreCells
from napari_invprior.transport.cells.raster import Grid

TRIANGLE = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
TETRAHEDRON = (
    np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1 / 3]]),
    np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]),
)


def signed_area(ring: list[list[float]]) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring)) / 2


def read_obj(data: bytes) -> tuple[np.ndarray, dict[str, list[list[int]]]]:
    """All corners, and the triangles of each group by corners counted from 0."""
    corners, groups, name = [], {}, ""
    for line in data.decode("ascii").splitlines():
        word, *rest = line.split()
        if word == "g":
            (name,) = rest
            groups[name] = []
        elif word == "v":
            corners.append([float(v) for v in rest])
        elif word == "f":
            groups[name].append([int(v) - 1 for v in rest])
        else:
            raise AssertionError(line)
    return np.array(corners), groups


def volume(corners: np.ndarray, triangles: list[list[int]]) -> float:
    return sum(float(np.linalg.det(corners[t])) for t in triangles) / 6


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode("ascii"))))


def test_cells_of_a_tessellation_fill_the_window_and_run_counter_clockwise():
    atoms = Atoms(torch.randn((2, 9), generator=torch.Generator().manual_seed(0)))
    found = run(tessellate(
        atoms, Grid(4.0, 64, 2), TessellationParameters(), seed=0, should_stop=never
    ))
    for borders in (found.borders, found.laguerre_borders):
        data = json.loads(geojson(borders, [{"atom": k} for k in range(len(borders))]))
        assert data["type"] == "FeatureCollection"
        assert data["axes"] == ["coordinate 0", "coordinate 1"]
        assert data["unit"] == "standard deviation"
        assert [f["properties"]["atom"] for f in data["features"]] == list(range(9))
        total = 0.0
        for feature in data["features"]:
            assert feature["type"] == "Feature" and feature["geometry"]["type"] == "Polygon"
            (ring,) = feature["geometry"]["coordinates"]
            assert ring[0] == ring[-1] and len(ring) >= 4
            assert signed_area(ring) > 0
            total += signed_area(ring)
        assert total == pytest.approx(64, rel=1e-3)


@pytest.mark.parametrize("ring", [
    TRIANGLE, TRIANGLE[::-1], np.vstack([TRIANGLE, TRIANGLE[:1]]), TRIANGLE.astype(int),
], ids=["as is", "clockwise", "closed", "integers"])
def test_a_ring_is_closed_once_and_turned(ring):
    (feature,) = json.loads(geojson([ring], [{}]))["features"]
    (found,) = feature["geometry"]["coordinates"]
    assert len(found) == 4 and found[0] == found[-1]
    assert signed_area(found) == 1


@pytest.mark.parametrize("count", [0, 1, 2])
def test_less_than_a_triangle_has_no_geometry(count):
    (feature,) = json.loads(geojson([TRIANGLE[:count]], [{"atom": 1}]))["features"]
    assert feature["geometry"] is None and feature["properties"] == {"atom": 1}


def test_a_point_closed_twice_has_no_geometry():
    line = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    (feature,) = json.loads(geojson([line], [{}]))["features"]
    assert feature["geometry"] is None


def test_numbers_have_nine_digits():
    third = TRIANGLE / 3
    assert b"0.666666667" in geojson([third], [{}])
    assert b"v 0 0 0.333333333\n" in obj([TETRAHEDRON], ["one"])
    assert tracks_csv(np.array([[0, 0, 1 / 3, -0.0]])).endswith(b"\n0,0,0.333333333,0\n")
    assert vectors_csv(third[:1] + 2 / 3, third[:1]).endswith(b"0,0.666666667,0.666666667,0,0\n")


@pytest.mark.parametrize(("polygons", "properties", "said"), [
    ([TRIANGLE], [], "1 polygons, 0 properties"),
    ([np.zeros((4, 3))], [{}], r"shape \(4, 3\)"),
    ([np.zeros(4)], [{}], r"shape \(4,\)"),
    ([TRIANGLE * np.nan], [{}], "NaN"),
    ([TRIANGLE * 1j], [{}], "complex"),
    ([TRIANGLE], [{"mass": float("nan")}], "properties"),
    ([TRIANGLE], [{"mass": np.zeros(2)}], "properties"),
])
def test_geojson_refuses(polygons, properties, said):
    with pytest.raises(InvalidInput, match=said):
        geojson(polygons, properties)


def test_obj_of_laguerre_cells_fills_the_box():
    positions = torch.randn((3, 5), generator=torch.Generator().manual_seed(0))
    surfaces = LaguerreCells.solve(Atoms(positions)).surfaces(4.0)
    names = [f"cell {k}" for k in range(5)]
    corners, groups = read_obj(obj(surfaces, names))
    assert list(groups) == [f"cell_{k}" for k in range(5)]
    assert len(corners) == sum(len(c) for c, _ in surfaces)
    volumes = [volume(corners, triangles) for triangles in groups.values()]
    assert min(volumes) > 0
    assert sum(volumes) == pytest.approx(512, rel=1e-6)


def test_obj_counts_corners_across_groups_and_keeps_empty_ones():
    nothing = (np.zeros((0, 3)), np.zeros((0, 3), int))
    corners, groups = read_obj(obj([TETRAHEDRON, nothing, TETRAHEDRON], ["a", "none", "b"]))
    assert groups["none"] == []
    assert np.array_equal(np.array(groups["b"]), TETRAHEDRON[1] + 4)
    assert volume(corners, groups["b"]) == pytest.approx(1 / 18)


@pytest.mark.parametrize(("corners", "triangles", "names", "said"), [
    (*TETRAHEDRON, [], "1 surfaces, 0 names"),
    (*TETRAHEDRON, [" "], "empty name"),
    (TETRAHEDRON[0][:, :2], TETRAHEDRON[1], ["a"], "corners of shape"),
    (TETRAHEDRON[0], TETRAHEDRON[1][:, :2], ["a"], "triangles of shape"),
    (TETRAHEDRON[0], TETRAHEDRON[1] + 1, ["a"], "name corners 1 to 4; there are 0 to 3"),
    (TETRAHEDRON[0], TETRAHEDRON[1] - 1, ["a"], "name corners -1 to 2"),
    (TETRAHEDRON[0], TETRAHEDRON[1] + 0.5, ["a"], "whole numbers"),
    (TETRAHEDRON[0] + np.inf, TETRAHEDRON[1], ["a"], "NaN"),
])
def test_obj_refuses(corners, triangles, names, said):
    with pytest.raises(InvalidInput, match=said):
        obj([(corners, triangles)], names)


def test_two_groups_of_one_name_are_refused():
    with pytest.raises(InvalidInput, match="two surfaces have the name 'a_b'"):
        obj([TETRAHEDRON] * 2, ["a b", "a_b"])


@pytest.mark.parametrize("ndim", [2, 3])
def test_tracks_are_read_back(ndim, tmp_path: Path):
    values = np.random.default_rng(0).normal(size=(6, ndim))
    tracks = np.column_stack([np.repeat([3, 12], 3), np.tile(np.arange(3), 2), values])
    data = tracks_csv(tracks)
    found = rows(data)
    assert list(found[0]) == ["track", "frame", *(f"axis-{k}" for k in range(ndim))]
    assert np.allclose([[float(v) for v in row.values()] for row in found], tracks, rtol=1e-8)
    assert found[5]["track"] == "12" and found[5]["frame"] == "2"
    path = tmp_path / "tracks.csv"
    path.write_bytes(data)
    assert np.allclose(read_points(path).array, values, rtol=1e-8)


@pytest.mark.parametrize("ndim", [2, 3])
def test_vectors_are_read_back(ndim):
    places, directions = np.random.default_rng(1).normal(size=(2, 5, ndim))
    found = rows(vectors_csv(places, directions))
    axes = range(ndim)
    assert list(found[0]) == [
        "index", *(f"axis-{k}" for k in axes), *(f"vector-{k}" for k in axes)
    ]
    assert [row["index"] for row in found] == [str(k) for k in range(5)]
    back = np.array([[float(row[f"vector-{k}"]) for k in axes] for row in found])
    assert np.allclose(back, directions, rtol=1e-8)


def test_nothing_is_a_header():
    assert tracks_csv(np.zeros((0, 4))) == b"track,frame,axis-0,axis-1\n"
    assert rows(vectors_csv(np.zeros((0, 2)), np.zeros((0, 2)))) == []
    assert obj([], []) == b""
    assert json.loads(geojson([], []))["features"] == []


@pytest.mark.parametrize(("table", "said"), [
    (np.zeros((2, 3)), r"tracks of shape \(2, 3\)"),
    (np.zeros((2, 6)), r"tracks of shape \(2, 6\)"),
    (np.zeros(4), r"tracks of shape \(4,\)"),
    (np.array([[0, 0.5, 1, 1]]), "whole numbers"),
    (np.array([[0, 0, np.nan, 1]]), "NaN"),
])
def test_tracks_refuse(table, said):
    with pytest.raises(InvalidInput, match=said):
        tracks_csv(table)


@pytest.mark.parametrize(("places", "directions", "said"), [
    (np.zeros((2, 2)), np.zeros((3, 2)), "one direction for each place"),
    (np.zeros((2, 2)), np.zeros((2, 3)), "one direction for each place"),
    (np.zeros((2, 4)), np.zeros((2, 4)), "places of shape"),
    (np.zeros((2, 2)), np.full((2, 2), np.inf), "directions: some numbers are NaN"),
])
def test_vectors_refuse(places, directions, said):
    with pytest.raises(InvalidInput, match=said):
        vectors_csv(places, directions)
