"""Which part of the observation is used: all of it, what is in view, or a box."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from napari.components import ViewerModel
from napari.layers import Layer
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QLabel, QLineEdit, QWidget

from napari_invprior.app.widgets.controls import FAULT, Picker, row
from napari_invprior.app.widgets.forms import LABEL_WIDTH
from napari_invprior.app.workbench.regions import space_shape
from napari_invprior.errors import InvalidInput

WHOLE, VIEW, BOX = "whole", "view", "box"
SLICES = 32
"""Slices around the one on show that belong to "this view" of a volume in 2D."""

Interval = tuple[int, int]


class PartRow(QWidget):
    """A list and a field with one interval per axis, such as ``0:64, 100:300, 0:512``.

    Signals
    -------
    changed
        Another part was chosen.
    """

    changed = Signal()

    def __init__(self, viewer: ViewerModel) -> None:
        super().__init__()
        self.viewer = viewer
        self._layer: Layer | None = None
        self._ndim = 2
        tip = "The part of the observation that is used: try a small one, then take all of it."
        self.choice = Picker(tip, self._on_choice)
        self.field = QLineEdit()
        self.field.setToolTip(
            "First and last sample + 1 along each axis, such as 0:64, 100:300, 0:512."
        )
        self.field.editingFinished.connect(self._on_field)
        label = QLabel("part")
        label.setToolTip(tip)
        label.setMinimumWidth(LABEL_WIDTH)
        self.setLayout(row(label, self.choice, self.field))
        self.choice.offer([("whole", WHOLE), ("this view", VIEW), ("a box", BOX)], WHOLE)
        self._on_choice()

    def set_layer(self, layer: Layer | None, ndim: int) -> None:
        """The observation is another one, or is read with another number of axes."""
        same = layer is self._layer and ndim == self._ndim
        self._layer, self._ndim = layer, ndim
        if not same:
            self.choice.choose(WHOLE)
            self._show([(0, n) for n in self._space])

    @property
    def _space(self) -> tuple[int, ...]:
        return () if self._layer is None else space_shape(self._layer, self._ndim)

    def crop(self) -> list[list[int]] | None:
        """The part as a recipe names it; None for all of it.

        Raises
        ------
        InvalidInput
            If the field does not say a box inside the observation.
        """
        if self.choice.currentData() == WHOLE or self._layer is None:
            return None
        if self.choice.currentData() == VIEW:
            self._show(in_view(self.viewer, self._layer, self._ndim))
        return [list(pair) for pair in self._intervals()]

    def _intervals(self) -> list[Interval]:
        space, text = self._space, self.field.text()
        found = [
            (int(a), int(b)) for a, b in re.findall(r"(\d+)\s*:\s*(\d+)", text)
        ]
        inside = len(found) == len(space) and all(
            0 <= a < b <= n for (a, b), n in zip(found, space, strict=True)
        )
        self.field.setStyleSheet("" if inside else f"border: 1px solid {FAULT};")
        if not inside:
            whole = ", ".join(f"0:{n}" for n in space)
            raise InvalidInput(f"part = {text!r}: give {len(space)} intervals inside {whole}")
        return found

    def _show(self, intervals: Sequence[Interval]) -> None:
        self.field.setText(", ".join(f"{a}:{b}" for a, b in intervals))
        self.field.setStyleSheet("")

    def _on_choice(self) -> None:
        chosen = self.choice.currentData()
        self.field.setVisible(chosen != WHOLE)
        self.field.setReadOnly(chosen == VIEW)
        if chosen == VIEW and self._layer is not None:
            self._show(in_view(self.viewer, self._layer, self._ndim))
        self.changed.emit()

    def _on_field(self) -> None:
        self.changed.emit()


def in_view(viewer: ViewerModel, layer: Layer, ndim: int) -> list[Interval]:
    """The samples of a layer that the canvas shows, per space axis.

    A volume that is looked at in 2D is taken `SLICES` slices deep on both sides; in 3D all of it is
    in view.
    """
    space = space_shape(layer, ndim)
    if viewer.dims.ndisplay == 3:
        return [(0, n) for n in space]
    displayed = [axis - viewer.dims.ndim + layer.ndim for axis in viewer.dims.displayed]
    corners = _corners(viewer, layer)
    here = np.asarray(layer.world_to_data(viewer.dims.point[-layer.ndim :]))
    found = []
    for axis, n in enumerate(space, layer.ndim - ndim):
        if axis in displayed:
            a, b = int(np.floor(corners[0, axis])), int(np.ceil(corners[1, axis])) + 1
        else:
            middle = round(float(here[axis]))
            a, b = middle - SLICES, middle + SLICES
        a = max(0, min(a, n - 1))
        found.append((a, max(min(b, n), a + 1)))
    return found


def _corners(viewer: ViewerModel, layer: Layer) -> np.ndarray:
    """Smallest and largest positions of the canvas on the samples of a layer, (2, axes)."""
    shown, camera = list(viewer.dims.displayed), viewer.scene.camera
    middle = np.asarray(camera.center, float)[-len(shown) :]
    half = np.asarray(viewer.canvas.size, float) / camera.zoom / 2
    found = []
    for sign in (-1, 1):
        world = np.asarray(viewer.dims.point, float)
        world[shown] = middle + sign * half
        found.append(layer.world_to_data(world[-layer.ndim :]))
    return np.sort(np.asarray(found, float), axis=0)
