"""Priors and results to files and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_invprior.app import preferences
from napari_invprior.app.docks.jobs import MakeJob
from napari_invprior.app.workbench.prior_panel import PriorPanel
from napari_invprior.app.workbench.runs import LAST_RUN
from napari_invprior.jobs import Job, Result, ShouldStop


def save_prior_facts(path: Path, panel: PriorPanel, recipe: Mapping[str, Any] | None) -> None:
    """Write the prior in hand with what it was trained on, and the run it was last used for."""
    from napari_invprior.io.bundles import save_prior

    path = path if path.suffix else path.with_suffix(".safetensors")
    facts = dict(panel.facts)
    if recipe is not None:
        facts[LAST_RUN] = dict(recipe)
    save_prior(path, panel.prior, facts)


def load(path: Path) -> tuple[Any, dict[str, Any]]:
    """A saved prior on the device that jobs will use, and its facts."""
    from napari_invprior.io.bundles import load_prior
    from napari_invprior.recipes.device import choose_device

    device, _ = choose_device(preferences.device())
    return load_prior(path, device=str(device))


def save_result_job(outcome: Any, folder: Path) -> MakeJob:
    """A job that writes a result; large volumes must not freeze the window."""

    def job(_: ShouldStop) -> Job:  # a file is written whole or not at all
        from napari_invprior import recipes

        recipes.write_outcome(outcome, folder)
        yield Result(str(folder))

    return job
