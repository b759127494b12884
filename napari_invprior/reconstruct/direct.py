"""The estimate of a prior that knows its operator: one pass, no iteration."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from napari_invprior.cutout import Cutout
from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Job, Result, ShouldStop, never
from napari_invprior.parameters import Parameters
from napari_invprior.physics.base import Physics
from napari_invprior.physics.blocks import block_factor, from_blocks
from napari_invprior.physics.noise import Noise
from napari_invprior.physics.unobserved import complete_operator
from napari_invprior.priors.base import Prior
from napari_invprior.reconstruct.base import Solver
from napari_invprior.registry import register


@runtime_checkable
class Estimator(Protocol):
    """A prior that maps data to an image by itself."""

    def estimate(self, y: Tensor, *, seed: int = 0, should_stop: ShouldStop = never) -> Job:
        """The image of data (B, C, *space), as a job with Progress and `Result`.

        It lies on the block grid (`physics.blocks`): (B, C, *(q space)), with data sample j at
        the centre of the image samples ``q j`` to ``q j + q - 1``.
        """


@runtime_checkable
class AdaptsToNoise(Protocol):
    """An estimator that can be told the noise of the data at hand."""

    def at_noise(self, variance: float) -> Estimator:
        """The estimator for data of this noise variance."""


@runtime_checkable
class AdaptsToOperator(Protocol):
    """An estimator that is told the operator at hand, which may have a mask.

    Its images lie on the operator's own grid.
    """

    def at_operator(self, physics: Physics) -> Estimator:
        """The estimator for data of this operator."""


class DirectParameters(Parameters):
    """Nothing to choose: the prior has learnt all of it."""


@register(
    kind="solver",
    name="direct",
    title="Estimate of the prior (one pass)",
    papers=("2009.07520", "2201.08157", "2310.03054"),
    inputs=("observation", "prior"),
    outputs=("reconstruction",),
)
class Direct(Solver):
    """Let the prior estimate the image; for priors that were trained for one operator.

    Works with every prior that has ``estimate`` (joint mixtures, trained networks).
    """

    Parameters = DirectParameters
    parameters: DirectParameters
    automatic_weights = (1.0,)
    has_weight = False

    def solve(
        self,
        y: Tensor,
        physics: Physics,
        noise: Noise,
        prior: Prior | None,
        *,
        weight: float,
        start: Tensor | None = None,
        value_range: tuple[float, float] | None = None,
        seed: int = 0,
        should_stop: ShouldStop = never,
        time_budget_s: float | None = None,
        cutout: Cutout | None = None,
    ) -> Job:
        operator = complete_operator(physics)
        estimator: object = prior
        if isinstance(estimator, AdaptsToOperator):
            return estimator.at_operator(operator).estimate(
                y, seed=seed, should_stop=should_stop
            )
        if not isinstance(estimator, Estimator) or operator.mask is not None:
            raise InvalidInput(
                "the one-pass estimate needs a prior that was trained for this operator; choose "
                "the PCA-GMM or a network (not for inpainting), the conditional MMD flow, or "
                "another solver"
            )
        if isinstance(estimator, AdaptsToNoise):
            estimator = estimator.at_noise(noise.variance_level(y))
        return _placed(estimator.estimate(y, seed=seed, should_stop=should_stop), y, operator)


def _placed(job: Job, y: Tensor, physics: Physics) -> Job:
    """Pass a job on, its image moved from the block grid to the operator's own."""
    space = tuple(y.shape[2:])
    factor = block_factor(physics)
    expected = tuple(n * f for n, f in zip(space, factor, strict=True))
    for event in job:
        if isinstance(event, Result):
            found = tuple(event.value.shape[2:])
            if found != expected:
                raise InvalidInput(
                    f"the prior makes images of {found} px from data of {space}, the operator asks "
                    f"for {expected}; train the prior for this operator"
                )
            event = Result(from_blocks(event.value, physics, space))
        yield event
