"""The particle scheme: every particle follows its own velocity, with steps as long as they can be.

A fixed step is right for r = 1 only. For r < 1 close points part so fast that they would jump far
away, for r > 1 long steps come too late. The step is therefore halved until the discrepancy sinks
as its slope promises, and doubled again where that is easy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from napari_invprior.errors import JobError
from napari_invprior.jobs import Message
from napari_invprior.registry import register
from napari_invprior.transport.riesz_flows.base import Flow, FlowParameters
from napari_invprior.transport.riesz_flows.discrepancy import Discrepancy
from napari_invprior.transport.riesz_flows.trajectory import Snapshot

JITTER = 1e-9
"""Standard deviation that parts points which coincide, as a share of the largest coordinate."""
FIDELITY = 0.3
"""A step is too long if the decrease differs from that promised by the slope by more than this."""
CALM = 0.01
"""A step that moves particles by less than this share of the whole scene cannot explode; nor one
of this share of the length that ``tau`` has by nature."""
MAX_HALVINGS = 100


class ParticleParameters(FlowParameters):
    """Parameters of the particle scheme."""


@register(
    kind="flow",
    name="particle",
    title="Particle flow",
    papers=("2301.11624",),
    inputs=("points", "density"),
    outputs=("points",),
    dimensions=(2, 3),
    widget="particles",
)
class ParticleFlow(Flow):
    """Particles move with the gradient of the discrepancy; the fastest of the schemes.

    Points that coincide are parted by a tiny jitter first. Its traces stay visible: particles of
    one start point keep the order that the jitter gave them, and form regular patterns.

    Examples
    --------
    >>> from napari_invprior import jobs
    >>> flow = ParticleFlow(ParticleParameters(particles=50, final_time=1.0))
    >>> movie = jobs.run(flow.run(torch.zeros(2, 1), None))
    >>> movie.points.shape, bool(movie.discrepancy.diff().max() < 0)
    (torch.Size([11, 2, 50]), True)
    """

    Parameters = ParticleParameters
    parameters: ParticleParameters

    def _steps(
        self,
        x: Tensor,
        discrepancy: Discrepancy,
        steps: list[float],
        generator: torch.Generator,
    ) -> Iterator[Snapshot | Message | None]:
        x = parted(x, generator)
        descent = Descent(discrepancy, x, self.plan.tau)
        time = 0.0
        yield Snapshot(time, descent.x, descent.value)
        for tau in steps:
            yield from descent.advance(tau)
            time += tau
            yield Snapshot(time, descent.x, descent.value)


class Descent:
    """Explicit steps of controlled length.

    Attributes
    ----------
    x : Tensor
        The particles, (d, N).
    value : float
        Their discrepancy.
    """

    def __init__(self, discrepancy: Discrepancy, x: Tensor, step: float) -> None:
        self.discrepancy, self.x, self.step = discrepancy, x, step
        self.value, self._gradient = discrepancy.value_and_grad(x)
        self._size = scene_size(x, discrepancy)
        if discrepancy.exponent <= 1:
            # particles swing about a point that holds them; not finer than the flow itself steps
            self._size = max(self._size, step ** (1 / (2 - discrepancy.exponent)))

    def advance(self, time: float) -> Iterator[None]:
        """Go on for so long; yields after each evaluation."""
        left, halvings = time, 0
        while left > 1e-12 * time:
            step = min(self.step, left)
            x = self.x - step * self._gradient
            value, gradient = self.discrepancy.value_and_grad(x)
            yield
            stuck = halvings > 0 and torch.equal(x, self.x)
            if self._accepts(value, step) and not stuck:
                self.x, self.value, self._gradient = x, value, gradient
                left -= step
                # a step that was cut short by the clock says nothing on longer ones
                self.step = 2 * step if halvings == 0 and step == self.step else self.step
                halvings = 0
                continue
            self.step, halvings = step / 2, halvings + 1
            if halvings > MAX_HALVINGS:
                raise JobError(
                    f"no step of the particle flow lowers the discrepancy {self.value:.4g}; check "
                    "the scale of the coordinates (about 1 is best)"
                )

    def _accepts(self, value: float, step: float) -> bool:
        speed = float(self._gradient.square().sum(0).mean())
        if not math.isfinite(value):
            return False
        promised = step * speed
        if abs(self.value - value - promised) <= FIDELITY * promised:
            return True
        return step * math.sqrt(speed) <= CALM * self._size


def parted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Points (d, N) with a jitter on those that coincide with others."""
    _, place, counts = x.unique(dim=1, return_inverse=True, return_counts=True)
    twice = counts[place] > 1
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x + JITTER * max(1.0, float(x.abs().max())) * noise * twice


def scene_size(x: Tensor, discrepancy: Discrepancy) -> float:
    """Root mean square distance of particles and target from their common middle."""
    mean, square = x.mean(1), float(x.var(1, correction=0).sum())
    if discrepancy.target is None:
        return math.sqrt(square)
    middle, away = discrepancy.target.radius()
    apart = float((mean - middle.to(mean)).square().sum()) / 4
    return math.sqrt((square + away**2) / 2 + apart)
