"""Total variation by a primal-dual method with the exact data step: the baseline to beat."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from napari_invprior.cutout import Cutout
from napari_invprior.jobs import (
    Event,
    Job,
    Message,
    Preview,
    Result,
    ShouldStop,
    Stage,
    forward,
    never,
)
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise
from napari_invprior.priors.base import Prior
from napari_invprior.reconstruct.base import Solver
from napari_invprior.reconstruct.case import Case, find_weight
from napari_invprior.reconstruct.weight import Weight, WeightChoice, WeightRule
from napari_invprior.registry import register

Box = tuple[float, float]


def gradient(x: Tensor) -> Tensor:
    """Forward differences along the space axes, zero at the far edge: (d, B, C, *space)."""
    result = x.new_zeros((x.ndim - 2, *x.shape))
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        result[axis - 2].narrow(axis, 0, n - 1).copy_(
            x.narrow(axis, 1, n - 1) - x.narrow(axis, 0, n - 1)
        )
    return result


def gradient_adjoint(p: Tensor) -> Tensor:
    """Adjoint of `gradient` (the negative divergence)."""
    x = torch.zeros_like(p[0])
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        inner = p[axis - 2].narrow(axis, 0, n - 1)
        x.narrow(axis, 1, n - 1).add_(inner)
        x.narrow(axis, 0, n - 1).sub_(inner)
    return x


def iterate(
    y: Tensor, physics: Physics, weight: float, box: Box | None, start: Tensor
) -> Iterator[Tensor]:
    """Iterates of Chambolle and Pock's method for ``1/2 |A x - y|^2 + weight TV(x) (+ box)``.

    The data step is `Physics.prox`, so that the step sizes do not depend on the operator. The
    ratio of the step sizes balances a dual variable of size ``weight`` with steps of 0.1 grey.
    """
    x = start.clone()
    extrapolated = x
    p = torch.zeros_like(gradient(x))
    q = torch.zeros_like(x)
    lipschitz = (4.0 * (x.ndim - 2) + (box is not None)) ** 0.5
    tau, sigma = 0.1 / (weight * lipschitz), weight / (0.1 * lipschitz)
    while True:
        p += sigma * gradient(extrapolated)
        p /= (p.norm(dim=0) / weight).clamp_min(1)
        descent = gradient_adjoint(p)
        if box is not None:
            q += sigma * extrapolated
            q -= sigma * (q / sigma).clamp(*box)
            descent = descent + q
        updated = physics.prox(x - tau * descent, y, 1 / tau)
        extrapolated = 2 * updated - x
        x = updated
        yield x


def total_variation(
    y: Tensor,
    physics: Physics,
    noise_variance: float,
    weight: float,
    *,
    box: Box | None = None,
    iterations: int = 500,
    tolerance: float = 1e-5,
    start: Tensor | None = None,
) -> Tensor:
    """Minimiser of ``|A x - y|^2 / (2 v) + weight TV(x)``, with values in ``box`` if given.

    Parameters
    ----------
    y : Tensor
        Data (B, C, *space).
    noise_variance : float
        ``v``.
    weight : float
        Weight of the isotropic total variation (sum over samples).
    tolerance : float
        Stop when 10 iterations change the image by less than this share of its norm.
    """
    begin = physics.start(y) if start is None else start
    checkpoint = begin
    x = begin
    for step, x in enumerate(iterate(y, physics, weight * noise_variance, box, begin), 1):
        if step >= iterations:
            break
        if step % 10 == 0:
            if float((x - checkpoint).norm()) <= tolerance * float(x.norm()):
                break
            checkpoint = x
    return x.clamp(*box) if box is not None else x


class TotalVariationParameters(Parameters):
    """Weight and stop rule."""

    weight: Weight = parameter(
        "auto", "Weight of the total variation against the log-likelihood; 'auto' chooses it."
    )
    weight_rule: WeightRule = parameter(
        "sure", "How the automatic weight is chosen.", advanced=True
    )
    iterations: int = parameter(500, "At most so many iterations.", ge=1, le=100_000, advanced=True)
    tolerance: float = parameter(
        1e-5, "Stop when 10 iterations change less than this share.", ge=0, le=1, advanced=True
    )
    box: bool = parameter(False, "Keep values inside the references' range.", advanced=True)


@register(
    kind="solver",
    name="total_variation",
    title="Total variation (no reference)",
    inputs=("observation",),
    outputs=("reconstruction",),
)
class TotalVariation(Solver):
    """Minimise ``-log p(y | A x) + weight TV(x)`` for Gaussian noise of one level."""

    Parameters = TotalVariationParameters
    parameters: TotalVariationParameters
    automatic_weights = (8.0, 4.0, 2.0)
    needs_prior = False

    def settled(self, steps: int) -> TotalVariation:
        return TotalVariation(
            self.parameters.model_copy(update={"iterations": steps, "tolerance": 0.0})
        )

    def solve(
        self,
        y: Tensor,
        physics: Physics,
        noise: Noise,
        prior: Prior | None = None,
        *,
        weight: float,
        start: Tensor | None = None,
        value_range: Box | None = None,
        seed: int = 0,
        should_stop: ShouldStop = never,
        time_budget_s: float | None = None,
        cutout: Cutout | None = None,
    ) -> Job:
        variance = noise.variance_level(y)
        box = value_range if self.parameters.box else None
        begin = physics.start(y) if start is None else start
        return self._events(
            y, physics, noise, variance * weight, box, begin, should_stop, time_budget_s
        )

    def _events(
        self,
        y: Tensor,
        physics: Physics,
        noise: Noise,
        weight: float,
        box: Box | None,
        begin: Tensor,
        should_stop: ShouldStop,
        time_budget_s: float | None,
    ) -> Iterator[Event]:
        stage = Stage("reconstruct", self.parameters.iterations)
        checkpoint = x = begin
        for step, x in enumerate(iterate(y, physics, weight, box, begin), 1):
            if stage.due():
                yield stage.progress(step, residual=noise.residual_ratio(
                    physics.observed(physics.A(x)), physics.observed(y)
                ))
                yield Preview("image", x.numpy(force=True), "reconstruct")
            if step >= stage.total or should_stop():
                break
            if time_budget_s is not None and stage.seconds > time_budget_s:
                break
            if step % 10 == 0:
                if float((x - checkpoint).norm()) <= self.parameters.tolerance * float(x.norm()):
                    break
                checkpoint = x
        yield Result(x.clamp(*box) if box is not None else x)


def smooth_start(
    y: Tensor, physics: Physics, noise: Noise, *, seed: int = 0, should_stop: ShouldStop = never
) -> Job:
    """The image of total variation with its automatic weight, a first image for other solvers."""
    solver = TotalVariation(TotalVariationParameters())
    search = find_weight(Case(y, physics, noise, seed=seed), solver, None, should_stop=should_stop)
    # what it says of a weight would be taken for that of the solver that goes on from here
    choice: WeightChoice = yield from forward(e for e in search if not isinstance(e, Message))
    yield from solver.solve(y, physics, noise, weight=choice.weight, should_stop=should_stop)
