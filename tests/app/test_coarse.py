"""Coarse volumes by themselves: the budget, the order of reading, colours."""

from __future__ import annotations

import dask.array
import numpy as np
from napari.layers import Image

from napari_invprior.app.viewer import coarse
from napari_invprior.app.viewer.coarse import CoarseVolume, coarse_layer, too_large
from tests.app.test_volume_guard import BLOCKS, HUGE, Counted, lazy


def test_reading_begins_with_places_spread_over_the_volume_and_can_be_left_at_any_time():
    huge = Counted(HUGE, BLOCKS)
    volume = CoarseVolume(Image(huge.array, contrast_limits=(0, 255)), (0, 1, 2))
    volume.go_to({})
    huge.reads.clear()
    reading = volume.fill()
    next(reading)
    assert 0 < len(huge.reads) <= 4, "one piece is one row of chunks"
    assert not volume.values.all()
    while volume._known.sum() == 0:
        next(reading)
    assert {location[0] for location in huge.reads} == {25}, "the middle comes first"
    assert len(huge.reads) == 16
    assert (volume.values == 26).all(), "and stands for the rest"
    reading.close()
    again = volume.fill()
    while volume._known.sum() < 10:
        next(again)
    assert len({location[0] for location in huge.reads}) >= 2, "it goes on where it stopped"


def test_the_budget_depends_on_free_memory_and_on_where_the_data_are():
    eager = Image(np.broadcast_to(np.float32(0), (800, 800, 800)), contrast_limits=(0, 1))
    there = Image(dask.array.zeros((800, 800, 800), dtype=np.float32, chunks=100),
                  contrast_limits=(0, 1))
    axes = (0, 1, 2)
    assert not too_large(eager, axes, free=9_000_000_000)  # it has 2 GB
    assert too_large(eager, axes, free=8_000_000_000)
    assert too_large(there, axes, free=9_000_000_000), "reading it would freeze the window"
    assert not too_large(there, axes[:2], free=10**6)


def test_a_coarse_layer_of_colours_keeps_its_colours(monkeypatch):
    monkeypatch.setattr(coarse, "VOXELS", 4**3)
    monkeypatch.setattr(coarse, "EDGE", 4)
    data = np.random.default_rng(0).integers(0, 255, (20, 20, 20, 3), dtype=np.uint8)
    layer = Image(lazy(data, (5, 5, 5, 3)), rgb=True)
    volume = CoarseVolume(layer, (0, 1, 2))
    volume.go_to({})
    list(volume.fill())
    made = coarse_layer(layer, volume)
    assert made.rgb
    assert np.array_equal(made.data, data[2::5, 2::5, 2::5])
