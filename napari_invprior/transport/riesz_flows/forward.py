"""The forward scheme: explicit steps along learnt velocities of steepest descent."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from napari_invprior.jobs import Message
from napari_invprior.networks.descent import GuardedAdam
from napari_invprior.registry import register
from napari_invprior.transport.riesz_flows.directional import DirectionalDerivative
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

SOFTENING = 0.01
"""Added to the norm of the velocities, so that the slope is bounded where they vanish."""


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
    >>> flow = ForwardFlow(ForwardParameters(particles=40, tau=0.1, final_time=0.2, iterations=50))
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
            z = latent(x, generator)
            value, norm = slope_along(derivative, kernel, z)
            scale = tau * max(-value, 0.0) / max(norm**2, 1e-30)
            kernel = dataclasses.replace(kernel, scale=scale)
            before, x = x, kernel.push(x, z)
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
        adam.begin(self.networks.iterations)
        x, count = derivative.x, self.networks.batch
        fixed = latent(x, generator)
        while not adam.done:
            if adam.taken % JUDGE_EVERY == 0:
                value, norm = slope_along(derivative, kernel, fixed)
                adam.judge(value / (norm + SOFTENING), self.parameters.plateau)
                yield None
            columns = torch.randint(x.shape[1], (count,), generator=generator)
            some = x[:, columns]
            output = kernel.output(some, latent(some, generator))
            v = output.detach().double()
            value, slope = derivative.value_and_grad(v, columns)
            norm = float(v.square().sum(0).mean()) ** 0.5
            soft = norm + SOFTENING
            gradient = slope / soft - v * (value / (soft**2 * max(norm, 1e-12) * count))
            if not adam.step(value / soft, output, gradient.float()):
                yield DIVERGED


@torch.no_grad()
def slope_along(
    derivative: DirectionalDerivative, kernel: Kernel, z: Tensor
) -> tuple[float, float]:
    """``DF(v)`` and ``|v|`` for the velocities of all particles."""
    v = kernel.output(derivative.x, z).double()
    return derivative.value_and_grad(v)[0], float(v.square().sum(0).mean()) ** 0.5
