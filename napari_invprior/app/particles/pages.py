"""What the particles dock can do, one page each: layers, options, and the recipe they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from napari.components import ViewerModel
from napari.layers import Image, Points
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QGridLayout, QLabel, QVBoxLayout, QWidget

from napari_invprior.app.viewer.layers import (
    PREVIEW,
    images_of,
    layer_or_none,
    possible_dimensions,
    recipe_of,
    role_of,
)
from napari_invprior.app.widgets.controls import MethodChooser, Picker, row
from napari_invprior.app.widgets.forms import LABEL_WIDTH, Form
from napari_invprior.parameters import Parameters
from napari_invprior.study.generated import GenerateParameters
from napari_invprior.study.point_density import PointDensityParameters
from napari_invprior.study.sameness import SamenessParameters
from napari_invprior.study.typicality import TypicalityParameters
from napari_invprior.transport.riesz_flows.density import TargetParameters
from napari_invprior.transport.riesz_flows.halftone import HalftoneParameters

IMAGES, POINTS = "images", "points"
Regions = Callable[[str], list[Any]]
"""Regions that the workbench holds on an image, by its name."""


class Page(QWidget):
    """One task of the dock.

    Attributes
    ----------
    title, verb, about : str
        Its name in the list, the word on its button, and what it does in a sentence.
    has_curve : bool
        Whether its job falls along a curve.
    """

    changed = Signal()
    title = verb = about = ""
    has_curve = False

    def __init__(self, viewer: ViewerModel, regions: Regions = lambda _: []) -> None:
        super().__init__()
        self.viewer, self.regions = viewer, regions
        self.pickers: dict[str, tuple[Picker, tuple[str, ...], str | None]] = {}
        self.forms: list[Form] = []
        self._labels: list[QLabel] = []
        self.box = QVBoxLayout(self)
        self.box.setContentsMargins(0, 0, 0, 0)
        self.box.setSpacing(3)
        self._grid = QGridLayout()
        self._grid.setHorizontalSpacing(4)
        self._grid.setVerticalSpacing(2)
        self._grid.setColumnStretch(1, 1)
        self.box.addLayout(self._grid)
        self.fill()
        self.box.addStretch(1)
        self.refresh()

    def fill(self) -> None:
        """Lay out pickers and forms."""

    def missing(self) -> str:
        """Why it cannot run; empty when it can."""
        return ""

    def recipe(self) -> dict[str, Any]:
        """The recipe of the choices; raises `InvalidInput`."""
        raise NotImplementedError

    def sentence(self, metrics: dict[str, Any]) -> str:
        """What came out, in words."""
        raise NotImplementedError

    # ---- pieces

    def _picker(self, key: str, label: str, tip: str, kinds: Sequence[str],
                none: str | None = None) -> None:
        """A list of layers; ``none`` are the words for no layer, where that is allowed."""
        picker = Picker(tip, self._on_picker)
        line = self._grid.rowCount()
        self._grid.addWidget(self._label(label, tip), line, 0)
        self._grid.addWidget(picker, line, 1)
        self.pickers[key] = (picker, tuple(kinds), none)

    def _label(self, label: str, tip: str) -> QLabel:
        text = QLabel(label)
        text.setToolTip(tip)
        self._labels.append(text)
        return text

    def _align(self) -> None:
        """Let all controls of the page begin in one column."""
        forms = self.findChildren(Form)
        width = max([LABEL_WIDTH, *(form.label_width for form in forms)])
        for form in forms:
            form.align(width)
        for label in self._labels:
            label.setMinimumWidth(width)

    def showEvent(self, event: Any) -> None:  # noqa: N802
        """Only now, because the window's style pads labels."""
        super().showEvent(event)
        self._align()

    def _form(self, model: type[Parameters], **options: Any) -> Form:
        """A form that changes the recipe."""
        form = Form(model, **options)
        form.changed.connect(self.changed)
        self.forms.append(form)
        self.box.addWidget(form)
        return form

    @property
    def has_advanced(self) -> bool:
        """Whether there are options that are seldom needed."""
        return any(form.has_advanced for form in self.forms)

    def show_advanced(self, shown: bool) -> None:
        """Show or hide them."""
        for form in self.forms:
            form.show_advanced(shown)

    def refresh(self) -> None:
        """The viewer's layers changed."""
        sources = images_of(self.viewer)
        found = {
            IMAGES: [layer.name for layer in sources],
            POINTS: [layer.name for layer in self.viewer.layers
                     if isinstance(layer, Points) and role_of(layer) != PREVIEW],
        }
        originals = [layer.name for layer in sources if recipe_of(layer) is None]
        used: list[str] = []
        for picker, kinds, none in self.pickers.values():
            names = [name for kind in kinds for name in found[kind]]
            entries = [(name, name) for name in names]
            if none is not None:
                entries.append((none, None))
            likely = [n for n in names if n not in used and (n in originals or n in found[POINTS])]
            wanted = None if none is not None and kinds == (POINTS,) else next(iter(likely), None)
            picker.offer(entries, wanted, keep=False)
            if picker.currentData() is not None:
                used.append(picker.currentData())
        self._on_picker()

    def _on_picker(self) -> None:
        image = next(iter(self.chosen_images()), None)
        if image is not None:
            self.set_dimensions(min(3, possible_dimensions(image)[0]))
        self.changed.emit()

    def set_dimensions(self, ndim: int) -> None:
        """Data of so many axes were chosen."""

    def choice(self, key: str) -> str | None:
        """Name of the chosen layer."""
        name = self.pickers[key][0].currentData()
        return None if name is None else str(name)

    def chosen_images(self) -> list[Image]:
        """The images among the chosen layers."""
        names = [self.choice(key) for key in self.pickers]
        return [layer for layer in self.viewer.layers
                if isinstance(layer, Image) and layer.name in names]

    def is_image(self, name: str | None) -> bool:
        """Whether the layer of that name is an image."""
        return any(image.name == name for image in images_of(self.viewer))

    def emptiness(self, key: str) -> str:
        """That the chosen layer of points holds none; empty when all is well."""
        layer = layer_or_none(self.viewer, self.choice(key))
        if isinstance(layer, Points) and not len(layer.data):
            return f"{layer.name!r} is empty: click some points into it."
        return ""

    def reference(self, key: str) -> dict[str, Any]:
        """A reference with the regions that the workbench holds on it."""
        name = self.choice(key) or ""
        regions = self.regions(name)
        return {"layer": name} | ({"regions": regions} if regions else {})


