"""Tasks on points and patches: from the recipe to the mathematics, and back to layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.image import Image
from napari_invprior.io.images import Arrays, load
from napari_invprior.io.points import load_points
from napari_invprior.jobs import Job, Message, Preview, Result, ShouldStop, forward
from napari_invprior.points import PointSet
from napari_invprior.priors.base import Reference
from napari_invprior.recipes import patch_tasks, tessellate
from napari_invprior.recipes.layers import OutputLayer, provenance
from napari_invprior.recipes.model import Recipe, Simulation
from napari_invprior.recipes.prepare import Problem
from napari_invprior.recipes.regions import region_mask
from napari_invprior.recipes.scale import ranges_of
from napari_invprior.study.halftone_quality import blurred_psnr
from napari_invprior.study.point_density import (
    PointDensity,
    automatic_scale,
    grid_around,
    point_density,
)
from napari_invprior.study.point_flow import BoxFrame, Frame, movie_rows
from napari_invprior.transport.cells.atoms import Atoms
from napari_invprior.transport.riesz_flows.base import Flow
from napari_invprior.transport.riesz_flows.density import Density, density_of
from napari_invprior.transport.riesz_flows.discrepancy import Cloud, Discrepancy, Target
from napari_invprior.transport.riesz_flows.halftone import halftone
from napari_invprior.transport.riesz_flows.image_potential import ImagePotential
from napari_invprior.transport.riesz_flows.trajectory import Trajectory


@dataclass
class Inputs:
    """What a recipe names, loaded.

    Attributes
    ----------
    problem : Problem
        Recipe, observation, normalised references, scale and digests; no data of a measurement.
    points, target_points : PointSet or None
        In pixels of the observation, or in coordinates of their own.
    sides : list
        The references, each image by itself.
    atoms : Atoms or None
        What a source is divided among.
    """

    problem: Problem
    points: PointSet | None = None
    target_points: PointSet | None = None
    sides: list[list[Reference]] = field(default_factory=list)
    atoms: Atoms | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.problem.recipe

    @property
    def observation(self) -> Image:
        """The observation, which must be there."""
        assert self.problem.observation is not None
        return self.problem.observation

    def geometry(self, ndim: int) -> Geometry:
        """Where results lie: on the observation, or in the points' own coordinates."""
        image = self.problem.observation
        return Geometry.identity(ndim) if image is None else image.geometry


@dataclass(frozen=True)
class Found:
    """Layers and figures of such a task, and what they were made of where that is of use."""

    problem: Problem
    layers: tuple[OutputLayer, ...]
    metrics: dict[str, Any]
    detail: Any = None


def run_clouds(
    recipe: Recipe, arrays: Arrays, points: Mapping[str, PointSet],
    should_stop: ShouldStop,
) -> Job:
    """Run a task on points or patches; the `Result` is a `Found`."""
    inputs: Inputs = yield from forward(prepared(recipe, arrays, points))
    layers, metrics, *detail = yield from forward(TASKS[recipe.task](inputs, should_stop))
    facts = provenance(inputs.problem)
    placed = tuple(replace(layer, metadata=facts | {"figures": metrics}) for layer in layers)
    yield Result(Found(inputs.problem, placed, metrics, *detail))


def check_clouds(
    recipe: Recipe, arrays: Arrays, points: Mapping[str, PointSet]
) -> dict[str, Any]:
    """Load what the recipe names and say what there is; raises `InvalidInput`."""
    messages: list[str] = []
    inputs: Inputs | None = None
    for event in prepared(recipe, arrays, points):
        if isinstance(event, Message):
            messages.append(event.text)
        elif isinstance(event, Result):
            inputs = event.value
    assert inputs is not None
    report: dict[str, Any] = {"valid": True, "messages": messages}
    image = inputs.problem.observation
    if image is not None:
        report["image_shape"] = list(image.space)
        if recipe.task in ("particles", "halftone"):
            _density(inputs)
    for name, found in (("points", inputs.points), ("target_points", inputs.target_points)):
        if found is not None:
            report[name] = [len(found), found.ndim]
    if inputs.atoms is not None:
        grid = tessellate.grid_of(recipe, inputs.atoms)
        report |= {
            "atoms": [inputs.atoms.given, inputs.atoms.ndim], "distinct_atoms": len(inputs.atoms),
            "notes": list(inputs.atoms.notes), "cells_shape": list(grid.shape),
        }
    report["reference_samples"] = sum(r.image.numel() for s in inputs.sides for r in s)
    return report


