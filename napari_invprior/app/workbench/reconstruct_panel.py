"""Step 4: weight, reconstruction, history of results."""

from __future__ import annotations

import math
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QCheckBox, QLabel, QLineEdit, QSlider, QWidget

from napari_invprior.app.widgets.controls import FAULT, Line, MethodChooser, Section, push, row
from napari_invprior.app.widgets.forms import LABEL_WIDTH
from napari_invprior.app.widgets.words import clock
from napari_invprior.app.workbench.prior_panel import progress_bar, show_progress
from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Progress

STEPS_PER_DECADE = 20
LOWEST, HIGHEST = -6, 2
"""Decades of the weight slider."""

STAGES = {"weight": "choosing the weight", "reconstruct": "reconstructing", "train": "training",
          "maps": "making maps"}


class ReconstructPanel(Section):
    """Weight automatic or by hand; Reconstruct and Cancel; earlier results; reuse."""

    changed = Signal()
    run_clicked = Signal()
    cancel_clicked = Signal()
    older_clicked = Signal()
    newer_clicked = Signal()
    again_clicked = Signal()
    script_clicked = Signal()
    save_clicked = Signal()

    def __init__(self) -> None:
        self.solver = MethodChooser("solver", "How the image is found.",
                                    leave_out=("weight",), folded=True)
        super().__init__(4, "Reconstruct", self.solver.list, self.solver.gear)
        self.box.addWidget(self.solver)
        tip = "How much the prior counts against the data. Automatic: chosen for this observation."
        self.automatic = QCheckBox("Auto")
        self.automatic.setChecked(True)
        self.automatic.setToolTip(tip)
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setRange(LOWEST * STEPS_PER_DECADE, HIGHEST * STEPS_PER_DECADE)
        self.slider.setToolTip(tip + " Logarithmic scale.")
        self.number = QLineEdit()
        self.number.setMaximumWidth(72)
        self.number.setToolTip(tip + " A positive number.")
        weight = QLabel("weight")
        weight.setToolTip(tip)
        weight.setMinimumWidth(LABEL_WIDTH)
        self.weighing = QWidget()
        self.weighing.setLayout(row(weight, self.automatic, self.slider, self.number))
        self.box.addWidget(self.weighing)
        self.automatic.toggled.connect(self._on_automatic)
        self.slider.valueChanged.connect(self._on_slider)
        self.number.editingFinished.connect(self._on_number)
        self.run = push("Reconstruct", "Compute the image. (Alt+R)", self.run_clicked.emit)
        self.cancel = push("Cancel", "Stop; earlier results stay.", self.cancel_clicked.emit)
        self.again = push("Run again", "Repeat the run that made the shown result, exactly.",
                          self.again_clicked.emit)
        self.script = push("Copy as script", "Copy a Python script that does the same run.",
                           self.script_clicked.emit)
        self.maps = QCheckBox("Maps")
        self.maps.setToolTip(
            "Also show what the prior says about each place: where the result is implausible, and "
            "which reference patch explains it. Takes some seconds more."
        )
        self.box.addLayout(
            row(self.run, self.cancel, self.maps, 1, self.again, self.script, spacing=3)
        )
        self.bar = progress_bar("How far the reconstruction is.")
        self.about = Line("Fit to the data, weight, and quality where the truth is known.", 2)
        self.box.addWidget(self.bar)
        self.box.addWidget(self.about)
        self.older = push("<", "Show the previous result. (Alt+Left)", self.older_clicked.emit)
        self.newer = push(">", "Show the next result. (Alt+Right)", self.newer_clicked.emit)
        for button in (self.older, self.newer):
            button.setMaximumWidth(30)
        self.shown = QLabel("no result yet")
        self.shown.setTextFormat(Qt.TextFormat.PlainText)
        self.shown.setToolTip("The result that is shown; the others are kept, hidden.")
        self.save = push("Save result…", "Write the shown result as OME-Zarr, with its recipe.",
                         self.save_clicked.emit)
        history = QLabel("History")
        history.setToolTip("Results of this session.")
        self.box.addLayout(row(history, self.older, self.shown, self.newer, 1, self.save,
                               spacing=3))
        self._unit = self._share = 1.0
        self.set_weight(1.0)
        self._on_automatic(True)
        self.solver.changed.connect(self._on_solver)
        self._on_solver()

    # ---- weight

    def _on_solver(self) -> None:
        """Only some solvers weigh the prior against the data."""
        self.weighing.setVisible(self.has_weight)
        self.changed.emit()

    def _on_automatic(self, automatic: bool) -> None:
        self.slider.setEnabled(not automatic)
        self.number.setEnabled(not automatic)
        self.changed.emit()

    def _on_slider(self, position: int) -> None:
        value = 10 ** (position / STEPS_PER_DECADE)
        self._share = value / self._unit
        self.number.setText(f"{value:.3g}")
        self.number.setStyleSheet("")

    def _on_number(self) -> None:
        try:
            self.set_weight(self.weight_value())
        except InvalidInput as error:
            self.about.say(str(error), FAULT)

    def weight_value(self) -> float:
        """The number typed; raises `InvalidInput`."""
        text = self.number.text().strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            self.number.setStyleSheet(f"border: 1px solid {FAULT};")
            raise InvalidInput(f"weight = {text!r}: give a number of at least 0, such as 0.01")
        self.number.setStyleSheet("")
        return value

    def set_weight(self, value: float) -> None:
        """Show a weight, for example the one that was chosen automatically."""
        self.slider.blockSignals(True)
        if value > 0:
            self.slider.setValue(round(math.log10(value) * STEPS_PER_DECADE))
        self.slider.blockSignals(False)
        self._share = value / self._unit
        self.number.setText(f"{value:.3g}")

    def set_unit(self, unit: float) -> None:
        """Keep the weight as large as it was beside the usual one of another prior or solver."""
        share, self._unit = self._share, unit
        self.set_weight(share * unit)

    # ---- recipe

    @property
    def needs_prior(self) -> bool:
        """Whether the chosen solver uses the prior of step 3."""
        return bool(self.solver.method.cls.needs_prior)

    @property
    def has_weight(self) -> bool:
        """Whether the chosen solver weighs the prior against the data."""
        return bool(self.solver.method.cls.has_weight)

    def part(self) -> dict[str, Any]:
        """The part of the recipe that is chosen here; raises `InvalidInput`."""
        solver = self.solver.choice()
        if self.has_weight:
            automatic = self.automatic.isChecked()
            solver |= {"weight": "auto" if automatic else self.weight_value()}
        return {"solver": solver} | ({"maps": True} if self.maps.isChecked() else {})

    # ---- a running job

    def begin(self) -> None:
        """A reconstruction starts."""
        self.bar.setValue(0)
        self.about.say("preparing…")

    def progress(self, event: Progress) -> None:
        """Show how far it is."""
        show_progress(self.bar, event)
        stage = STAGES.get(event.stage, event.stage)
        residual = event.losses.get("residual")
        figure = f" · misfit / noise {residual:.2f}" if residual is not None else ""
        self.about.say(f"{stage} · step {event.step} of {event.total} · {clock(event)}{figure}")
