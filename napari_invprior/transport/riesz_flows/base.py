"""What all flows of particles share: what they take, their clock, their events and their movie."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput, JobError
from napari_invprior.jobs import Event, Job, Message, Preview, Result, ShouldStop, Stage, never
from napari_invprior.memory import require
from napari_invprior.parameters import Parameters as Declaration
from napari_invprior.parameters import overlaid, parameter
from napari_invprior.transport.riesz_flows.discrepancy import Discrepancy, Target, checked_points
from napari_invprior.transport.riesz_flows.trajectory import Recorder, Snapshot, Trajectory

FIRST_STEP, GROWTH = 1e-8, 10.0
"""Graded steps: from the first on, each so many times the last, up to tau."""
MOST_STEPS = 100_000
_PREVIEW_SECONDS = 0.5

PresetName = Literal["fast", "interaction", "two_diracs", "smiley", "max_und_moritz"]


@dataclass(frozen=True)
class Plan:
    """Step, final time and number of particles."""

    tau: float
    final_time: float
    particles: int


PRESETS: dict[str, Plan] = {
    "fast": Plan(0.1, 20.0, 2000),
    "interaction": Plan(0.05, 1.2, 2000),
    "two_diracs": Plan(0.1, 40.0, 2000),
    "smiley": Plan(0.1, 50.0, 2000),
    "max_und_moritz": Plan(0.5, 100.0, 6000),
}


class FlowParameters(Declaration):
    """What every flow can be told; empty fields follow the preset."""

    preset: PresetName = parameter(
        "fast", "A short run, or the paper's setting for one of its figures."
    )
    r: float = parameter(
        1.0, "Power of the distance in the kernel -|x - y|^r.", ge=0.05, le=1.95
    )
    tau: float | None = parameter(
        None,
        "Length of a step; empty is, for preset fast, 0.1 for particles and 0.5 for networks.",
        unit="time", gt=0, le=1e6,
    )
    final_time: float | None = parameter(
        None, "Where the flow ends; empty is 20 for preset fast.", unit="time", gt=0, le=1e9
    )
    particles: int | None = parameter(
        None,
        "Start points are repeated until there are so many; empty is 2000 for preset fast.",
        ge=1, le=1_000_000,
    )
    frames: int = parameter(
        100, "Most frames that the movie keeps.", ge=3, le=10_000, advanced=True
    )

    def clock(self) -> Plan:
        """The preset with every field that is given."""
        return overlaid(PRESETS[self.preset], self)


class Flow(ABC):
    """Moves particles along the Wasserstein gradient flow of a discrepancy.

    Attributes
    ----------
    trajectory : Trajectory or None
        The movie of the last run, also of one that was closed or failed.
    """

    Parameters: ClassVar[type[Declaration]]
    kind: ClassVar[str]
    name: ClassVar[str]
    graded: ClassVar[bool] = False
    """Whether the first steps are tiny where ``r < 1``: points part with infinite speed there."""

    def __init__(self, parameters: FlowParameters) -> None:
        self.parameters = parameters
        self.plan = parameters.clock()
        self.trajectory: Trajectory | None = None

    def run(
        self,
        start: Tensor,
        target: Target | None,
        *,
        seed: int = 0,
        should_stop: ShouldStop = never,
    ) -> Job:
        """Let the particles flow.

        Parameters
        ----------
        start : Tensor
            (d, n); each point stands for as many particles as the others.
        target : Target or None
            Where they are drawn to; None for repulsion alone.
        should_stop
            Polled in every step; the movie so far is then the result.

        Yields
        ------
        Event
            Progress with ``discrepancy`` and ``time``, previews of the particles (N, d), and a
            `Result` with the `Trajectory`.

        Raises
        ------
        InvalidInput
            For no points, points that are not finite, or a target of another dimension.
        """
        x = self._particles(checked_points(start, "the start"))
        if target is not None and target.dim != len(x):
            raise InvalidInput(
                f"the start has {len(x)} coordinates, the target {target.dim}: both must live in "
                "one space"
            )
        steps = self.schedule()
        kept = min(len(steps), self.parameters.frames) + 1
        require(
            8.0 * kept * x.numel(), f"a movie of {kept} frames of {x.shape[1]} particles",
            "choose fewer frames or particles",
        )
        return self._events(x, Discrepancy(target, self.parameters.r), steps, seed, should_stop)

    def schedule(self) -> list[float]:
        """Lengths of all steps; their sum is the final time."""
        tau, left = self.plan.tau, self.plan.final_time
        if left / tau > MOST_STEPS:
            raise InvalidInput(
                f"tau = {tau:g}: {left / tau:.3g} steps to the time {left:g}; at most {MOST_STEPS} "
                f"are possible: choose tau = {left / MOST_STEPS:g} or more"
            )
        steps: list[float] = []
        if self.graded and self.parameters.r < 1:
            first = min(FIRST_STEP, tau)
            count = math.ceil(math.log(tau / first) / math.log(GROWTH) - 1e-9)
            steps = [first * GROWTH**k for k in range(count)]
        left -= sum(steps)
        whole = math.floor(left / tau + 1e-9)
        steps += [tau] * whole
        rest = left - whole * tau
        return [*steps, rest] if rest > 1e-9 * tau else steps

    @abstractmethod
    def _steps(
        self,
        x: Tensor,
        discrepancy: Discrepancy,
        steps: list[float],
        generator: torch.Generator,
    ) -> Iterator[Snapshot | Message | None]:
        """A snapshot at time 0 and after each step; None in between, so that one can stop."""

    def _particles(self, start: Tensor) -> Tensor:
        """Start points, each repeated equally often."""
        return start.repeat_interleave(max(1, -(-self.plan.particles // start.shape[1])), 1)

    def _events(
        self,
        x: Tensor,
        discrepancy: Discrepancy,
        steps: list[float],
        seed: int,
        should_stop: ShouldStop,
    ) -> Iterator[Event]:
        stage = Stage("flow", len(steps))
        recorder, taken, shown = Recorder(self.parameters.frames, len(steps)), -1, 0.0
        generator = torch.Generator().manual_seed(seed)
        try:
            for item in self._steps(x, discrepancy, steps, generator):
                if isinstance(item, Snapshot):
                    recorder.add(_checked(item, self.plan.tau))
                    taken += 1
                elif item is not None:
                    yield item
                if recorder.last is not None:
                    if should_stop():
                        yield Message(f"stopped by you at time {recorder.last.time:.4g}")
                        break
                    if stage.due():
                        yield _progress(stage, taken, recorder.last)
                    if stage.seconds > shown + _PREVIEW_SECONDS:
                        shown = stage.seconds
                        yield _preview(recorder.last)
        finally:
            if recorder.last is not None:
                self.trajectory = recorder.trajectory()
        assert recorder.last is not None
        yield _progress(stage, taken, recorder.last)
        yield _preview(recorder.last)
        yield Result(self.trajectory)


def _checked(snapshot: Snapshot, tau: float) -> Snapshot:
    """Refuse to go on with particles that are no longer finite."""
    if not bool(snapshot.points.isfinite().all()) or not math.isfinite(snapshot.discrepancy):
        raise JobError(
            f"the particles left the finite numbers at time {snapshot.time:.4g}; choose a smaller "
            f"tau than {tau:g}, or check the scale of the coordinates"
        )
    return snapshot


def _progress(stage: Stage, taken: int, last: Snapshot) -> Event:
    return stage.progress(taken, discrepancy=last.discrepancy, time=last.time)


def _preview(last: Snapshot) -> Preview:
    return Preview("points", last.points.T.float().numpy(force=True).copy(), "flow")
