"""What a run gives back."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field
from typing import Any

from napari_invprior.priors.base import Prior
from napari_invprior.recipes.layers import OutputLayer
from napari_invprior.recipes.model import Recipe


@dataclass(frozen=True)
class Outcome:
    """Layers, figures and the prior of a run."""

    recipe: Recipe
    layers: tuple[OutputLayer, ...]
    metrics: dict[str, Any]
    prior: Prior | None
    seconds: float
    peak_memory_mb: float
    facts: dict[str, Any] = field(default_factory=dict)
    """What a saved prior should remember: scale, spacing, units and digests of its data."""
    detail: Any = None
    """What the layers were made of, where a figure is drawn from it (a `Tessellation`)."""


def peak_memory_mb() -> float:
    """Largest memory that this process has held so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
