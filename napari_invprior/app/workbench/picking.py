"""Pick mode: a click on the reference image drops a square or box region (no Qt)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Shapes

from napari_invprior.app.workbench.regions import DEPTH, space_shape, to_image

LAYER_NAME = "references"
ROLE = {"napari-invprior": {"role": "references"}}
PICKED, CHOSEN, ELSEWHERE = "#ffd54a", "#ffffff", "#8a7a3a"
"""Outlines: a region, the one that wheel and Delete act on, one on other slices of a volume."""

CLICK = 4
"""Canvas pixels that a click may wander before it counts as dragging the view."""

KEYS = {"Escape": "leave pick mode", "Delete": "remove the region", "Backspace": "same"}


def find_layer(viewer: ViewerModel) -> Shapes | None:
    """The layer that holds picked regions."""
    for layer in viewer.layers:
        if isinstance(layer, Shapes) and layer.metadata.get("napari-invprior") == ROLE[
            "napari-invprior"
        ]:
            return layer
    return None


class RegionPicker:
    """Lets the user click regions into a Shapes layer.

    Squares lie exactly on samples and inside the image. On a volume the layer stays 2D, so that
    the outline is visible on every slice; the slices of each region are features of its shape.

    Parameters
    ----------
    viewer : ViewerModel
        Callbacks and keys are bound while pick mode is on, and removed by `leave`.
    on_change : callable
        Called when regions, size or mode changed.
    say : callable
        Called with a sentence when a click cannot be used.
    """

    def __init__(
        self, viewer: ViewerModel, on_change: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        self.viewer, self._on_change, self._say = viewer, on_change, say
        self.image: Image | None = None
        self.ndim = 2
        self.size = 64
        self._active = False
        self._layer: Shapes | None = None
        self._index: int | None = None  # the region that wheel, spin box and Delete act on

    # ---- the layer

    @property
    def layer(self) -> Shapes | None:
        """The layer with the regions, None before the first pick."""
        if self._layer is None or self._layer not in self.viewer.layers:
            self._watch(find_layer(self.viewer))
        return self._layer

    def _watch(self, layer: Shapes | None) -> None:
        if self._layer is not None:
            self._layer.events.data.disconnect(self._on_data)
        self._layer = layer
        if layer is not None:
            layer.events.data.connect(self._on_data)

    def ensure_layer(self) -> Shapes:
        """The layer with the regions; made on top of the reference image when there is none."""
        layer = self.layer
        if layer is None:
            image = self._image()
            width = min(space_shape(image, 2)) / 160
            text = {"string": "z {z_start:.0f}-{z_stop:.0f}", "color": PICKED, "size": 8}
            layer = Shapes(
                ndim=2, name=LAYER_NAME, features={name: np.empty(0) for name in DEPTH},
                scale=image.scale[-2:], translate=image.translate[-2:],
                rotate=image.rotate[-2:, -2:], shear=image.shear[-1:],
                affine=_last_plane(image.affine.affine_matrix), units=image.units[-2:],
                axis_labels=image.axis_labels[-2:], edge_color=PICKED, face_color="#ffd54a26",
                edge_width=width, text=text if self.ndim == 3 else None, metadata=dict(ROLE),
            )
            self.viewer.add_layer(layer)
            self._watch(layer)
        return layer

    def _image(self) -> Image:
        assert self.image is not None, "pick mode starts with a reference image"
        return self.image

    # ---- pick mode

    @property
    def active(self) -> bool:
        """Whether clicks drop regions."""
        return self._active

    def enter(self) -> None:
        """Bind mouse and keys."""
        if self._active or self.image is None:
            return
        self._active = True
        layer = self.ensure_layer()
        layer.mode = "pan_zoom"
        self.viewer.layers.selection.active = layer
        self.viewer.mouse_drag_callbacks.append(self._on_drag)
        self.viewer.mouse_wheel_callbacks.append(self._on_wheel)
        self.viewer.dims.events.current_step.connect(self._recolour)
        for target in (self.viewer, layer):
            target.bind_key("Escape", lambda _: self.leave(), overwrite=True)
            for key in ("Delete", "Backspace"):
                target.bind_key(key, lambda _: self.remove(), overwrite=True)
        self._recolour()
        self._on_change()

    def leave(self) -> None:
        """Unbind mouse and keys; the regions stay."""
        if not self._active:
            return
        self._active = False
        self.viewer.mouse_drag_callbacks.remove(self._on_drag)
        self.viewer.mouse_wheel_callbacks.remove(self._on_wheel)
        self.viewer.dims.events.current_step.disconnect(self._recolour)
        for target in (self.viewer, self._layer):
            for key in KEYS if target is not None else ():
                target.bind_key(key, None, overwrite=True)
        self._recolour()
        self._on_change()

    def close(self) -> None:
        """Leave no callback behind."""
        self.leave()
        self._watch(None)

    # ---- regions

    def add(self, position: tuple[float, ...]) -> None:
        """Drop a region of the current size around a position of the world."""
        image, layer = self._image(), self.ensure_layer()
        centre = np.round(self._sample(position)).astype(int)
        shape = np.array(space_shape(image, self.ndim))
        if np.any(centre < 0) or np.any(centre >= shape):
            self._say(f"click inside {image.name!r} to pick a region")
            return
        size = self._extent(shape)
        start = np.clip(centre - size // 2, 0, shape - size)
        stop = start + size
        if self.ndim == 3:
            layer.feature_defaults = dict(
                zip(DEPTH, (float(start[0]), float(stop[0])), strict=True)
            )
        layer.add_rectangles(_corners(start[-2:], stop[-2:]))
        self._choose(layer.nshapes - 1)

    def _extent(self, shape: np.ndarray) -> np.ndarray:
        """Samples per axis of a new region: equal lengths in the world, at most the image."""
        scale = np.abs(np.asarray(self._image().scale)[-self.ndim :])
        samples = np.round(self.size * scale[-1] / scale).astype(int)
        return np.clip(samples, 1, shape)

    def remove(self) -> None:
        """Remove the chosen region."""
        layer, chosen = self.layer, self._chosen()
        if layer is not None and chosen is not None:
            self._index = None
            layer.selected_data = {chosen}
            layer.remove_selected()

    def clear(self) -> None:
        """Remove all regions."""
        layer = self.layer
        if layer is not None and layer.nshapes:
            layer.selected_data = set(range(layer.nshapes))
            layer.remove_selected()

    def set_size(self, size: int) -> None:
        """Edge of the next regions, and of the chosen one."""
        self.size = max(2, int(size))
        layer = self.layer
        chosen = self._chosen()
        if layer is None or chosen is None or self.image is None:
            return
        if layer.shape_type[chosen] == "rectangle":
            shape = np.array(space_shape(self.image, 2))
            corners = np.asarray(layer.data[chosen])
            extent = np.minimum(self.size, shape)
            middle = np.floor(corners.mean(0) + 0.51).astype(int)
            start = np.clip(middle - extent // 2, 0, shape - extent)
            self._replace(chosen, _corners(start, start + extent))

    def _chosen(self) -> int | None:
        layer = self.layer
        if layer is None or self._index is None or self._index >= layer.nshapes:
            return None
        return self._index

    def _choose(self, index: int) -> None:
        self._index = index
        self._recolour()

    def _replace(self, index: int, vertices: np.ndarray) -> None:
        layer = self.layer
        if layer is None:
            return
        data = list(layer.data)
        data[index] = vertices
        layer.data = data
        self._choose(index)

    def _sample(self, position: tuple[float, ...]) -> np.ndarray:
        """Position of the world on the samples of the image's space axes."""
        image = self._image()
        return np.asarray(image.world_to_data(position[-image.ndim :]))[-self.ndim :]

    def _at(self, position: tuple[float, ...]) -> int | None:
        """Index of the topmost region under a position of the world."""
        layer = self.layer
        if layer is None:
            return None
        point = self._sample(position)[-2:]
        for index in range(layer.nshapes - 1, -1, -1):
            corners = to_image(np.asarray(layer.data[index]), layer, self._image())[:, -2:]
            if np.all(point >= corners.min(0)) and np.all(point <= corners.max(0)):
                return index
        return None

    # ---- events

    def _usable(self, event: Any) -> bool:
        if event.button != 1 or len(event.modifiers) or self.image is None:
            return False
        if tuple(event.dims_displayed) != tuple(self.viewer.dims.order[-2:]) or (
            sorted(event.dims_displayed) != list(range(self.viewer.dims.ndim))[-2:]
        ):
            self._say("pick regions in the 2D view of the last two axes (y, x)")
            return False
        return True

    def _on_drag(self, _: ViewerModel, event: Any) -> Iterator[None]:
        """Click: drop a region. Drag on a region: move it. Drag elsewhere: the view moves."""
        if not self._usable(event):
            return
        pressed = np.asarray(event.pos, float)
        index = self._at(event.position)
        if index is None:
            yield
            wandered = False
            while event.type == "mouse_move":
                wandered |= bool(np.abs(np.asarray(event.pos) - pressed).max() > CLICK)
                yield
            if not wandered and self._active:
                self.add(event.position)
            return
        event.handled = True  # the view must not move along
        self._choose(index)
        layer = self._layer
        before = np.asarray(layer.data[index], float)
        origin = self._sample(event.position)[-2:]
        yield
        while event.type == "mouse_move":
            event.handled = True
            if layer not in self.viewer.layers or index >= layer.nshapes:
                return
            shift = np.round(self._sample(event.position)[-2:] - origin)
            self._replace(index, before + shift)
            yield

    def _on_wheel(self, _: ViewerModel, event: Any) -> None:
        """Over a region: change its size. Elsewhere the view zooms."""
        if self.image is None:
            return
        index = self._at(event.position)
        if index is None:
            return
        event.handled = True
        self._choose(index)
        step = max(1, round(self.size / 16)) * (1 if event.delta[1] > 0 else -1)
        self.set_size(self.size + step)
        self._on_change()

    def _on_data(self, event: Any) -> None:
        if str(getattr(event, "action", "changed")) in ("adding", "changing", "removing"):
            return
        self._recolour()
        self._on_change()

    def _recolour(self, _: Any = None) -> None:
        """Show which region is chosen and which lie on other slices."""
        layer = self._layer
        if layer is None or not layer.nshapes:
            return
        chosen = self._chosen() if self._active else None
        colours = [CHOSEN if i == chosen else PICKED for i in range(layer.nshapes)]
        if self.ndim == 3 and self.image is not None:
            here = self._sample(tuple(self.viewer.dims.point))[0]
            for index, (start, stop) in enumerate(layer.features[list(DEPTH)].to_numpy(float)):
                if here < start - 0.5 or here > stop - 0.5:
                    colours[index] = ELSEWHERE
        layer.edge_color = colours


def _last_plane(matrix: np.ndarray) -> np.ndarray:
    """The part of an affine matrix that acts on the last two axes."""
    return np.asarray(matrix)[np.ix_([-3, -2, -1], [-3, -2, -1])]


def _corners(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Outline of the samples [start, stop) of a plane."""
    (y0, x0), (y1, x1) = np.asarray(start) - 0.5, np.asarray(stop) - 0.5
    return np.array([[y0, x0], [y0, x1], [y1, x1], [y1, x0]], float)
