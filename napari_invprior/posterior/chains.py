"""Parallel Markov chains: warm-up, moments of all states, samples, convergence, explosions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.errors import InvalidInput, JobError
from napari_invprior.jobs import (
    Event,
    Job,
    Message,
    Result,
    Sample,
    ShouldStop,
    Stage,
    never,
)
from napari_invprior.memory import require
from napari_invprior.numerics.moments import Moments
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise
from napari_invprior.posterior.base import Posterior, Sampler, posterior_preview
from napari_invprior.posterior.diagnostics import GOOD_RHAT, Convergence, Traces
from napari_invprior.posterior.evidence import counted_once, evidence_weight
from napari_invprior.posterior.spectral import (
    DIFFERENCE,
    ROUGH_DIFFERENCE,
    SpectralScale,
    largest_curvature,
    measured_scale,
)
from napari_invprior.priors.base import Prior
from napari_invprior.reconstruct.objective import Objective

WATCHED, FEWEST_WATCHED = 256, 16
"""Image samples whose trace is kept, beside the energy; fewer where there are many chains."""
JUDGED_EVERY = 100
"""Steps between two looks at convergence."""
MAX_HALVINGS = 8
"""So often the step is halved after an explosion before the job gives up."""
RISE = 5.0
"""Nats per image sample above the first state that no posterior explains (half of one is usual)."""
FOLLOWED = 30
"""Steps in which the potential of a prior that follows the image comes to the first one."""
WIDEST_START = 0.1
"""Largest standard deviation of the first states, grey."""
COPIES = 12
"""Arrays of the size of all chains that a run holds at once."""


class ChainParameters(Parameters):
    """How many chains, how long, and what is kept."""

    samples: Annotated[int, Field(ge=2, le=100_000)] = parameter(
        64, "Images that are kept, spread over all chains; mean and deviation use every state."
    )
    chains: Annotated[int, Field(ge=1, le=10_000)] | None = parameter(
        None, "Chains that run side by side, to tell by their agreement whether they have mixed. "
        "Empty: 8, in volumes 4.",
    )
    steps: Annotated[int, Field(ge=4, le=10_000_000)] = parameter(
        1500, "At most so many steps of each chain after warm-up."
    )
    stop_ess: Annotated[float, Field(ge=1, le=1e6)] = parameter(
        200.0,
        "Stop when the states are worth so many independent images (in the median) and the chains "
        "agree.",
    )
    warm_up: Annotated[int, Field(ge=0, le=1_000_000)] = parameter(
        300, "First steps of each chain, which adapt the step and are thrown away.", advanced=True
    )
    weight: Annotated[float, Field(ge=1e-9, le=1e6)] | None = parameter(
        None,
        "How much the prior counts against the data. Empty: every sample of the image counts about "
        "once where the prior is a density of patches, else the weight of the reconstruction.",
        advanced=True,
    )
    stride: Annotated[int, Field(ge=1, le=64)] | None = parameter(
        None, "Step of the patch grid; empty: what the sampler needs.", unit="px", advanced=True
    )
    rim: Annotated[int, Field(ge=0, le=64)] | None = parameter(
        None,
        "Mirrored rim that the prior also sees; empty: half of the patch edge minus one, so that "
        "samples at the border count as much as all others.",
        unit="px", advanced=True,
    )
    scaling: Literal["spectral", "none"] = parameter(
        "spectral",
        "Steps fitted to each spatial frequency, or one length for all (as in the papers).",
        advanced=True,
    )


class Transition(ABC):
    """One step of all chains.

    Parameters
    ----------
    objective : Objective
        What is sampled: ``exp(-n * objective)``.
    scale : SpectralScale
        Coordinates to move in.
    states : Tensor
        First states (K, C, *space).
    generator : torch.Generator
        Of all noise.

    Attributes
    ----------
    states : Tensor
        Present states (K, C, *space).
    energies : Tensor
        Negative log-posterior of each state (or an estimate), up to a constant: (K,).
    """

    def __init__(
        self, objective: Any, scale: SpectralScale, states: Tensor, generator: torch.Generator
    ) -> None:
        self.objective, self.scale, self.generator = objective, scale, generator
        self.states = states
        self.energies = torch.full((len(states),), math.nan)

    @abstractmethod
    def step(self, warming_up: bool) -> None:
        """Move every chain; adapt the step size while warming up."""

    @abstractmethod
    def halve(self, states: Tensor) -> float:
        """Go back to these states with half the step, which is returned."""

    def figures(self) -> dict[str, float]:
        """What to show beside the progress."""
        return {}

    def facts(self) -> dict[str, float]:
        """What to record with the result."""
        return self.figures()

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient of the negative log-posterior; sets `energies`."""
        found = slope(self.objective, x)
        self.energies = self.objective.energies
        return found

    def noise(self) -> Tensor:
        """White noise like the states."""
        drawn = torch.randn(
            self.states.shape, generator=self.generator, dtype=self.states.dtype
        )
        return drawn.to(self.states.device)


