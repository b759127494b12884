"""Large volumes in a real window: lazy layers and parts, blocks that fill in, jobs that go on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

from napari_invprior.app.large.dock import LargeVolumes
from napari_invprior.blocks import catalogue
from napari_invprior.geometry import Geometry
from napari_invprior.io.omezarr import write_image
from napari_invprior.samples import grey_volume

pytestmark = pytest.mark.gui

PRIOR = {"kind": "gmm", "components": 4, "steps": 3}
SOLVER = {"kind": "half_quadratic", "steps": 4}


@pytest.fixture(autouse=True)
def own_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "napari_invprior.blocks.catalogue.user_data_path", lambda *_, **__: tmp_path / "known"
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A noisy volume of 130 x 90 x 80 voxels as OME-Zarr, with units and a place."""
    truth = grey_volume((130, 90, 80), seed=2)
    noise = np.random.default_rng(0).standard_normal(truth.shape)
    root = tmp_path / "scan.ome.zarr"
    write_image(
        root / "noisy", (truth + 0.05 * noise).astype(np.float32),
        Geometry((0.5, 0.25, 0.25), (10.0, 0.0, 5.0), units=("micrometer",) * 3),
        value_range=(0.0, 1.0),
    )
    return root


@pytest.fixture
def large(window: Any, store: Path) -> LargeVolumes:
    """The window with the volume as a lazy layer, a prior that is trained, and the dock."""
    viewer, bench = window.viewer, window.bench
    viewer.open(str(store), plugin="napari-invprior")
    viewer.add_image(
        grey_volume((40, 40, 40), seed=0), name="good", scale=(0.5, 0.25, 0.25),
        translate=(10.0, 0.0, -10.0), units=("micrometer",) * 3,
    )
    bench.data.observation.choose("noisy")
    bench.data.physics.choose({"kind": "denoising"})
    bench.data.noise.choose({"kind": "gaussian", "sigma": 0.05})
    bench.references.image.choose("good")
    bench.prior.chooser.choose(PRIOR)
    bench.result.solver.choose(SOLVER)
    bench.result.automatic.setChecked(False)
    bench.result.set_weight(1.0)
    picker = bench.references.picker
    picker.enter()
    picker.set_size(36)
    picker.add((20.0, 5.0, -5.0))
    picker.leave()
    bench.data.part_row.choice.choose("view")
    window.settle()
    window.press(bench.prior.train)
    window.wait()
    assert bench.prior.fitted
    bench.data.part_row.choice.choose("whole")
    dock = LargeVolumes(viewer)
    viewer.window.add_dock_widget(dock, name="Large volumes", area="right")
    window.settle()
    yield dock
    dock.close_down()


def wait(window: Any, dock: LargeVolumes, condition: Any, seconds: float = 120) -> None:
    window.until(condition, seconds)
    window.settle(0.1)


def idle(dock: LargeVolumes) -> bool:
    return dock.run.runner.state == "idle"


def test_a_store_opens_as_a_lazy_placed_pyramid(window: Any, store: Path) -> None:
    (layer,) = window.viewer.open(str(store), plugin="napari-invprior")
    assert layer.name == "noisy"
    assert layer.multiscale
    assert not isinstance(layer.data[0], np.ndarray)
    assert tuple(layer.scale) == (0.5, 0.25, 0.25)
    assert tuple(layer.translate) == (10.0, 0.0, 5.0)
    assert [str(u) for u in layer.units] == ["micrometer"] * 3
    data = window.bench.data
    assert data.part_row.isVisible()  # a lazy layer can be tried on a part
    assert data.about.text().startswith("130 × 90 × 80 → 520 × 360 × 320 voxels")


def test_parts_of_a_volume(window: Any, store: Path) -> None:
    window.viewer.open(str(store), plugin="napari-invprior")
    data = window.bench.data
    data.observation.choose("noisy")
    data.physics.choose({"kind": "denoising"})
    data.part_row.choice.choose("box")
    field = data.part_row.field
    for text, words in (("0:64, 0:90", "give 3 intervals inside 0:130, 0:90, 0:80"),
                        ("0:64, 0:90, 70:81", "give 3 intervals"), ("", "give 3 intervals")):
        field.setText(text)
        field.editingFinished.emit()
        assert words in data.problem()
    field.setText("10:74, 5:69, 0:64")
    field.editingFinished.emit()
    assert data.part()["observation"]["crop"] == [[10, 74], [5, 69], [0, 64]]
    assert "64 × 64 × 64 voxels" in data.about.text()
    # this view: what the canvas shows, 64 slices around the one on show
    window.viewer.dims.set_point(0, 10 + 0.5 * 60)
    window.viewer.scene.camera.zoom *= 4
    window.settle()
    data.part_row.choice.choose("view")
    (a, b), (c, d), (e, f) = data.part()["observation"]["crop"]
    assert (a, b) == (28, 92)
    assert 0 < c < d < 90
    assert 0 < e < f < 80
    # only the part is read, and its result lies where it belongs
    data.part_row.choice.choose("box")
    field.setText("10:42, 5:37, 0:32")
    field.editingFinished.emit()
    bench = window.bench
    bench.result.solver.choose({"kind": "total_variation", "iterations": 5})
    bench.result.automatic.setChecked(False)
    bench.result.set_weight(4.0)
    window.settle()
    window.press(bench.result.run)
    window.wait()
    layer = bench.runs.history.shown
    assert layer.data.shape == (32, 32, 32)
    np.testing.assert_allclose(layer.translate, (10 + 0.5 * 10, 0.25 * 5, 5.0))


