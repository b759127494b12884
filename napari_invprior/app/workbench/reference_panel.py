"""Step 2: good images and the regions to learn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels, Shapes
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QLabel, QSpinBox, QWidget
from superqt.utils import qthrottled

from napari_invprior.app.viewer.layers import (
    META,
    finest,
    images_of,
    is_lazy,
    layer_or_none,
    recipe_of,
)
from napari_invprior.app.widgets.controls import FAULT, GOOD, Line, Picker, Section, push, row
from napari_invprior.app.widgets.gallery import PatchGallery
from napari_invprior.app.workbench.data_panel import by_role
from napari_invprior.app.workbench.patches import Count, count_patches, verdict
from napari_invprior.app.workbench.picking import LAYER_NAME, RegionPicker, find_layer
from napari_invprior.app.workbench.regions import Regions, label_problem, regions_of, space_shape
from napari_invprior.io.arrays import value_range_of

PAINTED = "painted references"
ITSELF = object()
"""Learn from the observation itself."""


class ReferencePanel(Section):
    """Chooses the reference image and collects regions on it."""

    changed = Signal()

    def __init__(
        self, viewer: ViewerModel, ndim: Callable[[], int], observed: Callable[[], str | None]
    ) -> None:
        self.viewer, self._ndim, self._observed = viewer, ndim, observed
        self.patch: tuple[int, ...] = (6, 6)
        self.image = Picker("A good image of the same material, to learn from.", self._on_image)
        super().__init__(2, "References", self.image)
        self.picker = RegionPicker(viewer, self._on_picker, self._say)
        self.pick = push(
            "Pick", "Click on the reference image to drop a region. Drag moves it, the wheel over "
            "it changes its size, Delete removes it, Escape ends picking. (Alt+D)",
            self._toggle_pick, checkable=True,
        )
        self.rectangle = push("Rectangle", "Draw a rectangle by dragging.",
                              lambda: self._draw("add_rectangle"))
        self.polygon = push("Polygon", "Draw an outline of any shape; Enter ends it.",
                            lambda: self._draw("add_polygon"))
        self.paint = push("Paint", "Paint regions with a brush on a Labels layer.", self._paint)
        self.clear = push("Clear", "Remove all regions.", self._clear)
        self.size = QSpinBox()
        self.size.setRange(4, 4096)
        self.size.setValue(self.picker.size)
        self.size.setSuffix(" px")
        self.size.setToolTip(
            "Edge of a picked region, in samples of the reference image; also changes the chosen "
            "region."
        )
        self.size.valueChanged.connect(self._on_size)
        self.box.addLayout(
            row(self.pick, self.size, self.rectangle, self.polygon, self.paint, self.clear,
                spacing=3)
        )
        tip = ("The poor image of the same place as the reference, registered to it. Without one "
               "it is made from the reference by the physics of step 1.")
        self.pair = Picker(tip, self.changed.emit)
        label = QLabel("low-resolution pair")
        label.setToolTip(tip)
        self.paired = QWidget()
        self.paired.setLayout(row(label, self.pair))
        self.paired.hide()
        self.box.addWidget(self.paired)
        self.about = Line(
            "Only patches that lie wholly inside the regions are used. About 2000 are the least "
            "that is useful; 10 000 are good."
        )
        self.box.addWidget(self.about)
        self.gallery = PatchGallery(
            "patches of the references", "what the prior will learn from", 56
        )
        self.box.addWidget(self.gallery)
        self.counted = Count(0, 0)
        self._recount = qthrottled(self._count_now, timeout=120)
        self._watched: list[Any] = []
        self.refresh()

    # ---- layers

    def refresh(self) -> None:
        """The viewer's layers changed."""
        images = images_of(self.viewer)
        sources = [layer for layer in images if recipe_of(layer) is None]
        entries = [(layer.name, layer.name) for layer in sources]
        if entries:
            entries.append(("the observation itself", ITSELF))
        others = [name for name, _ in entries[:-1] if name != self._observed()] or [None]
        self.image.offer(entries, by_role(images, "reference") or others[-1], keep=False)
        self.pair.offer(
            [("none: made by the physics", None), *((s.name, s.name) for s in sources)]
        )
        self._watch()
        self._on_image()

    def _watch(self) -> None:
        """Follow edits of everything that can mark a region."""
        self._unwatch()
        for layer in self.viewer.layers:
            if isinstance(layer, Shapes):
                events = (layer.events.data,)
            elif isinstance(layer, Labels):
                events = (layer.events.data, layer.events.paint)
            else:
                continue
            for event in events:
                event.connect(self._on_regions)
                self._watched.append(event)

    def _unwatch(self) -> None:
        for event in self._watched:
            event.disconnect(self._on_regions)
        self._watched.clear()

    def close_down(self) -> None:
        """Leave no callback behind."""
        self._unwatch()
        self.picker.close()

    @property
    def layer(self) -> Image | None:
        """The chosen reference image."""
        return layer_or_none(self.viewer, self.image.currentData())

    @property
    def zero_shot(self) -> bool:
        """Whether the observation itself is learnt from."""
        return self.image.currentData() is ITSELF

    def _on_image(self) -> None:
        if not hasattr(self, "_recount"):
            return
        layer = self.layer
        if layer is None or layer is not self.picker.image:
            self.picker.leave()
        if layer is not None and layer is not self.picker.image:
            self._suggest_size(layer)
        self.picker.image, self.picker.ndim = layer, self._dimensions()
        for control in (self.pick, self.rectangle, self.polygon, self.paint, self.size, self.clear):
            control.setEnabled(layer is not None)
        self._recount()
        self.changed.emit()

    def _suggest_size(self, layer: Image) -> None:
        """A quarter of the image, or so: three regions then give enough patches."""
        size = min(space_shape(layer, self._dimensions())) // 4
        self.picker.size = int(np.clip(size, 16 if self._dimensions() == 3 else 32, 96))
        self.size.setValue(self.picker.size)

    def _dimensions(self) -> int:
        """Space axes of the reference: those of the data, as far as it has them."""
        layer = self.layer
        ndim = self._ndim()
        return min(ndim, layer.ndim) if layer is not None else ndim

    def set_patch(self, patch: tuple[int, ...]) -> None:
        """The patch of the chosen prior; decides what counts as inside."""
        if patch != self.patch:
            self.patch = patch
            self._recount()

    def set_pairs(self, wanted: bool) -> None:
        """Offer a pair where the chosen prior learns from pairs."""
        self.paired.setVisible(wanted)

    # ---- drawing

    def _toggle_pick(self) -> None:
        if self.picker.active:
            self.picker.leave()
        else:
            self.picker.enter()
        self._on_picker()

    def toggle_pick(self) -> None:
        """Turn pick mode on or off (shortcut)."""
        if self.pick.isEnabled():
            self._toggle_pick()

    def _on_picker(self) -> None:
        self.pick.setChecked(self.picker.active)
        if self.size.value() != self.picker.size:
            self.size.blockSignals(True)
            self.size.setValue(self.picker.size)
            self.size.blockSignals(False)
        self._recount()

    def _on_size(self, size: int) -> None:
        self.picker.set_size(size)

    def _draw(self, mode: str) -> None:
        self.picker.leave()
        layer = self.picker.ensure_layer()
        self.viewer.layers.selection.active = layer
        layer.mode = mode

    def _paint(self) -> None:
        """A Labels layer on the reference image, ready to paint on."""
        image = self.layer
        if image is None:
            return
        self.picker.leave()
        if PAINTED not in self.viewer.layers:
            ndim = self._dimensions()
            shape = space_shape(image, image.ndim)
            labels = Labels(
                np.zeros(shape[-ndim:], np.uint8), name=PAINTED, metadata={META: {"role": "paint"}},
                scale=image.scale[-ndim:], translate=image.translate[-ndim:],
                rotate=image.rotate[-ndim:, -ndim:], units=image.units[-ndim:],
                axis_labels=image.axis_labels[-ndim:], opacity=0.4,
            )
            labels.brush_size = max(4, min(shape[-2:]) // 12)
            self.viewer.add_layer(labels)
        layer = self.viewer.layers[PAINTED]
        self.viewer.layers.selection.active = layer
        layer.mode = "paint"

    def _clear(self) -> None:
        self.picker.clear()
        if PAINTED in self.viewer.layers:
            self.viewer.layers.remove(PAINTED)

    def _say(self, text: str) -> None:
        self.about.say(text, FAULT)

    # ---- counting

    def _on_regions(self, event: Any = None) -> None:
        self._recount()

    def shapes(self) -> Shapes | None:
        """The layer whose shapes are the regions: ours, or the active one with outlines."""
        own = find_layer(self.viewer)
        if own is not None and own.nshapes:
            return own
        active = self.viewer.layers.selection.active
        if isinstance(active, Shapes) and active.nshapes:
            return active
        drawn = [s for s in self.viewer.layers if isinstance(s, Shapes) and s.nshapes]
        return drawn[0] if len(drawn) == 1 else own

    def regions(self) -> Regions:
        """Boxes and polygons on the reference image."""
        shapes, image = self.shapes(), self.layer
        if shapes is None or image is None:
            return Regions()
        return regions_of(shapes, image, self._dimensions(), self.picker.size)

    def labels(self) -> Labels | None:
        """Painted regions."""
        found = [
            layer for layer in self.viewer.layers
            if isinstance(layer, Labels) and recipe_of(layer) is None  # a map marks nothing
            and (layer.metadata.get(META, {}).get("role") == "paint"
                 or layer is self.viewer.layers.selection.active)
        ]
        image = self.layer
        for layer in found:
            if image is not None and not label_problem(layer, image, self._dimensions()):
                return layer
        return None

    def _count_now(self) -> None:
        if self.zero_shot:
            self.counted = Count(1, 0)
            self.about.say("learns from the observation itself: only where it is sharp in places")
            self.gallery.show_patches(None)
            self.changed.emit()
            return
        image = self.layer
        if image is None:
            self.counted = Count(0, 0)
            self.about.say("Choose a good image of the same material.")
            self.gallery.show_patches(None)
            self.changed.emit()
            return
        regions, labels = self.regions(), self.labels()
        if not regions.boxes and labels is None:
            self.counted = Count(0, 0)
            note = f" ({regions.notes[0]})" if regions.notes else ""
            self.about.say(f"No region yet: press Pick and click on {image.name!r}{note}.")
            self.gallery.show_patches(None)
            self.changed.emit()
            return
        samples = None if is_lazy(image) else finest(image)
        self.counted, shown = count_patches(
            space_shape(image, self._dimensions()), regions.boxes,
            None if labels is None else np.asarray(labels.data), self.patch, samples,
            rgb=bool(image.rgb),
        )
        text, good = verdict(self.counted, self.patch)
        notes = "; ".join(regions.notes)
        self.about.say(f"{text}{'; ' + notes if notes else ''}", GOOD if good else FAULT)
        self.gallery.show_patches(shown)
        self.changed.emit()

    def normalised_limits(self) -> tuple[float, float] | None:
        """Contrast of the real patches on the engine's scale of 0 to 1, for generated ones."""
        if self.layer is None or self.gallery.count == 0:
            return None
        low, high = value_range_of(np.asarray(finest(self.layer)), self.layer.name)
        return tuple((v - low) / (high - low) for v in self.gallery.limits())

    def problem(self) -> str:
        """What is missing before training; empty when nothing is."""
        if self.zero_shot:
            return ""
        if self.layer is None:
            return "choose a reference image in step 2"
        if self.counted.regions == 0:
            return "pick a region on the reference image (step 2)"
        if self.counted.patches == 0:
            return f"no patch of {self.patch} px fits into the regions; make one larger"
        return ""

    # ---- recipe

    def part(self) -> dict[str, Any]:
        """The part of the recipe that is chosen here."""
        image = self.layer
        if self.zero_shot:
            return {"zero_shot": True}
        if image is None:
            return {}
        source: dict[str, Any] = {"layer": image.name}
        regions, labels = self.regions(), self.labels()
        if regions.boxes:
            source["regions"] = regions.boxes
        if labels is not None:
            source["labels"] = {"layer": labels.name}
        if len(source) == 1:
            return {}
        pair = self.pair.currentData()
        if pair is not None and not self.paired.isHidden():
            source["pair"] = {"layer": pair}
        return {"references": [source]}


__all__ = ["ITSELF", "LAYER_NAME", "PAINTED", "ReferencePanel"]
