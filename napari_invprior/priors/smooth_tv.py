"""Smoothed total variation as a prior: nothing is learnt, but it can be descended and sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.jobs import Job, Result, ShouldStop, never
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.priors.base import Prior, Reference
from napari_invprior.registry import register


class SmoothTotalVariationParameters(Parameters):
    """Where edges begin."""

    smoothing: Annotated[float, Field(ge=1e-5, le=1)] = parameter(
        0.01, "Steps between neighbours that are small beside this count by their square.",
        unit="grey, 0-1",
    )


@register(
    kind="prior",
    name="smooth_tv",
    title="Total variation, smoothed",
    inputs=(),
    outputs=("prior",),
)
class SmoothTotalVariation(Prior):
    """``g(x) = mean over the samples of sqrt(|grad x|^2 + s^2) - s``; needs no reference.

    ``weight * n * g`` is then ``weight`` times the total variation. It tends to the solver
    ``total_variation`` for small ``s``, and can be sampled: ``exp(-weight n g)`` is smooth.

    Examples
    --------
    >>> prior = SmoothTotalVariation(SmoothTotalVariationParameters(), ndim=2)
    >>> prior.is_fitted, prior.g(torch.ones(1, 1, 4, 5)).item()
    (True, 0.0)
    """

    Parameters = SmoothTotalVariationParameters
    parameters: SmoothTotalVariationParameters
    weight_scale = 1000.0
    optimises = False

    @property
    def is_fitted(self) -> bool:
        return True

    def fit(
        self, references: Sequence[Reference], *, seed: int = 0, should_stop: ShouldStop = never
    ) -> Job:
        """There is nothing to learn."""
        yield Result(self)

    def g(self, x: Tensor) -> Tensor:
        _, length = self._lengths(x)
        return (length - self.parameters.smoothing).flatten(1).mean(1)

    def grad(self, x: Tensor) -> Tensor:
        steps, length = self._lengths(x)
        found = torch.zeros_like(x)
        for axis, step in enumerate(steps, 2):
            step /= length
            n = x.shape[axis]
            inner = step.narrow(axis, 0, n - 1)
            found.narrow(axis, 1, n - 1).add_(inner)
            found.narrow(axis, 0, n - 1).sub_(inner)
        return found.div_(x[0].numel())

    def _lengths(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Forward differences (zero at the far edge) and their smoothed length."""
        steps = []
        square = torch.full_like(x, self.parameters.smoothing**2)
        for axis in range(2, x.ndim):
            n = x.shape[axis]
            step = torch.zeros_like(x)
            torch.sub(
                x.narrow(axis, 1, n - 1), x.narrow(axis, 0, n - 1),
                out=step.narrow(axis, 0, n - 1),
            )
            square += step**2
            steps.append(step)
        return steps, square.sqrt_()

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """There is nothing to load."""
