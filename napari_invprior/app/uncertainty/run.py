"""From the workbench's problem to a sampling job, and from its events to layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Layer
from qtpy.QtCore import QObject, Signal

from napari_invprior.app.docks.jobs import JobEnd, JobRunner
from napari_invprior.app.docks.run import DockRun
from napari_invprior.app.viewer.layers import (
    META,
    add_quietly,
    finest,
    heat,
    recipe_of,
    result_layer,
)
from napari_invprior.app.viewer.request import PlacedPreview, Request, request
from napari_invprior.app.workbench.dock import Workbench
from napari_invprior.app.workbench.history import UNCERTAINTY
from napari_invprior.app.workbench.runs import RECONSTRUCT
from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Event, Job, Preview, Result, ShouldStop

SAMPLE, EXCEED = "sample", "exceedance"
ROLE = {META: {"role": UNCERTAINTY}}


def plan(
    bench: Workbench, sampler: dict[str, Any], *, from_result: bool, threshold: float | None
) -> dict[str, Any]:
    """The recipe that samples the workbench's problem; raises `InvalidInput`.

    Parameters
    ----------
    sampler : dict
        The entry of the recipe.
    from_result : bool
        Begin at the result that the workbench shows, where it belongs to the same data.
    threshold : float or None
        Value whose exceedance is wanted.
    """
    recipe = bench.runs.recipe(RECONSTRUCT)
    recipe.pop("maps", None)
    if recipe["prior"] is None:
        held = bench.prior.prior
        if held is None or not held.is_fitted:
            raise InvalidInput("samples need a prior: train one in step 3 of the workbench")
        recipe["prior"] = {"kind": held.name} | held.parameters.model_dump(
            mode="json", exclude_defaults=True
        )
    shown = bench.runs.history.shown
    made_by = recipe_of(shown) or {}
    same = all(made_by.get(key) == recipe.get(key) for key in ("observation", "physics"))
    if from_result and shown is not None and same:
        recipe["initial"] = {"layer": shown.name}
    if threshold is not None:
        recipe["threshold"] = threshold
    return recipe | {"task": "sample", "sampler": sampler}


class SamplingRun(DockRun):
    """Runs one sampling at a time; its layers are there from the first states on.

    Signals
    -------
    exceeded
        The layer above a threshold is there; besides those of `DockRun`.
    """

    exceeded = Signal()

    def __init__(self, viewer: ViewerModel, parent: QObject) -> None:
        super().__init__(viewer, parent)
        self.outcome: Any = None
        self.wanted_view = "mean"
        self._layers: dict[str, Layer] = {}
        self._request: Request | None = None
        self._number = 0
        self._truth: str | None = None

    def layer(self, kind: str) -> Layer | None:
        """The layer of the last run called ``mean``, ``std``, ``samples``, ..., if it is there."""
        found = self._layers.get(kind)
        return found if found is not None and found in self.viewer.layers else None

    @property
    def kinds(self) -> list[str]:
        """What the last run left in the viewer."""
        return [kind for kind in self._layers if self.layer(kind) is not None]

    def known(self, kind: str) -> Layer | None:
        """The layer of the truth or of the start image, where one is known."""
        name = self._truth
        if kind == "start" and self._request is None and self.outcome is not None:
            source = self.outcome.recipe.initial
            name = source.layer if source is not None else None
            if name is None:
                return self.layer("reconstruction")
        return next((layer for layer in self.viewer.layers if layer.name == name), None)

    # ---- run

    def start(self, bench: Workbench, recipe: dict[str, Any]) -> bool:
        """Start; False (and a sentence) when another job runs. Raises `InvalidInput`."""
        if not self._may_start():
            return False
        prior = bench.prior.prior
        self._request = request(self.viewer, recipe, prior, bench.data.ndim)
        self._number = self._free_number()
        self._layers, self.outcome = {}, None
        self._truth = bench.data.known_truth()
        return self.runner.start(SAMPLE, self._request.job)

    def _free_number(self) -> int:
        """The first number that no layer of ours has."""
        number = 1
        while any(f"{stem} {number}" in self.viewer.layers for stem in ("mean", "std", "samples")):
            number += 1
        return number

    def exceed(self, threshold: float) -> bool:
        """Add the share of the samples above a value as a layer, without sampling again."""
        stack = self.layer("samples")
        if stack is None or JobRunner.process_is_busy():
            return False
        data = finest(stack)

        def job(_: ShouldStop) -> Job:
            from napari_invprior.posterior.calibration import exceedance

            rows = max(1, len(data[0]) // 8)
            parts = [slice(a, min(a + rows, len(data[0]))) for a in range(0, len(data[0]), rows)]
            slabs = ((part, np.asarray(data[:, part])[:, None, None]) for part in parts)
            yield Result((threshold, exceedance(slabs, threshold, (1, 1, *data.shape[1:]))[0, 0]))

        return self.runner.start(EXCEED, job)

    # ---- while it runs

    def _on_event(self, event: Event) -> None:
        super()._on_event(event)
        if isinstance(event, Preview) and event.kind == "posterior":
            for kind, preview in zip(("mean", "std"), event.array, strict=True):
                self._refine(kind, preview)

    def _refine(self, kind: str, preview: PlacedPreview) -> None:
        """Show an intermediate image in the layer that will hold the last one."""
        layer = self.layer(kind)
        unit = "image" if kind == "mean" else "difference"
        if kind == "std" and preview.rgb:
            return  # one map for all colours comes with the result
        if layer is None:
            assert self._request is not None
            self._add(kind, result_layer(
                preview.array, preview.geometry, self._request.observation, unit=unit,
                name=f"{kind} {self._number}", rgb=preview.rgb, metadata=dict(ROLE),
            ))
        else:
            layer.data = preview.array
            if unit == "difference":
                _stretch(layer)

    def _add(self, kind: str, layer: Layer) -> None:
        layer.visible = kind == self.wanted_view
        add_quietly(self.viewer, layer)
        self._layers[kind] = layer
        self.changed.emit()

    # ---- the end

    def _on_end(self, end: JobEnd) -> None:
        wanted, self._request = self._request, None
        if end.name == EXCEED:
            self._exceeded(end)
            return
        self._tell_fault(end)
        if end.value is not None and wanted is not None:
            self._keep(end.value, wanted)
        elif wanted is not None:
            for kind in self.kinds:  # nothing final came: what is half done is no result
                self.viewer.layers.remove(self._layers[kind])
            self._layers = {}
        self._close(end)

    def _exceeded(self, end: JobEnd) -> None:
        stack = self.layer("samples")
        if end.how != "done" or stack is None:
            return
        threshold, share = end.value
        old, mean = self.layer("exceedance"), self.layer("mean")
        name = f"exceedance {self._number}"
        if old is not None:
            self.viewer.layers.remove(old)
        layer = stack.__class__(
            share, name=name, scale=stack.scale[1:], translate=stack.translate[1:],
            units=stack.units[1:], colormap="inferno", contrast_limits=(0, 1),
            metadata={META: dict((mean or stack).metadata[META]) | {"threshold": threshold}},
        )
        self._add("exceedance", layer)
        self.exceeded.emit()

    def _keep(self, outcome: Any, wanted: Request) -> None:
        """Final arrays in the layers that are there, the others new and hidden."""
        self.outcome = outcome
        for output in outcome.layers:
            facts = {META: dict(output.metadata) | {"role": UNCERTAINTY}}
            there = self.layer(output.name)
            if there is not None and there.data.shape == output.array.shape:
                there.data, there.metadata = output.array, facts
                if output.unit == "difference":
                    _stretch(there)
                continue
            layer = result_layer(
                output.array, output.geometry, wanted.observation, rgb=output.rgb,
                name=f"{output.name} {self._number}", unit=output.unit, metadata=facts,
            )
            if output.name == "exceedance":
                layer.contrast_limits = (0, 1)
            self._add(output.name, layer)
        for sentence in wanted.changes(self.viewer):
            self.said.emit(sentence, True)


def _stretch(layer: Layer) -> None:
    """Contrast of a map that changes while it is refined."""
    layer.contrast_limits = heat(np.asarray(layer.data))["contrast_limits"]
