"""Texture synthesis: no data at all, the prior alone decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.parameters import Parameters, parameter
from napari_invprior.physics.base import Physics
from napari_invprior.registry import register


class SynthesisParameters(Parameters):
    """Where the synthesis begins."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = parameter(
        0, "Seed of the noise that the synthesis starts from; another one gives another texture."
    )


@register(
    kind="physics",
    name="synthesis",
    title="Texture synthesis (no data)",
    papers=("2109.12880",),
    inputs=("observation",),
    outputs=("reconstruction",),
)
class Synthesis(Physics):
    """``A = 0``: the observation gives size and place of the new texture, nothing else.

    Examples
    --------
    >>> physics = Synthesis(SynthesisParameters(), 2)
    >>> float(physics.A(torch.ones(1, 1, 4, 5)).abs().max())
    0.0
    """

    Parameters = SynthesisParameters
    parameters: SynthesisParameters
    informative = False

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return torch.zeros_like(x)

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return torch.zeros_like(y)

    def A_dagger(self, y: Tensor) -> Tensor:  # noqa: N802
        return torch.zeros_like(y)

    def out_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape)

    def in_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape)

    def norm(self, shape: Sequence[int]) -> float:
        return 0.0

    def prox(self, z: Tensor, y: Tensor, mu: float) -> Tensor:
        return z

    def start(self, y: Tensor) -> Tensor:
        """White noise, uniform in [0, 1]."""
        generator = torch.Generator().manual_seed(self.parameters.seed)
        return torch.rand(y.shape, generator=generator, dtype=y.dtype).to(y.device)
