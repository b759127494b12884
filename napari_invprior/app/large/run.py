"""From the workbench's problem to a job in blocks, and from its events to layers that fill in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Layer
from qtpy.QtCore import QObject, QTimer, Signal

from napari_invprior.app import preferences
from napari_invprior.app.docks.jobs import JobEnd
from napari_invprior.app.docks.run import DockRun
from napari_invprior.app.viewer.layers import (
    META,
    add_quietly,
    free_name,
    layer_named,
    result_layer,
)
from napari_invprior.app.viewer.origin import file_behind
from napari_invprior.app.viewer.request import named_layers, request
from napari_invprior.app.workbench.dock import Workbench
from napari_invprior.app.workbench.history import MAP
from napari_invprior.app.workbench.runs import RECONSTRUCT
from napari_invprior.jobs import Blocks, Event, Job, Planned, ShouldStop

REFRESH = 700
"""Milliseconds between two looks at what blocks have written."""


def plan(bench: Workbench, blocks: dict[str, Any]) -> dict[str, Any]:
    """The recipe that reconstructs the workbench's data in blocks; raises `InvalidInput`."""
    recipe = bench.runs.recipe(RECONSTRUCT)
    recipe["truth"] = None
    return recipe | {"blocks": blocks}


class LargeRun(DockRun):
    """Runs one job in blocks; its result is a layer from the first block on.

    Signals
    -------
    planned : Planned
        The job has a plan; its layers are there.
    blocks : Blocks
        Blocks began or ended; besides those of `DockRun`.
    """

    planned = Signal(object)
    blocks = Signal(object)

    def __init__(self, viewer: ViewerModel, parent: QObject) -> None:
        super().__init__(viewer, parent)
        self.layers: dict[str, Layer] = {}
        self.folder: Path | None = None
        self.metrics: dict[str, Any] = {}
        self._source: Any = None
        self._stale = False
        self._timer = QTimer(self)
        self._timer.setInterval(REFRESH)
        self._timer.timeout.connect(self._refresh)

    # ---- start

    def start(
        self, bench: Workbench, recipe: dict[str, Any], folder: Path, workers: dict[str, Any]
    ) -> bool:
        """Start; False (and a sentence) when another job runs. Raises `InvalidInput`.

        Parameters
        ----------
        workers : dict
            Arguments of `make_pool`.
        """
        if not self._may_start():
            return False
        layers = {name: layer_named(self.viewer, name) for name in named_layers(recipe)}
        wanted = request(self.viewer, recipe, bench.prior.prior, bench.data.ndim)
        files = {name: file_behind(layer, bench.data.ndim) for name, layer in layers.items()}
        self._source = wanted.observation

        def job(should_stop: ShouldStop) -> Job:
            from napari_invprior.blocks.job import start

            arrays = {
                name: snapshot.raw() if snapshot.is_lazy else snapshot.image()
                for name, snapshot in wanted.snapshots.items()
            }
            prior = wanted.prior if wanted.recipe.get("prior") is not None else None
            return start(
                _with_files(wanted.recipe, files), folder, arrays=arrays, prior=prior,
                pool=make_pool(**workers), should_stop=should_stop,
            )

        return self._begin_job(folder, job)

    def resume(self, folder: Path, workers: dict[str, Any]) -> bool:
        """Go on with a job."""
        if not self._may_start():
            return False
        self._source = None

        def job(should_stop: ShouldStop) -> Job:
            from napari_invprior.blocks.job import resume

            return resume(folder, pool=make_pool(**workers), should_stop=should_stop)

        return self._begin_job(folder, job)

    def _begin_job(self, folder: Path, job: Any) -> bool:
        self.folder, self.layers = folder, {}
        return self.runner.start("blocks", job)

    # ---- while it runs

    def _on_event(self, event: Event) -> None:
        super()._on_event(event)
        if isinstance(event, Planned):
            self._show(event)
            self._timer.start()
            self.planned.emit(event)
        elif isinstance(event, Blocks):
            self._stale |= event.state == "done"
            self.blocks.emit(event)

    def _show(self, event: Planned) -> None:
        """Add the growing images as layers, the result in front."""
        for image in reversed(event.plan.images(event.folder)):
            output = image.output
            levels = image.levels
            earlier = self._earlier(event.plan.id, output.name)
            if earlier is not None:
                _exchange(earlier, levels)
                self.layers[output.name] = earlier
                continue
            layer = result_layer(
                levels if len(levels) > 1 else levels[0], event.plan.placement, self._source,
                name=free_name(self.viewer, output.name), kind=output.kind, unit=output.unit,
                metadata={META: event.plan.attributes | {"output": output.name}},
                limits=event.plan.scale,
            )
            if output.role == MAP:
                layer.metadata[META]["role"] = MAP
                layer.visible = False
            add_quietly(self.viewer, layer)
            self.layers[output.name] = layer

    def _earlier(self, job: str, name: str) -> Layer | None:
        """The layer that an earlier run of the same job has made of an image."""
        for layer in self.viewer.layers:
            facts = layer.metadata.get(META)
            known = facts if isinstance(facts, dict) else {}
            if known.get("output") == name and known.get("blocks", {}).get("job") == job:
                return layer
        return None

    def _refresh(self) -> None:
        """Read again what is on show."""
        if self._stale:
            self._stale = False
            for layer in self.layers.values():
                if layer in self.viewer.layers and layer.visible:
                    layer.refresh()

    # ---- the end

    def _on_end(self, end: JobEnd) -> None:
        self._timer.stop()
        self._refresh()
        self._tell_fault(end)
        if end.how == "done" and end.value is not None:
            self.metrics = end.value.metrics
            for image in end.value.detail.plan.images(end.value.detail.folder):
                layer = self.layers.get(image.output.name)
                if layer is not None and layer in self.viewer.layers:
                    # the group lies elsewhere now, and has all of its levels
                    _exchange(layer, image.levels)
        self._close(end)

    def look_at(self, event: Planned, index: int) -> None:
        """Move the view to a block."""
        block = event.plan.grid.block(index)
        layer = next(iter(self.layers.values()), None)
        if layer is None or layer not in self.viewer.layers:
            return
        middle = [(t.start + t.stop) / 2 for t in block.target]
        place = np.zeros(layer.ndim)
        place[-len(middle) :] = middle
        if event.plan.frames > 1:
            place[0] = block.frame
        world = np.asarray(layer.data_to_world(place))
        self.viewer.dims.set_point(range(self.viewer.dims.ndim)[-len(world) :], list(world))
        shown = [axis - self.viewer.dims.ndim + len(world) for axis in self.viewer.dims.displayed]
        camera = self.viewer.scene.camera
        centre = list(camera.center)
        centre[-len(shown) :] = [world[axis] for axis in shown]
        camera.center = tuple(centre)


def _exchange(layer: Layer, levels: list[Any]) -> None:
    """Give a layer the finished arrays."""
    layer.data = levels if layer.multiscale else levels[0]


def _with_files(recipe: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
    """The recipe with files in place of layers that are files."""

    def exchanged(node: Any) -> Any:
        if isinstance(node, dict):
            found = {key: exchanged(value) for key, value in node.items()}
            behind = files.get(found.get("layer"))  # type: ignore[arg-type]
            if behind is not None:
                found.pop("layer")
                found |= behind
            return found
        return [exchanged(value) for value in node] if isinstance(node, list | tuple) else node

    changed: dict[str, Any] = exchanged(recipe)
    return changed


def make_pool(workers: int = 0, cluster: str = "", gpu: bool = False) -> Any:
    """What makes the pool of a job, from the dock's choices."""
    from napari_invprior.blocks.pool import Cluster, Threads

    if cluster or workers > 1:
        return lambda: Cluster(cluster or None, max(2, workers), gpu=gpu)
    return lambda: Threads(1, preferences.cpu_threads())
