"""What is done to any window of the data, once everything that concerns them all is settled."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from napari_invprior.blocks.grid import Block
from napari_invprior.blocks.inputs import Inputs
from napari_invprior.cutout import Cutout
from napari_invprior.io.arrays import Range
from napari_invprior.jobs import Job, Message, Preview, Progress, Result, ShouldStop, forward
from napari_invprior.priors.base import Prior
from napari_invprior.recipes.layers import OutputLayer, image_layer, map_layer
from napari_invprior.recipes.model import Recipe
from napari_invprior.recipes.prepare import Problem
from napari_invprior.recipes.priors import measurement_of
from napari_invprior.recipes.sample import sample
from napari_invprior.reconstruct.base import Solver

TASKS = ("reconstruct", "sample")


@dataclass(frozen=True)
class Agreed:
    """What all blocks share.

    Attributes
    ----------
    recipe : Recipe
        With the weight, the noise and the number of steps in it.
    scale : tuple of float
        The user's numbers that mean 0 and 1.
    value_range : tuple of float or None
        Smallest and largest value of the references (of 0-1).
    noise_level : float
        Mean variance of the noise.
    prior : Prior or None
        Trained, with a potential that does not change.
    """

    recipe: Recipe
    scale: Range
    value_range: Range | None
    noise_level: float
    prior: Prior | None


@dataclass(frozen=True)
class Done:
    """What was computed of a window.

    Attributes
    ----------
    layers : tuple of OutputLayer
        ([C,] *space) each, in the user's numbers.
    figures : dict of str to float
        Means over the window.
    notes : tuple of str
        What the user should know.
    """

    layers: tuple[OutputLayer, ...]
    figures: dict[str, float]
    notes: tuple[str, ...] = ()


def compute(
    agreed: Agreed, inputs: Inputs, block: Block, image: Sequence[int], device: torch.device,
    should_stop: ShouldStop,
) -> Job:
    """Reconstruct or sample a block's window; the `Result` is a `Done` of all of the window.

    Parameters
    ----------
    image : sequence of int
        Space shape of the image that all windows are parts of.
    """
    problem, notes = problem_of(agreed, inputs, block)
    if problem.recipe.task == "sample":
        assert agreed.prior is not None
        job = sample(
            problem, agreed.prior, device, {}, should_stop=should_stop, folder=None,
            time_left=lambda: None,
        )
        layers, metrics = yield from forward(_quiet(job))
        kept = tuple(layer for layer in layers if layer.name != "samples")
    else:
        cutout = Cutout(block.start, tuple(image))
        kept, metrics = yield from forward(
            reconstructed(problem, agreed, cutout, device, should_stop)
        )
    figures = {
        k: float(v) for k, v in metrics.items()
        if isinstance(v, int | float) and math.isfinite(v)
    }
    yield Result(Done(kept, figures, tuple(notes)))


def problem_of(agreed: Agreed, inputs: Inputs, block: Block) -> tuple[Problem, list[str]]:
    """The problem of a block's window, and what the user should know of it."""
    problem, notes = None, []
    for item in inputs.problem(
        _for_block(agreed.recipe, block.index), block.frame, block.window, scale=agreed.scale
    ):
        if isinstance(item, Problem):
            problem = item
        elif item.level == "warning":
            notes.append(item.text)
    assert problem is not None and problem.noise is not None
    problem.noise = problem.noise.settled(agreed.noise_level)
    return problem, notes


def _for_block(recipe: Recipe, index: int) -> Recipe:
    """The recipe with what blocks need no more, and a seed of its own where noise is drawn.

    Solvers keep the seed: their random grids must be the same in all blocks.
    """
    settings: dict[str, Any] = {"references": [], "zero_shot": False}
    if recipe.task == "sample":
        drawn = hashlib.sha256(f"{recipe.seed} {index}".encode()).digest()
        settings["seed"] = int.from_bytes(drawn[:7], "little")
    return recipe.with_settings(settings)


def reconstructed(
    problem: Problem, agreed: Agreed, cutout: Cutout, device: torch.device,
    should_stop: ShouldStop,
) -> Job:
    """Reconstruct a window; the `Result` is (layers, figures)."""
    recipe, prior = problem.recipe, agreed.prior
    solver: Solver = recipe.solver.method.cls(recipe.solver.parameters)
    case = replace(problem.case(device), value_range=agreed.value_range)
    image: Tensor = yield from forward(_quiet(solver.solve(
        case.y, case.physics, case.noise, prior, weight=weight_of(recipe),
        value_range=case.range_for(prior), seed=recipe.seed, should_stop=should_stop,
        cutout=cutout,
    )))
    layers = [image_layer("reconstruction", image.cpu(), problem)]
    if recipe.maps and prior is not None and not should_stop():
        found = yield from forward(_quiet(
            prior.maps(image.to(device), measurement_of(problem), seed=recipe.seed)
        ))
        layers += [map_layer(entry, problem) for entry in found]
    yield Result((tuple(layers), {"residual_ratio": case.residual_ratio(image)}))


def weight_of(recipe: Recipe) -> float:
    """The weight in a settled recipe; 1 for solvers without one."""
    weight = getattr(recipe.solver.parameters, "weight", 1.0)
    return float(weight)


def _quiet(job: Job) -> Job:
    """Progress and the result alone: there are many blocks."""
    for event in job:
        if not isinstance(event, Message | Preview):
            yield event


def steps_of(job: Job) -> Job:
    """Pass a solver's job on; the `Result` is (its value, steps that it took)."""
    steps = 0
    for event in job:
        if isinstance(event, Progress) and event.stage == "reconstruct":
            steps = event.step
        if isinstance(event, Result):
            yield Result((event.value, steps))
        else:
            yield event
