"""What a sampler must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from napari_invprior.jobs import Job, Preview, ShouldStop, never
from napari_invprior.numerics.moments import Moments
from napari_invprior.parameters import Parameters as Declaration
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise
from napari_invprior.posterior.diagnostics import Convergence
from napari_invprior.priors.base import Prior


@dataclass(frozen=True)
class Posterior:
    """What a sampler knows of one frame, beside the samples that it gave out as events.

    Attributes
    ----------
    mean, std : Tensor
        (1, C, *space), over all states, whether they were kept as samples or not.
    kept : int
        Samples that were given out.
    convergence : Convergence or None
        How well the chains mixed; None for independent samples.
    rhat : Tensor or None
        R-hat of each sample of the image, like ``mean``; None for one chain.
    facts : dict
        Step sizes, acceptance and the like.
    """

    mean: Tensor
    std: Tensor
    kept: int
    convergence: Convergence | None = None
    rhat: Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def posterior_preview(moments: Moments) -> Preview:
    """Mean and standard deviation so far: (2, 1, C, *space), float32."""
    both = torch.stack([moments.mean, moments.std]).float()
    return Preview("posterior", both.numpy(force=True), "sample")


class Sampler(ABC):
    """Draws plausible images for given data.

    Attributes
    ----------
    needs_weight : bool
        Whether it samples ``exp(-objective)`` of the variational solver, with its weight and from
        a start near its minimum.
    """

    Parameters: ClassVar[type[Declaration]]
    name: ClassVar[str]
    needs_weight: ClassVar[bool] = True
    parameters: Any

    def __init__(self, parameters: Declaration) -> None:
        self.parameters = parameters

    @abstractmethod
    def require(self, prior: Prior, noise: Noise) -> None:
        """Refuse what this sampler cannot sample, fitted or not.

        Raises
        ------
        InvalidInput
            With the samplers or priors to choose instead.
        """

    @abstractmethod
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
        """Draw images for the data ``y`` (1, C, *space).

        Parameters
        ----------
        weight : float or None
            Of the prior against the data; see `Objective`. None for a prior that is a density of
            patches: what each image sample says then counts about once.
        start : Tensor
            Image near the middle of the posterior (1, C, *space).
        should_stop
            Polled in every step; what was drawn so far is then the result.

        Yields
        ------
        Event
            Progress, ``"posterior"`` previews, a `Sample` for each image that is to be kept, and a
            `Result` with a `Posterior`.
        """
