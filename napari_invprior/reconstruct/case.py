"""One problem from data to image: train the prior, find the weight, reconstruct every frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from napari_invprior.errors import Cancelled, InvalidInput
from napari_invprior.jobs import Job, Message, Result, ShouldStop, forward, never
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise
from napari_invprior.physics.piece import representative_piece
from napari_invprior.priors.base import Measurement, Prior, Reference
from napari_invprior.reconstruct.base import Solver
from napari_invprior.reconstruct.tiles import solve_within_memory
from napari_invprior.reconstruct.weight import PIECE_SAMPLES, WeightChoice, choose_weight

GIVEN = "given"
"""Rule of a weight that was not chosen automatically."""


@dataclass(frozen=True)
class Case:
    """Data with everything that is known about them, loaded and scaled.

    Attributes
    ----------
    y : Tensor
        (frames, C, *space), normalised, on the device to compute on.
    physics, noise
        How the data came about.
    references : sequence of Reference
        Good examples.
    value_range : tuple of float or None
        Smallest and largest value of the references.
    truth : Tensor or None
        (frames, C, *space) on the image grid, for figures only.
    rim : int
        Border left out of the figures, px.
    seed : int
        Seed of all randomness.
    """

    y: Tensor
    physics: Physics
    noise: Noise
    references: Sequence[Reference] = ()
    value_range: tuple[float, float] | None = None
    truth: Tensor | None = None
    rim: int = 0
    seed: int = 0

    def range_for(self, prior: Prior | None) -> tuple[float, float] | None:
        """The range of values to expect: what the prior learnt, else that of the references."""
        learnt = None if prior is None else prior.value_range
        return self.value_range if learnt is None else learnt

    def residual_ratio(self, image: Tensor) -> float:
        """Misfit of an image over what the noise explains; 1 where it fits just to the noise."""
        ratio: float = self.noise.residual_ratio(
            self.physics.observed(self.physics.A(image.to(self.y))), self.physics.observed(self.y)
        )
        return ratio


def train(
    prior: Prior,
    references: Sequence[Reference],
    measurement: Measurement | None,
    *,
    seed: int = 0,
    should_stop: ShouldStop = never,
) -> Job:
    """Fit a prior to references, or go on with it; the `Result` is the prior."""
    if not references:
        raise InvalidInput(
            "no reference to learn from: pick a region on a good image, or load a saved prior"
        )
    options: dict[str, Any] = {"seed": seed, "should_stop": should_stop}
    if prior.needs_measurement:
        options["measurement"] = measurement
    yield from prior.fit(references, **options)


def find_weight(
    case: Case, solver: Solver, prior: Prior | None, *, should_stop: ShouldStop = never
) -> Job:
    """The solver's own weight, or the automatic one (on a representative piece of frame 0).

    The `Result` is a `WeightChoice`.
    """
    if not solver.has_weight:
        yield Result(WeightChoice(1.0, GIVEN, ()))
        return
    parameters: Any = solver.parameters
    if parameters.weight != "auto":
        yield Result(WeightChoice(float(parameters.weight), GIVEN, ()))
        return
    if not case.physics.informative:  # any weight will do
        unit = 1.0 if prior is None else prior.weight_scale
        yield Result(WeightChoice(solver.automatic_weights[0] * unit, GIVEN, ()))
        return
    first = case.y[:1]
    piece = representative_piece(first, case.physics, PIECE_SAMPLES[first.ndim - 2])
    choice: WeightChoice = yield from forward(choose_weight(
        solver, first[piece.data_index], piece.physics, case.noise, prior,
        rule=parameters.weight_rule, references=case.references,
        value_range=case.range_for(prior), seed=case.seed, should_stop=should_stop,
    ))
    if should_stop():
        raise Cancelled("stopped while the weight was being chosen")
    yield Message(f"weight {choice.weight:.4g} chosen by {choice.rule}")
    yield Result(choice)


def reconstruct(
    case: Case,
    solver: Solver,
    prior: Prior | None,
    weight: float,
    *,
    should_stop: ShouldStop = never,
    time_left: Callable[[], float | None] = lambda: None,
) -> Job:
    """All frames, one by one; the `Result` is the image (frames, C, *space) on the CPU.

    Frames that a stop leaves over are the physics' first image.
    """
    frames = []
    for index, frame in enumerate(case.y):
        if len(case.y) > 1:
            yield Message(f"frame {index + 1} of {len(case.y)}")
        frames.append((yield from forward(solve_within_memory(
            solver, frame[None], case.physics, case.noise, prior, weight=weight,
            value_range=case.range_for(prior), seed=case.seed, should_stop=should_stop,
            time_budget_s=time_left(),
        ))))
        if should_stop():
            yield Message("stopped; this is the best image so far", "warning")
            frames += [case.physics.start(f[None]) for f in case.y[index + 1 :]]
            break
    yield Result(torch.cat(frames).cpu())
