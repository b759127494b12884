"""Particles that flow towards a cloud, down the gradient of their energy distance to it.

``v <- grad + m v``, ``x <- x - step N v`` with ``N`` times the gradient of ``D^2`` by slices: each
particle feels a force that does not depend on how many there are. New slices at each step keep
the particles from seeing only some directions; the momentum averages over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput, JobError
from napari_invprior.jobs import Job, Message, Preview, Result, ShouldStop, Stage, never
from napari_invprior.transport.sliced_flows.energy_distance import SlicedTarget, check_cloud
from napari_invprior.transport.slices.draws import DirectionDraw, SliceDraw

POOL, POOL_BYTES = 32, 2**28
"""Sets of slices whose sorted targets are kept and used in turn, and the memory they may take."""
EXPLODED = 1e3
_HALVINGS = 3
_PREVIEW_SECONDS = 2.0


@dataclass(frozen=True)
class Schedule:
    """How particles flow.

    Attributes
    ----------
    steps : int
        Steps in all, at most.
    step : float
        Size of a step, in units of the spread of the targets.
    momentum : float
        Share of the last step that goes into the next one, from 0 to less than 1.
    final_steps : int
        How many of the steps are small and without momentum, at the end.
    final_step : float
        Size of those, as a share of ``step``.
    every : int
        Steps between two looks at the distance.
    patience : int
        Looks without a gain after which the step is halved, and the end begins once it is as small
        as the final one.
    gain : float
        Smallest relative fall of the distance that counts as one.
    enough : float
        The end begins at this distance, in units of that of an independent sample; 0 for never.
    """

    steps: int = 500
    step: float = 1.0
    momentum: float = 0.7
    final_steps: int = 100
    final_step: float = 0.1
    every: int = 20
    patience: int = 2
    gain: float = 0.03
    enough: float = 0.0


@dataclass(frozen=True)
class FlowResult:
    """Where a flow ended.

    Attributes
    ----------
    particles : Tensor
        (d, N), those with the smallest distance seen.
    distance, chance : float
        Their ``D^2`` on independent slices, and that of an independent sample on average.
    history : list of (int, float)
        Steps and distances.
    """

    particles: Tensor
    distance: float
    chance: float
    history: list[tuple[int, float]] = field(default_factory=list)


class ParticleFlow:
    """Particles, their velocities, and the sorted targets that draw them.

    Parameters
    ----------
    particles, targets : Tensor
        (d, N) and (d, M); they are not changed.
    draw : SliceDraw, optional
        Where slices come from; directions of the whole space by default.
    condition, target_condition : Tensor, optional
        (k, N) and (k, M): further numbers of each point, which count in the distance and stay as
        they are. ``draw`` must know of them: its targets are the joint ones.
    seed : int
        Seed of the slices.

    Attributes
    ----------
    taken : int
        Steps taken.
    chance : float
        ``D^2`` between the targets and as many independent points, on average.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> start, targets = torch.rand((2, 2, 200), generator=generator)
    >>> flow = ParticleFlow(start, 3 + targets)
    >>> before = flow.distance()
    >>> for _ in flow.advance(50):
    ...     pass
    >>> flow.distance() < 1e-3 * before
    True
    """

    def __init__(
        self,
        particles: Tensor,
        targets: Tensor,
        draw: SliceDraw | None = None,
        *,
        condition: Tensor | None = None,
        target_condition: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self._joint = joined(particles, condition, "particles").clone()
        self._targets = joined(targets, target_condition, "targets")
        if self._joint.shape[1] > 1 and bool((self._joint == self._joint[:, :1]).all()):
            raise InvalidInput(
                f"all {self._joint.shape[1]} particles are equal and would stay together: start "
                "from noise"
            )
        if len(self._joint) != len(self._targets) or len(particles) != len(targets):
            raise InvalidInput(
                f"particles of {len(particles)} numbers (with condition {len(self._joint)}) and "
                f"targets of {len(targets)} (with condition {len(self._targets)}) do not match: "
                "give both the same dimension"
            )
        self._draw = DirectionDraw(self._targets) if draw is None else draw
        self._dim, self.taken = len(particles), 0
        self._velocity = torch.zeros_like(particles, memory_format=torch.contiguous_format)
        self._random = torch.Generator().manual_seed(seed)
        self._judge = self._next_target()
        self.chance = self._judge.chance(particles.shape[1])
        self._pool: list[SlicedTarget] = []
        self._turn: list[int] = []

    @property
    def particles(self) -> Tensor:
        """(d, N), a view of where they are."""
        return self._joint[: self._dim]

    @property
    def condition(self) -> Tensor:
        """(k, N), the numbers that stay."""
        return self._joint[self._dim :]

    def move_to(self, particles: Tensor) -> None:
        """Put the particles somewhere else, at rest."""
        self.particles.copy_(particles)
        self._velocity.zero_()

    def distance(self, particles: Tensor | None = None) -> float:
        """``D^2`` to the targets on slices that no step uses, of these or of other particles."""
        joint = self._joint
        if particles is not None:
            joint = torch.cat([particles, self.condition[:, : particles.shape[1]]])
        return float(self._judge.distance(joint))

    def advance(self, steps: int, step: float = 1.0, momentum: float = 0.7) -> Iterator[int]:
        """Take steps (see `Schedule`); yields their number so far after each."""
        x = self.particles
        length = step * self._draw.unit * x.shape[1]
        for _ in range(steps):
            gradient = self._pooled().gradient(self._joint)
            self._velocity.mul_(momentum).add_(gradient[: self._dim])
            x.sub_(self._velocity, alpha=length)
            self.taken += 1
            yield self.taken

    def _next_target(self) -> SlicedTarget:
        return SlicedTarget(self._targets, self._draw(self._random), self._joint.shape[1])

    def _pooled(self) -> SlicedTarget:
        """Slices of the pool in random turns; the pool grows over the first steps."""
        if self._may_grow():
            self._pool.append(self._next_target())
            return self._pool[-1]
        if not self._turn:
            self._turn = torch.randperm(len(self._pool), generator=self._random).tolist()
        return self._pool[self._turn.pop()]

    def _may_grow(self) -> bool:
        held = len(self._pool)
        return held == 0 or (held < POOL and (held + 1) * self._pool[0].bytes <= POOL_BYTES)


def joined(points: Tensor, condition: Tensor | None, name: str) -> Tensor:
    """Points (d, N) with their condition (k, N) below: (d + k, N).

    Raises
    ------
    InvalidInput
        If either is empty or broken, or there is not one column of the condition per point.
    """
    check_cloud(points, name)
    if condition is None or len(condition) == 0:
        return points
    check_cloud(condition, f"conditions of the {name}")
    if condition.shape[1] != points.shape[1]:
        raise InvalidInput(
            f"{points.shape[1]} {name} with {condition.shape[1]} conditions: give one for each"
        )
    return torch.cat([points, condition.to(points)])


def flow_particles(
    flow: ParticleFlow,
    schedule: Schedule | None = None,
    *,
    show: Callable[[Tensor], Preview] | None = None,
    should_stop: ShouldStop = never,
) -> Job:
    """Let particles flow until the distance falls no more; the `Result` is a `FlowResult`.

    Stopping or closing the job loses nothing: ``flow`` goes on from where it is.

    Parameters
    ----------
    show : callable, optional
        Makes a picture of particles (d, N).

    Raises
    ------
    JobError
        If the particles fly apart again and again although the step is halved.
    """
    run = _Run(flow, schedule or Schedule())
    stage, seen, why = Stage("flow", run.plan.steps), _PREVIEW_SECONDS / 2, "all steps done"
    for final in (False, True):
        for taken in run.phase(final):
            if taken % run.plan.every == 0:
                if run.look(taken):
                    yield Message(
                        "the particles flew apart: back to the best ones with half the step",
                        "warning",
                    )
                if not final and run.settled():
                    why = "no further gain"
                    break
            if should_stop():
                why = "stopped by you"
                break
            if stage.due():
                yield stage.progress(taken, **run.figures())
                if show is not None and stage.seconds > seen:
                    seen = stage.seconds + _PREVIEW_SECONDS
                    yield show(flow.particles)
        if why == "stopped by you":
            break
    run.look(run.taken)
    yield stage.progress(run.taken, **run.figures())
    if show is not None:
        yield show(run.best)
    yield Message(f"{why} after {run.taken} steps; {run.verdict()}")
    yield Result(FlowResult(run.best, run.least, flow.chance, run.history))


class _Run:
    """One run of a flow: its distances, the best particles, and what is left of the step."""

    def __init__(self, flow: ParticleFlow, plan: Schedule) -> None:
        self.flow, self.plan, self.taken = flow, plan, 0
        self.least = self._first = flow.distance()
        self.best = flow.particles.clone()
        self.history = [(0, self._first)]
        self._waited, self._halvings, self._counted = 0, 0, self._first
        self._step = self.plan.step

    def phase(self, final: bool) -> Iterator[int]:
        """The first steps, or the small ones at the end."""
        plan = self.plan
        last = min(plan.final_steps, plan.steps)
        for _ in range(last if final else plan.steps - last):
            # step by step: a smaller step counts at once
            step = min(self._step, plan.final_step * plan.step) if final else self._step
            yield from map(self._count, self.flow.advance(1, step, 0 if final else plan.momentum))

    def _count(self, _: int) -> int:
        self.taken += 1
        return self.taken

    def look(self, taken: int) -> bool:
        """Measure the distance and keep what is best; true if the particles flew apart."""
        finite = bool(torch.isfinite(self.flow.particles).all())
        distance = self.flow.distance() if finite else math.inf
        if not distance <= EXPLODED * max(self._first, self.flow.chance):
            self._roll_back(distance)
            return True
        if self.history[-1][0] < taken:
            self.history.append((taken, distance))
        if distance < self.least:
            self.least = distance
            self.best = self.flow.particles.clone()
        self._waited += 1
        if distance < (1 - self.plan.gain) * self._counted:
            self._counted, self._waited = distance, 0
        return False

    def settled(self) -> bool:
        """Whether the distance is as asked for, or falls no more with any step.

        Without a gain, the particles go back to the best place with half the step: they dance
        around what they cannot reach with a long one.
        """
        if self.least < self.plan.enough * self.flow.chance:
            return True
        if self._waited <= self.plan.patience:
            return False
        self._step, self._waited = self._step / 2, 0
        self.flow.move_to(self.best)
        return self._step < self.plan.final_step * self.plan.step

    def figures(self) -> dict[str, float]:
        """The distance, and that of an independent sample, to plot."""
        return {"distance": self.history[-1][1], "independent": self.flow.chance}

    def verdict(self) -> str:
        """The distance in words."""
        return (
            f"energy distance {self.least:.3g}, {self.least / max(self.flow.chance, 1e-300):.2g} "
            "of that of an independent sample"
        )

    def _roll_back(self, distance: float) -> None:
        self.flow.move_to(self.best)
        self._halvings += 1
        if self._halvings > _HALVINGS:
            raise JobError(
                f"the particles flew apart {self._halvings} times (distance {distance:.3g}, at "
                f"first {self._first:.3g}) although the step was halved to "
                f"{self._step:.2g}; choose a step below 1 and a momentum "
                "below 0.9"
            )
        self._step, self._waited = self._step / 2, 0
