"""Noise of a transmission measurement: photons are counted, line integrals are their logarithm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from napari_invprior.parameters import Parameters, parameter
from napari_invprior.physics.noise import Noise
from napari_invprior.registry import register

DARK_COUNT = 0.1
"""Counts of a bin that no photon reached: the logarithm needs some (as in LoDoPaB)."""

STEEPEST = 30.0
"""Exponent beyond which the rate continues linearly, so that no line integral overflows."""


class TransmissionParameters(Parameters):
    """How many photons, and how much is absorbed."""

    photons: float = parameter(
        4096.0, "Photons per bin without an object.", unit="counts", gt=1, le=1e12
    )
    attenuation: float = parameter(
        4.0,
        "Optical depth of a line integral of one (with the default lengths: of a ray across an "
        "image of value 1).",
        ge=1e-3, le=1e4,
    )


@register(
    kind="noise",
    name="transmission",
    title="Photon counting through an object (CT)",
    papers=("2205.12021",),
    inputs=("observation",),
)
class TransmissionNoise(Noise):
    """``y = -log(N / N0) / mu`` with ``N ~ Poisson(N0 exp(-mu z))``.

    ``-log p = sum N0 exp(-mu z) + N0 exp(-mu y) mu z``, smallest at ``z = y``.

    Examples
    --------
    >>> noise = TransmissionNoise(TransmissionParameters())
    >>> y = torch.full((1, 1, 2, 2), 0.5)
    >>> bool(noise.nll(y, y) < noise.nll(1.1 * y, y))
    True
    """

    Parameters = TransmissionParameters
    parameters: TransmissionParameters

    def _counts(self, z: Tensor) -> Tensor:
        """Expected photons ``N0 exp(-mu z)``; linear in ``z`` far below zero."""
        depth = self.parameters.attenuation * z
        bounded = depth.clamp_min(-STEEPEST)
        return self.parameters.photons * (-bounded).exp() * (1 + bounded - depth)

    def simulate(self, z: Tensor, generator: torch.Generator) -> Tensor:
        counts = torch.poisson(self._counts(z).to(generator.device), generator=generator)
        share = counts.clamp_min(DARK_COUNT) / self.parameters.photons
        return (-share.log() / self.parameters.attenuation).to(z)

    def nll(self, z: Tensor, y: Tensor) -> Tensor:
        depth = self.parameters.attenuation * z
        return (self._counts(z) + self._counts(y) * depth).flatten(1).sum(1)

    def nll_grad(self, z: Tensor, y: Tensor) -> Tensor:
        depth = (self.parameters.attenuation * z).clamp_min(-STEEPEST)
        slope = self.parameters.photons * (-depth).exp()
        return self.parameters.attenuation * (self._counts(y) - slope)

    def std(self, z: Tensor) -> Tensor:
        """By the delta method: ``1 / (mu sqrt(N))``, with at least the dark count."""
        counts = self._counts(z).clamp_min(DARK_COUNT)
        return 1 / (self.parameters.attenuation * counts.sqrt())

    def variance_level(self, y: Tensor) -> float:
        """The variance that weighs as much on average: the inverse of the mean of the inverses."""
        weights = self.std(y[torch.isfinite(y)]) ** -2
        return float(1 / weights.mean()) if weights.numel() else math.inf
