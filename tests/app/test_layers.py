"""Layers in, layers out: every layer type, and results that lie on their observation."""

from __future__ import annotations

import dask.array
import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_invprior.app.viewer.layers import (
    META,
    Snapshot,
    free_name,
    image_from_layer,
    possible_dimensions,
    result_layer,
)
from napari_invprior.app.viewer.request import grid_for, named_layers, request
from napari_invprior.app.workbench.history import History
from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry

RNG = np.random.default_rng(0)


def centres(layer, *index):
    """World position of a sample."""
    return np.array(layer.data_to_world(index))


def affine2d():
    matrix = np.eye(3)
    matrix[:2, :2] = [[1.0, 0.2], [-0.1, 1.1]]
    matrix[:2, 2] = [3, -4]
    return matrix


PLACES = {
    "scaled": {"scale": (0.5, 0.25), "translate": (10, -3), "units": ("um", "um")},
    "rotated": {"scale": (2, 3), "translate": (10, -3), "rotate": 30},
    "sheared": {"scale": (2, 3), "translate": (1, 2), "shear": [0.3], "rotate": 20},
    "affine": {"scale": (2, 3), "affine": affine2d()},
}


@pytest.mark.parametrize("place", PLACES)
def test_result_lies_on_the_observation(place):
    """A centred factor of 4: fine samples 1.5 and 2 of a cell straddle its centre."""
    observed = Image(RNG.random((8, 10)), axis_labels=("y", "x"), **PLACES[place])
    snapshot = Snapshot.of(observed, 2)
    physics = {"kind": "superresolution", "factor": 4}
    space, geometry = grid_for(physics, (8, 10), snapshot.image().geometry)
    assert space == (32, 40)
    result = result_layer(RNG.random(space), geometry, snapshot, name="result")
    for y, x in ((0, 0), (7, 9), (3, 5)):
        fine = (4 * y + 1.5, 4 * x + 1.5)
        assert np.allclose(centres(result, *fine), centres(observed, y, x))
    assert result.units == observed.units
    assert result.axis_labels == observed.axis_labels
    assert tuple(result.contrast_limits) == tuple(observed.contrast_limits)


def test_result_joins_the_viewer_without_unit_conflicts():
    viewer = ViewerModel()
    observed = viewer.add_image(RNG.random((8, 10)), scale=(2, 2), units=("nm", "nm"))
    snapshot = Snapshot.of(observed, 2)
    geometry = Geometry((1.0, 1.0), (-0.5, -0.5), units=("nm", "nm"))
    viewer.add_layer(result_layer(RNG.random((16, 20)), geometry, snapshot, name="result"))
    for side, sign in ((0, -1), (1, 1)):  # outer borders of the samples
        borders = [
            layer.extent.world[side] + sign * layer.scale / 2 for layer in viewer.layers
        ]
        assert np.allclose(*borders)
    assert viewer.layers["result"].units == observed.units


def test_frames_and_channels_keep_their_axes():
    data = RNG.random((5, 2, 8, 10))
    observed = Image(data, scale=(7, 1, 2, 3), axis_labels=("t", "c", "y", "x"))
    assert possible_dimensions(observed) == (2, 3)
    image = image_from_layer(observed)
    assert image.array.shape == (5, 2, 8, 10)
    assert image.geometry.scale == (2.0, 3.0)
    result = result_layer(
        RNG.random((5, 2, 16, 20)), Geometry((1.0, 1.5), (-0.5, -0.75)), Snapshot.of(observed, 2),
        name="result",
    )
    assert tuple(result.scale) == (7, 1, 1, 1.5)
    assert tuple(result.translate) == (0, 0, -0.5, -0.75)


def test_colours_are_never_depth_and_come_back_as_colours():
    data = RNG.integers(0, 255, (8, 10, 4), dtype=np.uint8)
    observed = Image(data, rgb=True)
    assert possible_dimensions(observed) == (2,)
    image = image_from_layer(observed)
    assert image.array.shape == (1, 3, 8, 10)
    values = RNG.random((16, 20, 3)).astype(np.float32) * 255
    result = result_layer(
        values, Geometry((0.5, 0.5), (-0.25, -0.25)), Snapshot.of(observed, 2), name="r", rgb=True
    )
    assert result.rgb
    assert result.data.dtype == np.uint8


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float64", ">f4", ">u2"])
def test_number_types_are_read_and_never_written(dtype):
    data = (RNG.random((8, 10)) * 100).astype(dtype)[::-1, ::2]
    data.flags.writeable = False
    kept = data.copy()
    image = image_from_layer(Image(data))
    assert image.array.dtype.isnative
    assert np.array_equal(np.asarray(data), kept)
    assert np.allclose(image.array[0, 0], kept.astype(float))


def test_booleans_become_zero_and_one():
    data = RNG.random((8, 10)) > 0.5
    image = image_from_layer(Image(data))
    assert image.value_range == (0, 1)
    assert set(np.unique(image.normalised())) == {0, 1}


