"""The particles dock in a real window, without a workbench and beside one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QThreadPool
from qtpy.QtWidgets import QApplication

from napari_invprior.app.particles.dock import Particles
from napari_invprior.app.particles.pages import (
    ComparePage,
    DensityPage,
    FlowPage,
    HalftonePage,
    TexturePage,
    TypicalityPage,
    verdict,
)
from napari_invprior.app.particles.run import FLOWING
from napari_invprior.app.viewer.points import points_from_layer
from napari_invprior.samples import binary_volume
from tests.app.conftest import Window

pytestmark = pytest.mark.gui

TINY = {"kind": "particle", "particles": 80, "final_time": 2.0}
LONG = {"kind": "particle", "particles": 500, "tau": 0.001, "final_time": 100.0, "frames": 50}


class Points(Window):
    """A window whose dock is that of the particles."""

    @property
    def idle(self) -> bool:
        return self.bench.run.runner.state == "idle"

    def run(self) -> None:
        self.press(self.bench.go)
        self.wait(60)
        self.settle(0.3)
        assert self.bench.run.fault == ""


@pytest.fixture
def points(make_napari_viewer, qtbot):
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1280, 800)
    for seed, name in enumerate(("first", "second")):
        viewer.add_image(
            binary_volume((48, 56), seed), name=name, scale=(0.5, 0.25), translate=(3, 20 * seed),
            rotate=10, units=("um", "um"),
        )
    dock = Particles(viewer)
    viewer.window.add_dock_widget(dock, name="Inverse priors particles", area="right")
    opened = Points(viewer, dock, qtbot)
    opened.settle()
    yield opened
    dock.close_down()
    opened.settle(0.1)
    assert QThreadPool.globalInstance().waitForDone(2000), "a job outlives its dock"


def corner(layer: Any, place: tuple[float, ...]) -> np.ndarray:
    return np.asarray(layer.data_to_world(place))


def test_from_clicked_seeds_to_a_movie_on_the_image(points: Points) -> None:
    dock, viewer = points.bench, points.viewer
    page = dock.show_page(FlowPage)
    assert page.choice("target") == "first" and page.choice("start") is None
    points.press(dock.add_points)
    points.settle()
    seeds = viewer.layers["seeds"]
    assert page.choice("start") == "seeds" and "empty" in dock.about.text()
    image = viewer.layers["first"]
    points.click(tuple(corner(image, (10, 12))))
    points.click(tuple(corner(image, (30, 40))))
    assert len(seeds.data) == 2, "real clicks put seeds"
    page.scheme.choose(TINY)
    points.run()
    movie = viewer.layers["particles 1"]
    assert movie.ndim == 3 and movie.axis_labels[0] == "frame"
    assert FLOWING not in viewer.layers
    assert np.allclose(corner(movie, (0, 7, 9))[1:], corner(image, (7, 9)))
    assert [str(u) for u in movie.units[1:]] == [str(u) for u in image.units]
    first = movie.data[movie.data[:, 0] == 0]
    assert len(first) == 80
    assert np.allclose(np.unique(np.round(first[:, 1:], 1), axis=0), seeds.data, atol=0.2)
    assert viewer.dims.current_step[0] == movie.data[-1, 0], "the end is shown"
    assert "80 particles" in dock.about.text() and dock.curve.y[-1] < dock.curve.y[0]
    points.press(dock.script)
    text = QApplication.clipboard().text()
    assert "points_from_layer" in text
    namespace: dict[str, Any] = {"viewer": viewer}
    body = text.replace('recipes.write_outcome(outcome, "invprior-output")', "")
    exec(compile(body, "script.py", "exec"), namespace)
    assert np.allclose(namespace["outcome"].layers[0].array, movie.data, atol=1e-4)


def test_other_placements_and_movies_as_a_start(points: Points) -> None:
    viewer, dock = points.viewer, points.bench
    image = viewer.layers["first"]
    world = viewer.add_points([corner(image, (4, 6))], name="world", units=("um", "um"))
    assert np.allclose(points_from_layer(world, image).array, [[4, 6]])
    page = dock.show_page(FlowPage)
    page.pickers["target"][0].choose(None)
    page.pickers["start"][0].choose("world")
    page.scheme.choose(TINY)
    points.run()
    movie = viewer.layers["particles 1"]
    page.pickers["target"][0].choose("first")
    page.pickers["start"][0].choose("particles 1")
    points.run()
    last = movie.data[movie.data[:, 0] == movie.data[-1, 0], 1:]
    again = viewer.layers["particles 2"]
    begin = again.data[again.data[:, 0] == 0, 1:]
    there = np.array([corner(image, tuple(p)) for p in begin])
    assert np.allclose(there.mean(0), last.mean(0), atol=0.05)
    assert not movie.visible, "earlier results are hidden, not removed"


def test_cancel_keeps_the_frames_so_far(points: Points) -> None:
    dock, viewer = points.bench, points.viewer
    dock.show_page(FlowPage).scheme.choose(LONG)
    points.press(dock.go)
    points.until(lambda: FLOWING in viewer.layers, 20)
    assert not dock.go.isEnabled() and not dock.list.isEnabled()
    points.press(dock.cancel)
    points.wait(5)
    points.settle(0.3)
    assert "cancelled: " in dock.about.text()
    assert viewer.layers["particles 1"].ndim == 3 and FLOWING not in viewer.layers
    assert dock.go.isEnabled()


def test_halftone_and_density_map(points: Points) -> None:
    dock, viewer = points.bench, points.viewer
    page = dock.show_page(HalftonePage)
    page.dots.set_values({"dots": 120})
    points.run()
    dots, image = viewer.layers["dots 1"], viewer.layers["first"]
    assert dots.data.shape == (120, 2)
    assert np.allclose(corner(dots, (3, 4)), corner(image, (3, 4)))
    assert "seen from afar" in dock.about.text()
    page = dock.show_page(DensityPage)
    assert page.choice("points") == "dots 1"
    page.pickers["image"][0].choose("first")
    points.run()
    density = viewer.layers["density 1"]
    assert density.data.shape == image.data.shape
    assert np.allclose(corner(density, (3, 4)), corner(image, (3, 4)))
    page.pickers["image"][0].choose(None)
    points.run()
    own = viewer.layers["density 2"]
    peak = np.unravel_index(np.argmax(own.data), own.data.shape)
    place = np.asarray(image.world_to_data(corner(own, peak)))
    expected = np.unravel_index(np.argmax(density.data), density.data.shape)
    assert np.linalg.norm(place - expected) < 6, "its own grid lies where the points are"
    page.pickers["points"][0].choose(None)
    viewer.layers.remove("dots 1")
    points.settle(0.2)
    assert not dock.go.isEnabled() and "Add a Points layer" in dock.about.text()


def test_typical_places_and_a_verdict(points: Points) -> None:
    dock, viewer = points.bench, points.viewer
    page = dock.show_page(TypicalityPage)
    page.pickers["image"][0].choose("first")
    page.pickers["reference"][0].choose("second")
    points.run()
    layer = viewer.layers["typicality 1"]
    assert layer.data.shape == (48, 56) and layer.colormap.name == "inferno"
    assert np.allclose(corner(layer, (3, 4)), corner(viewer.layers["first"], (3, 4)))
    page = dock.show_page(ComparePage)
    page.pickers["first"][0].choose("first")
    page.pickers["second"][0].choose("first")
    points.settle(0.1)
    assert not dock.go.isEnabled() and "two different layers" in dock.about.text()
    page.pickers["second"][0].choose("second")
    points.run()
    assert "p = " in dock.about.text()
    rng = np.random.default_rng(0)
    viewer.add_points(rng.normal(0, 1, (50, 2)), name="near", units=("um", "um"))
    viewer.add_points(rng.normal(2, 1, (50, 2)), name="far", units=("um", "um"))
    points.settle(0.2)
    page.pickers["second"][0].choose("near")
    points.settle(0.1)
    assert "two images, or two layers of points" in dock.about.text()
    page.pickers["first"][0].choose("far")
    points.run()
    assert dock.about.text().startswith("p = 0.001: they differ")
    assert verdict(0.3) == "p = 0.3: no difference found"
    assert "no proof" in verdict(0.03)


def test_patches_and_a_texture_beside_the_reference(points: Points) -> None:
    dock, viewer = points.bench, points.viewer
    page = dock.show_page(TexturePage)
    page.options.set_values({"patches": 6, "texture": 16, "patch_size": 4, "particles": 60,
                             "steps": 20})
    points.run()
    assert viewer.layers["patches 1"].data.shape == (6, 4, 4)
    assert viewer.layers["texture 1"].data.shape == (16, 16)
    assert "held-out patches" in dock.about.text()


def test_bad_input_is_said_in_place(points: Points) -> None:
    dock, viewer = points.bench, points.viewer
    broken = np.full((20, 20), np.nan, np.float32)
    broken[:10] = 1
    viewer.add_image(broken, name="broken", units=("um", "um"))
    page = dock.show_page(HalftonePage)
    page.pickers["image"][0].choose("broken")
    points.press(dock.go)
    points.wait(10)
    points.settle(0.2)
    assert "NaN" in dock.about.text() and dock.go.isEnabled()
    page = dock.show_page(FlowPage)
    page.pickers["target"][0].choose("first")
    viewer.add_points(np.empty((0, 2)), name="nothing", units=("um", "um"))
    points.settle(0.1)
    page.pickers["start"][0].choose("nothing")
    points.settle(0.1)
    assert not dock.go.isEnabled() and "'nothing' is empty" in dock.about.text()
    page.pickers["start"][0].choose(None)
    page.scheme.form.editors["tau"].set("many")
    points.press(dock.go)
    assert "tau = 'many'" in dock.about.text() and points.idle


def test_a_closed_dock_stops_its_job(points: Points) -> None:
    dock, viewer = points.bench, points.viewer
    dock.show_page(FlowPage).scheme.choose(LONG)
    points.press(dock.go)
    points.until(lambda: FLOWING in viewer.layers, 20)
    dock.holder().close() if dock.holder() is not None else dock.close_down()
    dock.close_down()
    points.settle(0.3)
    assert not dock.run.runner.process_is_busy()
    assert FLOWING not in viewer.layers
    viewer.layers.remove("first")
    viewer.add_points(np.zeros((1, 2)), units=("um", "um"))


def test_every_control_says_what_it_is(points: Points) -> None:
    for page in points.bench.pages:
        for picker, _, _ in page.pickers.values():
            assert picker.toolTip()
        for form in page.forms:
            for editor in form.editors.values():
                assert editor.widget.toolTip() or editor.widget.children()
