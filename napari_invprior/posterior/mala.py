"""Metropolis-adjusted Langevin: exact whatever the step, as every move is accepted or refused."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.parameters import parameter
from napari_invprior.posterior.chains import ChainParameters, ChainSampler, Transition
from napari_invprior.posterior.spectral import SpectralScale
from napari_invprior.registry import register

ADAPTATION = 0.6
"""The step follows the acceptance with gain ``t^-0.6``."""


class MalaParameters(ChainParameters):
    """Chains and acceptance."""

    acceptance: Annotated[float, Field(ge=0.1, le=0.95)] = parameter(
        0.57, "Share of the moves to accept; the step adapts to it while warming up.",
        advanced=True,
    )


class MalaTransition(Transition):
    """A Langevin proposal and the test of Metropolis and Hastings, for each chain."""

    def __init__(
        self, objective: Any, scale: SpectralScale, states: Tensor, generator: torch.Generator,
        step: float, wanted: float,
    ) -> None:
        super().__init__(objective, scale, states, generator)
        self.length, self.wanted, self._time = step, wanted, 0
        self.acceptance = wanted
        self._begin(states)

    def _begin(self, states: Tensor) -> None:
        self.states, self._place = states, self.scale.whiten(states)
        self._slope = self.scale.gradient(self.gradient(states))
        self._energy = self.energies.double()

    def step(self, warming_up: bool) -> None:
        xi = self.noise()
        place = self._place - self.length * self._slope + math.sqrt(2 * self.length) * xi
        states = self.scale.unwhiten(place)
        there = self.scale.gradient(self.gradient(states))
        energy = self.energies.double()
        back = self._place - place + self.length * there
        forth, returned = _square(xi) / 2, _square(back) / (4 * self.length)
        log_ratio = self._energy - energy + forth - returned
        chance = log_ratio.nan_to_num(nan=-math.inf).clamp(max=0).exp()
        drawn = torch.rand(len(states), generator=self.generator, dtype=torch.float64)
        yes = drawn.to(chance) < chance
        each = yes.view(-1, *(1,) * (states.ndim - 1))
        self.states = torch.where(each, states, self.states)
        self._place = torch.where(each, place, self._place)
        self._slope = torch.where(each, there, self._slope)
        self._energy = torch.where(yes, energy, self._energy)
        self.energies = self._energy
        self._learn(float(chance.mean()), warming_up)

    def _learn(self, accepted: float, warming_up: bool) -> None:
        self.acceptance += 0.05 * (accepted - self.acceptance)
        if warming_up:
            self._time += 1
            self.length *= math.exp((accepted - self.wanted) * self._time**-ADAPTATION)

    def halve(self, states: Tensor) -> float:
        self.length /= 2
        self._begin(states)
        return self.length

    def figures(self) -> dict[str, float]:
        return {"acceptance": self.acceptance}

    def facts(self) -> dict[str, float]:
        return {"step": self.length} | self.figures()


def _square(u: Tensor) -> Tensor:
    """Squared length for each chain, exact enough to be compared: (K,), float64."""
    return u.double().square().flatten(1).sum(1)


@register(
    kind="sampler",
    name="mala",
    title="Langevin, adjusted (MALA)",
    papers=("2312.16611",),
    inputs=("observation", "prior"),
    outputs=("samples", "mean", "std"),
    uncertainty=True,
    widget="uncertainty",
)
class Mala(ChainSampler):
    """Metropolis-adjusted Langevin: without bias, but every step looks at all patches.

    The step is so short that about 57 % of the moves are accepted; it shrinks with the number of
    samples of the image to the power of a third. For a prior whose potential follows the image
    (transport), the potential stays what the first image makes of it.
    """

    Parameters = MalaParameters
    parameters: MalaParameters
    exact_grid = True

    def _transition(
        self, objective: Any, scale: SpectralScale, states: Tensor, generator: torch.Generator,
        curvature: float,
    ) -> Transition:
        step = 0.5 * states[0].numel() ** (-1 / 3) / curvature
        return MalaTransition(
            objective, scale, states, generator, step, self.parameters.acceptance
        )
