"""The forward scheme: explicit steps along learnt velocities of steepest descent."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from napari_invprior.jobs import Message
from napari_invprior.networks.descent import GuardedAdam
from napari_invprior.registry import register
from napari_invprior.transport.directional import DirectionalDerivative
from napari_invprior.transport.neural_base import Kernel, NeuralFlow, NeuralParameters
from napari_invprior.transport.riesz import Discrepancy
from napari_invprior.transport.trajectory import Snapshot

SOFTENING = 0.01
"""Added to the norm of the velocities, so that the slope is bounded where they vanish."""
CHECK_EVERY = 20


class ForwardParameters(NeuralParameters):
    """Parameters of the forward scheme; empty fields follow the preset."""


@register(
    kind="flow",
    name="forward",
    title="Neural forward scheme",
    papers=("2301.11624",),
    inputs=("points", "density"),
    outputs=("points",),
    dimensions=(2, 3),
    widget="particles",
)
class ForwardFlow(NeuralFlow):
    """Explicit steps along learnt velocities; for r = 1, where points split with finite speed.

    A velocity plan ``v(x, z)`` minimises ``DF(v) / (|v| + 0.01)``, the slope of the discrepancy;
    then ``x`` moves by ``tau max(-DF(v), 0) / |v|^2 v``. The derivative is that of all particles,
    computed once for each step of the flow.

    Examples
    --------
    >>> from napari_invprior import jobs
    >>> flow = ForwardFlow(ForwardParameters(particles=40, final_time=0.2, iterations=50))
    >>> movie = jobs.run(flow.run(torch.zeros(2, 1), None))
    >>> movie.points.shape, bool(movie.discrepancy[-1] < 0)
    (torch.Size([3, 2, 40]), True)
    """

    Parameters = ForwardParameters
    parameters: ForwardParameters

    def _steps(
        self,
        x: Tensor,
        discrepancy: Discrepancy,
        steps: list[float],
        generator: torch.Generator,
    ) -> Iterator[Snapshot | Message | None]:
        kernel = self.fresh_kernel(x, generator)
        adam = GuardedAdam(kernel.net, self.parameters.learning_rate)
        derivative = DirectionalDerivative(discrepancy, x)
        time = 0.0
        yield Snapshot(time, x, derivative.start)
        for tau in steps:
            kernel = kernel.at(x)
            yield from self._train(kernel, adam, derivative, generator)
            scale = tau * steepness(derivative, kernel, generator)
            kernel = dataclasses.replace(kernel, scale=scale)
            before, x = x, kernel.push(x, generator)
            time += tau
            derivative = DirectionalDerivative(discrepancy, x)
            yield Snapshot(time, x, derivative.start, self.law(before, kernel))

    def _train(
        self,
        kernel: Kernel,
        adam: GuardedAdam,
        derivative: DirectionalDerivative,
        generator: torch.Generator,
    ) -> Iterator[Message | None]:
        """Fit the velocities to the steepest descent."""
        adam.begin(self.networks.iterations, self.parameters.plateau)
        x, count = derivative.x, self.networks.batch
        while not adam.done:
            columns = torch.randint(x.shape[1], (count,), generator=generator)
            output = kernel.output(x[:, columns], generator)
            v = output.detach().double()
            value, slope = derivative.value_and_grad(v, columns)
            norm = float(v.square().sum(0).mean()) ** 0.5
            soft = norm + SOFTENING
            gradient = slope / soft - v * (value / (soft**2 * max(norm, 1e-12) * count))
            if not adam.step(value / soft, output, gradient.float()):
                yield Message(
                    "training diverged: back to the last good weights with half the step",
                    "warning",
                )
            elif adam.taken % CHECK_EVERY == 0:
                yield None


@torch.no_grad()
def steepness(
    derivative: DirectionalDerivative, kernel: Kernel, generator: torch.Generator
) -> float:
    """``max(-DF(v), 0) / |v|^2`` with the velocities of all particles."""
    v = kernel.output(derivative.x, generator).double()
    value, _ = derivative.value_and_grad(v)
    return max(-value, 0.0) / max(float(v.square().sum(0).mean()), 1e-30)
