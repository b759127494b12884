"""Noise models: the negative log-likelihood of the data given the noise-free data."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from napari_invprior.parameters import Parameters, parameter
from napari_invprior.parameters import Parameters as Declaration
from napari_invprior.registry import register


class Noise(ABC):
    """Distribution of the data ``y`` around the noise-free ``z``."""

    Parameters: ClassVar[type[Declaration]]
    level: float | None = None
    """What `variance_level` says of any data, where it is settled."""

    def __init__(self, parameters: Declaration) -> None:
        self.parameters = parameters

    def settled(self, level: float) -> Noise:
        """The same noise, with one variance level for all parts of the data."""
        settled = copy.copy(self)
        settled.level = level
        return settled

    @abstractmethod
    def simulate(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Noisy data."""

    @abstractmethod
    def nll(self, z: Tensor, y: Tensor) -> Tensor:
        """``-log p(y | z)`` per batch element, up to a constant in ``z``: (B,)."""

    @abstractmethod
    def nll_grad(self, z: Tensor, y: Tensor) -> Tensor:
        """Gradient of `nll` in ``z``."""

    @abstractmethod
    def std(self, z: Tensor) -> Tensor:
        """Standard deviation of each sample of ``y``."""

    def residual_ratio(self, z: Tensor, y: Tensor) -> float:
        """Mean of ``((z - y) / std(z))^2``: one where ``z`` explains ``y`` up to the noise."""
        return float((((z - y) / self.std(z)) ** 2).mean())

    def variance_level(self, y: Tensor) -> float:
        """Mean noise variance, for methods that need one number; finite values of ``y`` only."""
        if self.level is not None:
            return self.level
        return float((self.std(y[torch.isfinite(y)]) ** 2).mean())


class GaussianParameters(Parameters):
    """Level of the noise."""

    sigma: float | None = parameter(
        None, "Standard deviation; empty: estimated from the observation.", unit="grey, 0-1",
        ge=0, le=10,
    )


SIGMA_FLOOR = 1e-4
"""Smallest standard deviation that is used; data without noise still weigh finitely."""


@register(
    kind="noise",
    name="gaussian",
    title="Gaussian",
    inputs=("observation",),
    default_for=(2, 3),
)
class GaussianNoise(Noise):
    """White Gaussian noise: ``-log p = |z - y|^2 / (2 sigma^2)``.

    Examples
    --------
    >>> noise = GaussianNoise(GaussianParameters(sigma=0.5))
    >>> noise.nll(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).item()
    8.0
    """

    Parameters = GaussianParameters
    parameters: GaussianParameters

    @property
    def sigma(self) -> float:
        """Standard deviation in use."""
        return max(self.parameters.sigma or 0.0, SIGMA_FLOOR)

    def simulate(self, z: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=generator.device)
        return z + (self.parameters.sigma or 0.0) * noise.to(z.device)

    def nll(self, z: Tensor, y: Tensor) -> Tensor:
        return ((z - y) ** 2).flatten(1).sum(1) / (2 * self.sigma**2)

    def nll_grad(self, z: Tensor, y: Tensor) -> Tensor:
        return (z - y) / self.sigma**2

    def std(self, z: Tensor) -> Tensor:
        return torch.full_like(z, self.sigma)


class PoissonParameters(Parameters):
    """How many counts a value of one means."""

    peak: float = parameter(
        1000.0, "Expected counts at intensity 1.", unit="counts", ge=1e-3, le=1e9
    )


@register(kind="noise", name="poisson", title="Poisson", inputs=("observation",))
class PoissonNoise(Noise):
    """Photon counting: ``peak y ~ Poisson(peak z)``, ``-log p = peak sum(z - y log z)``.

    Below ``z = 1 / peak`` (one count) the function continues as its second-order expansion, so
    that value and gradient stay finite for every real ``z``.

    Examples
    --------
    >>> noise = PoissonNoise(PoissonParameters(peak=100))
    >>> y = torch.full((1, 1, 2, 2), 0.5)
    >>> bool(noise.nll(y, y) < noise.nll(1.1 * y, y))
    True
    """

    Parameters = PoissonParameters
    parameters: PoissonParameters

    def simulate(self, z: Tensor, generator: torch.Generator) -> Tensor:
        rate = (z.clamp_min(0) * self.parameters.peak).to(generator.device)
        return (torch.poisson(rate, generator=generator) / self.parameters.peak).to(z.device)

    def _expansion(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``log z`` and its derivative, continued quadratically below one count."""
        low = 1 / self.parameters.peak
        safe = z.clamp_min(low)
        step = (z - safe) / low
        logarithm = safe.log() + step - 0.5 * step**2
        return logarithm, torch.where(z < low, (1 - step) / low, 1 / safe)

    def nll(self, z: Tensor, y: Tensor) -> Tensor:
        logarithm, _ = self._expansion(z)
        return self.parameters.peak * (z - y.clamp_min(0) * logarithm).flatten(1).sum(1)

    def nll_grad(self, z: Tensor, y: Tensor) -> Tensor:
        _, slope = self._expansion(z)
        return self.parameters.peak * (1 - y.clamp_min(0) * slope)

    def std(self, z: Tensor) -> Tensor:
        return (z.clamp_min(1 / self.parameters.peak) / self.parameters.peak).sqrt()
