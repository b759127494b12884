"""Unadjusted Langevin: the plainest chain."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.parameters import parameter
from napari_invprior.posterior.chains import ChainParameters, ChainSampler, Transition
from napari_invprior.posterior.spectral import SpectralScale
from napari_invprior.registry import register


class UlaParameters(ChainParameters):
    """Chains, step and noise."""

    step: Annotated[float, Field(gt=0, le=2)] = parameter(
        0.5, "Step, over the inverse of the largest curvature (stable below 2).", advanced=True
    )
    noise: Literal["averaged", "independent"] = parameter(
        "averaged",
        "Average the noise of two steps, which makes the variance of a Gaussian posterior exact, "
        "or fresh noise in each step (the papers' chain, too wide for long steps).",
        advanced=True,
    )


class UlaTransition(Transition):
    """``x <- x - h M grad U(x) + sqrt(2 h M) xi``."""

    def __init__(
        self, objective: Any, scale: SpectralScale, states: Tensor, generator: torch.Generator,
        step: float, averaged: bool,
    ) -> None:
        super().__init__(objective, scale, states, generator)
        self.length, self.averaged = step, averaged
        self._last = self.noise()
        self._begin(states)

    def _begin(self, states: Tensor) -> None:
        self.states, self._place = states, self.scale.whiten(states)
        self._slope = self.scale.gradient(self.gradient(states))

    def step(self, warming_up: bool) -> None:
        fresh = self.noise()
        xi = (self._last + fresh) / 2 if self.averaged else fresh
        self._last = fresh
        self._place.add_(self._slope, alpha=-self.length).add_(xi, alpha=math.sqrt(2 * self.length))
        self.states = self.scale.unwhiten(self._place)
        self._slope = self.scale.gradient(self.gradient(self.states))

    def halve(self, states: Tensor) -> float:
        self.length /= 2
        self._begin(states)
        return self.length

    def facts(self) -> dict[str, float]:
        return {"step": self.length}


@register(
    kind="sampler",
    name="ula",
    title="Langevin, unadjusted (ULA)",
    papers=("2312.16611",),
    inputs=("observation", "prior"),
    outputs=("samples", "mean", "std"),
    uncertainty=True,
    widget="uncertainty",
)
class Ula(ChainSampler):
    """Unadjusted Langevin: ``x <- x - h grad U(x) + sqrt(2 h) xi`` with the step fixed beforehand.

    With independent noise the variance ``s^2`` of a Gaussian becomes ``s^2 / (1 - h / (2 s^2))``;
    with averaged noise (Leimkuhler & Matthews) it is exact. The gradient is estimated from a random
    grid of patches.
    """

    Parameters = UlaParameters
    parameters: UlaParameters

    def _transition(
        self, objective: Any, scale: SpectralScale, states: Tensor, generator: torch.Generator,
        curvature: float,
    ) -> Transition:
        return UlaTransition(
            objective, scale, states, generator, self.parameters.step / curvature,
            self.parameters.noise == "averaged",
        )
