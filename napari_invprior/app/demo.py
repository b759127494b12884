"""`invprior demo`: the workbench on built-in data, ready to press Train."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_invprior.errors import JobError

if TYPE_CHECKING:
    import napari

    from napari_invprior.app.particles.dock import Particles
    from napari_invprior.app.workbench.dock import Workbench

PICKS = ((0.27, 0.30), (0.70, 0.55), (0.30, 0.78))
"""Where the three references lie, as shares of the reference image."""

PATIENCE = 600.0
"""Seconds that a headless step may take."""


def open_demo(
    headless: bool = False,
    out: str | Path | None = None,
    quit_after: float | None = None,
    screenshot: str | Path | None = None,
) -> dict[str, Any]:
    """Open napari with the sample loaded, three references picked and the workbench docked.

    Parameters
    ----------
    headless : bool
        Press Train and Reconstruct and wait, instead of waiting for the user.
    out : path, optional
        Folder for the result and the screenshot of a headless run.
    quit_after : float, optional
        Close the window after so many seconds.
    screenshot : path, optional
        Where to save a picture of the window before it closes.

    Returns
    -------
    dict
        Figures of a headless run (empty otherwise).

    Raises
    ------
    JobError
        If a headless run failed.
    """
    import napari
    from napari.qt import get_qapp
    from qtpy.QtCore import QTimer

    app = get_qapp()
    with errors_reported():
        viewer = napari.Viewer(title="Inverse priors demo", show=not headless)
        bench = dock(viewer)
        load_sample_layers(viewer, "superresolution_2d")
        pick_references(bench)
        metrics: dict[str, Any] = {}
        if headless:
            viewer.show()
            viewer.window.resize(1280, 800)
            metrics = press_all(bench, Path(out) if out else None)
            save_screenshot(viewer, screenshot or (Path(out) / "window.png" if out else None))
            viewer.close()
            return metrics
        if quit_after is not None:

            def finish() -> None:
                save_screenshot(viewer, screenshot)
                viewer.close()
                app.quit()

            QTimer.singleShot(int(1000 * quit_after), finish)
        napari.run()
    return metrics


@contextlib.contextmanager
def errors_reported() -> Iterator[None]:
    """Errors in the event loop become notifications; unhandled they would abort the process."""
    from napari.utils.notifications import notification_manager

    with notification_manager:
        yield


def dock(viewer: napari.Viewer) -> Workbench:
    """The workbench, docked."""
    from napari_invprior.app.workbench.dock import Workbench

    bench = Workbench(viewer)
    viewer.window.add_dock_widget(bench, name="Inverse priors workbench", area="right")
    return bench


def load_sample_layers(viewer: napari.Viewer, name: str) -> None:
    """Add the layers of one of our samples."""
    from napari.layers import Layer

    from napari_invprior.app import sample_data

    for data in getattr(sample_data, name)():
        viewer.add_layer(Layer.create(*data))
    viewer.reset_view()


def pick_references(bench: Workbench) -> None:
    """Drop three regions on the reference image, as clicks would."""
    from napari_invprior.app.workbench.regions import space_shape

    image = bench.references.layer
    assert image is not None
    picker = bench.references.picker
    picker.enter()
    shape = space_shape(image, image.ndim)
    for share in PICKS:
        place = [n / 2 for n in shape[:-2]] + [
            s * n for s, n in zip(share, shape[-2:], strict=True)
        ]
        picker.add(tuple(image.data_to_world(place)))
    picker.leave()


def press_all(bench: Workbench, out: Path | None) -> dict[str, Any]:
    """Train, reconstruct and save, with the buttons of the dock."""
    process_events(0.3)
    for button, done in (
        (bench.prior.train, lambda: bench.prior.fitted),
        (bench.result.run, lambda: bench.runs.history.shown is not None),
    ):
        wait_for(button.isEnabled, bench)
        button.click()
        wait_for(lambda: bench.runs.runner.state == "idle", bench)
        if not done():
            raise JobError(f"the demo did not get through: {bench.message.text()}")
        process_events(0.2)
    outcome = bench.runs.outcomes[bench.runs.history.shown]
    figures = {"metrics": outcome.metrics, "seconds": round(outcome.seconds, 2)}
    if out is not None:
        from napari_invprior import recipes

        figures["outputs"] = recipes.write_outcome(outcome, out)
    return figures


def wait_for(condition: Callable[[], bool], bench: Workbench | Particles) -> None:
    """Run the event loop until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        process_events(0.02)
        if time.monotonic() > deadline:
            raise JobError(f"the demo took longer than {PATIENCE:g} s: {bench.message.text()}")


def process_events(seconds: float) -> None:
    """Let the window live for a while."""
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.005)


def save_screenshot(viewer: napari.Viewer, path: str | Path | None) -> None:
    """A picture of the whole window."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        process_events(0.3)
        viewer.window.screenshot(str(path), canvas_only=False, flash=False)

