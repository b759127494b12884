"""What concerns all blocks, settled once on pieces of the data: scale, noise, prior, weight, halo.

No piece stands for all of the data, but each of these numbers is one for all of them; a block that
chose its own would show.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from napari_invprior.blocks.grid import Block, Window
from napari_invprior.blocks.halo import Reach, difference_by_distance, reach_of
from napari_invprior.blocks.inputs import Inputs, data_shaped
from napari_invprior.blocks.work import (
    TASKS,
    Agreed,
    compute,
    problem_of,
    reconstructed,
    steps_of,
)
from napari_invprior.cutout import Cutout
from napari_invprior.errors import Cancelled, InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.jobs import Job, Message, Preview, Result, ShouldStop, forward
from napari_invprior.physics.base import Physics
from napari_invprior.physics.unobserved import complete_operator
from napari_invprior.priors.base import Prior
from napari_invprior.priors.patchwise import PatchPrior
from napari_invprior.recipes.layers import OutputLayer
from napari_invprior.recipes.model import Choice, Recipe
from napari_invprior.recipes.prepare import Problem, build_physics
from napari_invprior.recipes.priors import fitted_prior
from napari_invprior.reconstruct.base import Solver
from napari_invprior.reconstruct.case import find_weight
from napari_invprior.reconstruct.weight import WeightChoice

PIECE = {2: 192, 3: 56}
"""Edge of the piece that prior, weight and steps are settled on, image samples."""
CANDIDATES = 8
BAR = {2: (160, 48), 3: (96, 32)}
"""Length behind the cut and thickness of the bars that the halo is measured on, image samples."""
BEFORE_CUT = 25
SHORTEST = 64
"""An axis that is shorter than this (image samples) is not cut."""
RIPPLE = 1e-6
"""Change of the data (of 0-1) that a result must not notice: that of rounding."""


@dataclass(frozen=True)
class Layout:
    """How data and image belong together.

    Attributes
    ----------
    image : tuple of int
        Space shape of the image.
    factor : tuple of int
        Image samples per data sample, where an axis may be cut.
    divisible : tuple of bool
        Whether it may be.
    geometry : Geometry
        Where the image lies in the world.
    """

    image: tuple[int, ...]
    factor: tuple[int, ...]
    divisible: tuple[bool, ...]
    geometry: Geometry


@dataclass(frozen=True)
class Settlement:
    """What all blocks share, and what a plan needs to know.

    Attributes
    ----------
    agreed : Agreed
        For every block.
    layout : Layout
        Data and image.
    reach : Reach
        How far a border is felt.
    period : int
        Data samples that windows must begin at multiples of.
    layers : tuple of OutputLayer
        What a window gives, computed on a piece.
    seconds : float
        Per image sample of a window.
    facts : dict
        For provenance.
    """

    agreed: Agreed
    layout: Layout
    reach: Reach
    period: int
    layers: tuple[OutputLayer, ...]
    seconds: float
    facts: dict[str, Any]


def layout_of(recipe: Recipe, inputs: Inputs) -> tuple[Layout, Physics]:
    """Shapes and places, from the operator alone.

    Raises
    ------
    InvalidInput
        If the operator cannot be divided.
    """
    space = inputs.observation.space
    if data_shaped(recipe):
        corner = tuple(slice(0, min(8, n)) for n in space)
        *_, problem = inputs.problem(recipe, 0, corner, scale=(0.0, 1.0))
        assert isinstance(problem, Problem) and problem.physics is not None
        physics, image = complete_operator(problem.physics), space
    else:
        like = torch.empty(1).expand(1, 1, *space)
        physics = build_physics(recipe, like, False, inputs.arrays).bound_to(space)
        image = tuple(physics.in_shape(space))
    if physics.boundary == "circular":
        raise InvalidInput(
            "a circular operator looks from one end of the volume to the other; for work in "
            "blocks set physics.boundary to 'reflect'"
        )
    divisible = physics.divisible()
    scale = physics.grid(Geometry.identity(len(space))).scale
    factor = tuple(
        round(1 / s) if cut else 1 for s, cut in zip(scale, divisible, strict=True)
    )
    long = tuple(
        cut and n >= SHORTEST for cut, n in zip(divisible, image, strict=True)
    )
    if not any(long):
        raise InvalidInput(
            f"an image of {image} px with an operator that may be cut along axes "
            f"{[a for a, cut in enumerate(divisible) if cut]} needs no blocks (each has at least "
            f"{SHORTEST} px along an axis); remove 'blocks' from the recipe"
        )
    return Layout(image, factor, long, physics.grid(inputs.observation.geometry)), physics


def agree(
    recipe: Recipe, inputs: Inputs, device: torch.device, *, prior: Prior | None = None,
    should_stop: ShouldStop,
) -> Job:
    """Settle everything; a job whose `Result` is a `Settlement`.

    Raises
    ------
    InvalidInput
        If the recipe cannot be run in blocks.
    """
    if recipe.task not in TASKS:
        raise InvalidInput(
            f"task {recipe.task!r} does not work in blocks; remove 'blocks' from the recipe"
        )
    layout, physics = layout_of(recipe, inputs)
    value_range = inputs.observation.value_range()
    frame, window = _typical_window(inputs, layout)
    problem: Problem | None = None
    for item in inputs.problem(recipe, frame, window, value_range=value_range):
        if isinstance(item, Problem):
            problem = item
        else:
            yield item
    assert problem is not None and problem.noise is not None and problem.y is not None
    prior = yield from forward(fitted_prior(problem, prior, device, should_stop))
    _go_on(should_stop)
    solver: Solver = recipe.solver.method.cls(recipe.solver.parameters)
    case = problem.case(device)
    choice: WeightChoice = yield from forward(
        find_weight(case, solver, prior, should_stop=should_stop)
    )
    image, steps = yield from forward(steps_of(_without_previews(solver.solve(
        case.y, case.physics, case.noise, prior, weight=choice.weight,
        value_range=case.range_for(prior), seed=recipe.seed, should_stop=should_stop,
    ))))
    _go_on(should_stop)
    solver = solver.settled(max(1, steps))
    prior = None if prior is None else prior.settled_on(image)
    agreed = Agreed(
        recipe=_settled(recipe, problem, solver, choice.weight), scale=problem.scale,
        value_range=problem.value_range, noise_level=problem.noise.variance_level(problem.y),
        prior=prior,
    )
    yield Message("measuring how far a border is felt")
    reach, seconds = yield from forward(
        _measure(agreed, inputs, layout, physics, (frame, window), device, should_stop)
    )
    piece = _as_block(frame, window, layout)
    done = yield from forward(compute(agreed, inputs, piece, layout.image, device, should_stop))
    _go_on(should_stop)
    period = math.lcm(*(
        _period(prior) // math.gcd(_period(prior), f)
        for f, cut in zip(layout.factor, layout.divisible, strict=True) if cut
    ))
    facts = problem.facts | {"weight": choice.weight, "weight_rule": choice.rule, "steps": steps}
    facts["digests"] = {k: v for k, v in problem.digests.items() if k != "observation"}
    yield Result(Settlement(agreed, layout, reach, period, done.layers, seconds, facts))


def _go_on(should_stop: ShouldStop) -> None:
    if should_stop():
        raise Cancelled("stopped before the blocks began")


def _period(prior: Prior | None) -> int:
    return 1 if prior is None else prior.period


def _without_previews(job: Job) -> Job:
    return (event for event in job if not isinstance(event, Preview))


def _settled(recipe: Recipe, problem: Problem, solver: Solver, weight: float) -> Recipe:
    """The recipe with what was found in it; one piece of it gives the same as the blocks."""
    parameters = solver.parameters
    if solver.has_weight:
        parameters = parameters.model_copy(update={"weight": weight})
    found: dict[str, Any] = {
        "noise": problem.recipe.noise.to_dict(),
        "solver": Choice(recipe.solver.method, parameters).to_dict(),
        "time_budget_s": None,
    }
    return recipe.with_settings(found)


def _typical_window(inputs: Inputs, layout: Layout) -> tuple[int, Window]:
    """Frame and window of a piece whose contrast and mean are in the middle of several."""
    volume = inputs.observation
    edge = PIECE[len(volume.space)]
    sizes = _sizes(layout, volume.space, [edge] * len(volume.space))
    generator = np.random.default_rng(0)
    places, figures = [], []
    for _ in range(CANDIDATES):
        start = [int(generator.integers(n - s + 1)) for n, s in zip(
            volume.space, sizes, strict=True
        )]
        window = tuple(slice(a, a + s) for a, s in zip(start, sizes, strict=True))
        frame = int(generator.integers(volume.shape[0]))
        values = volume.read(frame, window).astype(np.float64)
        finite = np.isfinite(values)
        if finite.mean() < 0.5:
            continue
        values = np.where(finite, values, values[finite].mean())
        energy = sum(
            float((np.diff(values, axis=a) ** 2).mean()) for a in range(1, values.ndim)
            if values.shape[a] > 1
        )
        places.append((frame, window))
        figures.append((math.log(energy + 1e-30), float(values.mean())))
    if not places:
        raise InvalidInput(f"{volume.name}: hardly any sample is finite; check the observation")
    table = np.array(figures)
    # rather a piece with much in it than one of the many empty ones
    wanted = np.array([np.quantile(table[:, 0], 0.7), np.median(table[:, 1])])
    away = np.abs(table - wanted) / (table.std(0) + 1e-12)
    return places[int(away.sum(1).argmin())]


def _sizes(layout: Layout, space: tuple[int, ...], edges: list[int]) -> tuple[int, ...]:
    """Data samples of a window of so many image samples; axes that are not cut stay whole."""
    return tuple(
        min(n, max(8, -(-edge // f))) if cut else n
        for n, f, cut, edge in zip(space, layout.factor, layout.divisible, edges, strict=True)
    )


def _as_block(frame: int, window: Window, layout: Layout) -> Block:
    start = tuple(w.start * f for w, f in zip(window, layout.factor, strict=True))
    return Block(0, frame, (), window, window, (), start)


def _measure(
    agreed: Agreed, inputs: Inputs, layout: Layout, physics: Physics,
    place: tuple[int, Window], device: torch.device, should_stop: ShouldStop,
) -> Job:
    """`Reach` and seconds per image sample, from bars along every kind of axis."""
    axes = _kinds_of_axes(agreed, layout, physics)
    curves, seconds, samples = [], 0.0, 0
    blocks: list[Block] = []
    for axis in axes:
        long, short = _bars(inputs, layout, place, axis, _period(agreed.prior))
        images = []
        for window in (long, short):
            begin = time.monotonic()
            blocks.append(_as_block(place[0], window, layout))
            image = yield from forward(_image(agreed, inputs, blocks[-1], layout, device,
                                              should_stop))
            _go_on(should_stop)
            images.append(image)
            seconds, samples = seconds + time.monotonic() - begin, samples + image.size
        count = len(layout.image)
        curves.append(difference_by_distance(images[0], images[1], axis - count))

    def restlessness() -> float:
        problem, _ = problem_of(agreed, inputs, blocks[0])
        assert problem.y is not None
        found = []
        for ripple in (0.0, RIPPLE):
            noise = torch.randn(problem.y.shape, generator=torch.Generator().manual_seed(1))
            rippled = replace(problem, y=problem.y + ripple * noise)
            cutout = Cutout(blocks[0].start, layout.image)
            found.append(_run(reconstructed(rippled, agreed, cutout, device, should_stop)))
        span = agreed.scale[1] - agreed.scale[0]
        first, second = (layers[0].array / span for layers, _ in found)
        return float(np.abs(first - second).max())

    tolerance = agreed.recipe.blocks.tolerance if agreed.recipe.blocks else 1e-5
    reach = reach_of(curves, tolerance, restlessness)
    if reach.level > tolerance:
        yield Message(
            f"this solver and prior do not settle: rounding alone changes the image by up to "
            f"{reach.level:.1g} (of 0-1), and blocks agree as well as that, not to {tolerance:g}",
            "warning",
        )
    yield Result((reach, seconds / max(1, samples)))


def _run(job: Iterator[Any]) -> Any:
    value = None
    for event in job:
        if isinstance(event, Result):
            value = event.value
    return value


def _image(
    agreed: Agreed, inputs: Inputs, block: Block, layout: Layout, device: torch.device,
    should_stop: ShouldStop,
) -> Job:
    """The reconstruction of a window, ([C,] *space) of 0-1."""
    problem, _ = problem_of(agreed, inputs, block)
    layers, _ = yield from forward(reconstructed(
        problem, agreed, Cutout(block.start, layout.image), device, should_stop
    ))
    yield Result(layers[0].array / (agreed.scale[1] - agreed.scale[0]))


def _kinds_of_axes(agreed: Agreed, layout: Layout, physics: Physics) -> list[int]:
    """One axis, the longest, of each kind: patch, operator and factor are the same along them."""
    patch = agreed.prior.patch if isinstance(agreed.prior, PatchPrior) else (1,) * physics.ndim
    kinds: dict[Any, int] = {}
    for axis in sorted(range(physics.ndim), key=lambda a: layout.image[a]):
        if layout.divisible[axis]:
            kinds[patch[axis], layout.factor[axis], physics.reach()[axis]] = axis
    return sorted(kinds.values())


def _bars(
    inputs: Inputs, layout: Layout, place: tuple[int, Window], axis: int, period: int
) -> tuple[Window, Window]:
    """Two windows along an axis that end at the same sample; the second one begins later."""
    space = inputs.observation.space
    length, thickness = BAR[len(space)]
    edges = [thickness] * len(space)
    edges[axis] = length + BEFORE_CUT
    sizes = _sizes(layout, space, edges)
    step = max(1, period // math.gcd(period, layout.factor[axis]))
    windows = []
    for a, (n, size, around) in enumerate(zip(space, sizes, place[1], strict=True)):
        middle = (around.start + around.stop) // 2
        low = min(max(0, middle - size // 2), n - size)
        low = low // step * step if layout.divisible[a] else low
        windows.append(slice(low, min(n, low + size)))
    cut = -(-BEFORE_CUT // layout.factor[axis])
    cut = -(-cut // step) * step
    later = list(windows)
    later[axis] = slice(windows[axis].start + cut, windows[axis].stop)
    return tuple(windows), tuple(later)


