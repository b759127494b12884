"""The backward scheme: implicit (Jordan-Kinderlehrer-Otto) steps, each learnt by a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from napari_invprior.jobs import Message
from napari_invprior.networks.descent import GuardedAdam
from napari_invprior.parameters import parameter
from napari_invprior.registry import register
from napari_invprior.transport.riesz_flows.discrepancy import Discrepancy
from napari_invprior.transport.riesz_flows.neural import (
    DIVERGED,
    JUDGE_EVERY,
    Kernel,
    NeuralFlow,
    NeuralParameters,
    latent,
)
from napari_invprior.transport.riesz_flows.trajectory import Snapshot

POOL = 2000
"""Most particles that repel those of a batch."""
REFRESH_EVERY = 5
"""Training steps after which these are moved along; a divisor of `JUDGE_EVERY`."""
SLOW = 0.5
"""Speed, in units of the moves, below which the unit shrinks by the same factor."""


class BackwardParameters(NeuralParameters):
    """Parameters of the backward scheme; empty fields follow the preset."""

    residual: bool = parameter(
        True, "The network gives the move of a point, not its new place (as the paper has it).",
        advanced=True,
    )


@register(
    kind="flow",
    name="backward",
    title="Neural backward scheme",
    papers=("2301.11624",),
    inputs=("points", "density"),
    outputs=("points",),
    dimensions=(2, 3),
    widget="particles",
)
class BackwardFlow(NeuralFlow):
    """Implicit steps learnt by a network that can split points; any power, any start.

    Each step minimises ``E|x - T(x, z)|^2 / 2 + tau F(law of T(x, z))``. The network goes on from
    step to step. Its moves are measured in ``tau^(1 / (2 - r))``, the length that a step has by
    nature, so that what it has learnt for one step is nearly right for the next; as the flow
    slows down the unit shrinks with it, or Adam's steps would be longer than the moves.

    Examples
    --------
    >>> from napari_invprior import jobs
    >>> short = BackwardParameters(particles=40, tau=0.1, final_time=0.2, iterations=50)
    >>> flow = BackwardFlow(short)
    >>> movie = jobs.run(flow.run(torch.zeros(2, 1), None))
    >>> movie.points.shape, movie.sample(-1, 7).shape
    (torch.Size([3, 2, 40]), torch.Size([2, 7]))
    """

    Parameters = BackwardParameters
    parameters: BackwardParameters
    graded = True

    def _steps(
        self,
        x: Tensor,
        discrepancy: Discrepancy,
        steps: list[float],
        generator: torch.Generator,
    ) -> Iterator[Snapshot | Message | None]:
        kernel = self.fresh_kernel(x, generator, self.parameters.residual)
        adam = GuardedAdam(kernel.net, self.parameters.learning_rate)
        time, slowed = 0.0, 1.0
        yield Snapshot(time, x, discrepancy.value_and_grad(x)[0])
        for tau in steps:
            natural = tau ** (1 / (2 - self.parameters.r))
            kernel = dataclasses.replace(kernel.at(x), scale=slowed * natural)
            yield from self._train(kernel, adam, x, discrepancy, tau, generator)
            before, x = x, kernel.push(x, latent(x, generator))
            time += tau
            value, _ = discrepancy.value_and_grad(x)
            yield Snapshot(time, x, value, self.law(before, kernel))
            speed = float((x - before).square().sum(0).mean()) ** 0.5 / kernel.scale
            if kernel.residual and speed < SLOW:
                slowed *= SLOW
                kernel.net.rescale(1 / SLOW)

    def _train(
        self,
        kernel: Kernel,
        adam: GuardedAdam,
        x: Tensor,
        discrepancy: Discrepancy,
        tau: float,
        generator: torch.Generator,
    ) -> Iterator[Message | None]:
        """Fit the kernel to one implicit step from particles ``x``.

        The particles of a batch are repelled by a pool that is many times larger and is moved
        along now and then: two batches of one size would say little on the repulsion.
        """
        adam.begin(self.networks.iterations)
        pool = x[:, torch.randperm(x.shape[1], generator=generator)[:POOL]]
        fixed, count = latent(pool, generator), self.networks.batch
        while not adam.done:
            if adam.taken % REFRESH_EVERY == 0:
                places = kernel.push(pool, fixed)
            if adam.taken % JUDGE_EVERY == 0:
                moved = 0.5 * float((places - pool).square().sum(0).mean())
                value, _ = discrepancy.value_and_grad(places)
                adam.judge(moved / tau + value, self.parameters.plateau)
                yield None
            some = x[:, torch.randint(x.shape[1], (count,), generator=generator)]
            output = kernel.output(some, latent(some, generator))
            there = kernel.moved(some, output.detach())
            value, slope = discrepancy.drawn_value_and_grad(there, places, generator)
            moves = there - some
            loss = 0.5 * float(moves.square().sum(0).mean()) + tau * value
            gradient = (moves + tau * slope) / count
            # in units of the step, or Adam would take the gradient of a tiny one for zero
            unit = kernel.scale if kernel.residual else kernel.scale**2 / kernel.spread
            if not adam.step(loss / kernel.scale**2, output, (gradient / unit).float()):
                yield DIVERGED