class ChainSampler(Sampler):
    """A sampler of parallel chains; subclasses give the step and the grid of patches."""

    Parameters: ClassVar[type[ChainParameters]] = ChainParameters
    parameters: ChainParameters
    exact_grid: ClassVar[bool] = False
    """Whether every step needs the value of the same energy, not an estimate."""

    @abstractmethod
    def _transition(
        self, objective: Any, scale: SpectralScale, states: Tensor, generator: torch.Generator,
        curvature: float,
    ) -> Transition:
        """The step, for the largest ``curvature`` in the coordinates of ``scale``."""

    def require(self, prior: Prior, noise: Noise) -> None:
        if not prior.has_gradient:
            raise InvalidInput(
                f"the prior {prior.name!r} has no gradient that chains could follow; choose the "
                "sampler 'amortised', or another prior"
            )

    def sample(
        self,
        y: Tensor,
        physics: Physics,
        noise: Noise,
        prior: Prior,
        *,
        weight: float | None,
        start: Tensor,
        seed: int = 0,
        should_stop: ShouldStop = never,
        time_budget_s: float | None = None,
    ) -> Job:
        self.require(prior, noise)
        chains = self.parameters.chains or (8 if prior.ndim == 2 else 4)
        require(
            COPIES * chains * start.numel() * start.element_size(),
            f"{chains} chains of images of {tuple(start.shape[2:])} samples",
            "lower chains, or crop the observation",
        )
        given = self.parameters.rim
        rim = counted_once(getattr(prior, "patch", (1,))) if given is None else given
        if weight is None:
            weight = evidence_weight(prior, start.shape[2:], rim)
        objective = self._objective(y, physics, noise, prior, weight, rim, chains, seed)
        generator = torch.Generator().manual_seed(seed)
        return self._run(objective, start, chains, generator, should_stop, time_budget_s)

    def _objective(
        self, y: Tensor, physics: Physics, noise: Noise, prior: Prior, weight: float, rim: int,
        chains: int, seed: int,
    ) -> Objective | SeparateObjective:
        chosen = self.parameters
        patch = getattr(prior, "patch", (1,))
        stride = chosen.stride or (1 if self.exact_grid else min(patch))

        def alone() -> Objective:
            return Objective(
                y, physics, noise, prior.for_run(), weight, stride=stride, rim=rim, seed=seed
            )

        return SeparateObjective([alone() for _ in range(chains)]) if prior.adapts else alone()

    def _run(
        self, objective: Any, start: Tensor, chains: int, generator: torch.Generator,
        should_stop: ShouldStop, time_budget_s: float | None,
    ) -> Iterator[Event]:
        if isinstance(objective, SeparateObjective):
            objective.follow(start)
        objective.freeze(start)
        scale = self._scale(objective, start, generator)
        drawn = torch.randn((chains, *start.shape[1:]), generator=generator, dtype=start.dtype)
        spread = scale.unwhiten(drawn.to(start.device))
        states = start + spread * min(1.0, WIDEST_START / float(spread.std()))
        curvature = largest_curvature(
            partial(slope, objective), start, scale, generator, _difference(objective)
        )
        transition = self._transition(objective, scale, states, generator, curvature)
        if not self.exact_grid:
            objective.release()
        yield from _Watch(self.parameters, transition, generator).run(should_stop, time_budget_s)

    def _scale(
        self, objective: Any, start: Tensor, generator: torch.Generator
    ) -> SpectralScale:
        scale = measured_scale(
            partial(slope, objective), start, generator, _difference(objective)
        )
        if self.parameters.scaling == "none":
            level = float(scale.precision.double().mean())
            return SpectralScale(torch.full_like(scale.precision, level))
        return scale


