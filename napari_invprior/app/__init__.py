"""The napari face. Importing this package imports neither Qt nor napari."""

from __future__ import annotations

from typing import Any

__all__ = [
    "Compare", "LargeVolumes", "Particles", "Tessellation", "Uncertainty", "Workbench", "open_demo"
]


def __getattr__(name: str) -> Any:
    """Import a widget only when it is opened: Qt and torch are slow to start."""
    if name == "Workbench":
        from napari_invprior.app.workbench.dock import Workbench

        return Workbench
    if name == "Compare":
        from napari_invprior.app.compare.dock import Compare

        return Compare
    if name == "LargeVolumes":
        from napari_invprior.app.large.dock import LargeVolumes

        return LargeVolumes
    if name == "Particles":
        from napari_invprior.app.particles.dock import Particles

        return Particles
    if name == "Tessellation":
        from napari_invprior.app.tessellation.dock import Tessellation

        return Tessellation
    if name == "Uncertainty":
        from napari_invprior.app.uncertainty.dock import Uncertainty

        return Uncertainty
    if name == "open_demo":
        from napari_invprior.app.demo import open_demo

        return open_demo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
