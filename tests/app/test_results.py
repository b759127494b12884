"""Results that a run wrote open where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_invprior import recipes
from napari_invprior.app.viewer.layers import META
from napari_invprior.app.viewer.results import add_results
from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.io.omezarr import write_image

QUICK = {
    "observation": {"simulate_from": {"sample": "brick-test", "crop": [[100, 148], [40, 88]]}},
    "physics": {"kind": "superresolution", "factor": 2},
    "noise": {"kind": "gaussian", "sigma": 0.01},
    "prior": None,
    "solver": {"kind": "total_variation", "weight": 4.0, "iterations": 20},
    "baselines": False,
}


def test_written_results_open_in_place(tmp_path):
    recipes.write_outcome(recipes.execute(QUICK), tmp_path)
    viewer = ViewerModel()
    assert add_results(viewer, tmp_path) == ["reconstruction"]
    layer = viewer.layers["reconstruction"]
    assert layer.data.shape == (48, 48)
    assert tuple(layer.translate) == (100.0, 40.0)
    assert layer.metadata[META]["recipe"]["solver"]["kind"] == "total_variation"


def test_points_open_as_layers(tmp_path):
    recipe = {"task": "particles", "flow": {"kind": "particle", "particles": 9, "final_time": 0.3}}
    outcome = recipes.execute(recipe)
    recipes.write_outcome(outcome, tmp_path)
    viewer = ViewerModel()
    assert add_results(viewer, tmp_path) == ["particles"]
    layer = viewer.layers["particles"]
    assert layer.axis_labels[0] == "frame"
    assert np.allclose(layer.data, outcome.layers[0].array, atol=1e-6)


def test_a_turned_result_opens_turned(tmp_path):
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    place = Geometry((0.5, 0.5), (3.0, 4.0), rotate=turn)
    write_image(tmp_path / "result.ome.zarr" / "x", np.eye(8, 9), place)
    viewer = ViewerModel()
    add_results(viewer, tmp_path)
    assert np.allclose(viewer.layers["x"].rotate, turn)
    assert np.allclose(viewer.layers["x"].data_to_world((0, 2)), (2.0, 4.0))


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"no result\.ome\.zarr"):
        add_results(ViewerModel(), tmp_path)


@pytest.mark.gui
def test_an_opened_result_can_be_run_again(window, tmp_path):
    trained = {
        "prior": {"kind": "gmm", "components": 3, "patch_size": 4},
        "solver": {"kind": "half_quadratic", "weight": 0.25, "steps": 5},
        "references": [{"sample": "brick-reference", "regions": [[[0, 64], [0, 64]]]}],
    }
    recipes.write_outcome(recipes.execute(QUICK | trained), tmp_path)
    add_results(window.viewer, tmp_path)
    window.settle()
    window.press(window.bench.result.again)
    window.wait()
    opened, made = (layer for layer in window.viewer.layers if layer.metadata.get(META))
    assert np.abs(made.data - opened.data).max() < 1e-5
    assert tuple(made.translate) == (100.0, 40.0)
