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
from napari_invprior.transport.neural_base import Kernel, NeuralFlow, NeuralParameters
from napari_invprior.transport.riesz import Discrepancy
from napari_invprior.transport.trajectory import Snapshot

CHECK_EVERY = 20
"""Training steps between two looks at the clock."""


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
    nature, so that what it has learnt for one step is nearly right for the next.

    Examples
    --------
    >>> from napari_invprior import jobs
    >>> flow = BackwardFlow(BackwardParameters(particles=40, final_time=0.2, iterations=50))
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
        time = 0.0
        yield Snapshot(time, x, discrepancy.value_and_grad(x)[0])
        for tau in steps:
            scale = tau ** (1 / (2 - self.parameters.r))
            kernel = dataclasses.replace(kernel.at(x), scale=scale)
            yield from self._train(kernel, adam, x, discrepancy, tau, generator)
            before, x = x, kernel.push(x, generator)
            time += tau
            value, _ = discrepancy.value_and_grad(x)
            yield Snapshot(time, x, value, self.law(before, kernel))

    def _train(
        self,
        kernel: Kernel,
        adam: GuardedAdam,
        x: Tensor,
        discrepancy: Discrepancy,
        tau: float,
        generator: torch.Generator,
    ) -> Iterator[Message | None]:
        """Fit the kernel to one implicit step from particles ``x``."""
        adam.begin(self.networks.iterations, self.parameters.plateau)
        count = 2 * self.networks.batch
        while not adam.done:
            some = x[:, torch.randint(x.shape[1], (count,), generator=generator)]
            output = kernel.output(some, generator)
            places = kernel.moved(some, output.detach())
            value, slope = discrepancy.drawn_value_and_grad(places, generator)
            moves = places - some
            loss = 0.5 * float(moves.square().sum(0).mean()) + tau * value
            gradient = (moves + tau * slope) / count
            # in units of the step, or Adam would take the gradient of a tiny one for zero
            unit = kernel.scale if kernel.residual else kernel.scale**2 / kernel.spread
            good = adam.step(loss / kernel.scale**2, output, (gradient / unit).float())
            if not good:
                yield Message(
                    "training diverged: back to the last good weights with half the step",
                    "warning",
                )
            elif adam.taken % CHECK_EVERY == 0:
                yield None
