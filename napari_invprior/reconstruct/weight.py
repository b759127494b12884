"""The weight of a prior, chosen without the truth.

Three rules (see ``docs/methods.md`` for what each costs and gains):

- ``sure``: Monte-Carlo SURE of the predicted data. Its expectation is the true prediction risk
  ``E |A x(y) - A x_true|^2``; the divergence comes from one random probe and a second
  reconstruction with common random numbers.
- ``discrepancy``: the residual ratio ``|A x - y|^2 / (m sigma^2)`` reaches a target.
- ``reference``: pieces of the references that resemble the observation are degraded by the
  operator and reconstructed; the weight of highest PSNR counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.jobs import (
    Event,
    Job,
    Message,
    Preview,
    Result,
    ShouldStop,
    Stage,
    forward,
    never,
)
from napari_invprior.numerics.metrics import psnr
from napari_invprior.numerics.windows import box, random_corner
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise
from napari_invprior.priors.base import Prior, Reference
from napari_invprior.reconstruct.base import Solver

Weight = Annotated[float, Field(ge=1e-9, le=1e6)] | Literal["auto"]
WeightRule = Literal["sure", "discrepancy", "reference"]

DISCREPANCY_TARGET = 0.4
"""Residual ratio of the quick rule: patch priors at their best fit the noise partly."""

PIECE_SAMPLES = {2: 150**2, 3: 48**3}
"""Image samples of the piece to choose a weight on; a smaller cube would be mostly border."""

MAX_OCTAVES = 6
"""The search leaves its first weights by at most so many octaves."""

Reconstruct = Callable[[Tensor, float], Iterator[Event]]
"""Reconstruct from these data with this weight; the `Result` is the image."""


@dataclass(frozen=True)
class WeightChoice:
    """A weight and what it rests on.

    Attributes
    ----------
    weight : float
        The choice.
    rule : str
        Which rule made it.
    tried : tuple of (float, float)
        Every weight tried and its score (smaller is better).
    """

    weight: float
    rule: str
    tried: tuple[tuple[float, float], ...]


def parabola_minimum(points: Sequence[tuple[float, float]]) -> float:
    """Abscissa of the minimum of the parabola through the best point and its two neighbours.

    Falls back to the best point at the border or where the three points are not convex.

    Examples
    --------
    >>> parabola_minimum([(0.0, 1.0), (1.0, 0.0), (2.0, 1.0)])
    1.0
    """
    points = sorted(points)
    best = min(range(len(points)), key=lambda i: points[i][1])
    if best in (0, len(points) - 1):
        return points[best][0]
    (a, fa), (b, fb), (c, fc) = points[best - 1 : best + 2]
    slope_left, slope_right = (fb - fa) / (b - a), (fc - fb) / (c - b)
    if slope_right - slope_left <= 0:
        return b
    curvature = (slope_right - slope_left) / (c - a)
    return min(max(0.5 * (a + b) - slope_left / (2 * curvature), a), c)


def search(score: Callable[[float], Iterator[Event]], weights: Sequence[float]) -> Job:
    """Minimise a score over log2(weight): walk until the best is inside, then a parabola.

    ``score(weight)`` is a job whose `Result` is the score. Yields the jobs' events; the `Result`
    is ``(weight, tried)``.
    """
    tried: dict[float, float] = {}
    centre = sorted(math.log2(w) for w in weights)
    queue = list(centre)
    while queue:
        point = queue.pop(0)
        value = yield from forward(score(2.0**point))
        if value is None:  # stopped by the user
            break
        tried[point] = value
        if not queue:
            low, high, best = min(tried), max(tried), min(tried, key=tried.__getitem__)
            if best == low and centre[0] - low < MAX_OCTAVES:
                queue.append(low - 1)
            elif best == high and high - centre[-1] < MAX_OCTAVES:
                queue.append(high + 1)
    if not tried:
        yield Result((weights[len(weights) // 2], ()))
        return
    weight = 2.0 ** parabola_minimum(list(tried.items()))
    yield Result((weight, tuple((2.0**p, v) for p, v in sorted(tried.items()))))


def sure_score(
    reconstruct: Reconstruct, y: Tensor, physics: Physics, noise: Noise, seed: int
) -> Callable[[float], Job]:
    """Score of `search`: weighted SURE per data sample, ``E |A x(y) - A x|^2 / sigma^2`` up to 1.

    ``mean((A x - y)^2 / v) - 1 + 2 b . (A x(y + e v b') - A x(y)) / e`` with one random sign per
    sample; ``v`` is the noise variance of each sample.
    """
    generator = torch.Generator().manual_seed(seed)
    probe = torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1
    deviation = noise.std(y)
    step = 0.1

    def score(weight: float) -> Job:
        images = []
        for data in (y, y + step * deviation * probe):
            image = yield from forward(_quiet(reconstruct(data, weight)))
            if image is None:
                yield Result(None)
                return
            images.append(physics.A(image))
        misfit = ((images[0] - y) / deviation) ** 2
        divergence = probe * (images[1] - images[0]) / (step * deviation)
        yield Result(float(physics.observed(misfit + 2 * divergence).mean()) - 1)

    return score


def discrepancy_score(
    reconstruct: Reconstruct, y: Tensor, physics: Physics, noise: Noise
) -> Callable[[float], Job]:
    """Score of `search`: squared log of the residual ratio over `DISCREPANCY_TARGET`."""
    deviation = noise.std(y)

    def score(weight: float) -> Job:
        image = yield from forward(_quiet(reconstruct(y, weight)))
        if image is None:
            yield Result(None)
            return
        misfit = ((physics.A(image) - y) / deviation) ** 2
        ratio = float(physics.observed(misfit).mean())
        yield Result(math.log(max(ratio, 1e-12) / DISCREPANCY_TARGET) ** 2)

    return score


def reference_score(
    reconstruct: Reconstruct, pieces: Sequence[Tensor], physics: Physics, noise: Noise, seed: int
) -> Callable[[float], Job]:
    """Score of `search`: minus the mean PSNR over degraded pieces of the references."""
    generator = torch.Generator().manual_seed(seed)
    data = [noise.simulate(physics.A(piece), generator) for piece in pieces]

    def score(weight: float) -> Job:
        total = 0.0
        for piece, y in zip(pieces, data, strict=True):
            image = yield from forward(_quiet(reconstruct(y, weight)))
            if image is None:
                yield Result(None)
                return
            total += psnr(image, piece, rim=min(8, min(piece.shape[2:]) // 8))
        yield Result(-total / len(pieces))

    return score


def _quiet(job: Job) -> Job:
    """The job without previews: pieces and probes are not pictures for the user."""
    for event in job:
        if not isinstance(event, Preview):
            yield event


def choose_weight(
    solver: Solver,
    y: Tensor,
    physics: Physics,
    noise: Noise,
    prior: Prior | None,
    *,
    rule: WeightRule = "sure",
    references: Sequence[Reference] = (),
    value_range: tuple[float, float] | None = None,
    seed: int = 0,
    should_stop: ShouldStop = never,
) -> Job:
    """Choose the weight of ``prior`` for ``solver``.

    ``y`` should be a representative piece of the observation (see `physics.piece`) of about
    `PIECE_SAMPLES`: the weight is per sample and carries over to the whole.

    Yields
    ------
    Event
        Progress of stage ``"weight"`` and a `Result` with a `WeightChoice`.
    """
    stage = Stage("weight", 2 * (len(solver.automatic_weights) + 1))

    def reconstruct(data: Tensor, weight: float) -> Job:
        job = solver.solve(
            data, physics, noise, prior, weight=weight, value_range=value_range, seed=seed,
            should_stop=should_stop,
        )
        for event in job:
            if isinstance(event, Result):
                counter[0] += 1
                yield stage.progress(min(counter[0], stage.total), weight=weight)
                yield event if not should_stop() else Result(None)
            elif isinstance(event, Message):
                yield event
            elif stage.due():
                yield stage.progress(min(counter[0], stage.total), weight=weight)

    counter = [0]
    if rule == "reference":
        pieces = matching_pieces(references, y, physics, seed)
        if not pieces:
            yield Message(
                "the references are too small to calibrate the weight on; SURE is used", "warning"
            )
            rule = "sure"
        else:
            score = reference_score(reconstruct, pieces, physics, noise, seed)
    if rule == "sure":
        score = sure_score(reconstruct, y, physics, noise, seed)
    elif rule == "discrepancy":
        score = discrepancy_score(reconstruct, y, physics, noise)
    unit = 1.0 if prior is None else prior.weight_scale
    weights = [unit * weight for weight in solver.automatic_weights]
    weight, tried = yield from forward(search(score, weights))
    yield Result(WeightChoice(weight, rule, tried))


def matching_pieces(
    references: Sequence[Reference], y: Tensor, physics: Physics, seed: int, count: int = 3,
    edge: int = 80,
) -> list[Tensor]:
    """Unmasked pieces of the references whose degraded gradient energy is like the data's."""
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[float, int, Tensor]] = []
    wanted = _energy(y)
    for reference in references:
        space = tuple(reference.image.shape[1:])
        size = physics.fitting_shape([min(edge, n) for n in space])
        if min(size) < edge // 2:
            continue
        for _ in range(20):
            window = box(random_corner(space, size, generator), size)
            piece = reference.image[(slice(None), *window)][None]
            complete = reference.mask is None or bool(reference.mask[window].all())
            if complete and bool(torch.isfinite(piece).all()):
                mismatch = abs(math.log((_energy(physics.A(piece)) + 1e-12) / (wanted + 1e-12)))
                found.append((mismatch, len(found), piece))
    return [piece for _, _, piece in sorted(found)[:count]]


def _energy(y: Tensor) -> float:
    """Mean squared difference of neighbours."""
    return sum(float((y.diff(dim=a) ** 2).mean()) for a in range(2, y.ndim))
