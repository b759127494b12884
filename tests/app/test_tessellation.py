"""The tessellation dock in a real window: add, drag, weigh, delete, click, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt, QThreadPool
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_invprior.app.tessellation.dock import Tessellation
from napari_invprior.app.tessellation.plane import CELLS, DIFFERENCES, LAGUERRE, NAMES, PATH
from tests.app.conftest import Window, canvas_of, move

pytestmark = pytest.mark.gui

OUTLINES = NAMES["flow_matching_outlines"]


class Cells(Window):
    """A window whose dock is that of the cells."""

    def rest(self) -> None:
        """Until the cells of the present atoms are there, fine."""
        run = self.bench.run
        self.until(lambda: run.runner.state == "idle" and run._computed == run.state(), 60)
        self.settle(0.1)

    def begin(self, name: str) -> Any:
        """Add a preset by its button; the layer of its atoms."""
        self.bench.preset.choose(name)
        self.press(self.bench.add)
        self.settle(0.1)
        self.rest()
        return self.viewer.layers[self.bench.atoms.currentData()]

    @property
    def labels(self) -> np.ndarray:
        return self.viewer.layers[CELLS].data


@pytest.fixture
def cells(make_napari_viewer, qtbot):
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1280, 800)
    dock = Tessellation(viewer)
    viewer.window.add_dock_widget(dock, name="Inverse priors tessellation", area="right")
    dock.window_form.set_values({"resolution": 128})
    opened = Cells(viewer, dock, qtbot)
    opened.settle()
    yield opened
    dock.close_down()
    opened.settle(0.1)
    assert QThreadPool.globalInstance().waitForDone(2000), "a job outlives its dock"


def test_drag_an_atom_and_the_cells_follow(cells: Cells) -> None:
    dock, viewer = cells.bench, cells.viewer
    assert "no atoms" in dock.about.text() and not dock.go.isEnabled()
    atoms = cells.begin("triangle_with_centre")
    assert "cost 0.874" in dock.about.text() and "at best 0.8" in dock.about.text()
    for name in (CELLS, LAGUERRE, DIFFERENCES, OUTLINES):
        assert "[std]" in name and name in viewer.layers
    assert viewer.layers.selection.active is atoms and atoms.mode == "select"
    before, table = cells.labels.copy(), dock.table
    assert table.rowCount() == 4 and table.item(3, 3).text() == "yes / no"
    sizes: list[int] = []
    dock.run.shown.connect(lambda: sizes.append(len(cells.labels)))
    start, goal = np.array(atoms.data[0]), np.array([2.0, 1.0])
    canvas = canvas_of(viewer)
    QTest.mouseMove(canvas, cells.pixel(tuple(start)))
    QTest.mousePress(canvas, Qt.MouseButton.LeftButton, pos=cells.pixel(tuple(start)))
    for share in np.linspace(0, 1, 12)[1:]:
        move(canvas, cells.pixel(tuple(start * (1 - share) + goal * share)))
        cells.settle(0.08)
    assert 64 in sizes and 128 not in sizes, "coarse cells while the button is down"
    assert not viewer.layers[OUTLINES].visible, "outlines of earlier atoms are not shown"
    QTest.mouseRelease(canvas, Qt.MouseButton.LeftButton, pos=cells.pixel(tuple(goal)))
    cells.rest()
    assert np.allclose(atoms.data[0], goal, atol=0.1)
    assert sizes[-1] == 128 and not np.array_equal(cells.labels, before)
    assert viewer.layers[OUTLINES].visible
    assert viewer.layers.selection.active is atoms, "the drag can go on"


def test_a_click_tells_the_cell_and_shows_the_path(cells: Cells) -> None:
    dock, viewer = cells.bench, cells.viewer
    cells.begin("pentagon")
    cells.click((-2.0, 0.3))
    assert dock.message.text().startswith("goes to atom")
    label = int(viewer.layers[CELLS].get_value((-2.0, 0.3), world=True))
    assert f"atom {label - 1}" in dock.message.text()
    assert "mass 0.2" in dock.message.text() and "by transport" in dock.message.text()
    assert dock.table.selectedItems()[0].text() == str(label - 1)
    path = viewer.layers[PATH].data[0]
    assert np.allclose(path[0], (-2.0, 0.3), atol=0.1)
    assert np.allclose(path[-1], viewer.layers["atoms 1"].data[label - 1])


def test_atoms_are_clicked_weighed_and_deleted(cells: Cells) -> None:
    dock, viewer = cells.bench, cells.viewer
    cells.press(dock.empty)
    cells.settle()
    atoms = viewer.layers["atoms 1"]
    cells.press(dock.go)
    assert "empty" in dock.about.text()
    for place in ((-1.0, 0.0), (1.0, 0.0), (0.0, 1.5)):
        cells.click(place)
    assert len(atoms.data) == 3, "real clicks place atoms"
    cells.rest()
    assert set(np.unique(cells.labels)) == {1, 2, 3}
    dock.table.item(0, 1).setText("0")
    cells.settle(0.1)
    cells.rest()
    assert atoms.features["weight"][0] == 0 and set(np.unique(cells.labels)) == {2, 3}
    dock.table.item(0, 1).setText("-3")
    assert "not negative" in dock.message.text()
    atoms.mode = "select"
    atoms.selected_data = {0}
    atoms.remove_selected()
    cells.settle(0.1)
    cells.rest()
    assert set(np.unique(cells.labels)) == {1, 2}
    atoms.features = atoms.features.assign(weight=[0.0, 0.0])
    cells.settle(0.1)
    cells.rest()
    assert "all weights are zero" in dock.about.text()
    atoms.data = np.array([[0.0, 0.0], [0.0, np.nan]])
    cells.settle(0.1)
    cells.rest()
    assert "NaN" in dock.about.text()


def test_a_volume_has_surfaces(cells: Cells) -> None:
    dock, viewer = cells.bench, cells.viewer
    dock.window_form.set_values({"resolution": 24})
    cells.begin("tetrahedron_with_centre")
    assert viewer.dims.ndisplay == 3 and cells.labels.shape == (24,) * 3
    surface = viewer.layers[OUTLINES]
    assert type(surface).__name__ == "Surface" and np.abs(surface.vertices).max() <= 4 + 1e-9
    cells.begin("triangle_with_centre")
    assert viewer.dims.ndisplay == 2 and cells.labels.ndim == 2
    assert type(viewer.layers[OUTLINES]).__name__ == "Shapes"


def test_patches_of_an_image_lie_beside_it(cells: Cells) -> None:
    dock, viewer = cells.bench, cells.viewer
    rng = np.random.default_rng(0)
    viewer.add_image(rng.random((60, 80)), name="photo", scale=(2, 2), units=("um", "um"))
    seeds = viewer.add_points(
        [[10, 10], [30, 40], [50, 70], [20, 60]], name="seeds", scale=(2, 2), units=("um", "um")
    )
    dock.image.choose("photo")
    dock.atoms.choose("seeds")
    cells.settle(0.1)
    cells.rest()
    layer = viewer.layers[CELLS]
    assert dock.run.fault == "" and set(np.unique(layer.data)) == {1, 2, 3, 4}
    low, high = layer.extent.world
    assert high[-2] - low[-2] == pytest.approx(120, rel=0.02), "as high as the image"
    assert low[-1] > 160 and [str(u) for u in layer.units] == [str(u) for u in seeds.units]
    assert NAMES["atoms"] in viewer.layers
    position = layer.data_to_world((30, 90))
    dock.tell(position)
    assert f"atom {layer.data[30, 90] - 1}" in dock.message.text()


def test_export_and_script(cells: Cells, tmp_path: Path) -> None:
    dock, viewer = cells.bench, cells.viewer
    assert not dock.save.isEnabled()
    cells.begin("obtuse_edge")
    dock.export_figure(tmp_path / "cells.svg")
    dock.export_figure(tmp_path / "cells.png")
    assert (tmp_path / "cells.svg").read_bytes().lstrip().startswith(b"<")
    assert (tmp_path / "cells.png").read_bytes()[:4] == b"\x89PNG"
    dock.export_all(tmp_path / "all")
    found = json.loads((tmp_path / "all" / "metrics.json").read_text())["metrics"]
    assert len(found["cells"]) == 4
    dock.export_figure(tmp_path / "cells.svg" / "again.svg")
    assert "could not be written" in dock.message.text()
    cells.press(dock.script)
    text = QApplication.clipboard().text()
    body = text.replace('recipes.write_outcome(outcome, "invprior-output")', "")
    namespace: dict[str, Any] = {"viewer": viewer}
    exec(compile(body, "script.py", "exec"), namespace)
    assert np.array_equal(namespace["outcome"].layers[0].array, cells.labels)


def test_not_live_waits_for_the_button_and_closing_forgets(cells: Cells) -> None:
    dock, viewer = cells.bench, cells.viewer
    cells.begin("pentagon")
    dock.live.setChecked(False)
    before = cells.labels.copy()
    atoms = viewer.layers["atoms 1"]
    atoms.data = atoms.data[:3]
    cells.settle(0.6)
    assert np.array_equal(cells.labels, before)
    cells.press(dock.go)
    cells.rest()
    assert set(np.unique(cells.labels)) == {1, 2, 3}
    dock.close_down()
    atoms.data = atoms.data[:2]
    cells.settle(0.5)
    assert set(np.unique(cells.labels)) == {1, 2, 3}
    assert dock._on_click not in viewer.mouse_drag_callbacks