def _need_image(page: Page, key: str, what: str) -> str:
    return "" if page.choice(key) else f"Open {what} first."


class FlowPage(Page):
    """Particles flow to an image or to points."""

    title, verb = "Let particles flow", "Flow"
    has_curve = True
    about = "Particles are drawn to the target and push each other away; a movie comes out."

    def fill(self) -> None:
        self._picker("target", "target", "Where particles are drawn to: an image, whose dark or "
                     "bright places count, or points.", (IMAGES, POINTS),
                     "nothing: repulsion alone")
        self._picker("start", "start", "Where particles begin: points of a Points layer, each "
                     "repeated equally often.", (POINTS,), "one point in the middle")
        self.target = self._form(TargetParameters)
        self.scheme = MethodChooser("flow", "How particles move.")
        self.scheme.propose("particle")
        self.scheme.changed.connect(self.changed)
        self.scheme.list.currentIndexChanged.connect(lambda _: self._align())
        self.box.addLayout(row(self._label("scheme", "How particles move."), self.scheme.list))
        self.box.addWidget(self.scheme)

    def show_advanced(self, shown: bool) -> None:
        super().show_advanced(shown)
        self.scheme.gear.setChecked(shown)

    def _on_picker(self) -> None:
        super()._on_picker()
        if hasattr(self, "target"):
            self.target.setEnabled(self.is_image(self.choice("target")))

    def missing(self) -> str:
        if self.choice("start") is not None and self.choice("start") == self.choice("target"):
            return "Start and target are one layer: choose another start."
        return self.emptiness("start") or self.emptiness("target")

    def recipe(self) -> dict[str, Any]:
        found: dict[str, Any] = {"task": "particles", "flow": self.scheme.choice()}
        target, start = self.choice("target"), self.choice("start")
        if self.is_image(target):
            found |= {"observation": {"layer": target}, "target": self.target.chosen()}
        elif target is not None:
            found["target_points"] = {"layer": target}
        if start is not None:
            found["points"] = {"layer": start}
        return found

    def sentence(self, metrics: dict[str, Any]) -> str:
        beside = metrics.get("discrepancy_of_random_points")
        text = f"{metrics['particles']} particles, {metrics['frames']} frames"
        random = "" if beside is None else f" (random points {beside:.3g})"
        return f"{text} · discrepancy {metrics['discrepancy']:.3g}{random}"


class HalftonePage(Page):
    """An image in dots."""

    title, verb = "Halftone an image", "Place dots"
    has_curve = True
    about = "Dots of one size say the image: as many everywhere as it is dark, at even distances."

    def fill(self) -> None:
        self._picker("image", "image", "The image that the dots say.", (IMAGES,))
        self.target = self._form(TargetParameters, leave_out=("blur", "background"))
        self.dots = self._form(HalftoneParameters)

    def missing(self) -> str:
        return _need_image(self, "image", "an image")

    def recipe(self) -> dict[str, Any]:
        # wide blurs lead particles on a long way; dots begin where they belong
        target = {"background": 0.0} | self.target.chosen()
        return {"task": "halftone", "observation": {"layer": self.choice("image")},
                "target": target, "halftone": self.dots.chosen()}

    def sentence(self, metrics: dict[str, Any]) -> str:
        return (f"{metrics['dots']} dots · seen from afar {metrics['psnr']:.1f} dB (random dots "
                f"{metrics['baselines']['random dots']:.1f})")


