"""The dock "Particles": flows of points, halftones, maps and comparisons; it needs no workbench."""

from __future__ import annotations

from typing import Any

import napari
from napari.layers import Points
from qtpy.QtCore import QSize
from qtpy.QtWidgets import QApplication, QScrollArea, QStackedWidget, QToolButton, QVBoxLayout

from napari_invprior.app.docks.base import Dock
from napari_invprior.app.particles.pages import PAGES, Page
from napari_invprior.app.particles.run import ParticlesRun
from napari_invprior.app.widgets.controls import FAULT, GOOD, Line, Picker, Sentence, push, row
from napari_invprior.app.widgets.curve_plot import CurvePlot
from napari_invprior.app.widgets.words import clock, duration
from napari_invprior.app.workbench.dock import WIDTH, Workbench
from napari_invprior.app.workbench.prior_panel import progress_bar, show_progress
from napari_invprior.errors import InvPriorError
from napari_invprior.jobs import Progress

CURVES = {"discrepancy": "discrepancy", "distance": "energy distance to the references"}
"""Figures of a job that are drawn, and their titles."""


class Particles(Dock):
    """Points and patches: one list of what to do, one page for each.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.setObjectName("Inverse priors particles")
        self.viewer = napari_viewer
        self.run = ParticlesRun(self.viewer, self)
        self.pages: list[Page] = [page(self.viewer, self._regions) for page in PAGES]
        self._watched: list[Any] = []
        self._lacked = "-"
        self._lay_out()
        self._connect()
        self._on_layers()

    def sizeHint(self) -> QSize:  # noqa: N802
        """As wide as the workbench."""
        return QSize(WIDTH, 700)

    # ---- layout

    def _lay_out(self) -> None:
        self.list = Picker("What to do with points and patches.", self._on_page)
        self.list.offer([(page.title, index) for index, page in enumerate(self.pages)])
        self.gear = QToolButton(text="⚙", checkable=True, autoRaise=True)
        self.gear.setToolTip("Show or hide the options that are seldom needed.")
        self.gear.toggled.connect(self._fold)
        self.purpose = Line("What comes out of it.", 2)
        self.stack = QStackedWidget()
        for page in self.pages:
            holder = QScrollArea(widgetResizable=True)
            holder.setFrameShape(QScrollArea.Shape.NoFrame)
            holder.setWidget(page)
            self.stack.addWidget(holder)
        self.go = push("Flow", "", self._start)
        self.cancel = push("Cancel", "Stop; what there is so far is kept where it means something.",
                           self.run.runner.cancel)
        self.add_points = push(
            "Add points", "Add a Points layer on the shown image, ready to click seeds into it.",
            self._add_points,
        )
        self.script = push("Copy as script", "Copy a Python script that does the last run again.",
                           self._copy_script)
        self.bar = progress_bar("How far the job is.")
        self.about = Line("What is missing, what runs, and at the end what came out.", 2)
        self.curve = CurvePlot()
        self.message = Sentence("What the running or last job said.")
        outer = QVBoxLayout(self)
        outer.setContentsMargins(6, 4, 6, 2)
        outer.setSpacing(4)
        outer.addLayout(row(self.list, self.gear))
        outer.addWidget(self.purpose)
        outer.addWidget(self.stack, 1)
        outer.addLayout(row(self.go, self.cancel, 1, self.add_points, self.script))
        outer.addWidget(self.bar)
        outer.addWidget(self.about)
        outer.addWidget(self.curve)
        outer.addWidget(self.message)
        self.setMinimumWidth(WIDTH)

    def _connect(self) -> None:
        self.run.progressed.connect(self._on_progress)
        self.run.said.connect(self._say)
        self.run.ended.connect(self._on_end)
        self.run.changed.connect(self._update)
        for page in self.pages:
            page.changed.connect(self._update)
        events = self.viewer.layers.events
        events.inserted.connect(self._on_layers)
        events.removed.connect(self._on_layers)

    @property
    def page(self) -> Page:
        """The page on show."""
        return self.pages[max(0, self.stack.currentIndex())]

    def show_page(self, kind: type[Page]) -> Page:
        """Choose what to do by the class of its page."""
        index = next(i for i, page in enumerate(self.pages) if isinstance(page, kind))
        self.list.choose(index)
        return self.pages[index]

    def _on_page(self) -> None:
        if not hasattr(self, "message"):
            return
        self.stack.setCurrentIndex(self.list.currentData())
        self.page.show_advanced(self.gear.isChecked())
        self.gear.setVisible(self.page.has_advanced)
        self.about.say("")
        self.curve.clear()
        self._update()

    def _fold(self, shown: bool) -> None:
        self.page.show_advanced(shown)

    # ---- layers

    def _on_layers(self, _: Any = None) -> None:
        """Layers came or went: offer those that exist, follow their names and points."""
        if self.is_closed:
            return
        self._unwatch()
        for layer in self.viewer.layers:
            layer.events.name.connect(self._on_layers)
            self._watched.append(layer.events.name)
            if isinstance(layer, Points):
                layer.events.data.connect(self._update)
                self._watched.append(layer.events.data)
        for page in self.pages:
            page.refresh()
        self._update()

    def _unwatch(self) -> None:
        for event in self._watched:
            event.disconnect(self._on_layers)
            event.disconnect(self._update)
        self._watched.clear()

    def _regions(self, name: str) -> list[Any]:
        """Regions that an open workbench of this window holds on an image."""
        open_ones = [b for b in self.window().findChildren(Workbench) if not b.is_closed]
        for bench in open_ones:
            layer = bench.references.layer
            if layer is not None and layer.name == name:
                return bench.references.regions().boxes
        return []

    def _add_points(self) -> None:
        images = self.page.chosen_images()
        ndim = 2
        options: dict[str, Any] = {"size": 4}
        if images:
            layer = images[0]
            ndim = layer.ndim
            longest = max(layer.data.shape[-2:]) if not layer.multiscale else 400
            options = {
                "size": max(1.0, longest / 60), "scale": layer.scale, "units": layer.units,
                "translate": layer.translate, "rotate": layer.rotate, "shear": layer.shear,
                "affine": layer.affine, "axis_labels": layer.axis_labels,
            }
        made = self.viewer.add_points(ndim=ndim, name="seeds", face_color="#e0605a", **options)
        made.mode = "add"
        if "start" in self.page.pickers:
            self.page.pickers["start"][0].choose(made.name)
        elif "points" in self.page.pickers:
            self.page.pickers["points"][0].choose(made.name)

    # ---- what can be done

    def _update(self, _: Any = None) -> None:
        """Enable what can be done, and say in place what is missing."""
        if self.is_closed or not hasattr(self, "message"):
            return
        idle = self.run.runner.state == "idle"
        page = self.page
        self.purpose.say(page.about)
        self.go.setText(page.verb)
        self.go.setToolTip(page.about)
        missing = page.missing()
        if idle and (missing or self.about.text() == self._lacked):
            self.about.say(missing, FAULT if missing else "")
        self._lacked = missing or "-"
        self.go.setEnabled(idle and not missing)
        self.cancel.setEnabled(not idle and self.run.runner.state != "stopping")
        self.list.setEnabled(idle)
        self.stack.setEnabled(idle)
        self.script.setEnabled(self.run.outcome is not None)
        self.curve.setVisible(page.has_curve)
        self.add_points.setVisible(bool({"start", "points"} & page.pickers.keys()))

    # ---- a run

    def _start(self) -> None:
        try:
            if self.run.start(self.page.recipe()):
                self.bar.setValue(0)
                self.curve.clear()
                self.message.say("")
                self.about.say("preparing…")
        except InvPriorError as error:
            self.about.say(str(error), FAULT)
            return
        self._update()

    def _on_progress(self, event: Progress) -> None:
        show_progress(self.bar, event)
        self.about.say(f"step {event.step} of at most {event.total} · {clock(event)}")
        for name, title in CURVES.items():
            if name in event.losses:
                if not self.curve.x:
                    self.curve.clear(title)
                self.curve.add(event.losses.get("time", event.step), event.losses[name])

    def _on_end(self, how: str, seconds: float) -> None:
        outcome = self.run.outcome
        if how == "failed":
            self.about.say(self.run.fault, FAULT)
        elif outcome is None:
            self.about.say("cancelled: nothing was finished")
        else:
            metrics = outcome.metrics
            begin = "cancelled: " if how == "cancelled" else ""
            self.about.say(
                f"{begin}{self.page.sentence(metrics)} · {duration(seconds)}",
                GOOD if how == "done" else "",
            )
            self.bar.setValue(self.bar.maximum() if how == "done" else self.bar.value())
            if "discrepancies" in metrics:
                self.curve.clear(CURVES["discrepancy"])
                self.curve.show_curve(metrics["times"], metrics["discrepancies"])
        self._update()

    def _copy_script(self) -> None:
        from napari_invprior import recipes

        QApplication.clipboard().setText(recipes.script(self.run.outcome.recipe))
        self.message.say("The script is on the clipboard.")

    def _say(self, text: str, warning: bool) -> None:
        self.message.say(text, FAULT if warning else "")

    # ---- the end of the dock

    def release(self) -> None:
        """Stop the job, take its preview away and forget the layers."""
        self.run.runner.shutdown()
        self._unwatch()
        events = self.viewer.layers.events
        events.inserted.disconnect(self._on_layers)
        events.removed.disconnect(self._on_layers)
        if not self._window_closes:
            self.run.clear_preview()
