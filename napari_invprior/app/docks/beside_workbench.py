"""Docks that work on the problem of the workbench: they find it, lie beside it, follow it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import napari
from qtpy.QtCore import QSize, QTimer
from qtpy.QtWidgets import QPushButton

from napari_invprior.app.docks.base import Dock
from napari_invprior.app.widgets.controls import push
from napari_invprior.app.workbench.dock import WIDTH, Workbench


class BenchDock(Dock):
    """A dock behind the same tab bar as the workbench of its window.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The viewer the dock belongs to.

    Attributes
    ----------
    bench : Workbench or None
        The open workbench.
    open_bench : QPushButton
        Opens one; for the layout of the subclass.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.bench: Workbench | None = None
        self.open_bench: QPushButton = push(
            "Open the workbench", "The workbench holds data, physics, noise, references and prior.",
            self._open_workbench,
        )
        self._tabbed = False

    def sizeHint(self) -> QSize:  # noqa: N802
        """As wide as the workbench, beside which it lies."""
        return QSize(WIDTH, 700)

    @abstractmethod
    def _update(self) -> None:
        """Enable what can be done; something in the workbench changed."""

    def showEvent(self, event: Any) -> None:  # noqa: N802
        """Look for the workbench of this window."""
        super().showEvent(event)
        QTimer.singleShot(0, self._adopt)

    def _adopt(self) -> None:
        """Take the problem of the window's workbench, and lie behind the same tab bar."""
        if self.is_closed or self.bench is not None:
            return
        open_ones = [b for b in self.window().findChildren(Workbench) if not b.is_closed]
        if open_ones:
            self.bench = open_ones[0]
            for signal in (self.bench.data.changed, self.bench.references.changed,
                           self.bench.prior.changed, self.bench.result.changed,
                           self.bench.runs.changed):
                signal.connect(self._update)
            self.bench.closed.connect(self._on_bench_closed)
            own, other = self.holder(), self.bench.holder()
            if own is not None and other is not None and not self._tabbed:
                self._tabbed = True
                self.window().tabifyDockWidget(other, own)
                QTimer.singleShot(0, own.raise_)
        self._update()

    def _on_bench_closed(self) -> None:
        self.bench = None
        self._update()

    def _open_workbench(self) -> None:
        from napari_invprior.app.demo import dock

        dock(self.viewer)
        self._adopt()

    def described_problem(self) -> str:
        """The workbench's data in a line, and whether a truth is known."""
        assert self.bench is not None
        data = self.bench.data
        truth = data.known_truth()
        known = f"truth: {truth}" if truth else "no truth known"
        return f"{data.observation.currentText()}: {data.about.text()}\n{known}"
