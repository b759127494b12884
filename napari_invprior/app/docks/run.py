"""What every dock with a job shares: one runner, its sentences, and how a fault is told."""

from __future__ import annotations

import time

from napari.components import ViewerModel
from napari.utils.notifications import notification_manager, show_error
from qtpy.QtCore import QObject, Signal

from napari_invprior.app import preferences
from napari_invprior.app.docks.jobs import JobEnd, JobRunner
from napari_invprior.errors import InvPriorError
from napari_invprior.jobs import Event, Message, Progress


class DockRun(QObject):
    """Runs one job at a time for a dock.

    Parameters
    ----------
    viewer : ViewerModel
        Where results go.
    parent : QObject
        The dock.

    Signals
    -------
    progressed : Progress
    said : str, bool
        A sentence; whether it is a warning.
    ended : str, float
        ``"done"``, ``"cancelled"`` or ``"failed"``; seconds.
    changed
        The state of the job, or what it left, changed.
    """

    progressed = Signal(object)
    said = Signal(str, bool)
    ended = Signal(str, float)
    changed = Signal()

    def __init__(self, viewer: ViewerModel, parent: QObject) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self.runner = JobRunner(self, preferences.cpu_threads)
        self.runner.event.connect(self._on_event)
        self.runner.ended.connect(self._on_end)
        self.runner.state_changed.connect(lambda _: self.changed.emit())
        self.fault = ""
        self._begin = 0.0

    def _may_start(self) -> bool:
        """Whether no job runs; says so otherwise. The time of the run counts from here."""
        if JobRunner.process_is_busy():
            self.said.emit("another dock runs a job; wait for it or cancel it there", True)
            return False
        self.fault, self._begin = "", time.monotonic()
        return True

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Message):
            self.said.emit(event.text, event.level == "warning")
        elif isinstance(event, Progress):
            self.progressed.emit(event)

    def _on_end(self, end: JobEnd) -> None:
        raise NotImplementedError

    def _close(self, end: JobEnd) -> None:
        """Tell the dock that the job is over."""
        self.ended.emit(end.how, time.monotonic() - self._begin)

    def _tell_fault(self, end: JobEnd) -> None:
        if end.how == "failed" and end.error is not None:
            self.fault = str(end.error)
            tell(end.error)


def tell(error: Exception) -> None:
    """Show an error to the user; what is no known fault comes with its traceback."""
    if isinstance(error, InvPriorError):
        show_error(str(error))
    else:
        notification_manager.receive_error(type(error), error, error.__traceback__)
