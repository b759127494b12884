"""Step 1: the observation, how it was measured, its noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Labels, Layer
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QLabel, QToolButton, QWidget
from superqt.utils import qdebounced

from napari_invprior.app.viewer.layers import (
    META,
    Snapshot,
    finest,
    geometry_of,
    images_of,
    is_lazy,
    layer_or_none,
    possible_dimensions,
    recipe_of,
    role_of,
    subset,
)
from napari_invprior.app.viewer.request import grid_for, same_units
from napari_invprior.app.widgets.controls import FAULT, Line, MethodChooser, Picker, Section, row
from napari_invprior.app.widgets.forms import LABEL_WIDTH
from napari_invprior.app.workbench.operator_row import OperatorRow
from napari_invprior.app.workbench.part_row import PartRow
from napari_invprior.app.workbench.regions import space_shape
from napari_invprior.errors import InvalidInput
from napari_invprior.io.files import memory_limit
from napari_invprior.memory import free_bytes

QUICK = 4_000_000
"""Samples of an observation whose noise is estimated while the user looks on."""

LARGE = 64_000_000
"""Samples of a layer in memory from which on a part of it is offered."""

WORDS = {2: "2D", 3: "3D"}


def by_role(layers: list[Layer], role: str) -> str | None:
    """Name of the newest layer with a role."""
    names = [layer.name for layer in layers if role_of(layer) == role]
    return names[-1] if names else None


class DataPanel(Section):
    """Chooses the observation and describes how it came about."""

    changed = Signal()

    def __init__(self, viewer: ViewerModel) -> None:
        self.viewer = viewer
        self.observation = Picker("The poor image or volume that is to be improved.",
                                  self._on_observation)
        self.dimensions = Picker(
            "Read the layer as planes (2D) or as a volume (3D); other axes become frames.",
            self._on_dimensions,
        )
        self.dimensions.setMinimumContentsLength(2)
        self.dimensions.setFixedWidth(66)
        self.dimensions.hide()
        self.gear = QToolButton(text="⚙", checkable=True, autoRaise=True)
        self.gear.setToolTip("Use a part of the layer; name the true image, where it is known.")
        super().__init__(1, "Data", self.observation, self.dimensions, self.gear)
        self.about = Line("Size of the observation, size of the result, number type.")
        self.box.addWidget(self.about)
        self.physics = MethodChooser(
            "physics", "How the observation came about.", layers=self._mask_layers
        )
        self.noise = MethodChooser(
            "noise", "The noise of the observation.", inline=True
        )
        self.truth = Picker(
            "The true image, where it is known: for figures only.", self._on_truth
        )
        measured = QLabel("measured by")
        measured.setToolTip("How the observation came about.")
        self.box.addLayout(row(measured, self.physics.list, self.physics.gear))
        self.box.addWidget(self.physics)
        self.operator = OperatorRow(viewer)
        self.operator.factor = self._factor
        self.box.addWidget(self.operator)
        self.physics.gear.toggled.connect(self._show_operator)
        noisy = QLabel("noise")
        noisy.setToolTip("The noise of the observation.")
        for label in (measured, noisy):
            label.setMinimumWidth(LABEL_WIDTH)
        noises = row(noisy, self.noise.list, self.noise.beside, self.noise.gear)
        self.box.addLayout(noises)
        self.box.addWidget(self.noise)
        self.part_row = PartRow(viewer)
        self.part_row.changed.connect(self._describe)
        self.box.insertWidget(2, self.part_row)
        self.truth_row = QWidget()
        known = QLabel("truth")
        known.setToolTip(self.truth.toolTip())
        known.setMinimumWidth(LABEL_WIDTH)
        self.truth_row.setLayout(row(known, self.truth))
        self.box.insertWidget(2, self.truth_row)
        self.truth_row.hide()
        self.gear.toggled.connect(self.truth_row.setVisible)
        self.gear.toggled.connect(self._show_part)
        self.physics.changed.connect(self._describe)
        self.physics.changed.connect(self._show_operator)
        self.noise.changed.connect(self.changed)
        self._estimate = qdebounced(self._estimate_now, timeout=150)
        self._show_operator()
        self.refresh()

    # ---- layers

    def images(self) -> list[Layer]:
        """Layers that can be an observation, a reference or a truth."""
        return images_of(self.viewer)

    def _mask_layers(self) -> list[str]:
        return [layer.name for layer in images_of(self.viewer, Labels)]

    def refresh(self) -> None:
        """The viewer's layers changed."""
        images = self.images()
        active = self.viewer.layers.selection.active
        told = by_role(images, "observation")
        wanted = told or (active.name if active in images else None)
        sources = [layer for layer in images if recipe_of(layer) is None]
        self.observation.offer([(i.name, i.name) for i in sources], wanted, keep=not told)
        truth = by_role(images, "truth")
        known = [("none", None), *((i.name, i.name) for i in sources)]
        self.truth.offer(known, truth, keep=truth is None)
        self.physics.refresh_layers()
        self._describe()

    @property
    def layer(self) -> Layer | None:
        """The chosen observation."""
        return layer_or_none(self.viewer, self.observation.currentData())

    @property
    def ndim(self) -> int:
        """Space axes in use."""
        return int(self.dimensions.currentData() or 2)

    def _on_observation(self) -> None:
        if not hasattr(self, "physics"):
            return
        layer = self.layer
        options = possible_dimensions(layer) if layer is not None else (2,)
        self.dimensions.offer([(WORDS[n], n) for n in options], options[0], keep=False)
        self.dimensions.setVisible(len(options) > 1)
        self._on_dimensions()
        told = layer.metadata.get(META) if layer is not None else None
        if isinstance(told, dict) and isinstance(told.get("physics"), dict):
            self.physics.choose(told["physics"])

    def _on_dimensions(self) -> None:
        if not hasattr(self, "physics"):
            return
        self.physics.set_dimensions(self.ndim)
        self.part_row.set_layer(self.layer, self.ndim)
        self._show_part()
        self._describe()

    def _show_part(self) -> None:
        """Large and lazy layers are worth trying on a part; others under the gear."""
        layer = self.layer
        large = layer is not None and (
            is_lazy(layer) or math.prod(space_shape(layer, self.ndim)) > LARGE
        )
        self.part_row.setVisible(large or self.gear.isChecked())

    def _on_truth(self) -> None:
        self._describe()

    def known_truth(self) -> str | None:
        """The chosen truth, where it has the shape that the result will have.

        Another operator makes another result: the truth of the one before is left out then.
        """
        truth, layer = layer_or_none(self.viewer, self.truth.currentData()), self.layer
        if truth is None or layer is None:
            return None
        grid = self._grid(layer)
        fits = (grid is None or space_shape(truth, self.ndim) == grid) and self.crop() is None
        return truth.name if fits else None

    # ---- the operator

    def _show_operator(self) -> None:
        """The estimate lies with the kernel, under the gear, where the physics has one."""
        kernel = "psf" in self.physics.method.cls.array_inputs
        self.operator.setVisible(kernel and self.physics.gear.isChecked())

    def _factor(self) -> tuple[int, ...]:
        """Image samples per data sample along each axis, as the form has them."""
        factor = self.physics.form.values().get("factor", 1)
        return (factor,) * self.ndim if isinstance(factor, int) else tuple(factor)

    def pair_recipe(self, good: str, poor: str, size: int) -> dict[str, Any]:
        """The recipe that estimates the operator; raises `InvalidInput`."""
        left_out = ("psf", "gain", "offset", "kernel_size")
        physics = {k: v for k, v in self.physics.choice().items() if k not in left_out}
        return {
            "task": "estimate_operator", "physics": physics | {"kernel_size": size},
            "references": [{"layer": good, "pair": {"layer": poor}}],
        }

    def use_operator(self, metrics: dict[str, Any], psf: str) -> None:
        """Fill in an estimated operator: kernel, brightness scale and, where offered, noise."""
        self.physics.choose(metrics["physics"] | {"psf": {"layer": psf}})
        if "sigma" in self.noise.form.editors:
            self.noise.form.set_values({"sigma": float(f"{metrics['noise_sigma']:.3g}")})
        self.operator.report(metrics)

    # ---- what is said

    def _describe(self) -> None:
        """Sizes, type and what is missing."""
        if not hasattr(self, "truth_row"):
            return
        problem = self.problem()
        layer = self.layer
        if layer is None or problem:
            self.about.say(problem, FAULT if layer is not None else "")
        else:
            self.about.say(self._sizes(layer))
        self._estimate()
        self.changed.emit()

    def used_shape(self, layer: Layer) -> tuple[int, ...]:
        """Space shape of the part of the layer that is used."""
        crop = self.crop()
        return space_shape(layer, self.ndim) if crop is None else tuple(b - a for a, b in crop)

    def is_too_large(self) -> bool:
        """Whether memory has no room for data and result at once."""
        from napari_invprior.reconstruct.tiles import BYTES_HELD

        layer = self.layer
        if layer is None:
            return False
        space, data = self.used_shape(layer), finest(layer)
        others = math.prod(data.shape) // math.prod(space_shape(layer, self.ndim))
        held = others * math.prod(space) * np.dtype(data.dtype).itemsize
        made = others * math.prod(self._grid(layer) or space)
        return held > memory_limit() or BYTES_HELD * made > free_bytes()

    def _grid(self, layer: Layer) -> tuple[int, ...] | None:
        """Shape of the result; None where only a run can tell."""
        whole = geometry_of(layer)
        geometry = subset(whole, list(range(len(whole.scale) - self.ndim, len(whole.scale))))
        found = grid_for(self.physics.choice(), self.used_shape(layer), geometry)
        return None if found is None else found[0]

    def _sizes(self, layer: Layer) -> str:
        space, grid = self.used_shape(layer), self._grid(layer)
        parts = [" × ".join(map(str, space))]
        if grid is not None and grid != space:
            parts[0] += " → " + " × ".join(map(str, grid))
        parts[0] += " px" if self.ndim == 2 else " voxels"
        parts.append(str(finest(layer).dtype))
        if getattr(layer, "rgb", False):
            parts.append("colours")
        if self.truth.currentData() is not None and self.known_truth() is None:
            parts.append("truth left out: it has another size")
        scale = layer.scale[-self.ndim :]
        if max(scale) > 1.05 * min(scale):
            parts.append("anisotropic: choose factor and blur per axis")
        return ", ".join(parts)

    def crop(self) -> list[list[int]] | None:
        """The part in use; None for all of the layer, and for a part that cannot be read."""
        try:
            return self.part_row.crop()
        except InvalidInput:
            return None

    def problem(self) -> str:
        """What is missing before this step is ready; empty when nothing is."""
        layer = self.layer
        if layer is None:
            return "Open an image, or File > Open Sample > Inverse priors."
        kind = np.dtype(finest(layer).dtype)
        if kind.kind == "c":
            return f"{layer.name!r} holds complex numbers; give its magnitude or one part."
        if kind.kind not in "buif":
            return f"{layer.name!r} holds {kind} values, which are no intensities."
        if int(np.prod(space_shape(layer, self.ndim))) <= 1:
            return f"{layer.name!r} is a single sample; open an image."
        try:
            choice = self.physics.choice()
            self.noise.choice()
            self.part_row.crop()
        except InvalidInput as error:
            return str(error)
        for field in self.physics.method.cls.array_inputs:
            if field == "mask" and not choice.get(field):
                return "Choose the layer that marks the observed samples (mask)."
        return ""

    def _estimate_now(self) -> None:
        """Show the estimated noise level in the empty field, where that is quick."""
        layer = self.layer
        if layer is None or self.noise.name != "gaussian" or self.problem():
            return
        text = "estimated"
        quick = not is_lazy(layer) and np.prod(finest(layer).shape) <= QUICK
        alike = same_units(self.physics.choice())  # otherwise the engine scales the data
        if quick and alike and self.physics.name != "inpainting":
            sigma = estimated_sigma(Snapshot.of(layer, self.ndim))
            if sigma is not None:
                text = f"≈ {sigma:.4f}"
        self.noise.form.hint("sigma", text)

    # ---- recipe

    def part(self) -> dict[str, Any]:
        """The part of the recipe that is chosen here; raises `InvalidInput`."""
        truth = self.known_truth()
        return {
            "observation": {"layer": self.observation.currentData()}
            | ({} if (crop := self.part_row.crop()) is None else {"crop": crop}),
            "truth": None if truth is None else {"layer": truth},
            "physics": self.physics.choice(),
            "noise": self.noise.choice(),
        }


def estimated_sigma(snapshot: Snapshot) -> float | None:
    """Noise level of an observation (of 0-1); None where it cannot be told."""
    import torch

    from napari_invprior.numerics.noise_level import estimate_sigma

    try:
        sigma, _ = estimate_sigma(torch.from_numpy(snapshot.image().normalised()))
    except InvalidInput:
        return None
    return sigma if np.isfinite(sigma) else None
