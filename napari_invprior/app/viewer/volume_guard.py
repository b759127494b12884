"""Keeps napari from loading a huge volume when the view is switched to 3D (no Qt).

napari reads what a visible layer shows in the window's thread, and in 3D that is the whole
volume: a layer of 100 GB would freeze and then end the program.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from napari.components import ViewerModel
from napari.layers import Layer
from napari.utils.notifications import show_info, show_warning

from napari_invprior.app.viewer.coarse import (
    CoarseVolume,
    coarse_layer,
    samples,
    too_large,
    volume_bytes,
)

Fill = Callable[[], Iterator[bool]]
Reader = Callable[[Fill, Callable[[bool], None]], Callable[[], Any]]
"""Runs a `CoarseVolume.fill`, hands on what it yields, and returns what stops it."""


@dataclass
class Cover:
    """A layer that is kept from being loaded, and what is shown in its place.

    Attributes
    ----------
    layer : Layer
        The original, hidden.
    axes : tuple of int
        Its displayed axes.
    wanted : bool
        Whether the original is to be seen: its visibility in 2D.
    fits : bool
        Whether it can be drawn after all: other axes are displayed now.
    view : Layer or None
        The coarse layer.
    """

    layer: Layer
    axes: tuple[int, ...]
    wanted: bool
    fits: bool = False
    view: Layer | None = None
    volume: CoarseVolume | None = None
    stop: Callable[[], Any] | None = None
    held: ExitStack = field(default_factory=ExitStack)


class VolumeGuard:
    """Shows coarse layers in 3D where the volumes would be too large to draw.

    Parameters
    ----------
    viewer : ViewerModel
        Watched until `close`.
    read : callable
        Runs the reading in the background.
    """

    def __init__(self, viewer: ViewerModel, read: Reader) -> None:
        self.viewer, self._read = viewer, read
        self.covers: dict[Layer, Cover] = {}
        self._volumes: weakref.WeakKeyDictionary[Layer, CoarseVolume] = weakref.WeakKeyDictionary()
        self._busy = False
        dims, layers = viewer.dims.events, viewer.layers.events
        self._hooks = [
            (dims.ndisplay, ahead(dims.ndisplay, self._before)),
            (dims.order, ahead(dims.order, self._before)),
            (layers.inserted, ahead(layers.inserted, self._before)),
        ]
        for emitter, callback in (
            (dims.ndisplay, self._after), (dims.order, self._after),
            (dims.current_step, self._on_step), (layers.inserted, self._after),
            (layers.removed, self._on_removed),
        ):
            emitter.connect(callback)
            self._hooks.append((emitter, callback))
        self._before()
        self._after()

    def close(self, *, restore: bool = True) -> None:
        """Forget the viewer.

        Layers that are drawn coarsely now could only be loaded: with ``restore`` the view goes
        back to 2D. Without, nothing is shown any more.
        """
        if self.covers and restore:
            self.viewer.dims.ndisplay = 2
        for cover in self.covers.values():
            self._stop(cover)
        for emitter, callback in self._hooks:
            emitter.disconnect(callback)
        self._hooks.clear()
        self._volumes.clear()

    # ---- napari is about to draw

    def _displayed(self, layer: Layer) -> tuple[int, ...]:
        """Axes of a layer that 3D shows; fewer than three for one that is flat there."""
        dims = self.viewer.dims
        # counted from the last axis: a new layer may have more axes than the viewer knows yet
        axes = [axis - dims.ndim + layer.ndim for axis in dims.displayed]
        return tuple(axis for axis in axes if axis >= 0)

    def _before(self, _: Any = None) -> None:
        """Hide what must not be loaded, before napari draws it."""
        if self.viewer.dims.ndisplay != 3 or self._busy:
            return
        for layer in self.viewer.layers:
            axes, cover = self._displayed(layer), self.covers.get(layer)
            if cover is not None:
                if cover.axes != axes:
                    self._drop_view(cover)
                    cover.axes, cover.fits = axes, not too_large(layer, axes)
            elif too_large(layer, axes):
                self.covers[layer] = cover = Cover(layer, axes, bool(layer.visible))
                layer.visible = False
                # otherwise a click on its eye would load it; nothing public can prevent that
                if hasattr(layer, "_block_refresh"):
                    cover.held.enter_context(layer._block_refresh())
                layer.events.visible.connect(self._on_visible)

    def _after(self, _: Any = None) -> None:
        """Once it is drawn: add or remove the coarse layers."""
        if self._busy:
            return
        for cover in list(self.covers.values()):
            if cover.layer not in self.viewer.layers:
                continue  # it is being removed, and the axes with it
            if self.viewer.dims.ndisplay != 3 or cover.fits:
                self._uncover(cover)
            elif cover.wanted and cover.view is None:
                self._add_view(cover)

    # ---- one layer

    def _add_view(self, cover: Cover) -> None:
        layer, viewer = cover.layer, self.viewer
        volume = self._volumes.get(layer)
        if volume is None or not volume.is_of(layer, cover.axes):
            volume = self._volumes[layer] = CoarseVolume(layer, cover.axes)
        cover.volume = volume
        volume.go_to(self._place(layer))
        cover.view = coarse_layer(layer, volume)
        active = viewer.layers.selection.active
        self._busy = True
        try:
            viewer.layers.insert(viewer.layers.index(layer) + 1, cover.view)
        finally:
            self._busy = False
        viewer.layers.selection.active = cover.view if active is layer else active
        show_info(sentence(cover))
        self._start(cover)

    def _start(self, cover: Cover) -> None:
        """Read what is missing, in the background."""
        self._stop(cover)
        if not cover.volume.complete:
            cover.stop = self._read(cover.volume.fill, lambda more: self._on_piece(cover, more))

    def _stop(self, cover: Cover) -> None:
        if cover.stop is not None:
            cover.stop()
            cover.stop = None

    def _on_piece(self, cover: Cover, more: bool) -> None:
        if cover.view is None or cover.view not in self.viewer.layers:
            return
        if more:
            cover.view.refresh(extent=False)
        if cover.volume.fault:
            show_warning(f"{cover.layer.name!r} cannot be read: {cover.volume.fault}")

    def _place(self, layer: Layer) -> dict[int, float]:
        """Where the sliders stand, in samples of a layer."""
        point = (0.0,) * layer.ndim + tuple(self.viewer.dims.point)
        return dict(enumerate(layer.world_to_data(point[-layer.ndim :])))

    def _drop_view(self, cover: Cover) -> None:
        self._stop(cover)
        view, cover.view = cover.view, None
        if view is None or view not in self.viewer.layers:
            return
        selection = self.viewer.layers.selection
        chosen = selection.active is view
        self._busy = True
        try:
            self.viewer.layers.remove(view)
        finally:
            self._busy = False
        if chosen and cover.layer in self.viewer.layers:
            selection.active = cover.layer

    def _uncover(self, cover: Cover) -> None:
        """Give a layer back as it was."""
        del self.covers[cover.layer]
        self._drop_view(cover)
        cover.layer.events.visible.disconnect(self._on_visible)
        cover.held.close()
        if cover.wanted and cover.layer in self.viewer.layers:
            cover.layer.visible = True

    # ---- what the user does meanwhile

    def _on_visible(self, event: Any) -> None:
        """Whoever shows or hides an original shows or hides its coarse layer."""
        cover = self.covers.get(event.source)
        if cover is None or self._busy:
            return
        cover.wanted = bool(cover.layer.visible)
        if cover.wanted:
            self._busy = True
            try:
                cover.layer.visible = False
            finally:
                self._busy = False
        if cover.view is not None:
            cover.view.visible = cover.wanted
        elif cover.wanted:
            self._add_view(cover)

    def _on_step(self, _: Any = None) -> None:
        """A slider moved: the same volume at another time or in another channel."""
        for cover in self.covers.values():
            if cover.view is not None and cover.volume.go_to(self._place(cover.layer)):
                self._start(cover)

    def _on_removed(self, event: Any) -> None:
        """A layer was removed; with an original goes its coarse layer."""
        if self._busy:
            return
        for cover in list(self.covers.values()):
            if cover.layer is event.value:
                self._uncover(cover)
            elif cover.view is event.value:
                self._drop_view(cover)


def ahead(emitter: Any, callback: Callable[[Any], None]) -> Callable[[Any], None]:
    """Connect a callback before those of napari itself.

    napari calls its own callbacks first, wherever a plugin asks to be placed, and tells them by
    their module.
    """

    def hook(event: Any) -> None:
        callback(event)

    hook.__module__ = f"napari.{__name__}"
    emitter.connect(hook, position="first")
    return hook


def sentence(cover: Cover) -> str:
    """What is shown instead of what."""
    factor = [cover.volume.factor[a] for a in cover.volume.axes]
    one = " × ".join(map(str, factor))
    size = volume_bytes(samples(cover.layer, 0), cover.axes, cover.layer)
    return (
        f"One voxel in {one} is shown of {cover.layer.name!r}: {size / 1e9:.3g} GB are too much "
        "for 3D. In 2D all are there."
    )
