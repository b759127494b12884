"""From the ticked methods to a job, and from its events to rows and layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari.components import ViewerModel
from napari.layers import Layer
from qtpy.QtCore import QObject, Signal

from napari_invprior.app.docks.jobs import JobEnd
from napari_invprior.app.docks.run import DockRun
from napari_invprior.app.viewer.layers import META, free_name, layer_or_none, result_layer
from napari_invprior.app.viewer.request import Request, request
from napari_invprior.app.workbench.dock import Workbench
from napari_invprior.app.workbench.history import COMPARED
from napari_invprior.app.workbench.runs import RECONSTRUCT
from napari_invprior.io.files import write_atomic
from napari_invprior.jobs import Event, Job, Result, ShouldStop
from napari_invprior.study.compare import Compared
from napari_invprior.study.lineup import Candidate
from napari_invprior.study.table import Row, as_csv

COMPARE, EXPORT = "compare", "export"


@dataclass(frozen=True)
class Plan:
    """What one comparison runs, and the layer of its truth."""

    recipe: dict[str, Any]
    prior: Any
    ndim: int
    truth: str | None


def plan(bench: Workbench, ticked: Sequence[Candidate], *, ours: bool) -> Plan:
    """The study of the workbench's problem; raises `InvalidInput`.

    Parameters
    ----------
    ticked : sequence of Candidate
        What takes part.
    ours : bool
        Whether the workbench's own prior and solver take part, first.
    """
    recipe = bench.runs.recipe(RECONSTRUCT)
    prior, solver = recipe.pop("prior"), recipe.pop("solver")
    recipe.pop("maps", None)
    methods = [dict(c.method) for c in ticked if c.method]
    if ours:
        chosen = bench.result.solver if prior is None else bench.prior.chooser
        title = f"{chosen.method.title} (workbench)"
        methods.insert(0, {"title": title, "prior": prior, "solver": solver})
    recipe |= {
        "task": "study", "methods": methods,
        "study_baselines": [c.name for c in ticked if c.method is None],
    }
    held = bench.prior.prior if ours and prior is not None and bench.prior.fitted else None
    return Plan(recipe, held, bench.data.ndim, bench.data.known_truth())


class CompareRun(DockRun):
    """Runs one comparison at a time and keeps what came of the last one.

    Signals
    -------
    finished_row : Row
        Besides those of `DockRun`.
    """

    finished_row = Signal(object)

    def __init__(self, viewer: ViewerModel, parent: QObject) -> None:
        super().__init__(viewer, parent)
        self.rows: list[Row] = []
        self.outcome: Any = None
        self.layer_of: dict[str, Layer] = {}
        self.truth: str | None = None
        self._request: Request | None = None

    @property
    def name(self) -> str:
        """Name of the running job."""
        return self.runner.name

    def layers(self) -> list[Layer]:
        """Result layers of the last comparison that are still there, in the order of the rows."""
        found = [self.layer_of.get(row.name) for row in self.rows]
        return [layer for layer in found if layer is not None and layer in self.viewer.layers]

    def start(self, wanted: Plan) -> bool:
        """Start a comparison; False (and a sentence) when another job runs."""
        if not self._may_start():
            return False
        self._request = request(self.viewer, wanted.recipe, wanted.prior, wanted.ndim)
        self.rows, self.layer_of, self.outcome = [], {}, None
        self.truth = wanted.truth
        return self.runner.start(COMPARE, self._request.job)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Compared):
            self.rows.append(event.row)
        super()._on_event(event)
        if isinstance(event, Compared):
            self.finished_row.emit(event.row)

    def _on_end(self, end: JobEnd) -> None:
        self._tell_fault(end)
        if end.name != COMPARE:
            self.said.emit(f"wrote {end.value}" if end.how == "done" else self.fault,
                           end.how != "done")
            return
        if end.value is not None and self._request is not None:
            self._keep(end.value, self._request)
        self._request = None
        self._close(end)

    def _keep(self, outcome: Any, wanted: Request) -> None:
        """Rows with their intervals, and a hidden layer for each image."""
        self.outcome = outcome
        self.rows = [Row.from_dict(data) for data in outcome.metrics["table"]]
        titles = {f"reconstruction_{row.name}": row for row in self.rows}
        for output in outcome.layers:
            row = titles.get(output.name)
            if row is None:
                continue
            taken = layer_or_none(self.viewer, row.title) is not None
            layer = result_layer(
                output.array, output.geometry, wanted.observation, rgb=output.rgb,
                name=free_name(self.viewer, row.title) if taken else row.title,
                metadata={META: dict(output.metadata) | {"role": COMPARED}},
            )
            layer.visible = False
            self.viewer.add_layer(layer)
            self.layer_of[row.name] = layer
        for sentence in wanted.changes(self.viewer):
            self.said.emit(sentence, True)

    def export(self, path: Path) -> None:
        """Write the table at once, the picture in the background."""
        if path.suffix.lower() == ".csv":
            write_atomic(path, as_csv(self.rows).encode())
            self.said.emit(f"wrote {path.name}", False)
            return
        outcome = self.outcome

        def job(_: ShouldStop) -> Job:
            from napari_invprior.recipes.picture import table_png

            write_atomic(path, table_png(outcome))
            yield Result(path.name)

        self.runner.start(EXPORT, job)
