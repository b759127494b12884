"""What every dock of the package shares: it notices its end, whichever way that comes."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QEvent, QTimer, Signal
from qtpy.QtWidgets import QDockWidget, QWidget


class Dock(QWidget):
    """A widget of a napari dock that releases what it holds when dock or window close.

    Signals
    -------
    closed
        It is over; emitted once.
    """

    closed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._closed = self._window_closes = False

    def release(self) -> None:
        """Stop jobs, unbind mouse and keys, forget the viewer; called once."""

    def close_down(self) -> None:
        """End the dock; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self.release()
        self.closed.emit()

    @property
    def is_closed(self) -> bool:
        """Whether the dock was closed."""
        return self._closed

    def holder(self) -> QDockWidget | None:
        """The dock widget around this one, once there is one."""
        parent = self.parentWidget()
        while parent is not None and not isinstance(parent, QDockWidget):
            parent = parent.parentWidget()
        return parent

    def event(self, event: QEvent) -> bool:
        """Notice that the dock was closed: napari takes the widget out of it."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.close_down()
        return super().event(event)

    def showEvent(self, event: Any) -> None:  # noqa: N802
        """Watch the window that the dock is in; it joins it only after it is shown."""
        QTimer.singleShot(0, self._watch_window)
        super().showEvent(event)

    def _watch_window(self) -> None:
        self.window().installEventFilter(self)

    def eventFilter(self, watched: Any, event: QEvent) -> bool:  # noqa: N802
        """Stop when the window closes: it hides after a close that nobody refused."""
        if event.type() == QEvent.Type.Close:
            self._window_closes = True
            QTimer.singleShot(0, self._window_stays)
        elif event.type() == QEvent.Type.Hide and self._window_closes:
            self.close_down()
        return super().eventFilter(watched, event)

    def _window_stays(self) -> None:
        self._window_closes = False

    def closeEvent(self, event: Any) -> None:  # noqa: N802
        """A window of its own was closed."""
        self.close_down()
        super().closeEvent(event)
