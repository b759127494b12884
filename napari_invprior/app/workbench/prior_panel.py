"""Step 3: the prior, its training, its curve and what it generates."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QProgressBar, QSizePolicy

from napari_invprior.app.widgets.controls import (
    FAULT,
    GOOD,
    Line,
    MethodChooser,
    Section,
    push,
    row,
)
from napari_invprior.app.widgets.gallery import PatchGallery
from napari_invprior.app.widgets.loss_plot import LossPlot
from napari_invprior.app.widgets.words import clock
from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Preview, Progress

OTHER_VALUES = "; not with the values above: Train begins anew"


@dataclass(frozen=True)
class Held:
    """A trained or loaded prior, what is known of it, and how it came here."""

    prior: Any
    facts: dict[str, Any]
    text: str


@dataclass
class Pictures:
    """What was shown of a training."""

    losses: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    patches: np.ndarray | None = None


class PriorPanel(Section):
    """Chooses a prior; Train, Pause and Cancel; loss curve beside generated patches.

    One trained prior of each kind is kept with its pictures, so that to look at another kind
    loses nothing, and the prior in hand is always of the kind that the list shows.
    """

    changed = Signal()
    train_clicked = Signal()
    pause_clicked = Signal()
    cancel_clicked = Signal()
    save_clicked = Signal()
    load_clicked = Signal()
    suggest_clicked = Signal()

    def __init__(self) -> None:
        self.chooser = MethodChooser("prior", "What images look like.")
        super().__init__(3, "Prior", self.chooser.list, self.chooser.gear)
        self.box.addWidget(self.chooser)
        self.train = push("Train", "Learn from the regions of step 2; continues a prior that was "
                          "trained before. (Alt+T)", self.train_clicked.emit)
        self.pause = push("Pause", "Hold the training; press again to go on.",
                          self.pause_clicked.emit, checkable=True)
        self.cancel = push("Cancel", "Stop; what was learnt so far is kept.",
                           self.cancel_clicked.emit)
        self.restart = push("New", "Forget what was learnt and begin anew with the next Train.",
                            self.forget)
        self.save = push("Save…", "Save the trained prior as a .safetensors file.",
                         self.save_clicked.emit)
        self.suggest = push(
            "Suggest", "Try several priors on a held-out piece of the reference and choose the "
            "best; takes a minute.", self.suggest_clicked.emit,
        )
        self.load = push("Load…", "Load a prior that was saved before.", self.load_clicked.emit)
        self.box.addLayout(
            row(self.train, self.pause, self.cancel, 1, self.suggest, self.restart, self.save,
                self.load, spacing=3)
        )
        self.bar = progress_bar("How far the training is.")
        self.about = Line("State of the prior; time used and time left.")
        self.box.addWidget(self.bar)
        self.box.addWidget(self.about)
        self.plot = LossPlot(94)
        self.gallery = PatchGallery("", "appear while it trains", 94)
        pictures = row(self.plot, self.gallery, spacing=6)
        pictures.setStretch(0, 1)
        pictures.setStretch(1, 1)
        self.box.addLayout(pictures)
        self._held: dict[tuple[str, int], Held] = {}
        self._pictures: dict[tuple[str, int], Pictures] = {}
        self._shown = self._key
        self.limits: tuple[float, float] | None = None
        self.chooser.changed.connect(self._on_choice)
        self._show_what_it_learns()

    # ---- the prior in hand

    @property
    def _key(self) -> tuple[str, int]:
        return self.chooser.name, self.chooser.ndim

    @property
    def prior(self) -> Any:
        """The prior in hand; None when none of the chosen kind was trained or loaded."""
        held = self._held.get(self._key)
        return None if held is None else held.prior

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of the prior in hand."""
        held = self._held.get(self._key)
        return {} if held is None else held.facts

    @property
    def fitted(self) -> bool:
        """Whether there is a prior to reconstruct with."""
        return self.prior is not None and bool(self.prior.is_fitted)

    def keeps(self, prior: Any) -> bool:
        """Whether a trained prior of the same kind is here already."""
        held = self._held.get((prior.name, prior.ndim))
        return held is not None and bool(held.prior.is_fitted)

    def hold(self, prior: Any, facts: dict[str, Any], text: str) -> None:
        """Keep a trained or loaded prior."""
        self._held[prior.name, prior.ndim] = Held(prior, facts, text)
        self._describe()
        self.changed.emit()

    @property
    def learns(self) -> bool:
        """Whether the chosen prior must be trained."""
        return bool(self.chooser.method.needs_references)

    def _ready_made(self) -> None:
        """A prior that learns nothing is in hand as soon as it is chosen."""
        if self.learns or self.matches(self.chooser.ndim):
            return
        with contextlib.suppress(InvalidInput):  # a form with a fault
            made = self.chooser.method.cls(self.chooser.form.value(), ndim=self.chooser.ndim)
            self._held[self._key] = Held(made, {}, "learns nothing: ready to use")

    def _describe(self) -> None:
        """Say what is in hand; without a prior the workbench says what is missing."""
        held = self._held.get(self._key)
        if held is None:
            self.about.say("")
            return
        other = "" if self.matches(self.chooser.ndim) else OTHER_VALUES
        self.about.say(held.text + other, GOOD if self.fitted else "")

    def forget(self) -> None:
        """Drop the prior in hand and its pictures."""
        self._held.pop(self._key, None)
        self._ready_made()
        self._pictures.pop(self._key, None)
        self._show_pictures()
        self._describe()
        self.changed.emit()

    @property
    def _shown_pictures(self) -> Pictures:
        return self._pictures.setdefault(self._key, Pictures())

    def _show_pictures(self) -> None:
        self.plot.clear()
        for step, losses in self._shown_pictures.losses:
            self.plot.add(step, losses)
        self.gallery.show_patches(self._shown_pictures.patches, self.limits)

    def matches(self, ndim: int) -> bool:
        """Whether the prior in hand is what the form asks for, so that Train continues it."""
        if self.prior is None or self.prior.name != self.chooser.name or self.prior.ndim != ndim:
            return False
        try:
            return bool(self.prior.parameters == self.chooser.form.value())
        except InvalidInput:
            return False

    def _on_choice(self) -> None:
        self._ready_made()
        if self._shown != self._key:
            self._shown = self._key
            self._show_pictures()
            self.bar.setValue(0)
            self._show_what_it_learns()
        self._describe()
        self.changed.emit()

    def _show_what_it_learns(self) -> None:
        cls: Any = self.chooser.method.cls
        self.gallery.set_title(cls.previews)
        self.plot.setVisible(cls.optimises)

    def patch(self, ndim: int, channels: int = 1) -> tuple[int, ...] | None:
        """Patch edges of the chosen prior, () for none; None while its form is faulty."""
        try:
            parameters = self.chooser.form.value()
            made = self.chooser.method.cls(parameters, ndim=ndim, channels=channels)
            return tuple(getattr(made, "patch", ()))
        except InvalidInput:
            return None

    # ---- a running training

    def begin(self, *, anew: bool) -> None:
        """A training starts."""
        if anew:
            self._pictures.pop(self._key, None)
            self._show_pictures()
        self.bar.setValue(0)
        self.about.say("preparing…")

    def progress(self, event: Progress) -> None:
        """Show how far it is."""
        show_progress(self.bar, event)
        self.about.say(f"step {event.step} of {event.total} · {clock(event)}")
        losses = dict(event.losses)
        self._shown_pictures.losses.append((event.step, losses))
        self.plot.add(event.step, losses)

    def compare(self, event: Progress) -> None:
        """Show how far the comparison of priors is."""
        show_progress(self.bar, event)
        self.about.say(f"trying prior {min(event.step + 1, event.total)} of {event.total}")

    def preview(self, event: Preview) -> None:
        """Show generated patches with the contrast of the real ones."""
        self._shown_pictures.patches = event.array
        self.gallery.show_patches(event.array, self.limits)

    def fail(self, text: str) -> None:
        """The training failed; an earlier prior stays."""
        self.about.say(text, FAULT)


def progress_bar(tooltip: str) -> QProgressBar:
    """A thin bar that is always there."""
    bar = QProgressBar()
    bar.setToolTip(tooltip)
    bar.setTextVisible(False)
    bar.setFixedHeight(6)
    bar.setRange(0, 1000)
    bar.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return bar


def show_progress(bar: QProgressBar, event: Progress) -> None:
    """Set the bar to the share of the steps that is done."""
    bar.setValue(int(1000 * event.step / max(1, event.total)))
