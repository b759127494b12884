"""Langevin dynamics with momentum and a thermostat: the fastest chains for random patch grids."""

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


class UnderdampedParameters(ChainParameters):
    """Chains, step and friction."""

    step: Annotated[float, Field(gt=0, le=2)] = parameter(
        0.5, "Time step, over the shortest time in which the posterior changes (stable below 2).",
        advanced=True,
    )
    friction: Annotated[float, Field(gt=0, le=100)] = parameter(
        0.5, "Least friction, per unit of time; it rises with the noise of the gradients.",
        advanced=True,
    )


class UnderdampedTransition(Transition):
    """One BAOAB step with the noise of the friction part balanced by a thermostat."""

    def __init__(
        self, objective: Any, scale: SpectralScale, states: Tensor, generator: torch.Generator,
        step: float, friction: float,
    ) -> None:
        super().__init__(objective, scale, states, generator)
        self.time_step, self.noise_level = step, friction
        self._restart(states)

    def _restart(self, states: Tensor) -> None:
        self.states = states
        self._place = self.scale.whiten(states)
        self._velocity = self.noise()
        shape = (len(states), *(1,) * (states.ndim - 1))
        self._friction = torch.full(shape, self.noise_level).to(states)
        self.temperature = 1.0

    def step(self, warming_up: bool) -> None:
        dt, per_chain = self.time_step, tuple(range(1, self.states.ndim))
        self._place.add_(self._velocity, alpha=dt / 2)
        decay = (-self._friction * dt).exp()
        noise = self.noise_level * _ratio(2 * self._friction, dt)
        self._velocity.mul_(decay).add_(self.noise() * noise.sqrt())
        self._place.add_(self._velocity, alpha=dt / 2)
        self.states = self.scale.unwhiten(self._place)
        before = self._velocity.square().mean(per_chain, keepdim=True)
        self._velocity.sub_(self.scale.gradient(self.gradient(self.states)), alpha=dt)
        after = self._velocity.square().mean(per_chain, keepdim=True)
        heat = (before + after) / 2  # between kicks it is exactly one for a Gaussian, at any step
        self._friction.add_(heat - 1, alpha=dt).clamp_(min=0)
        self.temperature += 0.02 * (float(heat.mean()) - self.temperature)

    def halve(self, states: Tensor) -> float:
        self.time_step /= 2
        self._restart(states)
        return self.time_step

    def figures(self) -> dict[str, float]:
        return {"temperature": self.temperature}

    def facts(self) -> dict[str, float]:
        friction = float(self._friction.mean())
        return {"step": self.time_step, "friction": friction} | self.figures()


def _ratio(rate: Tensor, time: float) -> Tensor:
    """``(1 - exp(-rate time)) / (rate / 2)``, which is ``2 time`` at rate zero."""
    small = rate * time < 1e-6
    safe = torch.where(small, torch.ones_like(rate), rate)
    return torch.where(small, 2 * time, -2 * torch.expm1(-safe * time) / safe)


@register(
    kind="sampler",
    name="underdamped",
    title="Langevin with momentum",
    papers=("2312.16611",),
    inputs=("observation", "prior"),
    outputs=("samples", "mean", "std"),
    uncertainty=True,
    default_for=(2, 3),
    widget="uncertainty",
)
class Underdamped(ChainSampler):
    """Underdamped Langevin dynamics (BAOAB): needs the square root of the steps of plain Langevin.

    ``dx = v dt``, ``dv = -grad U dt - f v dt + sqrt(2 a) dW`` in coordinates in which all spatial
    frequencies are about equally wide. The gradient is estimated from a random grid of patches;
    what its noise heats, the thermostat ``df = (mean v^2 - 1) dt`` takes out. For a Gaussian
    posterior and exact gradients mean and variance are exact at any stable step.

    References
    ----------
    Leimkuhler & Matthews, 2013 (BAOAB); Ding et al., 2014 (thermostat); Piening et al., 2024.
    """

    Parameters = UnderdampedParameters
    parameters: UnderdampedParameters

    def _transition(
        self, objective: Any, scale: SpectralScale, states: Tensor, generator: torch.Generator,
        curvature: float,
    ) -> Transition:
        step = self.parameters.step / math.sqrt(curvature)
        return UnderdampedTransition(
            objective, scale, states, generator, step, self.parameters.friction
        )