def _difference(objective: Any) -> float:
    """Step of finite differences: a nearest reference patch changes in jumps."""
    return ROUGH_DIFFERENCE if isinstance(objective, SeparateObjective) else DIFFERENCE


def slope(objective: Any, x: Tensor) -> Tensor:
    """Gradient of the negative log-posterior at images (K, C, *space)."""
    found: Tensor = objective.gradient(x).mul_(x[0].numel())
    return found


class SeparateObjective:
    """One objective per chain, for priors whose potential follows the one image that it is for."""

    def __init__(self, each: Sequence[Objective]) -> None:
        self.each, self.weight = each, each[0].weight
        self.energies = torch.full((1,), math.nan)
        self.residual = math.nan

    def follow(self, x: Tensor) -> None:
        """Bring the potentials of all chains to an image (1, C, *space)."""
        for one in self.each:
            for _ in range(FOLLOWED):
                one.gradient(x)

    def freeze(self, x: Tensor) -> None:
        """As `Objective.freeze`."""
        for one in self.each:
            one.freeze(x)

    def release(self) -> None:
        """As `Objective.release`."""
        for one in self.each:
            one.release()

    def gradient(self, x: Tensor) -> Tensor:
        """As `Objective.gradient`; fewer images than chains are those of the first ones."""
        used = self.each[: len(x)]
        slopes = [one.gradient(image) for one, image in zip(used, x.split(1), strict=True)]
        self.energies = torch.cat([one.energies for one in used])
        self.residual = sum(one.residual for one in used) / len(used)
        return torch.cat(slopes)


