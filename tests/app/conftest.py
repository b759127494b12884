"""A real window with the dock in it, and jobs that are as small as they can be."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt, QThreadPool
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QWidget

TINY_PRIOR = {"kind": "patchnr", "patch_size": 4, "hidden": 8, "blocks": 2, "batch": 64,
              "steps": 40}
LONG_PRIOR = TINY_PRIOR | {"steps": 200_000, "stop_early": False}
TINY_SOLVER = {"kind": "variational", "iterations": 6}


def canvas_of(viewer: Any) -> QWidget:
    """The native widget that gets mouse and key events; napari has no public name for it."""
    found = [
        widget for widget in viewer.window._qt_window.findChildren(QWidget)
        if type(widget).__name__.startswith("CanvasBackend")
    ]
    assert len(found) == 1
    return found[0]


@dataclass
class Window:
    """A viewer with the dock, and hands to use it with."""

    viewer: Any
    bench: Any
    qtbot: Any

    def add(self, name: str) -> None:
        """Open one of our samples as File > Open Sample does."""
        from napari_invprior.app.demo import load_sample_layers

        load_sample_layers(self.viewer, name)
        self.settle()

    def add_small(self, shape=(64, 64), **options: Any) -> None:
        """A small observation and a reference beside it, factor 2."""
        rng = np.random.default_rng(0)
        fine = rng.random(shape).astype(np.float32)
        coarse = fine.reshape(shape[0] // 2, 2, shape[1] // 2, 2).mean((1, 3))
        self.viewer.add_image(coarse, name="low", scale=(2, 2), translate=(0.5, 0.5), **options)
        self.viewer.add_image(fine, name="good", translate=(0, shape[1] + 4), **options)
        self.bench.data.observation.choose("low")
        self.bench.references.image.choose("good")
        self.bench.data.physics.choose({"kind": "superresolution", "factor": 2})
        self.bench.prior.chooser.choose(TINY_PRIOR)
        self.bench.result.solver.choose(TINY_SOLVER)
        self.bench.result.automatic.setChecked(False)
        self.bench.references.size.setValue(24)
        self.viewer.reset_view()
        self.settle()

    def settle(self, seconds: float = 0.35) -> None:
        """Let throttled updates and draws happen."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            QApplication.processEvents()
            time.sleep(0.005)

    def until(self, condition: Any, seconds: float = 60) -> None:
        self.qtbot.waitUntil(condition, timeout=int(1000 * seconds))

    @property
    def idle(self) -> bool:
        return self.bench.runs.runner.state == "idle"

    def wait(self, seconds: float = 120) -> None:
        """Until the job is over."""
        self.until(lambda: self.idle, seconds)

    def pixel(self, world: tuple[float, ...]) -> QPoint:
        """Where a position of the world is on the canvas."""
        canvas, camera = canvas_of(self.viewer), self.viewer.scene.camera
        place = (np.asarray(world)[-2:] - np.asarray(camera.center)[-2:]) * camera.zoom
        ratio = canvas.devicePixelRatioF()
        return QPoint(
            round(place[1] / ratio + canvas.width() / 2),
            round(place[0] / ratio + canvas.height() / 2),
        )

    def click(self, world: tuple[float, ...]) -> None:
        """A real click of the left button."""
        canvas = canvas_of(self.viewer)
        QTest.mouseMove(canvas, self.pixel(world))
        QTest.mouseClick(canvas, Qt.MouseButton.LeftButton, pos=self.pixel(world))
        self.settle(0.05)

    def drag(self, start: tuple[float, ...], stop: tuple[float, ...]) -> None:
        """Press, move in steps, release."""
        canvas = canvas_of(self.viewer)
        QTest.mousePress(canvas, Qt.MouseButton.LeftButton, pos=self.pixel(start))
        for share in np.linspace(0, 1, 6)[1:]:
            between = tuple(np.asarray(start) * (1 - share) + np.asarray(stop) * share)
            move(canvas, self.pixel(between))
            self.settle(0.02)
        QTest.mouseRelease(canvas, Qt.MouseButton.LeftButton, pos=self.pixel(stop))
        self.settle(0.05)

    def key(self, key: Qt.Key, modifier: Any = Qt.KeyboardModifier.NoModifier) -> None:
        """A real key on the canvas."""
        QTest.keyClick(canvas_of(self.viewer), key, modifier)
        self.settle(0.05)

    def press(self, button: Any) -> None:
        """A real click on a button, which must be enabled."""
        assert button.isEnabled(), f"{button.text()} is disabled"
        self.qtbot.mouseClick(button, Qt.MouseButton.LeftButton)

    def pick_small(self) -> None:
        """One region that is large enough for the small prior."""
        picker = self.bench.references.picker
        picker.enter()
        picker.set_size(40)
        picker.add((32.0, 100.0))
        picker.leave()
        self.settle()


def move(canvas: QWidget, place: QPoint) -> None:
    """A mouse move with the left button held; `QTest.mouseMove` holds none."""
    from qtpy.QtCore import QEvent, QPointF
    from qtpy.QtGui import QMouseEvent

    event = QMouseEvent(
        QEvent.Type.MouseMove, QPointF(place), QPointF(canvas.mapToGlobal(place)),
        Qt.MouseButton.NoButton, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier,
    )
    QApplication.sendEvent(canvas, event)


@pytest.fixture
def window(make_napari_viewer, qtbot):
    """An open window with the dock."""
    from napari_invprior.app.demo import dock

    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1280, 800)
    opened = Window(viewer, dock(viewer), qtbot)
    opened.settle()
    yield opened
    opened.bench.close_down()
    opened.settle(0.1)
    assert QThreadPool.globalInstance().waitForDone(2000), "a job outlives its dock"
