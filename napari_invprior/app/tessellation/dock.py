"""The dock "Tessellation": atoms that can be dragged, and the cells that follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import napari
import numpy as np
import pandas as pd
from napari.layers import Image, Labels, Points
from qtpy.QtCore import QSize
from qtpy.QtWidgets import (
    QApplication,
    QCheckBox,
    QFileDialog,
    QLabel,
    QMenu,
    QSpinBox,
    QToolButton,
    QVBoxLayout,
)

from napari_invprior.app.docks.base import Dock
from napari_invprior.app.tessellation.plane import CELLS, LAGUERRE
from napari_invprior.app.tessellation.run import WEIGHT, Choices, TessellationRun
from napari_invprior.app.tessellation.table import CellTable
from napari_invprior.app.viewer.layers import free_name, images_of, layer_or_none, role_of
from napari_invprior.app.widgets.controls import FAULT, GOOD, Line, Picker, Sentence, push, row
from napari_invprior.app.widgets.forms import LABEL_WIDTH, Form
from napari_invprior.app.widgets.words import duration
from napari_invprior.app.workbench.dock import WIDTH
from napari_invprior.app.workbench.prior_panel import progress_bar, show_progress
from napari_invprior.errors import InvPriorError
from napari_invprior.jobs import Progress
from napari_invprior.recipes.cells_figure import cell_colours
from napari_invprior.study.tessellation import SourceWindow, TessellationParameters
from napari_invprior.transport.cells.presets import PRESETS

PURPOSE = (
    "Which point of a Gaussian goes to which atom: cells of flow matching beside those of optimal "
    "transport. Drag an atom and watch."
)
STILL = 2.0
"""Pixels that a click may move."""
DOT = 0.16
"""Diameter of an atom, in standard deviations."""


class Tessellation(Dock):
    """Cells of atoms, live.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.setObjectName("Inverse priors tessellation")
        self.viewer = napari_viewer
        self.run = TessellationRun(self.viewer, self)
        self._watched: list[Any] = []
        self._lay_out()
        self._connect()
        self._on_layers()

    def sizeHint(self) -> QSize:  # noqa: N802
        """As wide as the workbench."""
        return QSize(WIDTH, 700)

    # ---- layout

    def _lay_out(self) -> None:
        self.preset = Picker("Atoms to begin with.", self._on_preset)
        self.preset.offer([(preset.title, name) for name, preset in PRESETS.items()])
        self.count = QSpinBox(minimum=1, maximum=1000, value=12)
        self.count.setToolTip("How many random atoms.")
        self.add = push("Add", "Add these atoms as a layer of points.", self._add_preset)
        self.empty = push(
            "Empty", "Add an empty layer of atoms; click into the picture to place them.",
            self._add_empty,
        )
        self.atoms = Picker(
            "Points that are the atoms; drag them with the select tool of their layer. A feature "
            "'weight' of the layer weighs them.", self._update,
        )
        self.image = Picker(
            "Choose an image to take the patches around the points as atoms, by their first two "
            "principal components.", self._update,
        )
        self.patch = QSpinBox(minimum=2, maximum=64, value=8, suffix=" px")
        self.patch.setToolTip("Edge of the patches.")
        self.window_form = Form(SourceWindow)
        self.form = Form(TessellationParameters)
        self.gear = QToolButton(text="⚙", checkable=True, autoRaise=True)
        self.gear.setToolTip("Show or hide the options that are seldom needed.")
        self.live = QCheckBox("Live")
        self.live.setToolTip("Compute again whenever atoms, weights or options change.")
        self.live.setChecked(True)
        self.go = push("Compute", "Compute the cells.", self._start)
        self.cancel = push("Cancel", "Stop the computation.", self.run.runner.cancel)
        self.save = QToolButton(text="Export", toolTip="Write the figure, or everything.")
        self.save.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        menu = QMenu(self.save)
        menu.addAction("Figure as SVG…", lambda: self._export_figure("svg"))
        menu.addAction("Figure as PNG…", lambda: self._export_figure("png"))
        menu.addAction("Cells, outlines and table into a folder…", self._export_all)
        self.save.setMenu(menu)
        self.script = push("Copy as script", "Copy a Python script that does the same.",
                           self._copy_script)
        self.bar = progress_bar("How far the computation is.")
        self.about = Line("What came out.", 3)
        self.table = CellTable()
        self.message = Sentence("What the running or last job said.")
        purpose = Line("What this dock does.", 2)
        purpose.say(PURPOSE)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(6, 4, 6, 2)
        outer.setSpacing(4)
        outer.addWidget(purpose)
        self._labels = [QLabel(text) for text in ("begin with", "atoms", "patches of")]
        first, second, third = self._labels
        outer.addLayout(row(first, self.preset, self.count, self.add, self.empty))
        outer.addLayout(row(second, self.atoms))
        outer.addLayout(row(third, self.image, self.patch))
        outer.addWidget(self.window_form)
        outer.addWidget(self.form)
        outer.addLayout(row(self.live, self.go, self.cancel, 1, self.gear, self.save, self.script))
        outer.addWidget(self.bar)
        outer.addWidget(self.about)
        outer.addWidget(self.table, 1)
        outer.addWidget(self.message)
        self.setMinimumWidth(WIDTH)
        self._on_preset()

    def showEvent(self, event: Any) -> None:  # noqa: N802
        """Let all controls begin in one column; only now, because the style pads labels."""
        super().showEvent(event)
        forms = (self.window_form, self.form)
        width = max([LABEL_WIDTH, *(form.label_width for form in forms)])
        for form in forms:
            form.align(width)
        for label in self._labels:
            label.setMinimumWidth(width)

    def _connect(self) -> None:
        self.run.progressed.connect(self._on_progress)
        self.run.said.connect(self._say)
        self.run.ended.connect(self._on_end)
        self.run.changed.connect(self._update)
        self.run.shown.connect(self._on_shown)
        self.gear.toggled.connect(self._fold)
        self.live.toggled.connect(lambda _: self._update())
        self.patch.valueChanged.connect(lambda _: self._update())
        for form in (self.window_form, self.form):
            form.changed.connect(self._update)
        self.table.picked.connect(self._find)
        self.table.weighed.connect(self._weigh)
        events = self.viewer.layers.events
        events.inserted.connect(self._on_layers)
        events.removed.connect(self._on_layers)
        self.viewer.mouse_drag_callbacks.append(self._on_click)

    def _fold(self, shown: bool) -> None:
        for form in (self.window_form, self.form):
            form.show_advanced(shown)

    def _on_preset(self) -> None:
        if hasattr(self, "count"):
            self.count.setVisible(str(self.preset.currentData()).startswith("random"))

    # ---- atoms

    def _add_preset(self) -> None:
        chosen = PRESETS[self.preset.currentData()]
        positions, weights = chosen.draw(self.count.value(), 0)
        self._add_atoms(positions, weights)
        self.message.say(chosen.about)

    def _add_empty(self) -> None:
        layer = self._add_atoms(np.empty((0, 2)), np.empty(0))
        layer.mode = "add"
        self._show_window(2)
        self.message.say("Click into the picture to place atoms; one standard deviation is 1.")

    def _add_atoms(self, positions: np.ndarray, weights: np.ndarray) -> Points:
        ndim = positions.shape[1]
        earlier = layer_or_none(self.viewer, self.atoms.currentData())
        if earlier is not None:
            earlier.visible = False
        layer = self.viewer.add_points(
            positions, ndim=ndim, name=free_name(self.viewer, "atoms"), size=DOT,
            face_color="#f2f2f2", border_color="#101418", border_width=0.12,
            features=pd.DataFrame({WEIGHT: weights}), units=("pixel",) * ndim,
        )
        layer.feature_defaults = pd.DataFrame({WEIGHT: [1 / max(1, len(positions))]})
        layer.mode = "select"
        self.image.choose(None)
        self.atoms.choose(layer.name)
        self.viewer.dims.ndisplay = ndim
        self._show_window(ndim)
        return layer

    def _show_window(self, ndim: int) -> None:
        """Look at the part of the source that is shown."""
        extent = float(self.window_form.chosen().get("extent", 4.0))
        camera, size = self.viewer.scene.camera, min(self.viewer.canvas.size)
        camera.center = (0.0,) * 3
        camera.zoom = 0.9 * size / (2 * extent * (1.6 if ndim == 3 else 1))

    def _weigh(self, atom: int, weight: float) -> None:
        """A weight was typed."""
        layer = layer_or_none(self.viewer, self.atoms.currentData())
        if not isinstance(layer, Points):
            return
        if not (weight >= 0 and np.isfinite(weight)):
            self._say("a weight is a number that is not negative", True)
            self._on_shown()
            return
        table = layer.features.copy()
        if WEIGHT not in table:
            table[WEIGHT] = 1 / len(layer.data)
        table.loc[atom, WEIGHT] = weight
        layer.features = table

    def _on_layers(self, _: Any = None) -> None:
        """Layers came or went: offer those that exist, follow their names."""
        if self.is_closed:
            return
        self._unwatch()
        for layer in self.viewer.layers:
            layer.events.name.connect(self._on_layers)
            self._watched.append(layer.events.name)
        points = [layer.name for layer in self.viewer.layers
                  if isinstance(layer, Points) and not role_of(layer)]
        self.atoms.offer([(name, name) for name in points])
        images = [layer.name for layer in images_of(self.viewer) if isinstance(layer, Image)]
        self.image.offer([("no image: points are atoms", None), *((n, n) for n in images)])
        self._update()

    def _unwatch(self) -> None:
        for event in self._watched:
            event.disconnect(self._on_layers)
        self._watched.clear()

    # ---- what can be done

    def _update(self, _: Any = None) -> None:
        """Hand the choices to the run, enable what can be done, say what is missing."""
        if self.is_closed or not hasattr(self, "message"):
            return
        idle = self.run.runner.state == "idle"
        missing = self._missing()
        try:
            settings = self.window_form.chosen() | {"tessellation": self.form.chosen()}
        except InvPriorError as error:
            missing, settings = str(error), {}
        self.run.choices = Choices(
            self.atoms.currentData(), self.image.currentData(), self.patch.value(), settings
        )
        self.run.follows = self.live.isChecked() and not missing
        self.patch.setEnabled(self.image.currentData() is not None)
        self.go.setEnabled(idle and not missing)
        self.cancel.setEnabled(not idle and self.run.runner.state != "stopping")
        self.save.setEnabled(self.run.outcome is not None)
        self.script.setEnabled(self.run.outcome is not None)
        if missing:
            self.about.say(missing, FAULT)

    def _missing(self) -> str:
        layer = layer_or_none(self.viewer, self.atoms.currentData())
        if not isinstance(layer, Points):
            return "no atoms: add some with the first line, or a layer of points"
        if layer.ndim not in (2, 3):
            return f"{layer.name!r} has {layer.ndim} coordinates; cells are shown in 2 or 3"
        return ""

    # ---- a run

    def _start(self) -> None:
        layer = layer_or_none(self.viewer, self.atoms.currentData())
        if layer is not None and len(layer.data) == 0:
            self.about.say(f"{layer.name!r} is empty: click atoms into the picture", FAULT)
            return
        if self.run.start():
            self.bar.setValue(0)
            self.about.say("computing…")
        self._update()

    def _on_progress(self, event: Progress) -> None:
        show_progress(self.bar, event)

    def _on_shown(self) -> None:
        """Cells are there: show the table of the last run that made all of it."""
        outcome = self.run.outcome
        if outcome is None:
            return
        cells = outcome.metrics["cells"]
        self.table.show_cells(cells, cell_colours(outcome.detail.atoms.given))

    def _on_end(self, how: str, seconds: float) -> None:
        outcome = self.run.outcome
        if how == "failed":
            self.about.say(self.run.fault, FAULT)
        elif how == "done" and outcome is not None:
            self.about.say(sentence(outcome.metrics) + f" · {duration(seconds)}", GOOD)
            self.bar.setValue(self.bar.maximum())
        elif how == "cancelled":
            self.about.say("cancelled")
        self._update()

    # ---- looking

    def _on_click(self, viewer: Any, event: Any) -> Any:
        """A click on a cell says what it is; its path is shown."""
        start = np.asarray(event.position, float)
        yield
        while event.type == "mouse_move":
            yield
        active = viewer.layers.selection.active
        moved = np.abs(np.asarray(event.position, float) - start).max() * viewer.scene.camera.zoom
        adds = isinstance(active, Points) and active.mode == "add"
        if moved > STILL or adds or viewer.dims.ndisplay == 3:
            return
        self.tell(event.position)

    def tell(self, position: Any) -> None:
        """Say which cells a place of the world lies in."""
        outcome = self.run.outcome
        number = self.run.plane.label_at(CELLS, position)
        if outcome is None or number is None:
            return
        if number == 0:
            self.message.say("This sample lies on a border as far as can be told.")
            return
        atom = number - 1
        self.table.select(atom)
        cell = next(c for c in outcome.metrics["cells"] if c["atom"] == atom)
        other = self.run.plane.label_at(LAGUERRE, position)
        also = "" if not other else f", by transport to atom {other - 1}"
        self.message.say(f"goes to atom {atom} (mass {cell['weight']:.4g}){also}")
        self.run.show_path(position)

    def _find(self, atom: int) -> None:
        """Show the cell of a row: select its label, and its point where atoms are points."""
        layer = layer_or_none(self.viewer, self.atoms.currentData())
        if isinstance(layer, Points) and atom < len(layer.data):
            layer.selected_data = {atom}
        cells = self.run.plane.layer(CELLS)
        if isinstance(cells, Labels):
            cells.selected_label = atom + 1

    # ---- taking along

    def _export_figure(self, kind: str) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Save the figure", f"cells.{kind}", f"*.{kind}")
        if path:
            self.export_figure(Path(path))

    def export_figure(self, path: Path) -> None:
        """Write the figure as SVG or PNG, as the name ends."""
        from napari_invprior.io.files import write_atomic
        from napari_invprior.recipes.cells_figure import cells_png, cells_svg

        draw = cells_svg if path.suffix.lower() == ".svg" else cells_png
        self._written(lambda: write_atomic(path, draw(self.run.outcome.detail)), path)

    def _export_all(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder for cells, outlines and table")
        if folder:
            self.export_all(Path(folder))

    def export_all(self, folder: Path) -> None:
        """Write everything as the command line does."""
        from napari_invprior import recipes

        self._written(lambda: recipes.write_outcome(self.run.outcome, folder), folder)

    def _written(self, write: Any, place: Path) -> None:
        try:
            write()
        except (InvPriorError, OSError) as error:
            self._say(str(error), True)
        else:
            self.message.say(f"written: {place}")

    def _copy_script(self) -> None:
        from napari_invprior import recipes

        QApplication.clipboard().setText(recipes.script(self.run.outcome.recipe))
        self.message.say("The script is on the clipboard.")

    def _say(self, text: str, warning: bool) -> None:
        self.message.say(text, FAULT if warning else "")

    # ---- the end of the dock

    def release(self) -> None:
        """Stop following, stop the job and forget the layers."""
        self.run.release()
        self._unwatch()
        events = self.viewer.layers.events
        events.inserted.disconnect(self._on_layers)
        events.removed.disconnect(self._on_layers)
        self.viewer.mouse_drag_callbacks.remove(self._on_click)


def sentence(metrics: dict[str, Any]) -> str:
    """What came out, in words.

    Examples
    --------
    >>> sentence({"atoms": 4, "flow_matching_cost": 0.8743, "undecided_share": 0.0})
    '4 atoms · cost 0.8743'
    """
    parts = [f"{metrics['atoms']} atoms", f"cost {metrics['flow_matching_cost']:.4f}"]
    if "optimal_transport_cost" in metrics:
        parts[1] += f", at best {metrics['optimal_transport_cost']:.4f}"
        parts.append(f"both agree on {100 * metrics['agreement']:.1f} % of the mass")
    if metrics["undecided_share"]:
        parts.append(f"{100 * metrics['undecided_share']:.3f} % undecided")
    return " · ".join(parts)
