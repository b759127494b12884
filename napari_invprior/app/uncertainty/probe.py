"""Click a place of the canvas to ask what all samples say there (no Qt)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Layer, Points

from napari_invprior.app.viewer.layers import META, PREVIEW, add_quietly, finest
from napari_invprior.app.workbench.picking import CLICK

MARK = "probed place"
"""Name of the layer that shows where was clicked."""


class Probe:
    """Calls back with the position of every click that does not drag the view.

    Parameters
    ----------
    viewer : ViewerModel
        Its mouse callbacks are used between `enter` and `leave`.
    clicked : callable
        Called with the position in the world.
    """

    def __init__(self, viewer: ViewerModel, clicked: Callable[[np.ndarray], None]) -> None:
        self.viewer, self._clicked = viewer, clicked
        self.active = False
        self._mark: Points | None = None

    def enter(self) -> None:
        """Listen to clicks."""
        if not self.active:
            self.active = True
            self.viewer.mouse_drag_callbacks.append(self._on_press)

    def leave(self) -> None:
        """Listen no more, and take the mark away."""
        if self.active:
            self.active = False
            self.viewer.mouse_drag_callbacks.remove(self._on_press)
        if self._mark is not None and self._mark in self.viewer.layers:
            self.viewer.layers.remove(self._mark)
        self._mark = None

    def _on_press(self, _: ViewerModel, event: Any) -> Iterator[None]:
        pressed, wandered = np.asarray(event.pos, float), False
        yield
        while event.type == "mouse_move":
            wandered |= bool(np.abs(np.asarray(event.pos) - pressed).max() > CLICK)
            yield
        if not wandered and self.active:
            self._clicked(np.asarray(event.position, float))

    def mark(self, layer: Layer, index: tuple[int, ...]) -> None:
        """Show which sample of a layer's image is meant."""
        place = np.asarray(layer.data_to_world((0, *index)))[-min(2, len(index)) :]
        size = 6 * float(np.abs(layer.scale[-1]))
        if self._mark is None or self._mark not in self.viewer.layers:
            mark = Points(
                place[None], name=MARK, size=size, symbol="cross", face_color="#ffd54a",
                border_width=0, units=layer.units[-2:], metadata={META: {"role": PREVIEW}},
            )
            add_quietly(self.viewer, mark)
            self._mark = mark
        else:
            self._mark.data, self._mark.size = place[None], size


def index_at(stack: Layer, position: np.ndarray) -> tuple[int, ...] | None:
    """Index of a position of the world on all axes of a stack but the first; None outside."""
    place = np.round(np.asarray(stack.world_to_data(position[-stack.ndim :]))).astype(int)[1:]
    shape = np.asarray(finest(stack).shape[1 : stack.ndim])
    if np.any(place < 0) or np.any(place >= shape):
        return None
    return tuple(int(p) for p in place)


def values_at(stack: Layer, index: tuple[int, ...]) -> np.ndarray:
    """The value of every sample of a stack at an index; colours are averaged."""
    values = np.asarray(finest(stack)[(slice(None), *index)], dtype=np.float64)
    return values.reshape(len(values), -1).mean(1)