class DensityPage(Page):
    """How many points there are per pixel."""

    title, verb = "Map the density of points", "Map density"
    about = "The number of points per pixel, as a smooth map."

    def fill(self) -> None:
        self._picker("points", "points", "The points that are counted.", (POINTS,))
        self._picker("image", "grid of", "The image whose pixels the map has.", (IMAGES,),
                     "a grid of its own")
        self.kernel = self._form(PointDensityParameters)

    def missing(self) -> str:
        if self.choice("points") is None:
            return "Add a Points layer first."
        return self.emptiness("points")

    def recipe(self) -> dict[str, Any]:
        found = {"task": "density", "points": {"layer": self.choice("points")},
                 "density": self.kernel.chosen()}
        image = self.choice("image")
        return found | ({"observation": {"layer": image}} if image else {})

    def sentence(self, metrics: dict[str, Any]) -> str:
        return (f"{metrics['points']} points, kernel of {metrics['scale']:.3g} px · at most "
                f"{metrics['highest']:.3g} per pixel")


class TypicalityPage(Page):
    """How typical each place is."""

    title, verb = "Map typical places", "Map"
    about = ("The log density of each pixel's neighbourhood among patches of the reference: low "
             "where nothing there looks like it.")

    def fill(self) -> None:
        self._picker("image", "image", "The image whose places are judged.", (IMAGES,))
        self._picker("reference", "reference", "The image that shows what is typical. Regions "
                     "that the workbench holds on it are used.", (IMAGES,))
        self.options = self._form(TypicalityParameters)

    def missing(self) -> str:
        return _need_image(self, "image", "an image and a reference")

    def recipe(self) -> dict[str, Any]:
        return {"task": "typicality", "observation": {"layer": self.choice("image")},
                "references": [self.reference("reference")], "typicality": self.options.chosen()}

    def sentence(self, metrics: dict[str, Any]) -> str:
        return (f"mean log density {metrics['mean_typicality']:.3g}; of held-out patches of the "
                f"reference {metrics['mean_typicality_of_references']:.3g}"
                + (f" · error about {100 * metrics['estimated_error']:.1g} %"
                   if metrics["estimated_error"] else ""))


class ComparePage(Page):
    """Do two layers differ?"""

    title, verb = "Compare two layers", "Compare"
    about = "Tests whether patches of two images, or two sets of points, come from one source."

    def fill(self) -> None:
        tip = "An image or a layer of points; both must be of one kind."
        self._picker("first", "first", tip, (IMAGES, POINTS))
        self._picker("second", "second", tip, (IMAGES, POINTS))
        self.options = self._form(SamenessParameters)

    def missing(self) -> str:
        first, second = self.choice("first"), self.choice("second")
        if first is None or first == second:
            return "Choose two different layers."
        if self.is_image(first) != self.is_image(second):
            return "Choose two images, or two layers of points."
        return ""

    def recipe(self) -> dict[str, Any]:
        found: dict[str, Any] = {"task": "two_sample", "two_sample": self.options.chosen()}
        if self.is_image(self.choice("first")):
            return found | {"references": [self.reference("first"), self.reference("second")]}
        return found | {"points": {"layer": self.choice("first")},
                        "target_points": {"layer": self.choice("second")}}

    def sentence(self, metrics: dict[str, Any]) -> str:
        return verdict(metrics["p_value"])


def verdict(p: float) -> str:
    """The p-value in words that claim no more than it says.

    Examples
    --------
    >>> verdict(0.004), verdict(0.3)
    ('p = 0.004: they differ', 'p = 0.3: no difference found')
    """
    if p <= 0.01:
        return f"p = {p:.2g}: they differ"
    if p <= 0.05:
        return f"p = {p:.2g}: a sign that they differ, no proof"
    return f"p = {p:.2g}: no difference found"


class TexturePage(Page):
    """New patches and textures."""

    title, verb = "Make patches and textures", "Generate"
    has_curve = True
    about = "New patches, as a stack, and a texture that look like the reference."

    def fill(self) -> None:
        self._picker("reference", "reference", "The image to learn from. Regions that the "
                     "workbench holds on it are used.", (IMAGES,))
        self.options = self._form(
            GenerateParameters, leave_out=("train_networks", "network", "networks",
                                           "network_steps"),
        )
        self.options.set_values({"patches": 64, "texture": 128, "patch_size": 16,
                                 "particles": 1000, "steps": 200})

    def missing(self) -> str:
        return _need_image(self, "reference", "a reference image")

    def recipe(self) -> dict[str, Any]:
        return {"task": "generate", "references": [self.reference("reference")],
                "generate": self.options.chosen()}

    def sentence(self, metrics: dict[str, Any]) -> str:
        if "distance_generated" not in metrics:
            return "done"
        return (f"distance to held-out patches: generated {metrics['distance_generated']:.3g}, "
                f"real {metrics['distance_real']:.3g}")


PAGES = (FlowPage, HalftonePage, DensityPage, TypicalityPage, ComparePage, TexturePage)

