"""Task ``sample``: many plausible images, what they agree on and what not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput, OutOfMemory
from napari_invprior.image import Image
from napari_invprior.io.images import Arrays, load
from napari_invprior.io.sample_store import DiskStore, MemoryStore, SampleStore
from napari_invprior.jobs import Event, Job, Message, Result, Sample, ShouldStop, forward
from napari_invprior.memory import free_bytes
from napari_invprior.numerics.metrics import psnr, ssim
from napari_invprior.posterior.base import Posterior, Sampler
from napari_invprior.posterior.calibration import calibration, exceedance, quantile_images
from napari_invprior.priors.base import Map, Prior
from napari_invprior.recipes.layers import OutputLayer, image_layer, map_layer, provenance
from napari_invprior.recipes.prepare import Problem
from napari_invprior.reconstruct.base import Solver
from napari_invprior.reconstruct.case import GIVEN, Case, find_weight, reconstruct
from napari_invprior.reconstruct.weight import WeightChoice

IN_MEMORY = 0.25
"""Share of the free memory that samples may take before they need a folder."""

TimeLeft = Callable[[], float | None]


def sample(
    problem: Problem, prior: Prior, device: torch.device, arrays: Arrays, *,
    should_stop: ShouldStop, folder: Path | None, time_left: TimeLeft,
) -> Job:
    """Start image, chains for every frame, layers and figures.

    The `Result` is (layers, metrics). Layers: ``mean``, ``std``, ``samples``, quantiles,
    ``exceedance`` and ``rhat`` where asked for or known, and the ``reconstruction`` that the chains
    began from.
    """
    recipe = problem.recipe
    assert problem.physics is not None and problem.y is not None
    sampler: Sampler = recipe.sampler.method.cls(recipe.sampler.parameters)
    case = problem.case(device)
    store = _store(sampler.parameters.samples, problem, folder)
    start, weight = yield from forward(
        _begin(case, sampler, prior, problem, arrays, should_stop, time_left)
    )
    found: list[Posterior] = []
    for index, frame in enumerate(case.y):
        if len(case.y) > 1:
            yield Message(f"frame {index + 1} of {len(case.y)}")
        job = sampler.sample(
            frame[None], case.physics, case.noise, prior, weight=weight,
            start=start[index : index + 1].to(device), seed=case.seed + index,
            should_stop=should_stop, time_budget_s=time_left(),
        )
        found.append((yield from forward(_stored(job, store, index))))
        if should_stop() and index + 1 < len(case.y):
            raise InvalidInput(
                f"stopped after {index + 1} of {len(case.y)} frames; crop the observation to the "
                "frames you need"
            )
    store.finish(min(posterior.kept for posterior in found))
    yield from _doubts(found, store.kept)
    metrics = _figures(case, found, store)
    layers = _layers(problem, start, found, store)
    if problem.truth is not None:
        metrics |= _against_truth(problem, start, found, store)
    yield Result((layers, metrics))


def fits_in_memory(capacity: int, shape: tuple[int, ...]) -> bool:
    """Whether so many samples, each (frames, C, *space), need no folder.

    Examples
    --------
    >>> fits_in_memory(64, (1, 1, 32, 32)), fits_in_memory(10**6, (1, 1, 4000, 4000))
    (True, False)
    """
    return _bytes(capacity, shape) <= IN_MEMORY * free_bytes()


def _bytes(capacity: int, shape: tuple[int, ...]) -> int:
    return 4 * capacity * math.prod(shape)


def _store(capacity: int, problem: Problem, folder: Path | None) -> SampleStore:
    """Memory where there is plenty, a folder where one was given or memory is short."""
    source = problem.observation
    assert source is not None and problem.physics is not None and problem.y is not None
    space = problem.physics.in_shape(problem.y.shape[2:])
    shape = (*problem.y.shape[:2], *space)
    if folder is None:
        if not fits_in_memory(capacity, shape):
            raise OutOfMemory(
                f"{capacity} samples of {tuple(space)} px need {_bytes(capacity, shape) / 1e9:.3g} "
                "GB: lower samples, or give a folder to write them to"
            )
        return MemoryStore(capacity, shape)
    return DiskStore(
        folder / "result.ome.zarr" / "samples", capacity, shape, source,
        problem.physics.grid(source.geometry), problem.scale, provenance(problem),
    )


def _begin(
    case: Case, sampler: Sampler, prior: Prior, problem: Problem, arrays: Arrays,
    should_stop: ShouldStop, time_left: TimeLeft,
) -> Job:
    """Start image (frames, C, *space) and weight, None for the sampler's own; as a pair."""
    recipe = problem.recipe
    if not sampler.needs_weight:
        yield Result((case.physics.start(case.y), None))
        return
    given: float | None = sampler.parameters.weight
    known = given is not None or prior.is_density
    solver: Solver = recipe.solver.method.cls(recipe.solver.parameters)
    if known and getattr(solver.parameters, "weight", None) == "auto":
        # any image near the middle will do: no search for the best weight of a single image
        usual = solver.automatic_weights[len(solver.automatic_weights) // 2] * prior.weight_scale
        choice = WeightChoice(usual, GIVEN, ())
    else:
        choice = yield from forward(find_weight(case, solver, prior, should_stop=should_stop))
    if not known and not solver.has_weight:
        raise InvalidInput(
            f"the prior {prior.name!r} is no density and the solver {solver.name!r} has no weight: "
            "give sampler.weight"
        )
    weight = given if known else solver.objective_weight(choice.weight, prior)
    if recipe.initial is not None:
        start = _initial(problem, load(recipe.initial, arrays))
    else:
        start = yield from forward(reconstruct(
            case, solver, prior, choice.weight, should_stop=should_stop, time_left=time_left
        ))
    yield Result((start, weight))


def _initial(problem: Problem, image: Image) -> Tensor:
    """The given start image, checked and normalised."""
    assert problem.physics is not None and problem.y is not None
    expected = (*problem.y.shape[:2], *problem.physics.in_shape(problem.y.shape[2:]))
    if image.array.shape != expected:
        raise InvalidInput(
            f"the initial image {image.name} has shape {image.array.shape} (frames, channels, "
            f"space); the result will have {expected}"
        )
    values = replace(image, value_range=problem.scale).normalised()
    if not np.isfinite(values).all():
        raise InvalidInput(f"the initial image {image.name} holds NaN or infinite values")
    return torch.from_numpy(values)


def _stored(job: Job, store: SampleStore, frame: int) -> Iterator[Event]:
    """The job's events, with its samples put into the store."""
    for event in job:
        if isinstance(event, Sample):
            store.put(event.slot, frame, np.asarray(event.image))
        else:
            yield event


def _doubts(found: list[Posterior], kept: int) -> Iterator[Message]:
    """Why the samples should not be trusted yet."""
    for posterior in found:
        for doubt in posterior.convergence.doubts if posterior.convergence else ():
            yield Message(doubt, "warning")
    if kept < 2:
        yield Message(
            "one sample says nothing about uncertainty: the standard deviation and the quantiles "
            "are left out; let it run longer", "warning",
        )


def _figures(case: Case, found: list[Posterior], store: SampleStore) -> dict[str, Any]:
    """Numbers of samples, convergence of the worst frame, misfit of the mean."""
    figures: dict[str, Any] = {"samples": store.kept}
    judged = [p.convergence for p in found if p.convergence is not None]
    if judged:
        worst = min(judged, key=lambda c: c.ess)
        figures |= worst.figures() | {"chains": worst.chains, "states": worst.states}
        figures["rhat"] = max(c.rhat for c in judged)
    figures |= found[0].facts
    mean = torch.cat([p.mean for p in found])
    figures["residual_ratio"] = case.residual_ratio(mean)
    figures["mean_std"] = float(torch.cat([p.std for p in found]).mean())
    return figures


def _layers(
    problem: Problem, start: Tensor, found: list[Posterior], store: SampleStore
) -> tuple[OutputLayer, ...]:
    """The mean as the result, the rest as its maps."""
    sampler = problem.recipe.sampler.method.cls
    layers = []
    if sampler.needs_weight and problem.recipe.initial is None:
        layers.append(replace(image_layer("reconstruction", start.cpu(), problem), role="start"))
    layers.append(image_layer("mean", torch.cat([p.mean for p in found]).cpu(), problem))
    shape = store.shape
    maps: list[Map] = []
    if store.kept > 1:
        std = torch.cat([p.std for p in found]).square().mean(1, keepdim=True).sqrt()
        maps.append(Map("std", std.cpu(), unit="difference"))
        quantiles = quantile_images(store.slabs(), problem.recipe.quantiles, shape)
        for probability, values in zip(problem.recipe.quantiles, quantiles, strict=True):
            percent = f"{100 * probability:g}".replace(".", "_")
            maps.append(Map(f"quantile_{percent}", torch.from_numpy(values), unit="image"))
    if problem.recipe.threshold is not None:
        low, high = problem.scale
        level = (problem.recipe.threshold - low) / (high - low)
        share = exceedance(store.slabs(), level, shape)
        maps.append(Map("exceedance", torch.from_numpy(share).mean(1, keepdim=True)))
    if all(p.rhat is not None for p in found):
        worst = torch.cat([p.rhat for p in found if p.rhat is not None]).amax(1, keepdim=True)
        maps.append(Map("rhat", worst.cpu()))
    layers += [map_layer(entry, problem) for entry in maps]
    return (*layers, _samples_layer(problem, store))


def _samples_layer(problem: Problem, store: SampleStore) -> OutputLayer:
    """The stack of samples, on disk or in memory."""
    if isinstance(store, MemoryStore):
        return map_layer(Map("samples", torch.from_numpy(store.values), unit="image"), problem)
    assert isinstance(store, DiskStore)
    source = problem.observation
    assert source is not None and problem.physics is not None
    return OutputLayer(
        "samples", store.values, problem.physics.grid(source.geometry),
        metadata=provenance(problem), role="map", frames=1,
    )


def _against_truth(
    problem: Problem, start: Tensor, found: list[Posterior], store: SampleStore
) -> dict[str, Any]:
    """Quality of the mean, of the start image beside it, and calibration of the samples."""
    truth, rim = problem.truth, problem.recipe.rim
    assert truth is not None
    mean = torch.cat([p.mean for p in found]).cpu()
    figures: dict[str, Any] = {"psnr": psnr(mean, truth, rim), "ssim": ssim(mean, truth, rim)}
    if problem.recipe.baselines:
        name = "reconstruction" if problem.recipe.sampler.method.cls.needs_weight else "start"
        figures["baselines"] = {name: psnr(start.cpu(), truth, rim)}
    if store.kept > 1:
        figures |= calibration(store.slabs(), truth.numpy(), rim)
    return figures
