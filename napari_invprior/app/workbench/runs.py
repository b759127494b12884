"""From a pressed button to a job, and from its events to panels and layers."""

from __future__ import annotations

import copy
import weakref
from typing import Any, Protocol

from napari.components import ViewerModel
from napari.layers import Layer
from napari.utils.notifications import show_warning
from qtpy.QtCore import QObject, Signal

from napari_invprior.app import preferences
from napari_invprior.app.docks.jobs import JobEnd, JobRunner
from napari_invprior.app.docks.run import tell
from napari_invprior.app.viewer.layers import (
    META,
    PREVIEW,
    add_quietly,
    beside,
    free_name,
    recipe_of,
    result_layer,
)
from napari_invprior.app.viewer.request import PlacedPreview, Request, request
from napari_invprior.app.widgets.controls import FAULT, GOOD
from napari_invprior.app.widgets.words import duration, figures
from napari_invprior.app.workbench.data_panel import DataPanel
from napari_invprior.app.workbench.history import MAP, History
from napari_invprior.app.workbench.prior_panel import PriorPanel
from napari_invprior.app.workbench.reconstruct_panel import ReconstructPanel
from napari_invprior.app.workbench.reference_panel import ReferencePanel
from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Event, Message, Preview, Progress

LAST_RUN = "last_run"
"""Fact of a saved prior: the recipe it was last used for."""

TRAIN, RECONSTRUCT, PROPOSE, ESTIMATE = "train", "reconstruct", "propose", "estimate"


class Panels(Protocol):
    """The four steps of the dock."""

    data: DataPanel
    references: ReferencePanel
    prior: PriorPanel
    result: ReconstructPanel


