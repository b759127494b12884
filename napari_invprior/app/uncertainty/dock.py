"""The dock "Uncertainty": plausible images, where they agree, and whether that can be believed."""

from __future__ import annotations

from typing import Any

import napari
import numpy as np
from qtpy.QtWidgets import QButtonGroup, QCheckBox, QLabel, QLineEdit, QVBoxLayout, QWidget

from napari_invprior import registry
from napari_invprior.app.docks.beside_workbench import BenchDock
from napari_invprior.app.uncertainty.plots import CoveragePlot, PlaceHistogram, RankPlot
from napari_invprior.app.uncertainty.probe import Probe, index_at, values_at
from napari_invprior.app.uncertainty.run import SAMPLE, SamplingRun, plan
from napari_invprior.app.viewer.layers import finest
from napari_invprior.app.widgets.controls import (
    FAULT,
    GOOD,
    Line,
    MethodChooser,
    Sentence,
    push,
    row,
)
from napari_invprior.app.widgets.words import clock, duration
from napari_invprior.app.workbench.dock import WIDTH
from napari_invprior.app.workbench.prior_panel import progress_bar, show_progress
from napari_invprior.errors import InvalidInput, InvPriorError
from napari_invprior.jobs import Progress
from napari_invprior.posterior.diagnostics import GOOD_ESS, GOOD_RHAT
from napari_invprior.study.lineup import usual_sampler

VIEWS = {
    "mean": ("Mean", "The mean of all plausible images: the best guess in the mean square."),
    "std": ("Deviation", "Standard deviation: how much plausible images differ at each place."),
    "samples": ("Samples", "Plausible images one by one; move the slider below the image."),
    "quantile_5": ("5 %", "At each place, 5 % of the samples are darker than this."),
    "quantile_95": ("95 %", "At each place, 95 % of the samples are darker than this."),
    "exceedance": ("P > t", "Share of the samples above the threshold."),
    "rhat": ("R-hat", "Where the chains disagree: near 1 is good, above 1.1 they have not mixed."),
    "reconstruction": ("Start", "The reconstruction that the chains began from."),
}
LINKED = ("mean", "samples", "quantile_5", "quantile_95", "reconstruction")
"""Views in grey values: they share one contrast."""
STAGES = {"weight": "choosing the weight", "reconstruct": "reconstructing the start",
          "train": "training", "sample": "sampling"}


