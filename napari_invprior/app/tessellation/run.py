"""From the atoms of a layer to a job, and from its events to the plane; previews follow a drag."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Points
from qtpy.QtCore import QObject, QTimer, Signal

from napari_invprior.app.docks.jobs import JobEnd, JobRunner
from napari_invprior.app.docks.run import DockRun
from napari_invprior.app.tessellation.plane import CELLS, Placement, Plane, beside
from napari_invprior.app.viewer.layers import Snapshot, layer_or_none
from napari_invprior.app.viewer.points import points_from_layer
from napari_invprior.errors import InvPriorError
from napari_invprior.jobs import Event, Job, Preview, ShouldStop
from napari_invprior.points import PointSet

TICK_MS = 30
"""How often the atoms are looked at."""
REST_S = 0.3
"""Seconds without a change after which everything is computed finely."""
COARSE = {2: 64, 3: 24}
"""Resolution while atoms are dragged."""
WEIGHT = "weight"
"""Feature of a layer of atoms."""


@dataclass(frozen=True)
class Choices:
    """What the dock asks for.

    Attributes
    ----------
    atoms : str or None
        Layer of points: the atoms, or where patches are cut out.
    image : str or None
        Image that patches are cut out of.
    patch_size : int
        Edge of a patch.
    settings : dict
        The rest of the recipe: extent, resolution, tessellation, seed.
    """

    atoms: str | None
    image: str | None = None
    patch_size: int = 8
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Task:
    """One run: recipe and copies of the layers that it names."""

    recipe: dict[str, Any]
    points: dict[str, PointSet]
    images: dict[str, Snapshot]
    placement: Placement
    coarse: bool

    def job(self, should_stop: ShouldStop) -> Iterator[Event]:
        """Events of the run; runs in the worker thread."""
        from napari_invprior import recipes

        images = {name: snapshot.image() for name, snapshot in self.images.items()}
        job: Job = recipes.run(
            self.recipe, arrays=images, points=self.points, should_stop=should_stop
        )
        yield from job


class TessellationRun(DockRun):
    """Follows the atoms: coarse cells while they change, everything once they rest.

    Signals
    -------
    shown
        Cells of a run, coarse or fine, are in the viewer.
    """

    shown = Signal()

    def __init__(self, viewer: ViewerModel, parent: QObject) -> None:
        super().__init__(viewer, parent)
        self.plane = Plane(viewer)
        self.outcome: Any = None
        self.choices = Choices(None)
        self.follows = False
        self.latency = 0.0
        """Seconds from the last seen change to its coarse cells."""
        self._task: Task | None = None
        self._seen: Any = None
        self._computed: Any = None
        self._wanted: Any = None
        self._changed_at = 0.0
        self._timer = QTimer(self)
        self._timer.setInterval(TICK_MS)
        self._timer.timeout.connect(self._look)
        self._timer.start()

    # ---- following

    def state(self) -> Any:
        """What cells depend on, as plain data that can be compared; None without atoms."""
        layer = layer_or_none(self.viewer, self.choices.atoms)
        if not isinstance(layer, Points) or len(layer.data) == 0:
            return None
        weights = layer.features.get(WEIGHT)
        return (
            layer.name, np.asarray(layer.data, float).tobytes(), layer.data.shape,
            None if weights is None else tuple(float(w) for w in weights),
            self.choices.image, self.choices.patch_size, repr(self.choices.settings),
        )

    def _look(self) -> None:
        """Start what is due: coarse cells after a change, fine ones after a rest."""
        state = self.state()
        now = time.monotonic()
        if state != self._seen:
            self._seen, self._changed_at = state, now
        if not self.follows or state is None:
            return
        task = self._task
        if task is not None and not task.coarse and state != self._wanted:
            self.runner.cancel()  # a fine run of atoms that are gone
        if self.runner.state != "idle" or JobRunner.process_is_busy():
            return
        rested = now - self._changed_at > REST_S
        if rested and state != self._computed:
            self.start(coarse=False)
        elif not rested and state != self._wanted:
            self.start(coarse=True)

    # ---- a run

    def start(self, *, coarse: bool = False) -> bool:
        """Compute the cells; False (and a sentence) where that cannot be done."""
        state = self.state()
        if state is None or not self._may_start():
            return False
        self._wanted = state
        if not coarse:
            self._computed = state  # also where it fails: it would fail again
        try:
            self._task = self._prepared(coarse)
        except InvPriorError as error:
            self._computed = state
            self.fault = str(error)
            self.ended.emit("failed", 0.0)
            return False
        return self.runner.start("tessellate", self._task.job)

    def _prepared(self, coarse: bool) -> Task:
        chosen = self.choices
        layer = layer_or_none(self.viewer, chosen.atoms)
        image = layer_or_none(self.viewer, chosen.image)
        recipe: dict[str, Any] = {"task": "tessellate"} | chosen.settings
        images: dict[str, Snapshot] = {}
        placement = Placement()
        points = points_from_layer(layer, image)
        if image is not None:
            snapshot = Snapshot.of(image, 2)
            images[image.name] = snapshot
            recipe |= {
                "observation": {"layer": image.name}, "points": {"layer": layer.name},
                "atoms": {"patch_size": chosen.patch_size},
            }
            placement = beside(snapshot, float(recipe.get("extent", 4.0)))
        else:
            recipe["atoms"] = {"layer": layer.name}
        weights = layer.features.get(WEIGHT)
        if weights is not None and not weights.isna().any():
            recipe["weights"] = [float(w) for w in weights]
        if coarse:
            recipe["resolution"] = COARSE.get(2 if image is not None else points.ndim, 64)
            recipe["tessellation"] = recipe.get("tessellation", {}) | {
                "outlines": False, "trajectories": 0, "arrows": 0
            }
        return Task(recipe, {layer.name: points}, images, placement, coarse)

    def _on_event(self, event: Event) -> None:
        task = self._task
        if task is not None and task.coarse:
            return  # a preview says nothing: its sentences come with the fine run
        super()._on_event(event)
        if isinstance(event, Preview) and event.kind == "cells" and task is not None:
            self._show_level(event.array, task)

    def _show_level(self, array: np.ndarray, task: Task) -> None:
        """Coarse cells of a fine run, at the start when nothing is there yet."""
        if self.plane.layer(CELLS) is not None:
            return
        from napari_invprior.recipes.tessellate import RESOLUTION

        extent = float(task.recipe.get("extent", 4.0))
        fine = task.recipe.get("resolution") or RESOLUTION[array.ndim]
        stride = 2 ** round(np.log2(fine / array.shape[0]))
        spacing = 2 * extent / fine
        self.plane.placement = task.placement
        self.plane.show_labels(
            CELLS, array, spacing * stride, -extent + spacing / 2, int(array.max())
        )

    def show_path(self, position: Any) -> None:
        """Show the path of the source point at a place of the world."""
        from napari_invprior.study.tessellation import path_from

        if self.outcome is not None:
            atoms = self.outcome.detail.atoms
            self.plane.show_path(path_from(atoms, self.plane.source_of(position, atoms.ndim)))

    def _on_end(self, end: JobEnd) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        if end.how == "failed":
            self.fault = str(end.error)
            if not isinstance(end.error, InvPriorError):
                self._tell_fault(end)
        if end.value is not None:
            self.plane.placement = task.placement
            self.plane.show(
                end.value.layers, end.value.detail.atoms.given, patches=bool(task.images),
                coarse=task.coarse,
            )
            self.latency = time.monotonic() - self._changed_at
            if not task.coarse:
                self.outcome = end.value
            self.shown.emit()
        if task.coarse and end.how != "failed":
            return
        self._close(end)

    def release(self) -> None:
        """Stop looking, and stop the job."""
        self._timer.stop()
        self.runner.shutdown()
