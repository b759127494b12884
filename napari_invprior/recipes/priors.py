"""The prior of a recipe: handed over, loaded from its file, or fitted now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from napari_invprior.errors import InvalidInput
from napari_invprior.io.bundles import load_prior
from napari_invprior.jobs import Job, Message, Result, ShouldStop, forward
from napari_invprior.priors.base import Measurement, Prior
from napari_invprior.recipes.model import Choice
from napari_invprior.recipes.prepare import Problem
from napari_invprior.reconstruct.case import train


def fitted_prior(
    problem: Problem, prior: Prior | None, device: torch.device, should_stop: ShouldStop
) -> Job:
    """The prior of the recipe: handed over, loaded from its file, or fitted now."""
    recipe = problem.recipe
    choice = recipe.prior
    if choice is None:
        yield Result(None)
        return
    prior = yield from forward(prior_at_hand(choice, problem, prior, device))
    if recipe.task == "sample" and problem.noise is not None:
        recipe.sampler.method.cls(recipe.sampler.parameters).require(prior, problem.noise)
    if recipe.task == "fit" or not prior.is_fitted:
        prior = yield from forward(train(
            prior, problem.references, measurement_of(problem), seed=recipe.seed,
            should_stop=should_stop,
        ))
    yield Result(prior)


def prior_at_hand(
    choice: Choice, problem: Problem, prior: Prior | None, device: torch.device
) -> Job:
    """The prior handed over, loaded from its file, or a new one that is not fitted yet."""
    ndim, channels = _dimensions(problem)
    if ndim not in choice.method.dimensions:
        raise InvalidInput(f"prior {choice.name!r} does not handle {ndim} space dimensions")
    if prior is None and choice.path is not None:
        prior, facts = load_prior(choice.path, device=str(device))
        yield from _provenance_warnings(facts, problem)
    if prior is None:
        prior = choice.method.cls(
            choice.parameters, ndim=ndim, channels=channels, device=str(device)
        )
    elif prior.ndim != ndim:
        raise InvalidInput(f"the prior was trained in {prior.ndim}D; the data are {ndim}D")
    yield Result(prior)


def measurement_of(problem: Problem) -> Measurement | None:
    """The data at hand; None when the recipe names none."""
    if problem.physics is None or problem.noise is None:
        return None
    return Measurement(problem.y, problem.physics, problem.noise)


def _dimensions(problem: Problem) -> tuple[int, int]:
    if problem.observation is not None:
        return problem.observation.ndim, problem.observation.channels
    first = problem.references[0].image
    return first.ndim - 1, first.shape[0]


def _provenance_warnings(facts: Mapping[str, Any], problem: Problem) -> Iterator[Message]:
    """Say what the file's reader noted, and where the prior comes from another scale."""
    for note in facts.get("notes", ()):
        yield Message(str(note), "warning")
    scale = facts.get("intensity_scale")
    if scale and problem.observation is not None:
        here = problem.scale
        span = abs(scale[1] - scale[0])
        if span > 0 and abs((here[1] - here[0]) / span - 1) > 0.1:
            yield Message(
                f"the prior was trained on values {scale[0]:.4g}..{scale[1]:.4g}, the data span "
                f"{here[0]:.4g}..{here[1]:.4g}; check that the scales agree", "warning",
            )