def test_blocks_fill_in_stop_and_go_on(window: Any, large: LargeVolumes, tmp_path: Path) -> None:
    assert "Choose a folder" in large.about.text()
    assert not large.start.isEnabled()
    out = tmp_path / "result of å"
    large.folder.setText(str(out))
    large.edge.setText("3")
    assert not large.start.isEnabled()
    assert "blocks.edge" in large.about.text()
    large.edge.setText("32")
    window.settle()
    window.press(large.start)
    assert not large.start.isEnabled()
    wait(window, large, lambda: large.map.count("done") >= 3)
    layer = window.viewer.layers["reconstruction 1"]
    values = np.asarray(layer.data[0][:32, :32, :32])
    assert np.isfinite(values).all()  # a block that is done can be looked at
    assert np.isnan(np.asarray(layer.data[0][-1, -1, -1]))
    large.run.runner.cancel()
    wait(window, large, lambda: idle(large), 30)
    done = large.map.count("done")
    assert f"{done} of 45 blocks are done, Resume goes on" in large.about.text()
    assert large.list.chosen.state == "unfinished"
    # come back later: the list offers to go on
    window.press(large.resume)
    wait(window, large, lambda: idle(large), 180)
    assert large.map.count("done") == 45
    assert large.list.chosen.state == "finished"
    assert window.viewer.layers["reconstruction 1"] is layer
    assert "reconstruction 2" not in window.viewer.layers
    assert np.isfinite(np.asarray(layer.data[-1])).all()
    np.testing.assert_allclose(layer.translate, (10.0, 0.0, 5.0))
    assert catalogue.info(out).state == "finished"
    # a click on the map shows the place
    place = large.map._rectangle(44).center()
    QTest.mouseClick(large.map, Qt.MouseButton.LeftButton, pos=QPoint(place))
    assert window.viewer.dims.point[0] > 10 + 0.5 * 100


def test_open_and_discard(window: Any, large: LargeVolumes, tmp_path: Path) -> None:
    large.folder.setText(str(tmp_path / "one"))
    large.edge.setText("32")
    window.settle()
    window.press(large.start)
    wait(window, large, lambda: large.map.count("done") >= 1)
    window.press(large.cancel)
    wait(window, large, lambda: idle(large), 30)
    names = {layer.name for layer in window.viewer.layers}
    window.press(large.open)
    window.settle()
    assert len({layer.name for layer in window.viewer.layers} - names) == 1
    window.press(large.forget)
    window.settle()
    assert large.list.rowCount() == 0
    assert not (tmp_path / "one" / "job").exists()


def test_a_taken_folder_is_told_in_place(window: Any, large: LargeVolumes, tmp_path: Path) -> None:
    (tmp_path / "old" / "result.ome.zarr" / "reconstruction").mkdir(parents=True)
    large.folder.setText(str(tmp_path / "old"))
    window.settle()
    window.press(large.start)
    wait(window, large, lambda: idle(large), 60)
    assert "holds a result already; choose another folder" in large.about.text()
    assert large.start.isEnabled()


def test_closing_the_dock_stops_the_job(window: Any, large: LargeVolumes, tmp_path: Path) -> None:
    out = tmp_path / "job"
    large.folder.setText(str(out))
    large.edge.setText("32")
    window.settle()
    window.press(large.start)
    wait(window, large, lambda: large.map.count("done") >= 1)
    begin = time.monotonic()
    large.close_down()
    window.until(lambda: catalogue.info(out).state == "unfinished", 10)
    assert time.monotonic() - begin < 10
    assert not (out / "job" / "lock.json").exists()


def test_what_memory_has_no_room_for_goes_to_the_dock(
    window: Any, large: LargeVolumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_invprior.app.workbench.data_panel.free_bytes", lambda: 1000)
    window.press(window.bench.result.run)
    window.settle()
    assert "too large for the memory at once" in window.bench.result.about.text()
    assert window.idle
