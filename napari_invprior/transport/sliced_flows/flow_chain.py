"""A chain of networks that take noise where particles flowed to.

Particles flow for some steps, a network learns where each of them went, and moves them there
itself; the next network learns from where they are then. Applied in turn to new noise, the
networks draw new points. Each starts from the weights of the one before.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Job, Message, Preview, Result, ShouldStop, Stage, never
from napari_invprior.transport.sliced_flows.displacement import Fitting, fit_displacement
from napari_invprior.transport.sliced_flows.noise_like import NoiseLike
from napari_invprior.transport.sliced_flows.particle_flow import ParticleFlow, joined
from napari_invprior.transport.slices.draws import SliceDraw
from napari_invprior.transport.slices.local import as_columns

FRESH = 1000
"""Points from new noise that show how well the chain does."""
ROWS = 256
"""Points that pass a network together."""
_PREVIEW_SECONDS = 2.0


@dataclass(frozen=True)
class ChainPlan:
    """How a chain is trained.

    Attributes
    ----------
    blocks : int
        Networks added, at most.
    first, growth, most : int
        Flow steps of the first block; block k has ``min(first 2^k, growth)`` steps more than the
        one before, at most ``most``.
    step, momentum : float
        See `particle_flow.Schedule`.
    patience : int
        Blocks without a gain after which training ends.
    gain : float
        Smallest relative fall of the distance of fresh points that counts as one.
    fitting : Fitting
        How each network is trained.
    """

    blocks: int = 60
    first: int = 32
    growth: int = 2048
    most: int = 30_000
    step: float = 1.0
    momentum: float = 0.7
    patience: int = 4
    gain: float = 0.03
    fitting: Fitting = field(default_factory=Fitting)

    def flow_steps(self, block: int) -> int:
        """Flow steps of a block, counted from 0.

        Examples
        --------
        >>> [ChainPlan().flow_steps(block) for block in range(4)]
        [32, 64, 128, 256]
        >>> ChainPlan().flow_steps(1000)
        30000
        """
        steps = self.first
        for k in range(block):
            steps = min(steps + min(self.first << min(k, 40), self.growth), self.most)
            if steps == self.most:
                break
        return steps


class FlowChain:
    """Networks that turn noise into points, one after the other.

    Parameters
    ----------
    network : callable
        Makes a network from the numbers of a point with its condition, as (B, C + K, *space) or
        (B, d + k), to those of a point; at first zero everywhere.
    shape : sequence of int
        Shape of a point: (C, *space), or (d,).
    coloured : bool
        Start from noise with the covariance of the targets, not only with their mean variance:
        patches of images then begin smooth.

    Attributes
    ----------
    network : callable
        As given.
    networks : list of nn.Module
        In the order of their use.

    Examples
    --------
    >>> from napari_invprior.jobs import run
    >>> targets = torch.randn((2, 200), generator=torch.Generator().manual_seed(0)) + 3
    >>> chain = FlowChain(lambda: nn.Linear(2, 2), (2,))
    >>> quick = ChainPlan(blocks=2, first=4, fitting=Fitting(steps=20))
    >>> run(chain.train(targets, plan=quick)) is chain, len(chain.networks)
    (True, 2)
    >>> chain.sample(5, seed=0).shape
    torch.Size([2, 5])
    """

    def __init__(
        self, network: Callable[[], nn.Module], shape: Sequence[int], *, coloured: bool = False
    ) -> None:
        self.network, self.shape, self.coloured = network, tuple(shape), coloured
        self.networks: list[nn.Module] = []
        self._scales: list[float] = []
        self._moments = torch.tensor([0.0, 1.0])
        self._start: NoiseLike | None = None
        self._particles: Tensor | None = None
        self._condition: Tensor | None = None

    @property
    def dim(self) -> int:
        """Numbers of a point."""
        return math.prod(self.shape)

    @property
    def started(self) -> bool:
        """Whether there are particles, and so noise to start from."""
        return self._particles is not None

    @property
    def count(self) -> int | None:
        """Particles that the chain was trained with, and goes on with."""
        return None if self._particles is None else self._particles.shape[1]

    # --- use --------------------------------------------------------------------------------

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """What the chain starts from: (d, count)."""
        if self._start is None:
            raise InvalidInput("this chain is not trained yet: train it on targets first")
        return self._start.draw(count, generator)

    def sample(self, n: int, seed: int, condition: Tensor | None = None) -> Tensor:
        """Draw ``n`` points (d, n), for the conditions (k, n) where the chain knows such.

        Raises
        ------
        InvalidInput
            Before training, or if the condition is not one of the kind it was trained with.
        """
        x = self.noise(n, torch.Generator().manual_seed(seed))
        known = 0 if self._condition is None else len(self._condition)
        given = 0 if condition is None else len(condition)
        if known != given:
            raise InvalidInput(f"conditions of {given} numbers: the chain was trained with {known}")
        for block in range(len(self.networks)):
            x = self.apply(block, x, condition)
        return x

    def resized(self, shape: Sequence[int]) -> FlowChain:
        """The same networks for points of another shape: images of a size that is not trained.

        Raises
        ------
        InvalidInput
            If the chain starts from noise with a covariance, which is of one size.
        """
        start = self._start
        if start is None or self.coloured:
            raise InvalidInput("only a trained chain that starts from white noise has other sizes")
        other = copy.copy(self)
        other.shape = tuple(shape)
        other._start = NoiseLike(
            start.mean[:1].expand(other.dim), start.root[:1].expand(other.dim, 1)
        )
        return other

    @torch.no_grad()
    def apply(self, block: int, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Points (d, n) after network ``block``."""
        rows = self._rows(joined(x, condition, "points"))
        parts = [self.networks[block](part) for part in rows.split(ROWS)]
        return x - self._scales[block] * as_columns(torch.cat(parts)).to(x)

    def _rows(self, joint: Tensor) -> Tensor:
        """Centred and scaled points as rows, in the shape that the networks take."""
        mean, deviation = self._moments.tolist()
        rows = ((joint - mean) / deviation).T
        return rows.reshape(len(rows), -1, *self.shape[1:])

    # --- training ---------------------------------------------------------------------------

    def train(
        self,
        targets: Tensor,
        draw: SliceDraw | None = None,
        *,
        particles: int | None = None,
        condition: Tensor | None = None,
        target_condition: Tensor | None = None,
        plan: ChainPlan | None = None,
        seed: int = 0,
        show: Callable[[Tensor], Preview] | None = None,
        should_stop: ShouldStop = never,
    ) -> Job:
        """Add networks until fresh points come no closer to the targets; a chain goes on growing.

        The `Result` is the chain. Each finished network stays, however the job ends.

        Parameters
        ----------
        targets : Tensor
            (d, M).
        draw : SliceDraw, optional
            Where slices come from; directions of the whole space by default.
        particles : int, optional
            As many as targets by default.
        condition, target_condition : Tensor, optional
            (k, N) and (k, M), see `ParticleFlow`; those of the targets serve both where only they
            are given. The particles of a chain that goes on keep theirs.
        show : callable, optional
            Makes a picture of points (d, n).
        """
        plan = plan or ChainPlan()
        condition = target_condition if condition is None else condition
        condition = self._condition if self.networks else condition
        count = particles or (targets if condition is None else condition).shape[1]
        x = self._begin(targets, count, condition, seed)
        flow = ParticleFlow(
            x, targets, draw, condition=condition, target_condition=target_condition, seed=seed
        )
        fresh = self._fresh(min(FRESH, count), seed)
        taken, first = 0, len(self.networks)
        work = [plan.flow_steps(first + k) + plan.fitting.steps for k in range(plan.blocks)]
        stage, judge = Stage("train", sum(work)), _Judge(plan, flow.distance(fresh), flow.chance)
        why, seen = "all blocks done", _PREVIEW_SECONDS / 2
        for block in range(first, first + plan.blocks):
            for done in self._add(block, flow, plan, seed):
                if should_stop():
                    why = "stopped by you"
                    break
                if stage.due():
                    yield stage.progress(taken + done, **judge.figures())
            if why == "stopped by you":
                break
            taken += work[block - first]
            fresh = self.apply(block, fresh, self._some(fresh.shape[1]))
            if judge.settled(flow.distance(fresh)):
                why = "no further gain"
                break
            if show is not None and stage.seconds > seen:
                seen = stage.seconds + _PREVIEW_SECONDS
                yield show(fresh)
        yield stage.progress(taken, **judge.figures())
        if show is not None:
            yield show(fresh)
        yield Message(f"{why} after {len(self.networks)} networks; {judge.verdict()}")
        yield Result(self)

    def _begin(self, targets: Tensor, count: int, condition: Tensor | None, seed: int) -> Tensor:
        """The particles to go on from; new noise for a new chain."""
        if targets.ndim != 2 or len(targets) != self.dim:
            raise InvalidInput(
                f"targets of shape {tuple(targets.shape)}: expected ({self.dim}, count) for points "
                f"of shape {self.shape}"
            )
        if not self.networks:
            deviation = float(targets.double().std(correction=0))
            if not deviation > 0:
                raise InvalidInput("the targets are constant: give ones with structure")
            self._moments = torch.tensor([float(targets.double().mean()), deviation])
            self._start = NoiseLike.of(targets, full=self.coloured)
            self._particles = self.noise(count, torch.Generator().manual_seed(seed)).to(targets)
            self._condition = condition
        held = self._particles
        if held is None or held.shape[1] != count:
            raise InvalidInput(
                f"{count} particles: this chain goes on with the "
                f"{0 if held is None else held.shape[1]} that it was trained with"
            )
        return held

    def _fresh(self, count: int, seed: int) -> Tensor:
        """Points of noise that no network was trained with, at the end of the chain."""
        x = self.noise(count, torch.Generator().manual_seed(seed + 1)).to(self._particles)
        for block in range(len(self.networks)):
            x = self.apply(block, x, self._some(count))
        return x

    def _some(self, count: int) -> Tensor | None:
        return None if self._condition is None else self._condition[:, :count]

    def _add(self, block: int, flow: ParticleFlow, plan: ChainPlan, seed: int) -> Iterator[int]:
        """Let the particles flow, fit a network and let it move them; yields the work done."""
        before = flow.particles.clone()
        steps = plan.flow_steps(block)
        for done, _ in enumerate(flow.advance(steps, plan.step, plan.momentum), 1):
            yield done
        moved = before - flow.particles
        scale = float(moved.double().square().mean().sqrt())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = copy.deepcopy(self.networks[-1]) if self.networks else self.network()
        net.to(before.device)
        rows = self._rows(joined(before, self._condition, "particles"))
        wanted = (moved / max(scale, 1e-30)).T.reshape(len(rows), *self.shape)
        fitting = fit_displacement(net, rows, wanted, plan.fitting, seed + block)
        yield from (steps + done for done in fitting)
        self.networks.append(net)
        self._scales.append(scale)
        self._particles = self.apply(block, before, self._condition)
        flow.move_to(self._particles)

    # --- state ------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """All numbers that `load_state` needs (CPU tensors)."""
        found = {"moments": self._moments, "scales": torch.tensor(self._scales)}
        if self._start is not None and self._particles is not None:
            found |= {"particles": self._particles, "mean": self._start.mean}
            found["root"] = self._start.root
        if self._condition is not None:
            found["condition"] = self._condition
        for block, net in enumerate(self.networks):
            found |= {f"networks.{block:03d}.{k}": v for k, v in net.state_dict().items()}
        return {name: value.detach().cpu().clone() for name, value in found.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take a state over; refuses missing names, wrong shapes and NaN by name."""
        for name, value in state.items():
            if not bool(torch.isfinite(value).all()):
                raise InvalidInput(f"chain: {name!r} holds NaN or infinite values")
        for name in ("moments", "scales"):
            if name not in state or state[name].ndim != 1:
                raise InvalidInput(f"chain: {name!r} is missing or no row of numbers")
        networks = []
        for block in range(len(state["scales"])):
            prefix, net = f"networks.{block:03d}.", self.network()
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            try:
                net.load_state_dict(own)
            except RuntimeError as error:
                raise InvalidInput(f"chain: network {block} does not fit: {error}") from error
            networks.append(net)
        shapes = {"particles": (self.dim, -1), "mean": (self.dim,), "root": (self.dim, -1)}
        for name, shape in shapes.items():
            given = tuple(state[name].shape) if name in state else None
            if given is None or given[0] != shape[0] or len(given) != len(shape):
                raise InvalidInput(f"chain: {name!r} has shape {given}, expected {shape}")
        self.networks, self._scales = networks, state["scales"].tolist()
        self._moments = state["moments"].clone()
        self._start = NoiseLike(state["mean"], state["root"])
        self._particles, self._condition = state["particles"], state.get("condition")


class _Judge:
    """The distances of fresh points after each block."""

    def __init__(self, plan: ChainPlan, distance: float, chance: float) -> None:
        self._plan, self._chance = plan, chance
        self._least = self._last = distance
        self._waited = 0

    def settled(self, distance: float) -> bool:
        """Take the distance after a block; whether the blocks gain no more."""
        self._last = distance
        if distance < (1 - self._plan.gain) * self._least:
            self._waited = 0
        else:
            self._waited += 1
        self._least = min(self._least, distance)
        return self._waited >= self._plan.patience

    def figures(self) -> dict[str, float]:
        """The distance of fresh points, and that of an independent sample, to plot."""
        return {"fresh": self._last, "independent": self._chance}

    def verdict(self) -> str:
        """The distance in words."""
        return (
            f"energy distance of fresh points {self._last:.3g}, "
            f"{self._last / max(self._chance, 1e-300):.2g} of that of an independent sample"
        )