class _Watch:
    """Runs a transition, looks at what it does, and gives out samples."""

    def __init__(
        self, parameters: ChainParameters, transition: Transition, generator: torch.Generator
    ) -> None:
        self.parameters, self.transition, self.generator = parameters, transition, generator
        states = transition.states
        self.moments = Moments(states)
        self.chains, self.kept, self.seen = len(states), 0, 0
        wanted = min(WATCHED, max(FEWEST_WATCHED, 8 * WATCHED // self.chains))
        count = min(wanted, states[0].numel())
        self._places = torch.randperm(states[0].numel(), generator=generator)[:count]
        self.traces = Traces(self.chains, count + 1)
        self.every = max(1, parameters.steps * self.chains // (4 * parameters.samples))
        self._safe = states.clone()
        self._ceiling = math.inf
        self._halvings = self._candidates = 0

    def run(self, should_stop: ShouldStop, time_budget_s: float | None) -> Iterator[Event]:
        """Warm up, then sample until there is enough."""
        chosen = self.parameters
        stage = Stage("sample", chosen.warm_up + chosen.steps)
        shown, step, judged = 0.0, 0, Convergence(0.0, 0.0, math.inf, self.chains, 0)
        while step < stage.total:
            self.transition.step(step < chosen.warm_up)
            message = self._checked()
            if message is not None:
                yield message
                continue
            step += 1
            if step > chosen.warm_up:
                yield from self._taken_in()
            if step > chosen.warm_up and (step - chosen.warm_up) % JUDGED_EVERY == 0:
                judged = Convergence.of(self.traces.values, self.moments.states)
                if self._enough(judged):
                    break
            if stage.due():
                known = judged.figures() if judged.states else {}
                yield stage.progress(step, **known, **self._figures())
            if self.moments.count > 1 and stage.seconds - shown > 1:
                shown = stage.seconds
                yield posterior_preview(self.moments)
            if should_stop():
                break
            if time_budget_s is not None and stage.seconds > time_budget_s:
                yield Message(f"time budget of {time_budget_s:g} s used after {step} steps")
                break
        yield from self._completed(step)
        yield Result(self._posterior())

    def _enough(self, judged: Convergence) -> bool:
        """Chains that disagree seem to be worth much as long as they have not met."""
        chosen = self.parameters
        agreed = judged.ess >= chosen.stop_ess and judged.rhat <= GOOD_RHAT
        return agreed and self.kept >= chosen.samples

    def _completed(self, step: int) -> Iterator[Event]:
        """Where it was stopped too early for samples, the present states are some."""
        if self.moments.count == 0:
            yield Message(
                f"stopped after {step} of {self.parameters.warm_up} steps of warm-up: the samples "
                "still depend on where the chains began", "warning",
            )
            self.moments.add(self.transition.states)
        if self.kept == 0:
            self.kept = min(self.chains, self.parameters.samples)
            for slot, state in enumerate(self.transition.states[: self.kept]):
                yield Sample(slot, state.cpu().clone())

    def _figures(self) -> dict[str, float]:
        return {"residual": float(self.transition.objective.residual)} | self.transition.figures()

    def _checked(self) -> Message | None:
        """Go back with half the step after an explosion; None where all is well."""
        states, energies = self.transition.states, self.transition.energies
        finite = bool(torch.isfinite(energies).all()) and bool(torch.isfinite(states).all())
        if self._ceiling == math.inf and finite:
            self._ceiling = float(energies.max()) + RISE * states[0].numel()
        if finite and float(energies.max()) <= self._ceiling:
            if self.seen % 20 == 0:
                self._safe = states.clone()
            self.seen += 1
            return None
        self._halvings += 1
        if self._halvings > MAX_HALVINGS:
            raise JobError(
                f"the chains exploded {MAX_HALVINGS} times although the step was halved each time: "
                "the prior does not fit these data (train it longer), or its weight "
                f"{self.transition.objective.weight:g} is far too small or too large"
            )
        step = self.transition.halve(self._safe.clone())
        return Message(f"step halved to {step:.3g} after an explosion of the chains", "warning")

    def _taken_in(self) -> Iterator[Event]:
        """Moments and traces of the present states; samples now and then."""
        states = self.transition.states
        self.moments.add(states)
        watched = torch.cat(
            [states.flatten(1)[:, self._places.to(states.device)],
             self.transition.energies[:, None].to(states)], 1,
        )
        self.traces.add(watched.numpy(force=True))
        if self.moments.count % self.every:
            return
        for state in states:
            slot = self._slot()
            if slot is not None:
                yield Sample(slot, state.cpu().clone())

    def _slot(self) -> int | None:
        """Where the next candidate goes, so that all of them are kept with equal chance."""
        self._candidates += 1
        if self.kept < self.parameters.samples:
            self.kept += 1
            return self.kept - 1
        place = int(torch.randint(self._candidates, (1,), generator=self.generator))
        return place if place < self.parameters.samples else None

    def _posterior(self) -> Posterior:
        return Posterior(
            self.moments.mean, self.moments.std, self.kept,
            Convergence.of(self.traces.values, self.moments.states), self.moments.rhat,
            {"weight": self.transition.objective.weight} | self.transition.facts(),
        )
