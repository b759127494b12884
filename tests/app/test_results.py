"""Results that a run wrote open where they belong."""

from __future__ import annotations

import pytest
from napari.components import ViewerModel

from napari_invprior import recipes
from napari_invprior.app.layers import META
from napari_invprior.app.results import add_results
from napari_invprior.errors import InvalidInput

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


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"no result\.ome\.zarr"):
        add_results(ViewerModel(), tmp_path)
