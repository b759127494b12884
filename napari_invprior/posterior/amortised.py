"""Samples of a prior that draws images for given data by itself, made to explain the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Event, Job, Result, Sample, ShouldStop, never
from napari_invprior.numerics.moments import Moments
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise
from napari_invprior.posterior.base import Posterior, Sampler, posterior_preview
from napari_invprior.priors.base import Prior
from napari_invprior.priors.drawn import DrawsImages
from napari_invprior.registry import register


class AmortisedParameters(Parameters):
    """How many images, and how closely they follow the data."""

    samples: Annotated[int, Field(ge=2, le=100_000)] = parameter(64, "Images to draw.")
    data_step: Annotated[float, Field(ge=0, le=10)] = parameter(
        0.0, "How far each drawn image may move to explain the data, as a standard deviation; "
        "0: it stays as drawn. For images that leave the data unexplained.", unit="grey, 0-1",
    )


@register(
    kind="sampler",
    name="amortised",
    title="Drawn by the prior",
    papers=("2310.03054", "2201.08157"),
    inputs=("observation", "prior"),
    outputs=("samples", "mean", "std"),
    uncertainty=True,
    widget="uncertainty",
)
class Amortised(Sampler):
    """Independent samples at once, from a prior that learnt to draw for its operator.

    The data step takes each image as the mean of a Gaussian of deviation ``data_step`` and draws
    the part of it that the data see anew, from the data with noise of their own:
    ``argmin_x |A x - (y + e)|^2 + (sigma / data_step)^2 |x - z|^2``. Without ``e`` all images would
    repeat the noise of the data, and differ too little.
    """

    Parameters: ClassVar[type[Parameters]] = AmortisedParameters
    parameters: AmortisedParameters
    needs_weight = False

    def require(self, prior: Prior, noise: Noise) -> None:
        drawing: object = prior
        if not isinstance(drawing, DrawsImages):
            raise InvalidInput(
                f"the prior {prior.name!r} does not draw images by itself; choose the sampler "
                "'underdamped', or the prior 'conditional_mmd' or 'wppflow'"
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
        drawing: object = prior
        assert isinstance(drawing, DrawsImages)
        job = drawing.draws(
            y, physics, self.parameters.samples, seed=seed, should_stop=should_stop
        )
        return self._events(job, y, physics, noise, seed, time_budget_s)

    def _events(
        self, job: Job, y: Tensor, physics: Physics, noise: Noise, seed: int,
        time_budget_s: float | None,
    ) -> Iterator[Event]:
        moments: Moments | None = None
        generator, shown, misfit = torch.Generator().manual_seed(seed + 1), 0.0, 0.0
        for event in job:
            if isinstance(event, Sample):
                image = self._explaining(event.image[None], y, physics, noise, generator)
                moments = Moments(image) if moments is None else moments
                moments.add(image)
                misfit += _misfit(image, y, physics, noise)
                yield Sample(event.slot, image[0].cpu())
                continue
            if isinstance(event, Result):
                break
            yield event
            seconds: float = getattr(event, "seconds", 0.0)
            if moments is None:
                continue
            if seconds - shown > 1:
                shown = seconds
                yield posterior_preview(moments)
            if time_budget_s is not None and seconds > time_budget_s:
                break
        assert moments is not None
        facts: dict[str, Any] = {"sample_residual_ratio": misfit / moments.count}
        yield Result(Posterior(moments.mean, moments.std, moments.count, facts=facts))

    def _explaining(
        self, image: Tensor, y: Tensor, physics: Physics, noise: Noise, generator: torch.Generator
    ) -> Tensor:
        """The image after the data step."""
        reach = self.parameters.data_step
        if reach == 0:
            return image
        z = physics.A(image)
        other = y + noise.simulate(z, generator) - z
        return physics.prox(image, other.to(image), noise.variance_level(y) / reach**2)


def _misfit(image: Tensor, y: Tensor, physics: Physics, noise: Noise) -> float:
    """Mean squared misfit over the variance of the noise."""
    return noise.residual_ratio(
        physics.observed(physics.A(image)), physics.observed(y.to(image))
    )
