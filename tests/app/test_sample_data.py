"""The samples that napari offers: everything in one world, found by the dock's roles."""

from __future__ import annotations

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Layer

from napari_invprior.app import sample_data
from napari_invprior.app.viewer.layers import META, image_from_layer
from napari_invprior.app.viewer.request import grid_for
from napari_invprior.app.workbench.data_panel import by_role

NAMES = ("superresolution_2d", "superresolution_3d", "inpainting_2d", "tomography_2d")


@pytest.mark.parametrize("name", NAMES)
def test_observation_lies_on_the_truth_and_the_reference_beside(name):
    viewer = ViewerModel()
    for data in getattr(sample_data, name)():
        viewer.add_layer(Layer.create(*data))
    layers = {role: viewer.layers[by_role(list(viewer.layers), role)]
              for role in ("truth", "reference", "observation")}
    truth, reference, observed = layers.values()
    facts = observed.metadata[META]["physics"]
    image = image_from_layer(observed)
    grid = grid_for(facts, image.space, image.geometry)
    if grid is not None:
        assert grid[0] == truth.data.shape
        assert np.allclose(grid[1].scale, truth.scale)
        assert np.allclose(grid[1].translate, truth.translate)
    assert reference.extent.world[0, -1] > truth.extent.world[1, -1]
    assert not truth.visible
    assert len({layer.units for layer in layers.values()}) == 1


def test_the_inpainting_mask_is_named_by_the_observation():
    names = {data[1]["name"]: data for data in sample_data.inpainting_2d()}
    mask = names["brick observation"][1]["metadata"][META]["physics"]["mask"]["layer"]
    assert mask in names
    assert (names["brick observation"][0][names[mask][0] == 0] == 0).all()