class Uncertainty(BenchDock):
    """Draws samples for the problem of the workbench and shows what they agree on.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__(napari_viewer)
        self.setObjectName("Inverse priors uncertainty")
        self.run = SamplingRun(self.viewer, self)
        self.probe = Probe(self.viewer, self.probe_at)
        self._lay_out()
        self._connect()
        self._update()

    # ---- layout

    def _lay_out(self) -> None:
        self.problem = Line("The problem of the workbench, whose answer is sampled.", 2)
        self.sampler = MethodChooser("sampler", "How plausible images are drawn.")
        self.from_result = QCheckBox("begin at the shown result")
        self.from_result.setChecked(True)
        self.from_result.setToolTip(
            "Start the chains at the result that the workbench shows, if it belongs to these data; "
            "otherwise the image is reconstructed first."
        )
        self.sample = push("Sample", "Draw plausible images; mean and deviation appear at once and "
                           "refine.", self._start)
        self.cancel = push("Cancel", "Stop; the samples so far are kept.", self.run.runner.cancel)
        self.bar = progress_bar("How far the chains are; they stop early when there is enough.")
        self.about = Line("What runs; at the end how it went.", 2)
        self.badge = QLabel()
        self.badge.setToolTip(
            "R-hat compares the chains (1 when they agree); ESS is the number of independent "
            f"images that the states are worth. Good: R-hat up to {GOOD_RHAT}, ESS from {GOOD_ESS} "
            "on."
        )
        self.views = QWidget()
        self.buttons = {kind: push(*VIEWS[kind], lambda k=kind: self.show_view(k), checkable=True)
                        for kind in VIEWS}
        self._group = QButtonGroup(self)
        for button in self.buttons.values():
            self._group.addButton(button)
        views = QVBoxLayout(self.views)
        views.setContentsMargins(0, 0, 0, 0)
        views.setSpacing(2)
        kinds = list(self.buttons)
        for part in (kinds[:4], kinds[4:]):
            views.addLayout(row(*(self.buttons[kind] for kind in part), 1, spacing=3))
        self.linked = QCheckBox("one contrast")
        self.linked.setChecked(True)
        self.linked.setToolTip("Mean, samples, quantiles and start share contrast and colours.")
        self.threshold = QLineEdit()
        self.threshold.setMaximumWidth(72)
        self.threshold.setPlaceholderText("t")
        self.threshold.setToolTip("Threshold in the image's own numbers; Enter shows P > t.")
        self.histogram = PlaceHistogram(140)
        self.coverage, self.ranks = CoveragePlot(), RankPlot()
        self.message = Sentence("What the running or last sampling said.")
        outer = QVBoxLayout(self)
        outer.setContentsMargins(6, 4, 6, 2)
        outer.setSpacing(4)
        outer.addWidget(self.problem)
        outer.addWidget(self.open_bench)
        outer.addLayout(row("sampler", self.sampler.list, self.sampler.gear))
        outer.addWidget(self.sampler)
        outer.addLayout(row(self.sample, self.cancel, self.from_result, 1))
        outer.addWidget(self.bar)
        outer.addWidget(self.about)
        outer.addWidget(self.badge)
        outer.addWidget(self.views)
        outer.addLayout(row(self.linked, 1, "threshold", self.threshold))
        outer.addWidget(self.histogram)
        outer.addLayout(row(self.coverage, self.ranks, spacing=6))
        outer.addStretch(1)
        outer.addWidget(self.message)
        self.setMinimumWidth(WIDTH)

    def _connect(self) -> None:
        self.run.progressed.connect(self._on_progress)
        self.run.said.connect(self._say)
        self.run.ended.connect(self._on_end)
        self.run.exceeded.connect(lambda: self.show_view("exceedance"))
        self.run.changed.connect(self._update)
        self.sampler.changed.connect(self._update)
        self.linked.toggled.connect(self._link)
        self.threshold.returnPressed.connect(self._exceed)
        self.viewer.layers.events.removed.connect(self._update)

    # ---- what can be done

    def _update(self, _: Any = None) -> None:
        """Enable what can be done, and say in place what is missing."""
        if self.is_closed:
            return
        idle = self.run.runner.state == "idle"
        if self.bench is not None:
            ndim, held = self.bench.data.ndim, self.bench.prior.prior
            self.sampler.set_dimensions(ndim)
            if held is not None:
                method = registry.get("prior", held.name)
                self.sampler.propose(usual_sampler(method, ndim).name)
        missing = self._missing()
        self.open_bench.setVisible(self.bench is None)
        fault = bool(missing) and self.bench is not None
        self.problem.say(missing or self.described_problem(), FAULT if fault else "")
        self.sample.setEnabled(idle and not missing)
        self.cancel.setEnabled(self.run.runner.name == SAMPLE
                               and self.run.runner.state != "stopping")
        self.sampler.list.setEnabled(idle)
        kinds = self.run.kinds
        for kind, button in self.buttons.items():
            button.setEnabled(kind in kinds)
        self.linked.setEnabled(len([k for k in LINKED if k in kinds]) > 1)
        self.threshold.setEnabled(idle and "samples" in kinds)
        if "samples" in kinds:
            self.probe.enter()
        else:
            self.probe.leave()

    def _missing(self) -> str:
        """Why Sample cannot start; empty when it can."""
        bench = self.bench
        if bench is None:
            return "Open the workbench: it holds data, physics, noise and the prior."
        problem = bench.data.problem()
        if problem:
            return f"Step 1 of the workbench: {problem}"
        if not bench.prior.fitted:
            return "Train a prior in step 3 of the workbench, or load one."
        return ""

    # ---- a run

    def _start(self) -> None:
        assert self.bench is not None
        try:
            recipe = plan(
                self.bench, self.sampler.choice(), from_result=self.from_result.isChecked(),
                threshold=self._threshold(),
            )
            self.histogram.clear()
            self.coverage.clear()
            self.ranks.clear()
            self._judge({})
            if self.run.start(self.bench, recipe):
                self.bar.setValue(0)
                self.about.say("preparing…")
        except InvPriorError as error:
            self.about.say(str(error), FAULT)
        self._update()

    def _threshold(self) -> float | None:
        """The number typed, None for nothing; raises `InvalidInput`."""
        text = self.threshold.text().strip()
        try:
            value = float(text) if text else None
        except ValueError:
            value = np.nan
        if value is not None and not np.isfinite(value):
            self.threshold.setStyleSheet(f"border: 1px solid {FAULT};")
            raise InvalidInput(f"threshold = {text!r}: give a number, or leave it empty")
        self.threshold.setStyleSheet("")
        return value

    def _exceed(self) -> None:
        try:
            value = self._threshold()
        except InvalidInput as error:
            self._say(str(error), True)
            return
        if value is not None:
            self.run.exceed(value)

    def _on_progress(self, event: Progress) -> None:
        show_progress(self.bar, event)
        stage = STAGES.get(event.stage, event.stage)
        self.about.say(f"{stage} · step {event.step} of at most {event.total} · {clock(event)}")
        self._judge(event.losses)

    def _judge(self, figures: Any) -> None:
        """The badge: may the samples be believed?"""
        rhat, ess = figures.get("rhat"), figures.get("ess")
        if rhat is None or ess is None:
            self.badge.setText("R-hat –   ESS –")
            self.badge.setStyleSheet("")
            return
        good = rhat <= GOOD_RHAT and ess >= GOOD_ESS
        verdict = "chains agree" if good else (
            "chains disagree: run longer" if rhat > GOOD_RHAT else "few independent samples yet"
        )
        self.badge.setText(f"{'✓' if good else '⚠'} R-hat {rhat:.2f}   ESS {ess:.0f}   {verdict}")
        self.badge.setStyleSheet(f"color: {GOOD if good else FAULT}; font-weight: bold;")

    def _on_end(self, how: str, seconds: float) -> None:
        outcome = self.run.outcome
        if how == "failed":
            self.about.say(self.run.fault, FAULT)
        elif outcome is None:
            self.about.say("cancelled before there was any sample")
        else:
            self._show_figures(outcome.metrics, how, seconds)
        self.show_view(self.run.wanted_view)
        self._link()
        self._update()

    def _show_figures(self, metrics: dict[str, Any], how: str, seconds: float) -> None:
        self.bar.setValue(self.bar.maximum() if how == "done" else self.bar.value())
        begin = "cancelled: " if how == "cancelled" else ""
        text = f"{begin}{metrics['samples']} samples kept"
        if "states" in metrics:
            text += f" of {metrics['states']} states in {metrics['chains']} chains"
        text += f" · {duration(seconds)} · mean deviation {metrics['mean_std']:.3g} (of 0-1)"
        if "psnr" in metrics:
            listed = metrics.get("baselines", {}).values()
            beside = "".join(f" (start {value:.2f})" for value in listed)
            text += f" · mean {metrics['psnr']:.2f} dB{beside}"
        self.about.say(text)
        self._judge(metrics)
        if "coverage" in metrics:
            self.coverage.show_shares(metrics["coverage"])
            self.ranks.show_ranks(metrics["ranks"])

    def _say(self, text: str, warning: bool) -> None:
        self.message.say(text, FAULT if warning else "")

    # ---- looking

    def show_view(self, kind: str) -> None:
        """Show one layer of the last run, and hide its others."""
        self.run.wanted_view = kind
        self.buttons[kind].setChecked(True)
        for other in self.run.kinds:
            layer = self.run.layer(other)
            if layer is not None:
                layer.visible = other == kind
        layer = self.run.layer(kind)
        if layer is not None:
            self.viewer.layers.selection.active = layer

    def _link(self) -> None:
        """One contrast for everything in grey values, or each its own."""
        layers = [layer for kind in LINKED if (layer := self.run.layer(kind)) is not None]
        layers = [layer for layer in layers if not getattr(layer, "rgb", False)]
        if len(layers) < 2:
            return
        names = ("contrast_limits", "gamma", "colormap")
        self.viewer.layers.unlink_layers(layers, names)
        if self.linked.isChecked():
            limits = layers[0].contrast_limits
            for layer in layers[1:]:
                layer.contrast_limits = limits
            self.viewer.layers.link_layers(layers, names)

    def probe_at(self, position: np.ndarray) -> None:
        """The histogram of the place that was clicked."""
        stack = self.run.layer("samples")
        if stack is None:
            return
        index = index_at(stack, position)
        if index is None:
            self.histogram.say("click inside the image")
            return
        known = {}
        for kind in ("truth", "start"):
            layer = self.run.known(kind)
            shape = finest(layer).shape if layer is not None else ()
            if shape[: len(index)] == finest(stack).shape[1 : 1 + len(index)]:
                known[kind] = float(np.mean(np.asarray(finest(layer)[index], float)))
        place = ", ".join(str(i) for i in index)
        self.histogram.show_values(values_at(stack, index), f"({place})", **known)
        self.probe.mark(stack, index)

    # ---- the end of the dock

    def release(self) -> None:
        """Stop the job and listen to no more clicks."""
        self.run.runner.shutdown()
        self.viewer.layers.events.removed.disconnect(self._update)
        self.probe.leave()
