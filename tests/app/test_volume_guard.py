"""Huge volumes in 3D: what is read, where the coarse layer lies, what comes back in 2D."""

from __future__ import annotations

import threading

import dask.array
import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image
from napari.utils.notifications import notification_manager

from napari_invprior.app.viewer import coarse
from napari_invprior.app.viewer.layers import images_of, role_of
from napari_invprior.app.viewer.volume_guard import VolumeGuard

HUGE = (6400, 4096, 4096)
"""107 GB of bytes."""
BLOCKS = (128, 1024, 1024)


class Counted:
    """A dask array whose chunks count how often they are read, and in which thread."""

    def __init__(self, shape, chunks):
        self.reads: list[tuple[int, ...]] = []
        self.threads: set[int] = set()
        lock = threading.Lock()

        def chunk(block_info=None):
            with lock:
                self.reads.append(tuple(block_info[None]["chunk-location"]))
                self.threads.add(threading.get_ident())
            shape = block_info[None]["chunk-shape"]
            row = block_info[None]["chunk-location"][-3]
            return np.broadcast_to(np.uint8(1 + row % 200), shape)

        self.array = dask.array.map_blocks(
            chunk, chunks=dask.array.core.normalize_chunks(chunks, shape), dtype=np.uint8,
            meta=np.empty((0,) * len(shape), np.uint8),
        )
        self.chunks = int(np.prod(self.array.numblocks))


def at_once(fill, seen):
    """Read everything before going on."""
    for more in fill():
        seen(more)
    return lambda: None


def not_at_all(fill, seen):
    """Reading never begins."""
    return lambda: None


def guarded(read=at_once):
    viewer = ViewerModel()
    return viewer, VolumeGuard(viewer, read)


def view_of(viewer, layer):
    """The coarse layer right above a layer; None when there is none."""
    found = [v for v in viewer.layers if role_of(v) == "coarse"]
    views = [v for v in found if v.metadata["napari-invprior"]["of"] == layer.name]
    assert len(views) <= 1
    if views:
        assert viewer.layers.index(views[0]) == viewer.layers.index(layer) + 1
    return views[0] if views else None


@pytest.fixture
def tiny(monkeypatch):
    """Budgets that small arrays exceed."""
    monkeypatch.setattr(coarse, "LAZY", 1000)
    monkeypatch.setattr(coarse, "VOXELS", 4**3)
    monkeypatch.setattr(coarse, "EDGE", 4)


def lazy(data, chunks=5):
    return dask.array.from_array(data, chunks=chunks)


# ---- what is read


def test_napari_reads_nothing_of_a_huge_volume_before_the_guard_acts():
    huge = Counted(HUGE, BLOCKS)
    viewer, _ = guarded(not_at_all)
    layer = viewer.add_image(huge.array, name="huge", contrast_limits=(0, 255))
    before = len(huge.reads)
    assert before < 0.05 * huge.chunks, "a slice"
    viewer.dims.ndisplay = 3
    assert len(huge.reads) == before, "neither the volume nor its coarse layer waits for data"
    assert not layer.visible
    assert view_of(viewer, layer).visible


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [(HUGE, BLOCKS), (HUGE, (1, 4096, 4096)), ((3, *HUGE), (1, *BLOCKS))],
    ids=["blocks", "planes", "frames"],
)
def test_a_huge_volume_is_never_read_in_full(shape, chunks):
    huge = Counted(shape, chunks)
    viewer, guard = guarded()
    layer = viewer.add_image(huge.array, name="huge", contrast_limits=(0, 255))
    huge.reads.clear()
    viewer.dims.ndisplay = 3
    volume = guard.covers[layer].volume
    assert volume.complete and not volume.fault
    assert len(huge.reads) < 0.3 * huge.chunks / (shape[0] if len(shape) == 4 else 1)
    assert volume.values.nbytes <= coarse.VOXELS
    assert volume.values.min() > 0, "what was not read shows the nearest that was"
    starts = volume.values[..., 0, 0].ravel()
    assert (np.diff(starts.astype(int)) >= 0).all() or chunks[-3] == 1
    huge.reads.clear()
    viewer.dims.ndisplay = 2
    viewer.dims.ndisplay = 3
    assert len(huge.reads) < 0.05 * huge.chunks, "what was read once is kept"


