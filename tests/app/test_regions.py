"""Shapes and labels as regions; patches that lie inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from napari.layers import Image, Labels, Shapes

from napari_invprior.app.workbench.patches import Count, count_patches, verdict, windows_inside
from napari_invprior.app.workbench.regions import label_problem, regions_of
from napari_invprior.priors.base import Reference
from napari_invprior.priors.mixtures.gmm import GaussianMixture
from napari_invprior.priors.patchwise import reference_patches
from napari_invprior.recipes.model import ReferenceSource
from napari_invprior.recipes.regions import region_mask


def image(shape=(60, 80), **options):
    return Image(np.random.default_rng(0).random(shape), **options)


def rectangle(y0, x0, y1, x1):
    return np.array([[y0, x0], [y0, x1], [y1, x1], [y1, x0]], float)


def test_rectangle_becomes_the_samples_whose_centres_it_holds():
    shapes = Shapes([rectangle(9.5, 19.5, 29.5, 49.5)], shape_type="rectangle")
    assert regions_of(shapes, image(), 2, 1).boxes == [[[10, 30], [20, 50]]]
    shapes = Shapes([rectangle(9.6, 19.7, 29.4, 49.2)], shape_type="rectangle")
    assert regions_of(shapes, image(), 2, 1).boxes == [[[10, 30], [20, 50]]]


def test_regions_follow_scale_and_translation_of_both_layers():
    pictured = image(scale=(0.5, 0.5), translate=(100, 7))
    world = rectangle(105, 12, 115, 22)
    found = regions_of(Shapes([world], shape_type="rectangle"), pictured, 2, 1)
    assert found.boxes == [[[10, 31], [10, 31]]]
    own = Shapes([rectangle(10, 10, 30, 30)], shape_type="rectangle", scale=(0.5, 0.5),
                 translate=(100, 7))
    assert regions_of(own, pictured, 2, 1).boxes == found.boxes


def test_parts_outside_are_clipped_and_said():
    mostly = Shapes([rectangle(-40.5, -0.5, 9.5, 19.5)], shape_type="rectangle")
    found = regions_of(mostly, image(), 2, 1)
    assert found.boxes == [[[0, 10], [0, 20]]]
    assert "20%" in found.notes[0]
    little = Shapes([rectangle(-5.5, -0.5, 9.5, 19.5)], shape_type="rectangle")
    assert regions_of(little, image(), 2, 1).notes == []
    far = Shapes([rectangle(500, 500, 520, 520)], shape_type="rectangle")
    found = regions_of(far, image(), 2, 1)
    assert found.boxes == []
    assert "outside" in found.notes[0]


def test_shapes_without_area_are_ignored():
    shapes = Shapes([rectangle(5, 5, 5, 25)], shape_type="rectangle")
    shapes.add_lines(np.array([[1, 1], [9, 9]]))
    found = regions_of(shapes, image(), 2, 1)
    assert found.boxes == []
    assert len(found.notes) == 2


def test_turned_rectangle_polygon_and_ellipse_become_polygons():
    turned = np.array([[30, 10], [10, 30], [30, 50], [50, 30]], float)
    shapes = Shapes([turned], shape_type="rectangle")
    shapes.add_polygons(np.array([[5, 5], [40, 8], [20, 60]], float))
    shapes.add_ellipses(rectangle(10, 10, 50, 70))
    boxes = regions_of(shapes, image(), 2, 1).boxes
    assert all("polygon" in box for box in boxes)
    mask = np.asarray(region_mask(
        ReferenceSource(layer="image", regions=[boxes[2]]), (60, 80), {}
    ))
    assert mask.sum() == pytest.approx(np.pi * 20 * 30, rel=0.03)
    assert not mask[11, 11]


def test_volume_regions_have_a_depth():
    volume = image((20, 60, 80))
    planar = np.array([[7, 10, 10], [7, 10, 29], [7, 29, 29], [7, 29, 10]], float)
    shapes = Shapes([planar], shape_type="rectangle", ndim=3)
    assert regions_of(shapes, volume, 3, 6).boxes == [[[4, 10], [10, 30], [10, 30]]]
    flat = Shapes([planar[:, 1:]], shape_type="rectangle")
    assert regions_of(flat, volume, 3, 6).boxes == [[[0, 20], [10, 30], [10, 30]]]


def test_labels_of_another_shape_are_refused_with_both_shapes():
    labels = Labels(np.ones((10, 12), int))
    problem = label_problem(labels, image(), 2)
    assert "(10, 12)" in problem
    assert "(60, 80)" in problem
    assert "nothing is painted" in label_problem(Labels(np.zeros((60, 80), int)), image(), 2)
    assert label_problem(Labels(np.ones((60, 80), int)), image(), 2) == ""


@pytest.mark.parametrize(
    ("shape", "patch"), [((20, 25), (4, 6)), ((9, 8, 10), (2, 3, 4)), ((5, 5), (1, 5))]
)
def test_windows_inside_equal_a_plain_count(shape, patch):
    mask = np.random.default_rng(1).random(shape) < 0.94
    views = np.lib.stride_tricks.sliding_window_view(mask, patch)
    wanted = views.all(axis=tuple(range(-len(patch), 0)))
    assert np.array_equal(windows_inside(mask, patch), wanted)
    assert wanted.any()


def test_count_is_what_the_engine_uses():
    samples = np.random.default_rng(2).random((50, 60)).astype(np.float32)
    samples[20, 30] = np.nan
    boxes = [[[5, 25], [5, 40]], [[20, 45], [30, 55]],
             {"polygon": [[2.0, 45.0], [18.0, 50.0], [12.0, 58.0]]}]
    labels = np.zeros((50, 60), np.uint8)
    labels[30:48, 2:20] = 3
    count, shown = count_patches((50, 60), boxes, labels, (6, 6), samples, rgb=False)
    mask = np.asarray(region_mask(ReferenceSource(layer="i", regions=boxes), (50, 60), {}))
    prior = GaussianMixture(GaussianMixture.Parameters(patch_size=6), ndim=2)
    used = reference_patches(
        [Reference(torch.from_numpy(samples)[None], torch.from_numpy(mask | (labels > 0)))], prior
    )
    assert count == Count(4, used.shape[1])
    assert shown.shape[1:] == (1, 6, 6)
    assert np.isfinite(shown).all()


def test_verdict_says_how_many_more():
    said = "1 region · 1 500 patches · too few: 500 more needed"
    assert verdict(Count(1, 1500), (6, 6)) == (said, False)
    assert verdict(Count(2, 40), (6, 6))[0].endswith("too few to learn from: 1960 more needed")
    assert verdict(Count(3, 11204), (6, 6)) == ("3 regions · 11 204 patches · enough", True)
    assert verdict(Count(3, 5000), (6, 6))[1]
    text, good = verdict(Count(1, 0), (6, 6))
    assert "6 × 6" in text
    assert not good
