"""Beside the kernel of step 1: estimate it from a good and a poor layer of the same place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from napari.components import ViewerModel
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_invprior.app.viewer.layers import images_of, layer_or_none
from napari_invprior.app.widgets.controls import FAULT, GOOD, Line, Picker, push, row
from napari_invprior.app.workbench.regions import space_shape

IDLE, BUSY = "Estimate from a pair…", "Cancel"
Names = tuple[str | None, str | None]


class PairDialog(QDialog):
    """Asks for the two layers and the size of the kernel.

    Parameters
    ----------
    viewer : ViewerModel
        Offers its image layers.
    factor : tuple of int
        Good samples per poor sample along each space axis, as step 1 has them.
    proposed : (good, poor)
        Names to begin with.
    """

    def __init__(
        self, viewer: ViewerModel, factor: tuple[int, ...], proposed: Names, parent: QWidget
    ) -> None:
        super().__init__(parent)
        self.setWindowTitle("Estimate the operator from a pair")
        self.viewer, self.factor = viewer, factor
        names = [layer.name for layer in images_of(viewer)]
        self.good = Picker("The good image; the kernel lives on its grid.", self._check)
        self.poor = Picker("The poor image of the same place, in register.", self._check)
        self.size = QSpinBox(minimum=1, maximum=64)
        self.size.setToolTip("Taps of the kernel along each axis, samples of the good image.")
        self.size.setValue(15 if len(factor) == 2 else max(factor) + 6)
        self.size.setSuffix(" px")
        self.about = Line("Whether the two images fit the factor of step 1.", 2)
        self.buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel)
        self.go = self.buttons.addButton("Estimate", QDialogButtonBox.ButtonRole.AcceptRole)
        self.go.setToolTip("Fit kernel, gain and offset in the background.")
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        form = QFormLayout()
        for title, widget in (("good image", self.good), ("poor image", self.poor),
                              ("kernel size", self.size)):
            form.addRow(title, widget)
            form.labelForField(widget).setToolTip(widget.toolTip())
        form.setHorizontalSpacing(12)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(14, 12, 14, 12)
        outer.setSpacing(10)
        outer.addLayout(form)
        outer.addWidget(self.about)
        outer.addWidget(self.buttons)
        self.setMinimumWidth(420)
        for picker, name in ((self.good, proposed[0]), (self.poor, proposed[1])):
            picker.offer([(n, n) for n in names], name)
        self._check()

    def _check(self) -> None:
        """Say whether the shapes belong together, before anything is computed."""
        if not hasattr(self, "go"):
            return
        layers = [layer_or_none(self.viewer, p.currentData()) for p in (self.good, self.poor)]
        if any(layer is None for layer in layers):
            self.about.say("Open a good and a poor image of the same place.", FAULT)
            self.go.setEnabled(False)
            return
        good, poor = (space_shape(layer, len(self.factor)) for layer in layers)
        wanted = tuple(n * f for n, f in zip(poor, self.factor, strict=True))
        fits = good == wanted and layers[0] is not layers[1]
        listed, needed = (" × ".join(map(str, shape)) for shape in (good, wanted))
        if fits:
            self.about.say(f"{listed} px and factor {self.factor[0]}: they fit.", GOOD)
        elif layers[0] is layers[1]:
            self.about.say("Choose two different layers.", FAULT)
        else:
            self.about.say(
                f"The good image has {listed} px; with the factor of step 1 it must have {needed}.",
                FAULT,
            )
        self.go.setEnabled(fits)


class OperatorRow(QWidget):
    """The button that opens the dialog (or cancels the job), and a line about the result.

    Signals
    -------
    wanted : str, str, int
        Good layer, poor layer and kernel size.
    cancelled
        The running estimate is to stop.
    """

    wanted = Signal(str, str, int)
    cancelled = Signal()

    def __init__(self, viewer: ViewerModel) -> None:
        super().__init__()
        self.viewer = viewer
        self.factor: Callable[[], tuple[int, ...]] = lambda: (1, 1)
        self.proposed: Callable[[], Names] = lambda: (None, None)
        self.dialog: PairDialog | None = None
        self.button = push(
            IDLE, "Estimate kernel, gain and offset from a good and a poor image of the same "
            "place, and use them.", self._on_button,
        )
        self.about = Line("How well the estimated operator explains the pair.")
        layout = row(self.button, self.about)
        layout.setStretch(1, 1)
        layout.setAlignment(self.button, Qt.AlignmentFlag.AlignTop)
        self.setLayout(layout)

    def _on_button(self) -> None:
        if self.button.text() == BUSY:
            self.cancelled.emit()
            return
        dialog = PairDialog(self.viewer, self.factor(), self.proposed(), self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.accepted.connect(lambda: self.wanted.emit(
            dialog.good.currentData(), dialog.poor.currentData(), dialog.size.value()
        ))
        self.dialog = dialog
        dialog.open()  # modal to the window, which stays alive

    def set_state(self, *, idle: bool, mine: bool) -> None:
        """Whether a job can start, and whether the running one is ours."""
        self.button.setText(BUSY if mine else IDLE)
        self.button.setEnabled(idle or mine)

    def report(self, metrics: Mapping[str, Any]) -> None:
        """How good the fit is, in one line."""
        gaussian = metrics["baselines"]["gaussian"]
        self.about.say(
            f"{metrics['held_out_psnr']:.1f} dB held out (Gaussian {gaussian:.1f})", GOOD
        )