def test_another_frame_is_read_anew_and_the_old_reading_ends(tiny):
    data = np.arange(4 * 13**3).reshape(4, 13, 13, 13)
    viewer, guard = guarded()
    layer = viewer.add_image(lazy(data), name="movie", contrast_limits=(0, 10_000))
    viewer.dims.set_point(0, 1)
    viewer.dims.ndisplay = 3
    view, volume = view_of(viewer, layer), guard.covers[layer].volume
    assert view.data.shape[0] == 4
    assert volume.factor[0] == 1
    assert np.array_equal(view.data[1], data[1, 2::5, 2::5, 2::5])
    volume.go_to({0: 2})
    old = volume.fill()
    next(old)
    viewer.dims.set_point(0, 3)
    assert np.array_equal(view.data[3], data[3, 2::5, 2::5, 2::5])
    assert list(old) == []
    assert np.array_equal(view.data[3], data[3, 2::5, 2::5, 2::5])


def test_what_cannot_be_read_is_said(tiny):
    gone = threading.Event()

    def broken(block):
        if gone.is_set():
            raise OSError("the disk is gone")
        return block

    data = dask.array.ones((20, 20, 20), chunks=5, dtype=np.float32)
    bad = data.map_blocks(broken, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    viewer, _ = guarded()
    layer = viewer.add_image(bad, name="bad", contrast_limits=(0, 1))
    gone.set()
    with notification_manager:
        viewer.dims.ndisplay = 3
    assert "the disk is gone" in notification_manager.records[-1].message
    assert view_of(viewer, layer) is not None


# ---- where it lies and how it looks


def matrix():
    found = np.eye(4)
    found[:3, :3] += np.array([[0, 0.1, 0], [0.2, 0, 0], [0, 0, 0.3]])
    found[:3, 3] = (1, 2, 3)
    return found


PLACES = {
    "scaled": {"scale": (3, 0.5, 0.5), "translate": (5, -2, 1), "units": ("um", "um", "um")},
    "turned": {"scale": (2, 1, 1), "translate": (5, -2, 1), "rotate": (10, 20, 30),
               "shear": (0.1, 0.2, 0.3)},
    "affine": {"scale": (2, 1, 3), "affine": matrix()},
}


@pytest.mark.parametrize("where", PLACES)
def test_every_coarse_voxel_lies_where_its_voxel_lies(where, tiny):
    data = np.random.default_rng(0).random((11, 18, 23)).astype(np.float32)
    viewer, _ = guarded()
    layer = viewer.add_image(
        lazy(data), name="volume", axis_labels=("z", "y", "x"), **PLACES[where]
    )
    viewer.dims.ndisplay = 3
    view = view_of(viewer, layer)
    assert view.data.size < data.size / 20
    for index in np.ndindex(*view.data.shape):
        place = np.asarray(layer.world_to_data(view.data_to_world(index)))
        assert np.allclose(place, np.round(place))
        assert data[tuple(np.round(place).astype(int))] == view.data[index]
    assert view.units == layer.units
    assert view.axis_labels == layer.axis_labels
    # the groups begin at the border of the volume
    corner = layer.world_to_data(view.data_to_world((-0.5, -0.5, -0.5)))
    assert np.allclose(corner, -0.5)


def test_it_looks_like_the_original(tiny):
    data = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    viewer, _ = guarded()
    layer = viewer.add_image(
        lazy(data), name="volume", contrast_limits=(0.2, 0.7), colormap="inferno", gamma=0.8,
        opacity=0.6, blending="additive", rendering="attenuated_mip", attenuation=0.1,
    )
    layer.contrast_limits_range = (-1, 2)
    viewer.dims.ndisplay = 3
    view = view_of(viewer, layer)
    for name in ("contrast_limits", "contrast_limits_range", "gamma", "opacity", "blending",
                 "rendering", "attenuation", "interpolation3d"):
        assert getattr(view, name) == getattr(layer, name), name
    assert view.colormap.name == "inferno"
    assert view.dtype == np.float32
    assert not view.editable


def test_labels_keep_their_numbers(tiny):
    data = np.random.default_rng(0).integers(0, 50, (20, 20, 20))
    viewer, _ = guarded()
    layer = viewer.add_labels(lazy(data), name="cells", opacity=0.3)
    viewer.dims.ndisplay = 3
    view = view_of(viewer, layer)
    assert type(view).__name__ == "Labels"
    assert np.array_equal(view.data, data[2::5, 2::5, 2::5])
    assert view.opacity == 0.3


def test_the_coarsest_level_of_a_pyramid_is_thinned_only_where_it_is_too_large(tiny):
    fine = np.random.default_rng(0).random((40, 40, 40)).astype(np.float32)
    half = fine.reshape(20, 2, 20, 2, 20, 2).mean((1, 3, 5))
    tenth = fine.reshape(10, 4, 10, 4, 10, 4).mean((1, 3, 5))[:5, :5, :5]
    viewer, guard = guarded()
    pyramids = {
        "large": [lazy(fine), lazy(half)], "small": [lazy(fine[:20, :20, :20]), lazy(tenth)],
    }
    large, small = (
        viewer.add_image(levels, multiscale=True, name=name, scale=(2, 2, 2))
        for name, levels in pyramids.items()
    )
    viewer.dims.ndisplay = 3
    assert small.visible and view_of(viewer, small) is None
    view = view_of(viewer, large)
    assert guard.covers[large].volume.factor == (10, 10, 10)
    assert np.array_equal(view.data, half[2::5, 2::5, 2::5])
    # the middle of the 2 x 2 x 2 voxels that the third coarse sample is the mean of
    assert np.allclose(view.data_to_world((0, 0, 0)), 2 * 4.5)


# ---- what is left alone


def test_what_can_be_drawn_is_left_alone(monkeypatch):
    monkeypatch.setattr(coarse, "LAZY", 100_000)
    viewer, guard = guarded()
    rng = np.random.default_rng(0)
    viewer.add_image(rng.random((20, 20, 20)), name="eager")
    viewer.add_image(dask.array.zeros((20, 20, 20), chunks=5), name="lazy")
    viewer.add_image(dask.array.zeros((1000, 1000), chunks=100), name="wide",
                     contrast_limits=(0, 1))
    viewer.add_image(rng.integers(0, 255, (20, 20, 20, 3), dtype=np.uint8), rgb=True, name="rgb")
    viewer.add_image(dask.array.zeros((1000, 3, 20, 20, 20), chunks=(1, 1, 20, 20, 20)),
                     name="long", contrast_limits=(0, 1))
    viewer.add_points(np.zeros((3, 3)), name="points")
    count = len(viewer.layers)
    viewer.dims.ndisplay = 3
    assert guard.covers == {}
    assert len(viewer.layers) == count
    assert all(layer.visible for layer in viewer.layers)


# ---- back and forth


def test_2d_gives_everything_back_with_its_former_visibility(tiny):
    viewer, guard = guarded()
    data = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    seen = viewer.add_image(lazy(data), name="seen")
    hidden = viewer.add_image(lazy(data), name="hidden", visible=False)
    viewer.layers.selection.active = seen
    names = [layer.name for layer in viewer.layers]
    with notification_manager:
        viewer.dims.ndisplay = 3
    said = notification_manager.records[-1].message
    assert "'seen'" in said and "One voxel in 5 × 5 × 5" in said
    assert not seen.visible and not hidden.visible
    assert view_of(viewer, hidden) is None
    assert viewer.layers.selection.active is view_of(viewer, seen)
    viewer.dims.ndisplay = 2
    assert [layer.name for layer in viewer.layers] == names
    assert seen.visible and not hidden.visible
    assert viewer.layers.selection.active is seen
    assert guard.covers == {}
    hidden.visible = True
    assert hidden._slice.image.raw.shape == (20, 20), "it is drawn again"


def test_showing_and_hiding_in_3d_acts_on_the_coarse_layer():
    huge = Counted(HUGE, BLOCKS)
    viewer, _ = guarded(not_at_all)
    layer = viewer.add_image(huge.array, name="huge", contrast_limits=(0, 255), visible=False)
    viewer.dims.ndisplay = 3
    before = len(huge.reads)
    layer.visible = True
    assert len(huge.reads) == before
    assert not layer.visible and view_of(viewer, layer).visible
    layer.visible = False
    assert not view_of(viewer, layer).visible
    layer.visible = True
    assert view_of(viewer, layer).visible
    viewer.layers.remove(view_of(viewer, layer))
    layer.visible = True
    assert view_of(viewer, layer).visible, "a removed one comes back when it is asked for"
    assert len(huge.reads) == before
    viewer.dims.ndisplay = 2
    assert layer.visible, "as it was left"


def test_layers_that_come_while_the_view_is_3d_are_guarded_too(tiny, monkeypatch):
    monkeypatch.setattr(coarse, "free_bytes", lambda: 4 * 4000)
    viewer, guard = guarded()
    viewer.add_image(np.zeros((4, 4, 4), np.float32), name="small")
    viewer.dims.ndisplay = 3
    result = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    layer = viewer.add_layer(Image(result, name="reconstruction 1"))
    assert not layer.visible
    assert np.array_equal(view_of(viewer, layer).data, result[2::5, 2::5, 2::5])
    viewer.layers.remove(layer)
    assert [layer.name for layer in viewer.layers] == ["small"], "its coarse layer goes with it"
    assert guard.covers == {}
    viewer.layers.append(Image(result))
    viewer.layers.clear()
    assert guard.covers == {}


def test_other_axes_on_display_are_judged_anew(tiny):
    data = np.random.default_rng(0).integers(0, 9, (30, 20, 20, 2), dtype=np.uint8)
    viewer, guard = guarded()
    layer = viewer.add_image(lazy(data), name="volume")
    viewer.dims.ndisplay = 3
    assert layer.visible, "20 x 20 x 2 voxels are few"
    viewer.dims.order = (3, 0, 1, 2)
    assert not layer.visible
    assert view_of(viewer, layer).data.shape == (3, 4, 4, 2)
    viewer.dims.order = (0, 1, 2, 3)
    assert layer.visible and view_of(viewer, layer) is None
    viewer.dims.order = (3, 2, 1, 0)
    viewer.dims.order = (0, 1, 2, 3)
    viewer.dims.ndisplay = 2
    assert layer.visible and guard.covers == {}


def test_closing_goes_back_to_2d_and_leaves_no_callback(tiny):
    viewer = ViewerModel()
    emitters = (viewer.dims.events.ndisplay, viewer.dims.events.order,
                viewer.dims.events.current_step, viewer.layers.events.inserted,
                viewer.layers.events.removed)
    before = [len(e.callbacks) for e in emitters]
    guard = VolumeGuard(viewer, at_once)
    layer = viewer.add_image(lazy(np.ones((20, 20, 20), np.float32)), name="volume")
    viewer.dims.ndisplay = 3
    guard.close()
    assert viewer.dims.ndisplay == 2
    assert layer.visible and len(viewer.layers) == 1
    assert [len(e.callbacks) for e in emitters] == before
    viewer.dims.ndisplay = 3
    assert layer.visible, "nobody guards any more"


def test_coarse_layers_are_no_images_to_choose(tiny):
    viewer, _ = guarded()
    layer = viewer.add_image(lazy(np.ones((20, 20, 20), np.float32)), name="volume")
    viewer.dims.ndisplay = 3
    assert len(viewer.layers) == 2
    assert images_of(viewer) == [layer]
