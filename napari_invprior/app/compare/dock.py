"""The dock "Compare": several methods on the problem of the workbench, side by side."""

from __future__ import annotations

from pathlib import Path

import napari
from napari.layers import Layer
from napari.utils.notifications import show_error
from qtpy.QtWidgets import QCheckBox, QFileDialog, QGridLayout, QLabel, QVBoxLayout, QWidget

from napari_invprior.app.compare.grid import GridView
from napari_invprior.app.compare.run import CompareRun, plan
from napari_invprior.app.compare.table import CompareTable
from napari_invprior.app.docks.beside_workbench import BenchDock
from napari_invprior.app.widgets.controls import FAULT, GOOD, Line, Sentence, push, row
from napari_invprior.app.widgets.words import clock, duration
from napari_invprior.app.workbench.dock import WIDTH
from napari_invprior.app.workbench.prior_panel import progress_bar, show_progress
from napari_invprior.errors import InvPriorError
from napari_invprior.jobs import Progress
from napari_invprior.study.lineup import Candidate, lineup

OURS = "workbench"
"""Name of the entry that stands for the choices of steps 3 and 4."""

STAGES = {"train": "training", "weight": "choosing the weight", "reconstruct": "reconstructing",
          "patch distance": "measuring", "total variation": "tuning", "denoise": "denoising"}


