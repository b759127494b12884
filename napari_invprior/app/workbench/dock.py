"""The dock: Data, References, Prior, Reconstruct from top to bottom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import napari
from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import (
    QApplication,
    QFileDialog,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_invprior.app.docks.base import Dock
from napari_invprior.app.docks.jobs import read_along
from napari_invprior.app.viewer.layers import recipe_of
from napari_invprior.app.viewer.volume_guard import VolumeGuard
from napari_invprior.app.widgets.controls import FAULT, Sentence
from napari_invprior.app.workbench.data_panel import DataPanel
from napari_invprior.app.workbench.prior_panel import PriorPanel
from napari_invprior.app.workbench.reconstruct_panel import ReconstructPanel
from napari_invprior.app.workbench.reference_panel import ReferencePanel
from napari_invprior.app.workbench.runs import ESTIMATE, PROPOSE, RECONSTRUCT, TRAIN, Runs
from napari_invprior.app.workbench.saving import load, save_prior_facts, save_result_job
from napari_invprior.errors import InvPriorError
from napari_invprior.study.lineup import usual_solver, usual_weight

LARGE_VOLUMES = "Inverse priors large volumes"
"""Name of that dock in the manifest."""
WIDTH = 420
"""Pixels that the controls need side by side."""

SHORTCUTS = {
    "Alt+D": "drop regions: pick mode on or off",
    "Alt+T": "train, or pause and go on",
    "Alt+R": "reconstruct",
    "Alt+C": "cancel the running job",
    "Alt+Left": "previous result",
    "Alt+Right": "next result",
}
"""Keys of the canvas and of the dock, while the dock is open. None is taken by napari's menus."""


