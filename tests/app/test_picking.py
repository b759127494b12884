"""Pick mode on a viewer model: no window needed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_invprior.app.workbench.picking import DEPTH, RegionPicker, find_layer
from napari_invprior.app.workbench.regions import regions_of


@pytest.fixture
def said():
    return []


def make(shape, ndim, said, **options):
    viewer = ViewerModel()
    image = viewer.add_image(np.random.default_rng(0).random(shape), **options)
    picker = RegionPicker(viewer, lambda: None, said.append)
    picker.image, picker.ndim, picker.size = image, ndim, 12
    return viewer, image, picker


def mouse(picker, viewer, path, **more):
    """Press at the first position, move along the others, release: as napari's canvas does."""
    shown = list(viewer.dims.displayed)

    def event(kind, world):
        return SimpleNamespace(
            type=kind, position=tuple(world), pos=tuple(10 * np.asarray(world)[-2:]), button=1,
            modifiers=(), dims_displayed=shown, handled=False, **more,
        )

    first = event("mouse_press", path[0])
    steps = picker._on_drag(viewer, first)
    alive = next(steps, "over") != "over"
    for world in path[1:]:
        vars(first).update(vars(event("mouse_move", world)))
        alive = alive and next(steps, "over") != "over"
    vars(first).update(vars(event("mouse_release", path[-1])))
    if alive:
        next(steps, None)
    return first


def test_a_click_drops_a_square_inside_the_image(said):
    viewer, image, picker = make((60, 80), 2, said)
    picker.enter()
    mouse(picker, viewer, [(30, 40)])
    mouse(picker, viewer, [(1, 79)])
    boxes = regions_of(picker.layer, image, 2, 1).boxes
    assert boxes == [[[24, 36], [34, 46]], [[0, 12], [68, 80]]]


def test_a_click_outside_is_refused_in_words(said):
    viewer, _, picker = make((60, 80), 2, said)
    picker.enter()
    mouse(picker, viewer, [(-3, 40)])
    assert picker.layer.nshapes == 0
    assert "inside" in said[0]


def test_drag_on_a_region_moves_it_by_whole_samples(said):
    viewer, image, picker = make((60, 80), 2, said)
    picker.enter()
    mouse(picker, viewer, [(30, 40)])
    event = mouse(picker, viewer, [(30, 40), (33.3, 44.4), (35.2, 47.1)])
    assert regions_of(picker.layer, image, 2, 1).boxes == [[[29, 41], [41, 53]]]
    assert picker.layer.nshapes == 1
    assert event is not None


def test_drag_elsewhere_moves_the_view_and_drops_nothing(said):
    viewer, _, picker = make((60, 80), 2, said)
    picker.enter()
    mouse(picker, viewer, [(10, 10), (20, 30)])
    assert picker.layer.nshapes == 0


def test_wheel_sizes_the_region_under_the_cursor_only(said):
    viewer, image, picker = make((60, 80), 2, said)
    picker.enter()
    mouse(picker, viewer, [(30, 40)])
    over = SimpleNamespace(position=(30, 40), delta=(0, 1), handled=False)
    picker._on_wheel(viewer, over)
    assert over.handled
    (region,) = regions_of(picker.layer, image, 2, 1).boxes
    assert [b - a for a, b in region] == [13, 13]
    beside = SimpleNamespace(position=(5, 5), delta=(0, 1), handled=False)
    picker._on_wheel(viewer, beside)
    assert not beside.handled


def test_size_changes_the_chosen_region_and_the_next_ones(said):
    viewer, image, picker = make((60, 80), 2, said)
    picker.enter()
    mouse(picker, viewer, [(30, 20)])
    mouse(picker, viewer, [(30, 60)])
    picker.set_size(20)
    first, second = regions_of(picker.layer, image, 2, 1).boxes
    assert [b - a for a, b in first] == [12, 12]
    assert [b - a for a, b in second] == [20, 20]


def test_remove_takes_the_chosen_region(said):
    viewer, image, picker = make((60, 80), 2, said)
    picker.enter()
    mouse(picker, viewer, [(30, 20)])
    mouse(picker, viewer, [(30, 60)])
    mouse(picker, viewer, [(30, 20), (30, 20)])
    picker.remove()
    assert regions_of(picker.layer, image, 2, 1).boxes == [[[24, 36], [54, 66]]]
    picker.remove()
    assert picker.layer.nshapes == 1, "nothing is chosen any more"


def test_boxes_on_anisotropic_volumes_are_cubes_in_the_world(said):
    viewer, image, picker = make((20, 60, 80), 3, said, scale=(3, 1, 1), units=("um",) * 3)
    picker.enter()
    viewer.dims.set_current_step(0, 10)
    mouse(picker, viewer, [(30, 30, 40)])
    assert regions_of(picker.layer, image, 3, 1).boxes == [[[8, 12], [24, 36], [34, 46]]]
    assert list(picker.layer.features[list(DEPTH)].iloc[0]) == [8, 12]
    assert picker.layer.ndim == 2, "visible on every slice"


def test_regions_on_other_slices_are_shown_dim(said):
    viewer, _, picker = make((20, 60, 80), 3, said)
    picker.enter()
    viewer.dims.set_current_step(0, 10)
    mouse(picker, viewer, [(10, 30, 40)])
    there = picker.layer.edge_color[0].copy()
    viewer.dims.set_current_step(0, 1)
    assert not np.allclose(picker.layer.edge_color[0], there)


def test_nothing_stays_bound_after_leaving(said):
    viewer, _, picker = make((60, 80), 2, said)
    before = (list(viewer.mouse_drag_callbacks), list(viewer.mouse_wheel_callbacks),
              dict(viewer.keymap))
    picker.enter()
    assert len(viewer.keymap) > len(before[2])
    picker.enter()
    picker.leave()
    picker.leave()
    assert (viewer.mouse_drag_callbacks, viewer.mouse_wheel_callbacks, viewer.keymap) == before
    assert picker.layer.keymap == {}


def test_a_removed_layer_is_made_anew_and_a_saved_one_is_found(said):
    viewer, _, picker = make((60, 80), 2, said)
    picker.enter()
    mouse(picker, viewer, [(30, 40)])
    viewer.layers.remove(picker.layer)
    mouse(picker, viewer, [(30, 40)])
    assert picker.layer.nshapes == 1
    again = RegionPicker(viewer, lambda: None, said.append)
    assert again.layer is picker.layer is find_layer(viewer)


def test_transposed_views_are_refused_in_words(said):
    viewer, _, picker = make((20, 60, 80), 3, said)
    picker.enter()
    viewer.dims.order = (1, 0, 2)
    mouse(picker, viewer, [(10, 30, 40)])
    assert picker.layer.nshapes == 0
    assert "y, x" in said[0]