def prepared(
    recipe: Recipe, arrays: Arrays, points: Mapping[str, PointSet]
) -> Job:
    """Load and scale what the recipe names; the `Result` is the `Inputs`."""
    assert not isinstance(recipe.observation, Simulation)
    observation = None if recipe.observation is None else load(recipe.observation, arrays)
    references = [load(source, arrays) for source in recipe.references]
    images = [*references, *([observation] if observation else [])]
    for image in images:
        for note in image.facts.get("notes", ()):
            yield Message(f"{image.name}: {note}")
    scale, warning = ranges_of(images, [True] * len(images), True) if images else ([], "")
    if warning:
        yield Message(warning, "warning")
    images = [replace(i, value_range=r) for i, r in zip(images, scale, strict=True)]
    digests = {f"reference {i}": image.digest() for i, image in enumerate(references)}
    if observation is not None:
        observation, digests["observation"] = images[-1], images[-1].digest()
    problem = Problem(
        recipe=recipe, observation=observation, y=None, physics=None, noise=None, truth=None,
        references=[], scale=images[-1].value_range if images else (0.0, 1.0), digests=digests,
    )
    inputs = Inputs(problem)
    for source, image in zip(recipe.references, images, strict=False):
        mask = region_mask(source, image.space, arrays)
        frames = [torch.from_numpy(frame) for frame in image.normalised()]
        inputs.sides.append([Reference(frame, mask, source.weight) for frame in frames])
    for name in ("points", "target_points"):
        given = getattr(recipe, name)
        if given is not None:
            found = load_points(given, points)
            digests[name] = found.digest()
            setattr(inputs, name, found)
    if recipe.atoms is not None:
        inputs.atoms, digests["atoms"] = tessellate.load_atoms(
            recipe, observation, inputs.points, points
        )
    yield Result(inputs)


# ---- points


def _particles(inputs: Inputs, should_stop: ShouldStop) -> Job:
    """Let points flow to the image, to other points, or apart."""
    recipe = inputs.recipe
    density, target, frame, start = _scene(inputs)
    flow: Flow = recipe.flow.method.cls(recipe.flow.parameters)
    job = flow.run(
        frame.to_points(start), target, seed=recipe.seed, should_stop=should_stop
    )
    movie: Trajectory = yield from forward(_in_pixels(job, frame))
    discrepancy = movie.discrepancy.tolist()
    metrics: dict[str, Any] = {
        "frames": len(movie), "particles": movie.points.shape[2],
        "times": movie.times.tolist(), "discrepancies": discrepancy,
        "discrepancy": discrepancy[-1],
    }
    if density is not None and target is not None:
        drawn = density.draw(
            movie.points.shape[2], torch.Generator().manual_seed(recipe.seed), "independent"
        )
        value, _ = Discrepancy(target, recipe.flow.parameters.r).value_and_grad(drawn)
        metrics["discrepancy_of_random_points"] = value
    rows = movie_rows(movie.points, frame)
    layer = OutputLayer(
        "particles", rows, inputs.geometry(rows.shape[1] - 1), kind="points", frames=1, unit="own"
    )
    yield Result(((layer,), metrics))


def _scene(inputs: Inputs) -> tuple[Density | None, Target | None, Frame, Tensor]:
    """Density and target where there are any, the frame of reference, the start (d, n)."""
    start = None if inputs.points is None else torch.from_numpy(inputs.points.array.T.copy())
    if inputs.problem.observation is not None:
        density = _density(inputs)
        _require_one_space(start, density.ndim)
        middle = density.to_pixels(torch.zeros(density.ndim, 1))
        return density, ImagePotential(density), density, middle if start is None else start
    if inputs.target_points is not None:
        goal = torch.from_numpy(inputs.target_points.array.T.copy())
        _require_one_space(start, len(goal))
        frame = BoxFrame([goal])
        middle = frame.to_pixels(torch.zeros(len(goal), 1))
        return None, Cloud(frame.to_points(goal)), frame, middle if start is None else start
    start = torch.zeros(2, 1, dtype=torch.float64) if start is None else start
    return None, None, BoxFrame([start]), start