def test_single_sample_is_refused_and_one_slice_is_an_image():
    with pytest.raises(InvalidInput, match="single sample"):
        image_from_layer(Image(np.ones((1, 1))), 2)
    flat = Image(RNG.random((1, 8, 10)))
    assert possible_dimensions(flat) == (2,)
    assert image_from_layer(flat).ndim == 2


def test_lazy_and_multiscale_layers_are_read_in_the_worker_only():
    reads = []

    def block(part):
        reads.append(part.shape)
        return part

    lazy = dask.array.from_array(RNG.random((8, 10)), chunks=4).map_blocks(block, dtype=float)
    layer = Image([lazy, lazy[::2, ::2]], multiscale=True, contrast_limits=(0, 1))
    reads.clear()
    snapshot = Snapshot.of(layer, 2)
    assert reads == []
    assert snapshot.image().array.shape == (1, 1, 8, 10)
    assert reads


def test_an_edit_during_the_run_is_noticed_and_does_not_reach_the_run():
    viewer = ViewerModel()
    layer = viewer.add_image(RNG.random((8, 10)), name="low")
    wanted = request(viewer, {"task": "reconstruct", "observation": {"layer": "low"}}, None, 2)
    before = wanted.observation.image().array.copy()
    assert wanted.changes(viewer) == []
    layer.data[2, 3] = 7
    assert np.array_equal(wanted.observation.image().array, before)
    assert "'low' was edited" in wanted.changes(viewer)[0]
    layer.data[2, 3] = before[0, 0, 2, 3]
    layer.scale = (2, 2)
    assert "rescaled" in wanted.changes(viewer)[0]
    viewer.layers.remove(layer)
    assert "removed" in wanted.changes(viewer)[0]


def test_missing_layers_are_refused_by_name():
    with pytest.raises(InvalidInput, match="no layer 'gone'"):
        request(ViewerModel(), {"observation": {"layer": "gone"}}, None, 2)


def test_all_layers_of_a_recipe_are_found():
    recipe = {
        "observation": {"layer": "a"}, "truth": None,
        "references": [{"layer": "b", "labels": {"layer": "c"}}],
        "physics": {"kind": "inpainting", "mask": {"layer": "d"}},
    }
    assert named_layers(recipe) == ["a", "b", "c", "d"]


def test_history_hides_but_never_removes():
    viewer = ViewerModel()
    history = History(viewer)
    metadata = {META: {"recipe": {"version": 1}}}
    first, second = (Image(RNG.random((4, 4)), name=n, metadata=metadata) for n in ("one", "two"))
    assert history.shown is None
    history.add(first)
    history.add(second)
    assert (first.visible, second.visible) == (False, True)
    history.step(-1)
    assert history.shown is first
    assert (first.visible, second.visible) == (True, False)
    assert not history.can_step(-1)
    viewer.layers.remove(first)
    assert history.shown is second
    assert free_name(viewer, "two") == "two 1"


def test_labels_as_masks_are_read():
    labels = Labels(np.eye(8, dtype=int), scale=(2, 2))
    image = image_from_layer(labels, 2)
    assert image.array.shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("place", "labels"), [*((p, ("y", "x")) for p in PLACES), ("scaled", ("t", "y", "x"))]
)
def test_a_stack_of_samples_lies_on_the_observation(place, labels):
    """One more axis in front, to leaf through; contrast only where the values are grey ones."""
    frames = (3,) * (len(labels) - 2)
    where = dict(PLACES[place])
    if frames:  # matrices of three axes are tested with two
        where = {k: ((1.0, *v) if k == "scale" else (0.0, *v)) if k != "units" else ("pixel", *v)
                 for k, v in where.items()}
    observed = Image(RNG.random((*frames, 8, 10)), axis_labels=labels, **where)
    observed.contrast_limits = (0.1, 0.7)
    snapshot = Snapshot.of(observed, 2)
    space, geometry = grid_for(
        {"kind": "superresolution", "factor": 4}, (8, 10), snapshot.image().geometry
    )
    stack = result_layer(RNG.random((5, *frames, *space)), geometry, snapshot, name="samples")
    lead = (1,) * len(frames)
    for y, x in ((0, 0), (3, 5)):
        world = centres(stack, 4, *lead, 4 * y + 1.5, 4 * x + 1.5)
        assert world[0] == 4
        assert np.allclose(world[1:], centres(observed, *lead, y, x))
    assert stack.units == (Image(np.zeros((2, 2))).units[0], *observed.units)
    assert stack.axis_labels == ("sample", *labels)
    assert stack.contrast_limits == [0.1, 0.7]
    own = result_layer(
        RNG.random((*frames, *space)), geometry, snapshot, name="std", unit="difference"
    )
    assert own.contrast_limits != [0.1, 0.7]
