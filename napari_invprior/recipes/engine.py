"""`run`: the one entry through which window, command line and scripts compute."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from napari_invprior import jobs
from napari_invprior.errors import Cancelled, InvalidInput
from napari_invprior.io.images import Arrays
from napari_invprior.jobs import Job, Message, Preview, Result, ShouldStop, forward, never
from napari_invprior.numerics.metrics import psnr, ssim
from napari_invprior.physics.unobserved import complete_operator
from napari_invprior.points import PointSet
from napari_invprior.priors.base import Map, Prior, Reference
from napari_invprior.recipes.clouds import Found, run_clouds
from napari_invprior.recipes.device import choose_device
from napari_invprior.recipes.layers import OutputLayer, image_layer, map_layer, provenance
from napari_invprior.recipes.model import Choice, Recipe
from napari_invprior.recipes.operator import Estimate, estimate
from napari_invprior.recipes.outcome import Outcome, peak_memory_mb
from napari_invprior.recipes.prepare import Problem, prepare
from napari_invprior.recipes.priors import fitted_prior, measurement_of, prior_at_hand
from napari_invprior.recipes.requirements import CLOUD_TASKS
from napari_invprior.recipes.sample import sample
from napari_invprior.recipes.study import chosen_baselines, entrant, single, study_metrics
from napari_invprior.reconstruct.base import Solver
from napari_invprior.reconstruct.case import find_weight, reconstruct
from napari_invprior.reconstruct.propose import propose_prior
from napari_invprior.reconstruct.weight import WeightChoice
from napari_invprior.study.baselines import baselines
from napari_invprior.study.compare import Comparison, compare


def run(
    recipe: Recipe | Mapping[str, Any] | str,
    *,
    arrays: Arrays | None = None,
    prior: Prior | None = None,
    should_stop: ShouldStop = never,
    folder: Path | None = None,
    points: Mapping[str, PointSet] | None = None,
) -> Job:
    """Run a recipe as a job; the last event is a `Result` with an `Outcome`.

    Parameters
    ----------
    recipe : Recipe, mapping or str
        The recipe, as an object, plain data or JSON text.
    arrays : mapping of str to Image, optional
        Arrays in memory for sources of the form ``{"layer": name}``.
    prior : Prior, optional
        A prior to use. Task ``"fit"`` continues its training; task ``"reconstruct"`` uses it as
        it is when it is fitted.
    should_stop
        Polled often; the best state so far is then the result.
    folder : Path, optional
        Where samples are written while they come, as ``result.ome.zarr/samples``; they stay in
        memory by default.
    points : mapping of str to PointSet, optional
        Points in memory for point sources of the form ``{"layer": name}``.

    Raises
    ------
    InvalidInput
        The recipe or its data cannot be used.
    JobError
        The computation failed.
    """
    parsed = Recipe.parse(recipe)
    if parsed.task in CLOUD_TASKS:
        return jobs.guard(_run_cloud(parsed, arrays or {}, points or {}, should_stop))
    return jobs.guard(_run(parsed, arrays or {}, prior, should_stop, folder))


def execute(
    recipe: Recipe | Mapping[str, Any] | str, **options: Any
) -> Outcome:
    """Run a recipe to its end and return its `Outcome`; see `run` for the options."""
    outcome: Outcome = jobs.run(run(recipe, **options))
    return outcome


def _run_cloud(
    recipe: Recipe, arrays: Arrays, points: Mapping[str, PointSet],
    should_stop: ShouldStop,
) -> Job:
    start = time.monotonic()
    found: Found = yield from forward(run_clouds(recipe, arrays, points, should_stop))
    outcome = _outcome(found.problem, found.layers, found.metrics, None, start)
    yield Result(replace(outcome, detail=found.detail))


def _run(
    recipe: Recipe, arrays: Arrays, prior: Prior | None, should_stop: ShouldStop,
    folder: Path | None,
) -> Job:
    start = time.monotonic()
    device, message = choose_device(recipe.device)
    if message is not None:
        yield message
    if recipe.task == "estimate_operator":
        fit: Estimate = yield from forward(estimate(recipe, arrays, should_stop))
        psf = OutputLayer("psf", fit.kernel, fit.geometry,
                          metadata=provenance(fit.problem) | {"figures": fit.metrics})
        yield Result(_outcome(fit.problem, (psf,), fit.metrics, None, start))
        return
    problem: Problem | None = None
    for item in prepare(recipe, arrays):
        if isinstance(item, Problem):
            problem = item
        else:
            yield item
    assert problem is not None
    if recipe.task == "propose":
        ranking = yield from forward(_propose(problem, should_stop))
        yield Result(_outcome(problem, (), {"ranking": ranking}, prior, start))
        return
    if recipe.task == "study":
        layers, metrics = yield from forward(_study(problem, prior, device, should_stop))
        yield Result(_outcome(problem, layers, metrics, None, start))
        return
    prior = yield from forward(fitted_prior(problem, prior, device, should_stop))
    if recipe.task == "fit" or should_stop():
        if recipe.task != "fit":
            raise Cancelled("stopped before the reconstruction began; the prior so far is kept")
        yield Result(_outcome(problem, (), {}, prior, start))
        return
    if recipe.task == "sample":
        assert prior is not None
        layers, metrics = yield from forward(_scaled(
            sample(problem, prior, device, arrays, should_stop=should_stop, folder=folder,
                   time_left=lambda: _time_left(recipe, start)), problem,
        ))
        yield Result(_outcome(problem, layers, metrics, prior, start))
        return
    image, metrics = yield from forward(
        _scaled(_reconstruct(problem, prior, device, should_stop, start), problem)
    )
    layers = (image_layer("reconstruction", image, problem),)
    if recipe.maps and prior is not None and not should_stop():
        found: list[Map] = yield from forward(
            prior.maps(image.to(device), measurement_of(problem), seed=recipe.seed)
        )
        layers += tuple(map_layer(entry, problem) for entry in found)
    yield Result(_outcome(problem, layers, metrics, prior, start))


def _propose(problem: Problem, should_stop: ShouldStop) -> Job:
    """Rank priors on a held-out piece of the first reference; best first, as plain data.

    The whole reference image serves, whatever was picked on it: the piece must be large enough to
    score and the rest large enough to learn from.
    """
    if not problem.references or problem.physics is None or problem.noise is None:
        raise InvalidInput("to propose a prior, give an observation and a reference to try it on")
    physics = complete_operator(problem.physics)
    if physics.mask is not None:
        raise InvalidInput("a mask belongs to one image; priors cannot be tried on the reference")
    whole = Reference(problem.references[0].image)
    seed = problem.recipe.seed
    scores = yield from forward(
        propose_prior(whole, physics, problem.noise, seed=seed, should_stop=should_stop)
    )
    yield Result(
        [
            {"name": s.name, "psnr": s.psnr, "seconds": s.seconds} | s.candidate.choices()
            for s in scores
        ]
    )


def _study(
    problem: Problem, prior: Prior | None, device: torch.device, should_stop: ShouldStop
) -> Job:
    """Compare the methods of the recipe. The `Result` is (layers, metrics)."""

    def at_hand(choice: Choice, given: Prior | None) -> Job:
        return prior_at_hand(choice, problem, given, device)

    entrants = [
        entrant(method, title, prior, at_hand)
        for method, title in zip(problem.recipe.methods, problem.recipe.titles, strict=True)
    ]
    comparison: Comparison = yield from forward(compare(
        problem.case(device), entrants, chosen_baselines(problem), should_stop=should_stop,
        budget_s=problem.recipe.time_budget_s,
    ))
    layers = [
        image_layer(f"reconstruction_{name}", image, single(problem, comparison, name))
        for name, image in comparison.images.items()
    ]
    if problem.truth is not None and layers:
        layers.append(replace(image_layer("truth", problem.truth, problem), role="truth"))
    yield Result((tuple(layers), study_metrics(problem, comparison)))


def _reconstruct(
    problem: Problem, prior: Prior | None, device: torch.device, should_stop: ShouldStop,
    start: float,
) -> Job:
    """Weight, solver, metrics. The `Result` is (image, metrics)."""
    recipe = problem.recipe
    assert problem.y is not None and problem.physics is not None and problem.noise is not None
    solver: Solver = recipe.solver.method.cls(recipe.solver.parameters)
    advice = "" if prior is None else prior.advice(problem.physics.in_shape(problem.y.shape[2:]))
    if advice:
        yield Message(advice, "warning")
    case = problem.case(device)
    choice: WeightChoice = yield from forward(
        find_weight(case, solver, prior, should_stop=should_stop)
    )
    if choice.tried:
        problem.facts["weight_rule"] = choice.rule
        problem.facts["weights_tried"] = [list(pair) for pair in choice.tried]
    image = yield from forward(reconstruct(
        case, solver, prior, choice.weight, should_stop=should_stop,
        time_left=lambda: _time_left(recipe, start),
    ))
    weighed = {"weight": choice.weight} if solver.has_weight else {}
    metrics: dict[str, Any] = weighed | problem.facts
    metrics["residual_ratio"] = case.residual_ratio(image)
    if problem.truth is not None:
        metrics["psnr"] = psnr(image, problem.truth, recipe.rim)
        metrics["ssim"] = ssim(image, problem.truth, recipe.rim)
        if recipe.baselines and not should_stop():
            metrics["baselines"] = yield from forward(baselines(
                problem.y, problem.physics, problem.noise, problem.truth, recipe.rim,
                should_stop=should_stop,
            ))
    yield Preview("image", image.numpy(), "reconstruct")
    yield Result((image, metrics))


def _scaled(job: Job, problem: Problem) -> Job:
    """The job, with the scale of the images written on its previews."""
    for event in job:
        yield replace(event, value_range=problem.scale) if isinstance(event, Preview) else event


def _time_left(recipe: Recipe, start: float) -> float | None:
    if recipe.time_budget_s is None:
        return None
    return max(0.1, recipe.time_budget_s - (time.monotonic() - start))


def _outcome(
    problem: Problem, layers: tuple[OutputLayer, ...], metrics: dict[str, Any],
    prior: Prior | None, start: float,
) -> Outcome:
    return Outcome(
        recipe=problem.recipe,
        layers=layers,
        metrics=metrics,
        prior=prior,
        seconds=time.monotonic() - start,
        peak_memory_mb=peak_memory_mb(),
        facts={
            "intensity_scale": list(problem.scale),
            "training_data": problem.digests,
            "recipe": problem.recipe.to_dict(),
        },
    )
