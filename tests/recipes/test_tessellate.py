"""The task ``tessellate``: from a recipe to layers, files and figures; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from napari_invprior import recipes
from napari_invprior.errors import InvalidInput
from napari_invprior.io.arrays import image_from_array
from napari_invprior.io.omezarr import read_image
from napari_invprior.points import point_set
from napari_invprior.recipes import execute, write_outcome
from napari_invprior.recipes.check import check_recipe
from napari_invprior.study import tessellation

STAR = [[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)], [0.0, 0.0]]


def tessellate(**recipe):
    return execute({"task": "tessellate", "resolution": 96} | recipe)


def layers_of(outcome):
    return {layer.name: layer for layer in outcome.layers}


def test_cells_follow_the_conventions_of_labels_and_axes(tmp_path: Path) -> None:
    np.save(tmp_path / "atoms.npy", np.array(STAR))
    outcome = tessellate(atoms={"path": str(tmp_path / "atoms.npy")}, extent=3.0)
    layers = layers_of(outcome)
    cells = layers["flow_matching_cells"]
    assert cells.array.shape == (96, 96) and cells.array.dtype == np.int32
    assert cells.geometry.scale == (0.0625, 0.0625)
    assert cells.geometry.translate == (-2.96875, -2.96875)

    def label(z0: float, z1: float) -> int:
        step, first = cells.geometry.scale[0], cells.geometry.translate[0]
        return int(cells.array[round((z0 - first) / step), round((z1 - first) / step)])

    assert label(2.5, 0.1) == 1, "axis 0 is coordinate 0, and the label is the number plus one"
    assert label(-1.5, 2.2) == 2 and label(-1.5, -2.2) == 3 and label(0.02, 0.02) == 4
    assert set(np.unique(layers["laguerre_cells"].array)) == {1, 2, 3, 4}
    differs = layers["differences"].array == 1
    assert np.array_equal(differs, cells.array != layers["laguerre_cells"].array)
    tracks = layers["trajectories"].array
    ends = tracks[tracks[:, 1] == tracks[:, 1].max()][:, 2:]
    assert all(np.abs(np.array(STAR) - end).max(1).min() < 1e-9 for end in ends)


def test_figures_of_the_star_are_those_of_the_sheet() -> None:
    figures = tessellate(atoms={"positions": STAR}, resolution=64).metrics
    assert figures["flow_matching_cost"] == pytest.approx(0.8743, abs=1e-3)
    assert figures["optimal_transport_cost"] == pytest.approx(0.8697, abs=1e-3)
    assert figures["agreement"] == pytest.approx(0.960, abs=0.005)
    centre = figures["cells"][3]
    assert centre["flow_matching_unbounded"] and not centre["laguerre_unbounded"]
    assert centre["flow_matching_neighbours"] == [0, 1, 2]
    assert figures["cells"][0]["flow_matching_neighbours"] == [3]
    assert figures["cells"][0]["laguerre_neighbours"] == [1, 2, 3]


def test_everything_is_written_and_reads_back(tmp_path: Path) -> None:
    outcome = tessellate(atoms={"positions": STAR}, tessellation={"arrows": 4})
    outputs = write_outcome(outcome, tmp_path)
    cells = read_image(Path(outputs["flow_matching_cells"]))
    assert np.array_equal(np.asarray(cells.array).squeeze(),
                          layers_of(outcome)["flow_matching_cells"].array)
    found = json.loads(Path(outputs["flow_matching_outlines"]).read_text())
    areas = []
    for feature in found["features"]:
        ring = np.array(feature["geometry"]["coordinates"][0])
        assert np.array_equal(ring[0], ring[-1])
        x, y = ring.T
        areas.append((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)
    assert min(areas) > 0 and sum(areas) == pytest.approx(64, rel=1e-6)
    assert [feature["properties"]["atom"] for feature in found["features"]] == [0, 1, 2, 3]
    rows = np.loadtxt(outputs["trajectories"], delimiter=",", skiprows=1)
    assert rows.shape == (24 * 25, 4)
    assert np.loadtxt(outputs["velocity"], delimiter=",", skiprows=1).shape == (16, 5)
    assert json.loads(Path(outputs["recipe"]).read_text())["task"] == "tessellate"
    again = execute(json.loads(Path(outputs["recipe"]).read_text()))
    assert np.array_equal(again.layers[0].array, outcome.layers[0].array)


def test_a_volume_and_its_surfaces(tmp_path: Path) -> None:
    outcome = tessellate(atoms={"preset": "cube"}, resolution=32)
    cells = layers_of(outcome)["flow_matching_cells"].array
    signs = (np.arange(32) >= 16).astype(int)
    octants = 1 + 4 * signs[:, None, None] + 2 * signs[:, None] + signs
    assert np.array_equal(cells, octants)
    outputs = write_outcome(outcome, tmp_path)
    lines = Path(outputs["flow_matching_outlines"]).read_text().splitlines()
    corners = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
    faces = np.array([line.split()[1:] for line in lines if line.startswith("f ")], int)
    assert faces.min() == 1 and faces.max() == len(corners)
    assert np.abs(corners).min(1).max() < 1e-6, "all borders lie in the coordinate planes"
    sides = corners[faces - 1]
    area = np.linalg.norm(np.cross(sides[:, 1] - sides[:, 0], sides[:, 2] - sides[:, 0]), axis=1)
    assert area.sum() / 2 == pytest.approx(2 * 192, rel=1e-6), "each face belongs to two cells"


def test_patches_of_an_image_become_atoms_by_their_components() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((40, 50)).astype(np.float32)
    seeds = np.array([[5, 6], [20, 20], [30, 45], [39, 49], [10, 40]], float)
    outcome = execute(
        {"task": "tessellate", "resolution": 32, "observation": {"layer": "image"},
         "points": {"layer": "seeds"}, "atoms": {"patch_size": 6}},
        arrays={"image": image_from_array(image, name="image")},
        points={"seeds": point_set(seeds, "seeds")},
    )
    corners = np.clip(np.rint(seeds - 2.5).astype(int), 0, [34, 44])
    patches = np.stack([image[r : r + 6, c : c + 6].ravel() for r, c in corners])
    low, high = outcome.layers[0].metadata["intensity_scale"]
    wanted = PCA(2).fit_transform(patches.astype(float)) / (high - low)
    rows = layers_of(outcome)["atoms"].array
    for axis in range(2):  # signs are free
        same = min(np.abs(rows[:, axis] - s * wanted[:, axis]).max() for s in (1, -1))
        assert same < 1e-6


@pytest.mark.parametrize(("recipe", "message"), [
    ({}, "needs atoms"),
    ({"atoms": {}}, "exactly one of 'path', 'layer', 'positions', 'preset', 'patch_size'"),
    ({"atoms": {"preset": "pentagone"}}, "did you mean 'pentagon'"),
    ({"atoms": {"positions": [[0, 1], [2]]}}, "rows of"),
    ({"atoms": {"positions": [[0, 1, 2, 3], [4, 5, 6, 7]]}}, "2 or 3 dimensions"),
    ({"atoms": {"positions": STAR}, "weights": [1, 2]}, "2 weights for 4 atoms"),
    ({"atoms": {"positions": STAR}, "weights": [1, 2, -1, 0]}, "greater than or equal to 0"),
    ({"atoms": {"positions": STAR}, "weights": [0, 0, 0, 0]}, "all weights are zero"),
    ({"atoms": {"positions": STAR}, "resolution": 9000}, "less than or equal to 8192"),
    ({"atoms": {"positions": STAR}, "extent": 0}, "greater than or equal to 0.1"),
    ({"atoms": {"preset": "cube"}, "resolution": 1000}, "at most 406"),
    ({"atoms": {"patch_size": 6}}, "need an observation, and points"),
    ({"atoms": {"positions": STAR}, "tessellation": {"arows": 3}}, "did you mean 'arrows'"),
])
def test_what_cannot_be_used_is_refused_with_a_reason(recipe, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        execute({"task": "tessellate"} | recipe)


def test_points_of_a_layer_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InvalidInput, match="NaN or infinite"):
        point_set(np.array([[0.0, np.nan]]), "atoms")


@pytest.mark.parametrize(("positions", "weights", "labels"), [
    ([[3.0, 4.0]], None, {1}),
    ([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], None, {1, 3}),
    ([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], None, {1, 2, 3}),
    (STAR, [3.0, 0.0, 3.0, 6.0], {1, 3, 4}),
    ([[1e6 + x, 1e6 + y] for x, y in STAR], None, {1, 2, 3, 4}),
])
def test_odd_atoms_get_the_exact_answer(positions, weights, labels) -> None:
    recipe = {"atoms": {"positions": positions}}
    outcome = tessellate(**recipe if weights is None else recipe | {"weights": weights})
    layers = layers_of(outcome)
    assert set(np.unique(layers["flow_matching_cells"].array)) == labels
    assert set(np.unique(layers["laguerre_cells"].array)) == labels
    rings = layers["flow_matching_outlines"].array
    assert sum(len(ring) > 2 for ring in rings) == len(labels)
    assert outcome.metrics["flow_matching_mass_error"] < 2e-3


def test_ten_thousand_atoms_are_computed(monkeypatch) -> None:
    monkeypatch.setattr(tessellation, "FEWER", 64)
    outcome = tessellate(atoms={"preset": "random", "count": 10_000}, resolution=12,
                         tessellation={"trajectories": 0, "laguerre": False})
    assert len(np.unique(outcome.layers[0].array)) > 100
    assert "flow_matching_outlines" not in layers_of(outcome)


def test_a_check_says_what_there_is() -> None:
    recipe = recipes.parse({"task": "tessellate", "atoms": {"positions": [*STAR, STAR[0]]}})
    report = check_recipe(recipe)
    assert report["atoms"] == [5, 2] and report["distinct_atoms"] == 4
    assert report["cells_shape"] == [512, 512] and "share the cell" in report["notes"][0]


def test_the_script_of_a_layer_of_atoms_names_it() -> None:
    recipe = recipes.parse({"task": "tessellate", "atoms": {"layer": "my atoms"}})
    assert "'my atoms'" in recipes.script(recipe) and "points_from_layer" in recipes.script(recipe)
