"""From the choices of the particles dock to a job, and from its events to layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Layer, Points
from qtpy.QtCore import QObject

from napari_invprior.app.docks.jobs import JobEnd
from napari_invprior.app.docks.run import DockRun
from napari_invprior.app.viewer.layers import (
    META,
    PREVIEW,
    Snapshot,
    add_quietly,
    free_name,
    layer_named,
    possible_dimensions,
    result_layer,
)
from napari_invprior.app.viewer.points import (
    COLOURS,
    MOVIE,
    composed,
    dot_size,
    points_from_layer,
    points_layer,
    space_geometry,
)
from napari_invprior.app.viewer.request import named_layers
from napari_invprior.app.workbench.history import MAP
from napari_invprior.geometry import Geometry
from napari_invprior.jobs import Event, Job, Preview, ShouldStop
from napari_invprior.points import PointSet

FLOWING = "flowing particles"
"""Name of the layer that shows particles while they move."""


@dataclass
class Task:
    """One run: recipe, copies of its layers, and where its results lie.

    Attributes
    ----------
    recipe : dict
        Plain data for `recipes.run`.
    images, points : dict
        Copies of the layers that it names.
    source : Snapshot or None
        The image that results lie on.
    geometry : Geometry or None
        Placement of points that have no image.
    """

    recipe: dict[str, Any]
    images: dict[str, Snapshot] = field(default_factory=dict)
    points: dict[str, PointSet] = field(default_factory=dict)
    source: Snapshot | None = None
    geometry: Geometry | None = None

    @property
    def name(self) -> str:
        """Its task."""
        return str(self.recipe["task"])

    def job(self, should_stop: ShouldStop) -> Iterator[Event]:
        """Events of the run; runs in the worker thread."""
        from napari_invprior import recipes

        images = {name: snapshot.image() for name, snapshot in self.images.items()}
        job: Job = recipes.run(
            self.recipe, arrays=images, points=self.points, should_stop=should_stop
        )
        for event in job:
            if not isinstance(event, Preview) or event.kind == "points":
                yield event

    def space(self) -> tuple[int, ...] | None:
        """Shape of the image, where there is one."""
        return None if self.source is None else self.source.data.shape[-self.source.ndim :]


def prepare(viewer: ViewerModel, recipe: dict[str, Any]) -> Task:
    """Copy the layers that a recipe names; raises `InvalidInput` for those that are gone."""
    layers = [layer_named(viewer, name) for name in named_layers(recipe)]
    task = Task(recipe)
    for layer in layers:
        if isinstance(layer, Image):
            task.images[layer.name] = Snapshot.of(layer, possible_dimensions(layer)[0])
    seen = (recipe.get("observation") or {}).get("layer", "")
    references = recipe.get("references") or [{}]
    task.source = task.images.get(seen) or (
        task.images.get(references[0].get("layer", "")) if recipe["task"] == "generate" else None
    )
    dots = [layer for layer in layers if isinstance(layer, Points)]
    goal = (recipe.get("target_points") or {}).get("layer")
    first = next((layer for layer in dots if layer.name == goal), dots[0] if dots else None)
    onto: Layer | None = layer_named(viewer, seen) if seen else first
    for layer in dots:
        task.points[layer.name] = points_from_layer(layer, onto)
    if task.source is not None:
        task.geometry = space_geometry(task.source, None, task.source.ndim)
    elif first is not None:
        task.geometry = space_geometry(None, first, task.points[first.name].ndim)
    return task


class ParticlesRun(DockRun):
    """Runs one task at a time and keeps what came of it."""

    def __init__(self, viewer: ViewerModel, parent: QObject) -> None:
        super().__init__(viewer, parent)
        self.outcome: Any = None
        self.made: list[Layer] = []
        self._earlier: list[Layer] = []
        self._task: Task | None = None

    def start(self, recipe: dict[str, Any]) -> bool:
        """Start; False (and a sentence) when another job runs. Raises `InvalidInput`."""
        if not self._may_start():
            return False
        self._task = prepare(self.viewer, recipe)
        self._earlier += self.made
        self.outcome, self.made = None, []
        return self.runner.start(self._task.name, self._task.job)

    # ---- while it runs

    def _on_event(self, event: Event) -> None:
        super()._on_event(event)
        if isinstance(event, Preview) and self._task is not None:
            self._move(np.asarray(event.array), self._task)

    def _flowing(self) -> Points | None:
        """The layer of the preview."""
        return next((layer for layer in self.viewer.layers if layer.name == FLOWING
                     and layer.metadata.get(META, {}).get("role") == PREVIEW), None)

    def _move(self, places: np.ndarray, task: Task) -> None:
        """Show particles where they are now."""
        layer = self._flowing()
        if layer is not None and layer.data.shape == places.shape:
            layer.data = places
            return
        if layer is not None:
            self.viewer.layers.remove(layer)
        add_quietly(self.viewer, points_layer(
            places, task.geometry or Geometry.identity(places.shape[1]), name=FLOWING,
            size=dot_size(task.space(), places, len(places)),
            metadata={META: {"role": PREVIEW}},
        ))

    def clear_preview(self) -> None:
        """Take the moving particles away."""
        layer = self._flowing()
        if layer is not None:
            self.viewer.layers.remove(layer)

    # ---- the end

    def _on_end(self, end: JobEnd) -> None:
        task, self._task = self._task, None
        self.clear_preview()
        self._tell_fault(end)
        if end.value is not None and task is not None:
            self.outcome = end.value
            for layer in self._earlier:
                layer.visible = False
            self._earlier.clear()
            for output in end.value.layers:
                self._keep(output, task)
            if task.name == "generate":
                self.viewer.reset_view()  # they lie beside the reference
        self._close(end)

    def _keep(self, output: Any, task: Task) -> None:
        """A result as a layer, on the image or the points that it came from."""
        name = free_name(self.viewer, output.name)
        facts = {META: dict(output.metadata) | {"role": MAP}}
        if output.kind == "points":
            last = output.array
            if output.frames:
                facts[META]["role"] = MOVIE
                last = last[last[:, 0] == last[-1, 0], 1:]
            layer: Layer = points_layer(
                output.array, task.geometry or output.geometry, name=name, frames=output.frames,
                metadata=facts, size=dot_size(task.space(), last, len(last)),
                colour=COLOURS[0 if output.frames else 1],
            )
        elif task.name == "generate":
            layer = self._beside(output, task, name, facts)
        else:
            geometry = output.geometry
            if task.source is None and task.geometry is not None:
                geometry = composed(geometry, task.geometry)
            layer = result_layer(
                output.array, geometry, task.source, name=name, rgb=output.rgb, unit=output.unit,
                metadata=facts,
            )
            layer.opacity = 0.8
        self.viewer.add_layer(layer)
        self.made.append(layer)
        if output.frames and layer.ndim > len(output.geometry.scale):
            step = int(output.array[-1, 0]) if output.kind == "points" else 0
            self.viewer.dims.set_current_step(self.viewer.dims.ndim - layer.ndim, step)

    def _beside(self, output: Any, task: Task, name: str, facts: dict[str, Any]) -> Layer:
        """Patches and textures, with the spacing and contrast of the reference, left of it."""
        source = task.source
        assert source is not None and task.geometry is not None
        shape = output.array.shape[output.frames : output.frames + source.ndim]
        place = list(task.geometry.translate)
        place[-1] -= (shape[-1] + 2) * task.geometry.scale[-1]
        below = shape[-2] if name.startswith("texture") else 0
        place[-2] += (0 if below else -(shape[-2] + 2) * task.geometry.scale[-2])
        geometry = Geometry(
            task.geometry.scale, tuple(place), task.geometry.units, task.geometry.axis_labels
        )
        return result_layer(
            output.array, geometry, None, name=name, rgb=output.rgb, metadata=facts
        )