class Compare(BenchDock):
    """Several methods on the same data: one table, one grid of images.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__(napari_viewer)
        self.setObjectName("Inverse priors compare")
        self.grid = GridView(self.viewer)
        self.run = CompareRun(self.viewer, self)
        self.boxes: dict[str, QCheckBox] = {}
        self._candidates: dict[str, Candidate] = {}
        self._ndim = 0
        self._doing = ("", 0, 0)
        self._lay_out()
        self._connect()
        self._offer(2)
        self._update()

    # ---- layout

    def _lay_out(self) -> None:
        self.problem = Line("The problem that all methods are given: that of the workbench.", 2)
        self.choices = QWidget()
        self.choice_grid = QGridLayout(self.choices)
        self.choice_grid.setContentsMargins(0, 0, 0, 0)
        self.choice_grid.setVerticalSpacing(1)
        self.compare = push("Compare", "Run every ticked method on the same data.", self._start)
        self.cancel = push("Cancel", "Stop; rows that are finished stay.",
                           self.run.runner.cancel)
        self.quick = push("Quick", "Tick what takes seconds.", lambda: self._tick(quick=True))
        self.all = push("All", "Tick every method.", lambda: self._tick(quick=False))
        self.bar = progress_bar("How many methods are done.")
        self.about = Line("What runs; at the end who wins.", 2)
        self.table = CompareTable()
        self.in_grid = push("Show in grid", "Show the results side by side, with one contrast and "
                            "one camera; again to restore the former view.", self._toggle_grid)
        self.save_csv = push("Export CSV…", "Write the table as comma-separated values.",
                             self._ask_csv)
        self.save_png = push("Export PNG…", "Write images and table as one picture.",
                             self._ask_png)
        self.message = Sentence("What the running or last comparison said.")
        outer = QVBoxLayout(self)
        outer.setContentsMargins(6, 4, 6, 2)
        outer.setSpacing(4)
        outer.addWidget(self.problem)
        outer.addWidget(self.open_bench)
        outer.addWidget(self.choices)
        outer.addLayout(row(self.compare, self.cancel, 1, self.quick, self.all))
        outer.addWidget(self.bar)
        outer.addWidget(self.about)
        outer.addWidget(self.table, 1)
        outer.addLayout(row(self.in_grid, 1, self.save_csv, self.save_png))
        outer.addWidget(self.message)
        self.setMinimumWidth(WIDTH)

    def _connect(self) -> None:
        self.run.progressed.connect(self._on_progress)
        self.run.finished_row.connect(lambda _: self._show_rows())
        self.run.said.connect(self._say)
        self.run.ended.connect(self._on_end)
        self.run.changed.connect(self._update)
        self.table.picked.connect(self._on_picked)

    def _offer(self, ndim: int) -> None:
        """A box per method for data of that many axes, two columns; ticks are kept by name."""
        ticked = {name for name, box in self.boxes.items() if box.isChecked()}
        first = not self.boxes
        for box in (*self.boxes.values(), *self.choices.findChildren(QLabel)):
            self.choice_grid.removeWidget(box)
            box.deleteLater()
        ours = Candidate(OURS, "As in the workbench", "Prior and solver of steps 3 and 4; a prior "
                         "that is trained there already is used as it is.", {}, quick=True)
        found = [ours, *lineup(ndim)]
        self._candidates = {c.name: c for c in found}
        self._ndim, self.boxes = ndim, {}
        for column, (title, about, wanted) in enumerate((
            ("Learned priors", "Each with its usual solver and an automatic weight.", True),
            ("Baselines", "Methods without a learned prior.", False),
        )):
            head = QLabel(title)
            head.setToolTip(about)
            font = head.font()
            font.setBold(True)
            head.setFont(font)
            self.choice_grid.addWidget(head, 0, column)
            mine = [c for c in found if (c.method is not None) == wanted]
            for place, candidate in enumerate(mine, 1):
                box = self.boxes[candidate.name] = QCheckBox(candidate.title)
                box.setToolTip(candidate.about)
                box.setChecked(candidate.quick if first else candidate.name in ticked)
                box.toggled.connect(self._update)
                self.choice_grid.addWidget(box, place, column)

    def _tick(self, *, quick: bool) -> None:
        for name, box in self.boxes.items():
            box.setChecked(self._candidates[name].quick or not quick)

    # ---- what can be done

    def _update(self) -> None:
        """Enable what can be done, and say in place what is missing."""
        if self.is_closed:
            return
        bench, run = self.bench, self.run
        if bench is not None and bench.data.ndim != self._ndim:
            self._offer(bench.data.ndim)
        idle = run.runner.state == "idle"
        missing = self._missing()
        self.open_bench.setVisible(bench is None)
        self.problem.say(missing or self.described_problem(), FAULT if missing and bench else "")
        self.choices.setEnabled(idle)
        self.compare.setEnabled(idle and not missing)
        self.cancel.setEnabled(run.name == "compare" and run.runner.state != "stopping")
        self.in_grid.setEnabled(bool(run.layers()) or self.grid.active)
        self.in_grid.setText("Leave grid" if self.grid.active else "Show in grid")
        self.save_csv.setEnabled(bool(run.rows))
        self.save_png.setEnabled(idle and run.outcome is not None)

    def _missing(self) -> str:
        """Why Compare cannot start; empty when it can."""
        bench = self.bench
        if bench is None:
            return "Open the workbench: it holds data, physics, noise and references."
        ticked = [name for name, box in self.boxes.items() if box.isChecked()]
        if not ticked:
            return "Tick at least one method."
        problem = bench.data.problem()
        if problem:
            return f"Step 1 of the workbench: {problem}"
        trained = not bench.result.needs_prior or bench.prior.fitted
        learns = any(
            self._candidates[name].method is not None and not (name == OURS and trained)
            for name in ticked
        )
        problem = bench.references.problem() if learns else ""
        return f"To train priors, {problem} in the workbench." if problem else ""

    # ---- a comparison

    def _start(self) -> None:
        assert self.bench is not None
        self.grid.leave()
        ticked = [self._candidates[n] for n, box in self.boxes.items() if box.isChecked()]
        try:
            wanted = plan(self.bench, ticked, ours=OURS in [c.name for c in ticked])
        except InvPriorError as error:
            self.about.say(str(error), FAULT)
            return
        if self.run.start(wanted):
            self.bar.setValue(0)
            self.about.say("preparing…")
        self._show_rows()

    def _on_progress(self, event: Progress) -> None:
        if event.stage == "compare":
            show_progress(self.bar, event)
            self._doing = ("", event.step + 1, event.total)
        stage = STAGES.get(event.stage, "")
        _, number, total = self._doing
        detail = f" · {stage}, {clock(event)}" if stage else ""
        self.about.say(f"method {min(number, total)} of {total}{detail}")

    def _show_rows(self) -> None:
        self.table.show_rows(self.run.rows)
        self._update()

    def _on_end(self, how: str, seconds: float) -> None:
        self._show_rows()
        done = [r for r in self.run.rows if r.status == "done"]
        if how == "failed":
            self.about.say(self.run.fault, FAULT)
        elif how == "cancelled":
            self.about.say(f"cancelled; {len(done)} finished rows are kept")
        else:
            self.bar.setValue(self.bar.maximum())
            winner = (self.run.outcome.metrics["best"].get("psnr") if self.run.outcome else None)
            best = f" · highest PSNR: {winner}" if winner else ""
            self.about.say(f"{len(done)} methods in {duration(seconds)}{best}", GOOD)
        if self.run.layers():
            self.grid.enter(self._grid_layers())
        self._update()

    def _say(self, text: str, warning: bool) -> None:
        self.message.say(text, FAULT if warning else "")

    # ---- the results

    def _grid_layers(self) -> list[Layer]:
        """The truth first, where it is a layer, then the results in the order of the rows."""
        truth = self.run.truth
        known = [layer for layer in self.viewer.layers if layer.name == truth]
        return known + self.run.layers()

    def _toggle_grid(self) -> None:
        if self.grid.active:
            self.grid.leave()
        else:
            self.grid.enter(self._grid_layers())
        self._update()

    def _on_picked(self, name: str) -> None:
        """A clicked row chooses its layer."""
        layer = self.run.layer_of.get(name)
        if layer is not None and layer in self.viewer.layers:
            self.viewer.layers.selection.active = layer

    def _ask_csv(self) -> None:
        name, _ = QFileDialog.getSaveFileName(self, "Export the table", "comparison.csv",
                                              "Table (*.csv)")
        if name:
            self.export(Path(name))

    def _ask_png(self) -> None:
        name, _ = QFileDialog.getSaveFileName(self, "Export the picture", "comparison.png",
                                              "Picture (*.png)")
        if name:
            self.export(Path(name))

    def export(self, path: Path) -> None:
        """Write the table (``.csv``) or the picture (``.png``)."""
        try:
            self.run.export(path)
        except (InvPriorError, OSError) as error:
            show_error(str(error))
            self._say(str(error), True)

    # ---- the end of the dock

    def release(self) -> None:
        """Stop the job and restore the view."""
        self.run.runner.shutdown()
        if not self._window_closes:
            self.grid.leave()