def _require_one_space(start: Tensor | None, dim: int) -> None:
    if start is not None and len(start) != dim:
        raise InvalidInput(
            f"the start has {len(start)} coordinates, the target {dim}: both must live in one space"
        )


def _density(inputs: Inputs) -> Density:
    """The observation as a density."""
    chosen, image = inputs.recipe.target, inputs.observation
    spacing = [abs(s) for s in image.geometry.scale]
    return density_of(
        torch.from_numpy(grey(image)), invert=chosen.mass == "dark", blur=chosen.blur,
        background=chosen.background, spacing=spacing,
    )


def grey(image: Image) -> np.ndarray:
    """The one frame of an image, its colours averaged: (*space), in the user's numbers."""
    if len(image.array) > 1:
        raise InvalidInput(
            f"{image.name} has {len(image.array)} frames; points live in one: give a single frame"
        )
    return np.asarray(image.array[0].mean(0, dtype=np.float64))


def _in_pixels(job: Job, frame: Frame) -> Job:
    """The job, its previews in the user's coordinates."""
    for event in job:
        if isinstance(event, Preview) and event.kind == "points":
            places = frame.to_pixels(torch.from_numpy(event.array.T.copy()))
            yield replace(event, array=places.T.float().numpy())
        else:
            yield event


def _halftone(inputs: Inputs, should_stop: ShouldStop) -> Job:
    """Place dots, and say how well they do beside random ones."""
    density, chosen = _density(inputs), inputs.recipe.halftone
    dots: Tensor = yield from forward(
        halftone(density, chosen, seed=inputs.recipe.seed, should_stop=should_stop)
    )
    generator = torch.Generator().manual_seed(inputs.recipe.seed)
    drawn = density.to_pixels(density.draw(chosen.dots, generator, "independent"))
    metrics = {
        "dots": dots.shape[1], "psnr": blurred_psnr(dots, density),
        "baselines": {"random dots": blurred_psnr(drawn, density)},
    }
    layer = OutputLayer(
        "dots", dots.T.numpy().copy(), inputs.geometry(len(dots)), kind="points", unit="own"
    )
    yield Result(((layer,), metrics))


def _point_density(inputs: Inputs, should_stop: ShouldStop) -> Job:
    """Map how many points there are per pixel."""
    assert inputs.points is not None
    points, chosen = torch.from_numpy(inputs.points.array.T.copy()), inputs.recipe.density
    geometry, spacing = inputs.geometry(len(points)), None
    if inputs.problem.observation is not None:
        space = inputs.observation.space
        spacing = [abs(s) for s in geometry.scale]
    else:
        if len(points) not in (2, 3):
            raise InvalidInput(
                f"{inputs.points.name} has {len(points)} coordinates; a map has two or three axes"
            )
        scale = chosen.scale or automatic_scale(points)
        space, step, origin = grid_around(points, scale, chosen.resolution)
        points = (points - torch.tensor(origin)[:, None]) / step
        chosen = chosen.model_copy(update={"scale": scale / step})
        geometry = Geometry((step,) * len(space), origin)
    found: PointDensity = yield from forward(
        point_density(points, space, chosen, spacing=spacing, should_stop=should_stop)
    )
    metrics = {
        "points": points.shape[1], "scale": found.scale, "estimated_error": found.error,
        "points_inside": float(found.values.sum()), "highest": float(found.values.max()),
    }
    layer = OutputLayer("density", found.values.numpy(), geometry, unit="own")
    yield Result(((layer,), metrics))


TASKS: dict[str, Callable[[Inputs, ShouldStop], Iterator[Any]]] = {
    "particles": _particles,
    "halftone": _halftone,
    "density": _point_density,
    "typicality": patch_tasks.typicality_map,
    "two_sample": patch_tasks.comparison,
    "generate": patch_tasks.synthesis,
    "tessellate": tessellate.cells,
}
