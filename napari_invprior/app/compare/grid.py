"""Results side by side in napari's grid, with one contrast and their names, and the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Layer

LINKED = ("contrast_limits", "gamma")
FONT, SMALLEST, GAP = 9, 5, 0.03
"""Sizes of the names; room between images, as a share of one."""
LETTER = 1.05
"""Width of a letter on the canvas, in pixels per unit of its size."""


@dataclass(frozen=True)
class _View:
    """What the viewer showed before."""

    order: list[Layer]
    visible: dict[Layer, bool]
    names: dict[Layer, tuple[bool, float]]
    limits: dict[Layer, tuple[float, float]]
    grid: dict[str, Any]
    center: tuple[float, ...]
    zoom: float


class GridView:
    """Shows layers in one grid; the camera of napari's grid is one for all of them.

    Parameters
    ----------
    viewer : ViewerModel
        Its other layers are hidden meanwhile.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self.viewer = viewer
        self._before: _View | None = None
        self._shown: list[Layer] = []

    @property
    def active(self) -> bool:
        """Whether the grid is on show."""
        return self._before is not None

    def enter(self, layers: Sequence[Layer]) -> None:
        """Show these layers, in their order from the top left, and no others."""
        self.leave()
        grid, camera = self.viewer.canvas.grid, self.viewer.scene.camera
        everything = list(self.viewer.layers)
        self._before = _View(
            everything,
            {layer: layer.visible for layer in everything},
            {layer: (layer.name_overlay.visible, layer.name_overlay.font_size)
             for layer in layers},
            {layer: tuple(layer.contrast_limits) for layer in layers if not _colours(layer)},
            {"enabled": grid.enabled, "shape": grid.shape, "stride": grid.stride,
             "spacing": grid.spacing},
            tuple(camera.center), camera.zoom,
        )
        self._shown = list(layers)
        for place, layer in enumerate(layers):  # the grid follows the order of the layer list
            self.viewer.layers.move(self.viewer.layers.index(layer), place)
        for layer in everything:
            layer.visible = layer in self._shown
        plain = [layer for layer in layers if not _colours(layer)]
        for layer in plain[1:]:
            layer.contrast_limits = plain[0].contrast_limits
        if len(plain) > 1:
            self.viewer.layers.link_layers(plain, LINKED)
        extent = np.ptp(layers[0].extent.world, axis=0)[-2:]
        grid.shape = best_shape(len(layers), tuple(self.viewer.canvas.size), tuple(extent))
        grid.stride, grid.spacing = 1, GAP
        room = self.viewer.canvas.size[1] / grid.shape[1] / LETTER
        for layer in layers:
            size = min(FONT, max(SMALLEST, room / len(layer.name)))
            layer.name_overlay.visible, layer.name_overlay.font_size = True, size
        grid.enabled = True
        self.viewer.fit_to_view(layers=self._shown)

    def leave(self) -> None:
        """Show again what was shown before; layers that came since stay hidden."""
        before, self._before = self._before, None
        if before is None:
            return
        there = [layer for layer in self._shown if layer in self.viewer.layers]
        plain = [layer for layer in there if not _colours(layer)]
        if len(plain) > 1:
            self.viewer.layers.unlink_layers(plain, LINKED)
        for layer in there:
            layer.name_overlay.visible, layer.name_overlay.font_size = before.names[layer]
            if layer in before.limits:
                layer.contrast_limits = before.limits[layer]
        kept = [layer for layer in before.order if layer in self.viewer.layers]
        for place, layer in enumerate(kept):
            self.viewer.layers.move(self.viewer.layers.index(layer), place)
            layer.visible = before.visible[layer]
        grid, camera = self.viewer.canvas.grid, self.viewer.scene.camera
        for name, value in before.grid.items():
            setattr(grid, name, value)
        camera.center, camera.zoom = before.center, before.zoom
        self._shown = []


def best_shape(
    count: int, canvas: tuple[float, float], image: tuple[float, float]
) -> tuple[int, int]:
    """Rows and columns for which ``count`` images become largest on the canvas.

    Examples
    --------
    >>> best_shape(6, (750, 500), (1, 1)), best_shape(6, (500, 1000), (1, 1))
    ((3, 2), (2, 3))
    """
    def size(columns: int) -> float:
        """Canvas pixels per unit of the image."""
        rows = math.ceil(count / columns)
        height, width = (max(float(edge), 1e-9) for edge in image)
        return min(canvas[0] / rows / height, canvas[1] / columns / width)

    columns = max(range(1, count + 1), key=size)
    return math.ceil(count / columns), columns


def _colours(layer: Layer) -> bool:
    return bool(getattr(layer, "rgb", False))
