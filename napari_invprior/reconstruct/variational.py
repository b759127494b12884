"""Variational reconstruction: gradient descent on data term plus patch prior."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.cutout import Cutout
from napari_invprior.errors import InvalidInput, JobError
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
from napari_invprior.numerics.lbfgs import minimise
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise
from napari_invprior.priors.base import Prior
from napari_invprior.reconstruct.base import Solver
from napari_invprior.reconstruct.objective import Objective
from napari_invprior.reconstruct.total_variation import smooth_start
from napari_invprior.reconstruct.weight import Weight, WeightRule
from napari_invprior.registry import register

MAX_HALVINGS = 3
"""So often the step is halved after an explosion before the job gives up."""
SETTLING, LAST_SHARE = 30, 0.05
"""From a plateau on, the step of Adam falls to this share within so many steps."""


class VariationalParameters(Parameters):
    """Weight, optimiser and stop rule."""

    weight: Weight = parameter(
        "auto", "How much the prior counts against the data; 'auto' chooses it without the truth."
    )
    weight_rule: WeightRule = parameter(
        "sure",
        "Automatic weight: Monte-Carlo SURE, discrepancy principle, or matched reference crops.",
        advanced=True,
    )
    optimiser: Literal["adam", "lbfgs"] = parameter(
        "adam", "Adam on random grids of patches, or L-BFGS on a fixed grid.", advanced=True
    )
    iterations: Annotated[int, Field(ge=1, le=100_000)] = parameter(
        150, "At most so many steps."
    )
    learning_rate: Annotated[float, Field(ge=1e-8, le=1)] = parameter(
        0.01, "Step of Adam.", unit="grey", advanced=True
    )
    stride: Annotated[int, Field(ge=1, le=64)] | None = parameter(
        None,
        "Step of the patch grid; empty: half the patch edge in 2D, the patch edge in 3D.",
        unit="px", advanced=True,
    )
    patch_count: Annotated[int, Field(ge=1, le=10_000_000)] | None = parameter(
        None,
        "Draw so many patches uniformly in each step instead of a grid (the paper's way).",
        advanced=True,
    )
    rim: Annotated[int, Field(ge=0, le=64)] | None = parameter(
        None, "Mirrored rim that the prior also sees; empty: patch edge minus one.", unit="px",
        advanced=True,
    )
    start: Literal["data", "total_variation"] = parameter(
        "data",
        "First image: directly from the data, or by total variation with an automatic weight, for "
        "priors that would keep the artefacts of the former (tomography).",
        advanced=True,
    )
    plateau: Annotated[float, Field(ge=0, lt=1)] = parameter(
        0.003, "Stop when prior and residual change by less than this share over 20 steps.",
        advanced=True,
    )


@register(
    kind="solver",
    name="variational",
    title="Variational (gradient descent)",
    papers=("2205.12021", "2312.16611"),
    inputs=("observation", "prior"),
    outputs=("reconstruction",),
    default_for=(2,),
)
class Variational(Solver):
    """Minimise ``-log p(y | A x) + weight * n * g(x)``, with ``n`` samples in the image.

    ``g`` is the mean patch potential. In each step it is estimated without bias from a grid of
    patches with a random offset (or from uniformly drawn patches). ``weight`` is per image
    sample and has no unit: it carries over between image sizes and noise levels. The paper's
    ``lambda`` for a sum of squares is ``2 sigma^2 n weight``.
    """

    Parameters = VariationalParameters
    parameters: VariationalParameters
    automatic_weights = (0.008, 0.004, 0.002)

    def settled(self, steps: int) -> Variational:
        return Variational(
            self.parameters.model_copy(update={"iterations": steps, "plateau": 0.0})
        )

    def solve(
        self,
        y: Tensor,
        physics: Physics,
        noise: Noise,
        prior: Prior | None,
        *,
        weight: float,
        start: Tensor | None = None,
        value_range: tuple[float, float] | None = None,
        seed: int = 0,
        should_stop: ShouldStop = never,
        time_budget_s: float | None = None,
        cutout: Cutout | None = None,
    ) -> Job:
        if prior is None or not prior.has_gradient:
            raise InvalidInput("the variational solver needs a prior with a gradient; choose one")
        if self.parameters.optimiser == "lbfgs" and prior.adapts:
            raise InvalidInput(
                f"the prior {prior.name!r} changes while it follows the image, which L-BFGS cannot "
                "stand; set optimiser to 'adam'"
            )
        working: Any = prior.for_run()
        chosen = self.parameters
        objective = Objective(
            y, physics, noise, working, weight, stride=chosen.stride, rim=chosen.rim,
            patch_count=chosen.patch_count, seed=seed, cutout=cutout,
        )
        if start is not None:
            return self._descended(start, objective, should_stop, time_budget_s)
        if self.parameters.start == "data":
            return self._descended(
                prior.start(y, physics), objective, should_stop, time_budget_s
            )
        first = smooth_start(y, physics, noise, seed=seed, should_stop=should_stop)
        return self._after(first, objective, should_stop, time_budget_s)

    def _after(
        self, first: Job, objective: Objective, should_stop: ShouldStop,
        time_budget_s: float | None,
    ) -> Job:
        """Descend from the image that another job finds."""
        x: Tensor = yield from forward(first)
        if should_stop():
            yield Result(x)
            return
        yield from self._descended(x, objective, should_stop, time_budget_s)

    def _descended(
        self, x: Tensor, objective: Objective, should_stop: ShouldStop,
        time_budget_s: float | None,
    ) -> Job:
        descend = self._adam if self.parameters.optimiser == "adam" else self._lbfgs
        return self._events(descend(objective, x.clone()), objective, should_stop, time_budget_s)

    def _events(
        self,
        iterates: Iterator[tuple[Tensor, Event | None]],
        objective: Objective,
        should_stop: ShouldStop,
        time_budget_s: float | None,
    ) -> Iterator[Event]:
        stage = Stage("reconstruct", self.parameters.iterations)
        last_preview = -math.inf
        for step, (x, message) in enumerate(iterates, 1):
            if message is not None:
                yield message
            residual = objective.residual
            if stage.due():
                yield stage.progress(step, residual=residual, prior=objective.value)
            if stage.seconds - last_preview > 0.5:
                last_preview = stage.seconds
                yield Preview("image", x.numpy(force=True).copy(), "reconstruct")
            if should_stop():
                break
            if time_budget_s is not None and stage.seconds > time_budget_s:
                yield Message(f"time budget of {time_budget_s:g} s used after {step} steps")
                break
        yield stage.progress(step, residual=residual, prior=objective.value)
        yield Result(x)

    def _adam(self, objective: Objective, x: Tensor) -> Iterator[tuple[Tensor, Event | None]]:
        """Adam whose step decays over the last half, so that the random grids average out.

        On a plateau it decays over `SETTLING` steps instead: a stop there would keep the noise.
        """
        total, rate = self.parameters.iterations, self.parameters.learning_rate
        plateau, last = Plateau(self.parameters.plateau), self.parameters.iterations
        brake, braking = 1.0, 1.0
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        safe = x.clone()
        halvings = 0
        for step in range(1, total + 1):
            gradient = objective.gradient(x)
            message = None
            if not math.isfinite(objective.value + objective.residual) or objective.exploded:
                halvings += 1
                if halvings > MAX_HALVINGS:
                    raise JobError(
                        "the objective became infinite three times; the prior does not fit these "
                        "data (train it again, or lower the learning rate from "
                        f"{self.parameters.learning_rate:g})"
                    )
                rate /= 2
                x = safe.clone()
                first.zero_()
                second.zero_()
                yield x, Message(f"step halved to {rate:g} after an explosion", "warning")
                continue
            if step % 10 == 0:
                safe = x.clone()
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient**2, 0.01)
            corrected = (second / (1 - 0.99**step)).sqrt_().add_(1e-12)
            decay = 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * step / total - 1)))
            x = x - (rate * (0.05 + 0.95 * decay) * brake / (1 - 0.9**step)) * first / corrected
            yield x, message
            if braking == 1 and plateau.reached(objective.value, objective.residual):
                last, braking = min(total, step + SETTLING), LAST_SHARE ** (1 / SETTLING)
            brake *= braking
            if step >= last:
                return

    def _lbfgs(self, objective: Objective, x: Tensor) -> Iterator[tuple[Tensor, Event | None]]:
        """L-BFGS on one fixed grid of patches."""
        objective.freeze(x)

        def value_and_grad(image: Tensor) -> tuple[float, Tensor]:
            gradient = objective.gradient(image)
            return objective.total, gradient

        plateau = Plateau(self.parameters.plateau)
        for image in islice(minimise(value_and_grad, x), self.parameters.iterations):
            yield image, None
            if plateau.reached(objective.value, objective.residual):
                return


class Plateau:
    """Detects that running means of two figures have stopped changing."""

    WINDOW = 20

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self._history: list[tuple[float, float]] = []

    def reached(self, *figures: float) -> bool:
        """Add the figures of one step; true when both means of the last 20 steps are as before."""
        self._history.append((figures[0], figures[1]))
        if len(self._history) < 3 * self.WINDOW or self.tolerance == 0:
            return False
        recent = self._means(self._history[-self.WINDOW :])
        before = self._means(self._history[-2 * self.WINDOW : -self.WINDOW])
        return all(
            abs(a - b) <= self.tolerance * max(abs(b), 1e-12)
            for a, b in zip(recent, before, strict=True)
        )

    @staticmethod
    def _means(window: list[tuple[float, float]]) -> tuple[float, float]:
        return (
            sum(a for a, _ in window) / len(window),
            sum(b for _, b in window) / len(window),
        )