class Workbench(Dock):
    """From a poor image and good references to a better image.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.setObjectName("Inverse priors workbench")
        self.data = DataPanel(self.viewer)
        self.references = ReferencePanel(
            self.viewer, lambda: self.data.ndim, self.data.observation.currentData
        )
        self.prior = PriorPanel()
        self.result = ReconstructPanel()
        self.runs = Runs(self.viewer, self, self)
        self.message = Sentence("What the running or last job said.")
        self._messages: list[str] = []
        self._asked: dict[str, Any] | None = None
        self._lay_out()
        self._connect()
        self._bind_keys()
        self._scale_weight()
        self._on_layers()
        self.guard = VolumeGuard(self.viewer, read_along)

    def sizeHint(self) -> QSize:  # noqa: N802
        """Wide enough for all buttons; the height scrolls."""
        return QSize(WIDTH, 700)

    def _lay_out(self) -> None:
        inner = QWidget()
        steps = QVBoxLayout(inner)
        steps.setContentsMargins(2, 2, 2, 2)
        steps.setSpacing(3)
        for panel in (self.data, self.references, self.prior, self.result):
            steps.addWidget(panel)
        steps.addStretch(1)
        self.scroll = scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setFrameShape(QScrollArea.Shape.NoFrame)
        scroll.setWidget(inner)
        scroll.setMinimumWidth(WIDTH)
        scroll.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(2)
        outer.addWidget(scroll, 1)
        outer.addWidget(self.message)

    def _connect(self) -> None:
        for event in ("inserted", "removed"):
            getattr(self.viewer.layers.events, event).connect(self._on_layers)
        for panel in (self.data, self.references, self.prior, self.result):
            panel.changed.connect(self._update)
        self.data.changed.connect(self._on_data)
        self.prior.chooser.list.currentIndexChanged.connect(lambda _: self._propose_solver())
        self.result.solver.list.currentIndexChanged.connect(lambda _: self._scale_weight())
        self.runs.changed.connect(self._update)
        self.runs.said.connect(self._say)
        prior, result, runner = self.prior, self.result, self.runs.runner
        prior.train_clicked.connect(lambda: self._show_step(prior))
        prior.train_clicked.connect(self.runs.train)
        prior.pause_clicked.connect(self._toggle_pause)
        prior.cancel_clicked.connect(runner.cancel)
        prior.save_clicked.connect(self._ask_save_prior)
        prior.load_clicked.connect(self._ask_load_prior)
        prior.suggest_clicked.connect(self.runs.propose)
        operator = self.data.operator
        operator.wanted.connect(self.runs.estimate)
        operator.cancelled.connect(runner.cancel)
        operator.proposed = lambda: (
            self.references.image.currentData(), self.data.observation.currentData()
        )
        result.run_clicked.connect(lambda: self._show_step(result))
        result.run_clicked.connect(self._reconstruct)
        result.cancel_clicked.connect(runner.cancel)
        result.again_clicked.connect(self.runs.again)
        result.script_clicked.connect(self.copy_script)
        result.save_clicked.connect(self._ask_save_result)
        result.older_clicked.connect(lambda: self._step(-1))
        result.newer_clicked.connect(lambda: self._step(1))

    def _show_step(self, panel: QWidget) -> None:
        """Scroll to where the progress of a step is shown, if it is out of sight."""
        self.scroll.ensureWidgetVisible(panel, 0, 0)

    def _bind_keys(self) -> None:
        """Keys on the canvas; `keyPressEvent` does the same for keys pressed in the dock."""
        self._actions = {
            "Alt+D": self.references.toggle_pick,
            "Alt+T": self._train_or_pause,
            "Alt+R": self.result.run.click,
            "Alt+C": self.runs.runner.cancel,
            "Alt+Left": lambda: self._step(-1),
            "Alt+Right": lambda: self._step(1),
        }
        for keys, action in self._actions.items():
            self.viewer.bind_key(
                keys.replace("+", "-"), lambda _, act=action: act(), overwrite=True
            )

    def keyPressEvent(self, event: Any) -> None:  # noqa: N802
        """Keys that no control of the dock wanted."""
        action = self._actions.get(QKeySequence(event.keyCombination()).toString())
        if action is None:
            super().keyPressEvent(event)
        else:
            action()

    # ---- what changes

    def _on_layers(self, event: Any = None) -> None:
        """Layers came or went."""
        if event is not None and getattr(event, "type", "") == "inserted":
            event.value.events.name.connect(self._on_layers)
        self.data.refresh()
        self.references.refresh()
        self._update()

    def _on_data(self) -> None:
        """The number of axes may have changed."""
        ndim = self.data.ndim
        self.prior.chooser.set_dimensions(ndim)
        self.result.solver.set_dimensions(ndim)
        self._propose_solver()
        self.references.picker.ndim = ndim
        self._forget_fault()

    def _forget_fault(self) -> None:
        """Why a run failed is said until something else is asked for."""
        try:
            asked = self.data.part()
        except InvPriorError:
            asked = None
        if asked != self._asked and self.result.about.property("tone") == FAULT:
            self.result.about.say("")
        self._asked = asked

    def _propose_solver(self) -> None:
        """The solver that goes with the chosen prior, unless one was chosen by hand."""
        self.result.solver.propose(usual_solver(self.prior.chooser.method, self.data.ndim).name)
        self._scale_weight()

    def _scale_weight(self) -> None:
        """Weights of priors and solvers differ in size by some hundred."""
        self.result.set_unit(usual_weight(self.result.solver.method, self.prior.chooser.method))

    def _update(self) -> None:
        """Enable what can be done, and say in place what is missing."""
        if self._closed:
            return
        runner = self.runs.runner
        idle, training = runner.state == "idle", runner.name == TRAIN
        patch = self.prior.patch(self.data.ndim)
        if patch:
            self.references.set_patch(patch)
        self.references.set_pairs("pair" in self.prior.chooser.method.inputs)
        prior, result = self.prior, self.result
        faulty = "" if patch is not None else "correct the values above"
        missing = self.references.problem() or faulty
        mine = runner.name == ESTIMATE and runner.state != "stopping"
        self.data.operator.set_state(idle=idle, mine=mine)
        prior.chooser.list.setEnabled(idle)  # what is learnt belongs to the prior on show
        prior.train.setEnabled(idle and not missing and prior.learns)
        prior.pause.setEnabled(training and runner.state in ("running", "paused"))
        prior.pause.setChecked(runner.state == "paused")
        prior.pause.setText("Resume" if runner.state == "paused" else "Pause")
        prior.suggest.setEnabled(idle and not missing and not self.data.problem())
        prior.cancel.setEnabled(runner.name in (TRAIN, PROPOSE) and runner.state != "stopping")
        prior.restart.setEnabled(idle and prior.prior is not None and prior.learns)
        prior.save.setEnabled(idle and prior.fitted and prior.learns)
        prior.load.setEnabled(idle)
        if idle and not prior.fitted and not prior.about.property("tone"):
            prior.about.say(f"To train, {missing}." if missing else "Ready: press Train.")
        blocked = self.data.problem()
        if not blocked and result.needs_prior and not prior.fitted:
            blocked = "Train a prior first (step 3), or load one."
        result.run.setEnabled(idle and not blocked)
        result.cancel.setEnabled(runner.name == RECONSTRUCT and runner.state != "stopping")
        shown = self.runs.history.shown
        told = shown is not None and result.about.text()
        if idle and not told and not result.about.property("tone"):
            result.about.say(blocked or "Ready: press Reconstruct.")
        self._update_history(idle)

    def _update_history(self, idle: bool) -> None:
        history, result = self.runs.history, self.result
        shown = history.shown
        result.older.setEnabled(history.can_step(-1))
        result.newer.setEnabled(history.can_step(1))
        result.shown.setText(shown.name if shown is not None else "no result yet")
        known = self.runs.last_recipe() is not None
        result.again.setEnabled(idle and known)
        result.script.setEnabled(known)
        result.save.setEnabled(idle and shown is not None and shown in self.runs.outcomes)

    def _say(self, text: str, warning: bool) -> None:
        self._messages = [*self._messages[-19:], text]
        self.message.say(text, FAULT if warning else "", self._messages[-2::-1])

    # ---- actions

    def _reconstruct(self) -> None:
        """Reconstruct here, or offer to do it in blocks where memory has no room."""
        if not self.data.is_too_large():
            self.runs.reconstruct()
            return
        self.result.about.say(
            "too large for the memory at once: press Run in 'Large volumes', or choose a part of "
            "the data in step 1", FAULT,
        )
        self.viewer.window.add_plugin_dock_widget("napari-invprior", LARGE_VOLUMES)

    def _toggle_pause(self) -> None:
        runner = self.runs.runner
        if runner.state == "paused":
            runner.resume()
        else:
            runner.pause()
        self._update()

    def _train_or_pause(self) -> None:
        if self.runs.runner.name == TRAIN:
            self._toggle_pause()
        else:
            self.prior.train.click()

    def _step(self, by: int) -> None:
        self.runs.history.step(by)
        self._update()

    def copy_script(self) -> None:
        """Put a script of the shown result's run on the clipboard."""
        from napari_invprior import recipes

        recipe = self.runs.last_recipe()
        if recipe is not None:
            QApplication.clipboard().setText(recipes.script(recipes.parse(recipe)))
            show_info("The script is on the clipboard.")

    def _ask_save_prior(self) -> None:
        name, _ = QFileDialog.getSaveFileName(
            self, "Save the prior", "prior.safetensors", "Prior (*.safetensors)"
        )
        if name:
            self.save_prior(Path(name))

    def save_prior(self, path: Path) -> bool:
        """Write the prior in hand; False (and a notification) when that fails."""
        try:
            save_prior_facts(path, self.prior, recipe_of(self.runs.history.shown))
        except InvPriorError as error:
            show_error(str(error))
            return False
        self._say(f"saved {path.name}", False)
        return True

    def _ask_load_prior(self) -> None:
        name, _ = QFileDialog.getOpenFileName(self, "Load a prior", "", "Prior (*.safetensors)")
        if name:
            self.load_prior(Path(name))

    def load_prior(self, path: Path) -> bool:
        """Read a prior; False (and a notification) when the file is refused."""
        try:
            prior, facts = load(path)
            if prior.ndim != self.data.ndim and self.data.layer is not None:
                raise InvPriorError(
                    f"{path.name} was trained on {prior.ndim}D images; the data are "
                    f"{self.data.ndim}D"
                )
        except InvPriorError as error:
            show_error(str(error))
            self._say(str(error), True)
            return False
        self.prior.chooser.set_dimensions(prior.ndim)
        self.prior.chooser.choose(
            {"kind": prior.name} | prior.parameters.model_dump(mode="json", exclude_defaults=True)
        )
        self.prior.forget()
        self.prior.hold(prior, facts, f"loaded from {path.name}")
        for note in facts.get("notes", ()):
            self._say(str(note), True)
        return True

    def _ask_save_result(self) -> None:
        name = QFileDialog.getExistingDirectory(self, "Save the result into a new or empty folder")
        if name:
            self.save_result(Path(name))

    def save_result(self, folder: Path) -> None:
        """Write the shown result as OME-Zarr, with recipe and figures beside it."""
        shown = self.runs.history.shown
        outcome = self.runs.outcomes.get(shown) if shown is not None else None
        if outcome is None:
            return
        if folder.exists() and any(folder.iterdir()):
            folder = next(
                f for n in range(1, 10_000)
                if not (f := folder / f"{shown.name} {n}".replace(" ", "-")).exists()
            )
        self.runs.runner.start("save", save_result_job(outcome, folder))

    # ---- the end of the dock

    def release(self) -> None:
        """Stop jobs, unbind mouse and keys, forget the viewer."""
        self.runs.runner.shutdown()
        self.guard.close(restore=not self._window_closes)
        self.references.close_down()
        for keys in self._actions:
            self.viewer.bind_key(keys.replace("+", "-"), None, overwrite=True)
        for event in ("inserted", "removed"):
            getattr(self.viewer.layers.events, event).disconnect(self._on_layers)
        for layer in self.viewer.layers:
            layer.events.name.disconnect(self._on_layers)