class Runs(QObject):
    """Starts trainings and reconstructions and shows what comes of them.

    Signals
    -------
    said : str, bool
        A sentence for the line below the steps; whether it is a warning.
    changed
        The state of the jobs or the results changed.
    """

    said = Signal(str, bool)
    changed = Signal()

    def __init__(self, viewer: ViewerModel, panels: Panels, parent: QObject) -> None:
        super().__init__(parent)
        self.viewer, self.panels = viewer, panels
        self.history = History(viewer)
        self.runner = JobRunner(self, preferences.cpu_threads)
        self.runner.event.connect(self._on_event)
        self.runner.ended.connect(self._on_end)
        self.runner.state_changed.connect(lambda _: self.changed.emit())
        self.request: Request | None = None
        self.outcomes: weakref.WeakKeyDictionary[Layer, Any] = weakref.WeakKeyDictionary()
        self._preview: Layer | None = None

    # ---- start

    def recipe(self, task: str) -> dict[str, Any]:
        """The recipe that the dock shows; raises `InvalidInput`."""
        panels = self.panels
        recipe: dict[str, Any] = {"version": 1, "task": task}
        if task != TRAIN or not panels.data.problem():
            recipe |= panels.data.part()
        recipe |= panels.references.part()
        recipe |= panels.result.part()
        prior = panels.prior
        if task != RECONSTRUCT or (panels.result.needs_prior and not prior.fitted):
            recipe["prior"] = prior.chooser.choice()
        elif panels.result.needs_prior:
            recipe["prior"] = {"kind": prior.prior.name} | prior.prior.parameters.model_dump(
                mode="json", exclude_defaults=True
            )
        else:
            recipe["prior"] = None
        recipe["task"] = "fit" if task == TRAIN else task
        recipe["device"] = preferences.device()
        return recipe

    def train(self) -> None:
        """Train the prior of step 3, or continue its training."""
        panels = self.panels
        ndim = panels.data.ndim
        # a copy: results keep the prior they were made with, a failed run keeps the old one
        held = copy.deepcopy(panels.prior.prior) if panels.prior.matches(ndim) else None
        self._start(TRAIN, lambda: self.recipe(TRAIN), held)

    def reconstruct(self) -> None:
        """Reconstruct with the prior in hand."""
        needed = self.panels.result.needs_prior
        self._start(
            RECONSTRUCT, lambda: self.recipe(RECONSTRUCT),
            self.panels.prior.prior if needed else None,
        )

    def propose(self) -> None:
        """Try several priors on the reference and choose the best."""
        self._start(PROPOSE, lambda: self.recipe(PROPOSE), None)

    def estimate(self, good: str, poor: str, size: int) -> None:
        """Estimate the operator of step 1 from two layers."""
        common = {"version": 1, "device": preferences.device()}
        self._start(
            ESTIMATE, lambda: common | self.panels.data.pair_recipe(good, poor, size), None
        )

    def last_recipe(self) -> dict[str, Any] | None:
        """The run of the shown result, or the one that a loaded prior was last used for."""
        return recipe_of(self.history.shown) or self.panels.prior.facts.get(LAST_RUN)

    def again(self) -> None:
        """Repeat the run of the shown result, or the one a loaded prior remembers."""
        recipe, shown = self.last_recipe(), self.history.shown
        if recipe is None:
            self.said.emit("there is no result whose run could be repeated", True)
            return
        outcome = self.outcomes.get(shown) if shown is not None else None
        prior = outcome.prior if outcome is not None else self.panels.prior.prior
        self._start(RECONSTRUCT, lambda: dict(recipe), prior)

    def _start(self, name: str, recipe: Any, prior: Any) -> None:
        """Copy what is needed and start; say in place why not."""
        if self.runner.state != "idle":
            return
        if JobRunner.process_is_busy():
            self.said.emit("another window runs a job; wait for it or cancel it there", True)
            return
        try:
            wanted = request(self.viewer, recipe(), prior, self.panels.data.ndim)
        except InvalidInput as error:
            self._failed(name, str(error))
            return
        self.request = wanted
        if name == RECONSTRUCT:
            self.panels.result.begin()
        elif name == ESTIMATE:
            self.panels.data.operator.about.say("estimating the operator…")
        else:
            self.panels.prior.begin(anew=name == TRAIN and prior is None)
        self.panels.prior.limits = self.panels.references.normalised_limits()
        self.runner.start(name, wanted.job)

    # ---- while it runs

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Message):
            warning = event.level == "warning"
            self.said.emit(event.text, warning)
            if warning:
                show_warning(event.text)
        elif isinstance(event, Progress):
            if event.stage == "train" and self.runner.name != PROPOSE:
                self.panels.prior.progress(event)
            elif event.stage == PROPOSE:
                self.panels.prior.compare(event)
            if self.runner.name == RECONSTRUCT:
                self.panels.result.progress(event)
        elif (
            isinstance(event, Preview)
            and event.kind == "patches"
            and self.runner.name != PROPOSE
        ):
            self.panels.prior.preview(event)
        elif isinstance(event, Preview) and isinstance(event.array, PlacedPreview):
            self._show_preview(event.array)

    def _show_preview(self, preview: PlacedPreview) -> None:
        if self.request is None:
            return
        layer = result_layer(
            preview.array, preview.geometry, self.request.observation, name=PREVIEW,
            rgb=preview.rgb, metadata={META: {"role": PREVIEW}},
        ) if self._preview is None else None
        if layer is not None:
            add_quietly(self.viewer, layer)
            self._preview = layer
        elif self._preview in self.viewer.layers:
            self._preview.data = preview.array

    def _drop_preview(self) -> None:
        if self._preview is not None and self._preview in self.viewer.layers:
            self.viewer.layers.remove(self._preview)
        self._preview = None

    # ---- the end

    def _on_end(self, end: JobEnd) -> None:
        self._drop_preview()
        wanted, self.request = self.request, None
        if end.how == "failed" and end.error is not None:
            self._report(end.name, end.error)
        elif end.name == TRAIN:
            self._trained(end)
        elif end.name == PROPOSE:
            self._proposed(end)
        elif end.name == ESTIMATE:
            self._estimated(end, wanted)
        elif end.name == RECONSTRUCT and end.how == "done" and wanted is not None:
            self._reconstructed(end.value, wanted)
        elif end.name == RECONSTRUCT:
            self.panels.result.about.say("cancelled; earlier results are kept")
        elif end.how == "done":
            self.said.emit(f"{end.name} done: {end.value}", False)
        self.changed.emit()

    def _proposed(self, end: JobEnd) -> None:
        ranking = end.value.metrics["ranking"] if end.value is not None else []
        if end.how != "done" or not ranking:
            self.panels.prior.about.say("cancelled; the choice stays as it was")
            return
        best = ranking[0]
        if best["prior"] is not None:
            self.panels.prior.chooser.choose(best["prior"])
        self.panels.result.solver.choose(best["solver"])
        listed = ", ".join(f"{entry['name']} {entry['psnr']:.1f} dB" for entry in ranking)
        self.panels.prior.about.say(f"chosen: {best['name']}", GOOD)
        self.said.emit(f"on a held-out piece of the reference: {listed}", False)

    def _estimated(self, end: JobEnd, wanted: Request | None) -> None:
        """Lay the kernel beside the good image and use it."""
        data = self.panels.data
        if end.how != "done" or wanted is None:
            data.operator.about.say("cancelled; the operator stays as it was")
            return
        psf = end.value.layers[0]
        good = wanted.snapshots[wanted.recipe["references"][0]["layer"]]
        name = "psf" if "psf" not in self.viewer.layers else free_name(self.viewer, "psf")
        layer = result_layer(
            psf.array, beside(psf.geometry, psf.array.shape, good), None, name=name,
            metadata={META: dict(psf.metadata)},
        )
        add_quietly(self.viewer, layer)
        data.use_operator(end.value.metrics, layer.name)
        for sentence in wanted.changes(self.viewer):
            self.said.emit(sentence, True)

    def _trained(self, end: JobEnd) -> None:
        outcome, panel = end.value, self.panels.prior
        if outcome is None or outcome.prior is None or not outcome.prior.is_fitted:
            panel.about.say(
                "cancelled; the earlier prior is kept" if panel.fitted else
                "cancelled before anything was learnt"
            )
            return
        how = "trained" if end.how == "done" else "cancelled: best state kept, Train goes on"
        if end.how == "done":
            panel.bar.setValue(panel.bar.maximum())
        panel.hold(outcome.prior, dict(outcome.facts), f"{how} · {duration(outcome.seconds)}")

    def _reconstructed(self, outcome: Any, wanted: Request) -> None:
        if outcome is None:
            return
        maps: list[str] = []
        for output in outcome.layers:
            layer = result_layer(
                output.array, output.geometry, wanted.observation,
                name=free_name(self.viewer, output.name), rgb=output.rgb, kind=output.kind,
                unit=output.unit, metadata={META: dict(output.metadata)},
            )
            if output.role == MAP:
                maps.append(layer.name)
                self.history.add_map(layer)
            else:
                self.history.add(layer)
                self.outcomes[layer] = outcome
        panel = self.panels.result
        panel.about.say(f"{figures(outcome.metrics)} · {duration(outcome.seconds)}")
        panel.bar.setValue(panel.bar.maximum())
        if maps:
            self.said.emit(f"added below the result, hidden: {', '.join(maps)}", False)
        if outcome.metrics.get("weight"):
            panel.set_weight(outcome.metrics["weight"])
        if outcome.prior is not None and not self.panels.prior.keeps(outcome.prior):
            self.panels.prior.hold(outcome.prior, dict(outcome.facts), "trained")
        for sentence in wanted.changes(self.viewer):
            self.said.emit(sentence, True)
            show_warning(sentence)

    def _report(self, name: str, error: Exception) -> None:
        """Tell the user; what is no known fault comes with its traceback."""
        self._failed(name, str(error))
        tell(error)

    def _failed(self, name: str, text: str) -> None:
        places = {TRAIN: self.panels.prior.about, ESTIMATE: self.panels.data.operator.about}
        places.get(name, self.panels.result.about).say(text, FAULT)
        self.said.emit(text, True)
