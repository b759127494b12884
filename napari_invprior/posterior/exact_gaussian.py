"""Independent samples of a Gaussian posterior: perturb the data and the prior, then optimise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Event, Job, Result, Sample, ShouldStop, Stage, never
from napari_invprior.memory import require
from napari_invprior.numerics.krylov import conjugate_gradient
from napari_invprior.numerics.moments import Moments
from napari_invprior.numerics.reflect import pad_reflect_adjoint
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import GaussianNoise, Noise
from napari_invprior.posterior.base import Posterior, Sampler, posterior_preview
from napari_invprior.posterior.chains import slope
from napari_invprior.posterior.evidence import counted_once, evidence_weight
from napari_invprior.posterior.spectral import SpectralScale, measured_scale
from napari_invprior.priors.base import Prior
from napari_invprior.priors.mixtures.gmm import GaussianMixture
from napari_invprior.reconstruct.objective import Objective
from napari_invprior.registry import register

BATCH = 8
"""Images that are solved for at once."""
COPIES = 12
ENOUGH = 1e-5
"""Residual of the solves, as a share of the right-hand side."""


class ExactGaussianParameters(Parameters):
    """How many images."""

    samples: Annotated[int, Field(ge=2, le=100_000)] = parameter(64, "Images to draw.")
    weight: Annotated[float, Field(ge=1e-9, le=1e6)] | None = parameter(
        None, "How much the prior counts against the data; empty: every sample of the image counts "
        "about once.",
        advanced=True,
    )
    rim: Annotated[int, Field(ge=0, le=64)] | None = parameter(
        None, "Mirrored rim that the prior also sees; empty: half of the patch edge minus one.",
        unit="px", advanced=True,
    )


@register(
    kind="sampler",
    name="exact_gaussian",
    title="Exact, for one Gaussian",
    papers=("2312.16611",),
    inputs=("observation", "prior"),
    outputs=("samples", "mean", "std"),
    uncertainty=True,
    widget="uncertainty",
)
class ExactGaussian(Sampler):
    """Independent samples by conjugate gradients, for a mixture of one component.

    With Gaussian noise the posterior is ``N(H^-1 b, H^-1)``. For noise ``e`` with covariance ``H``,
    made of white noise in the data and in every patch, ``H^-1 (b + e)`` is a sample.
    """

    Parameters: ClassVar[type[Parameters]] = ExactGaussianParameters
    parameters: ExactGaussianParameters

    def require(self, prior: Prior, noise: Noise) -> None:
        if not (isinstance(prior, GaussianMixture) and isinstance(noise, GaussianNoise)):
            raise InvalidInput(
                "the exact sampler needs Gaussian noise and a Gaussian mixture of one component; "
                "choose the sampler 'underdamped'"
            )
        held = prior.mixture if prior.is_fitted else prior.parameters
        if held.components != 1:
            raise InvalidInput(
                f"the exact sampler needs a mixture of one component, this one has "
                f"{held.components}; train it with components = 1, or choose the sampler "
                "'underdamped'"
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
        assert isinstance(prior, GaussianMixture)
        require(
            8 * COPIES * BATCH * start.numel(), f"{BATCH} images of {tuple(start.shape[2:])} "
            "samples", "crop the observation",
        )
        given = self.parameters.rim
        rim = counted_once(prior.patch) if given is None else given
        if weight is None:
            weight = evidence_weight(prior, start.shape[2:], rim)
        objective = Objective(
            y.double(), physics, noise, prior, weight, stride=1, rim=rim, seed=seed
        )
        return self._events(_Gaussian(objective, start, seed), should_stop, time_budget_s)

    def _events(
        self, gaussian: _Gaussian, should_stop: ShouldStop, time_budget_s: float | None
    ) -> Iterator[Event]:
        count = self.parameters.samples
        stage = Stage("sample", count)
        moments, shown, kept = Moments(gaussian.start), 0.0, 0
        while kept < count:
            for image in gaussian.draw(min(BATCH, count - kept)):
                moments.add(image[None])
                yield Sample(kept, image.float().cpu())
                kept += 1
            yield stage.progress(kept)
            if stage.seconds - shown > 1:
                shown = stage.seconds
                yield posterior_preview(moments)
            if should_stop() or (time_budget_s is not None and stage.seconds > time_budget_s):
                break
        facts = {"weight": gaussian.objective.weight}
        yield Result(Posterior(moments.mean.float(), moments.std.float(), kept, facts=facts))


class _Gaussian:
    """The posterior as precision ``H``, linear part ``b`` and noise of covariance ``H``."""

    def __init__(self, objective: Objective, start: Tensor, seed: int) -> None:
        self.objective, self.start = objective, start.double()
        self.generator = torch.Generator().manual_seed(seed)
        objective.freeze(self.start)
        self._at_zero = slope(objective, torch.zeros_like(self.start))
        self._scale: SpectralScale = measured_scale(
            partial(slope, objective), self.start, self.generator
        )

    def _precision(self, x: Tensor) -> Tensor:
        return slope(self.objective, x) - self._at_zero

    def _inverse(self, x: Tensor) -> Tensor:
        """Nearly the inverse of the precision."""
        return self._scale.unwhiten(self._scale.gradient(x))

    def draw(self, count: int) -> Tensor:
        """Samples (count, C, *space)."""
        rhs = self._noise(count) - self._at_zero
        return conjugate_gradient(
            self._precision, rhs, preconditioner=self._inverse, tolerance=ENOUGH
        )

    def _noise(self, count: int) -> Tensor:
        """Noise with the precision as its covariance."""
        objective, prior = self.objective, self.objective.prior
        assert isinstance(prior, GaussianMixture) and isinstance(objective.noise, GaussianNoise)
        in_data = self._white((count, *objective.y.shape[1:]))
        found = objective.physics.A_adjoint(in_data) / objective.noise.sigma
        padded = [
            n + sum(m) for n, m in zip(self.start.shape[2:], objective.margins, strict=True)
        ]
        grid = prior.patch_grid(padded)
        planes = count * self.start.shape[1] // prior.joint_channels
        vectors, values = prior.mixture.vectors[0], prior.mixture.values[0]
        in_patches = (vectors / values.sqrt()) @ self._white((prior.dim, planes * grid.count))
        per_image = planes // count * grid.count
        share = math.sqrt(objective.weight * self.start.numel() / per_image)
        images = grid.adjoint(in_patches.to(found)).view(count, *self.start.shape[1:2], *padded)
        return found + share * pad_reflect_adjoint(images, objective.margins)

    def _white(self, shape: tuple[int, ...]) -> Tensor:
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.start.device)
