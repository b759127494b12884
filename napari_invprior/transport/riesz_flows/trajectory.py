"""The movie that a flow of particles leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput


class Law(Protocol):
    """Draws new points of one frame."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """So many points: (d, count)."""
        ...


@dataclass(frozen=True)
class Snapshot:
    """The particles at one time; ``law`` draws more of them, where a network does."""

    time: float
    points: Tensor
    discrepancy: float
    law: Law | None = None


@dataclass(frozen=True)
class Trajectory:
    """Particles over time.

    Attributes
    ----------
    times, discrepancy : Tensor
        (T,).
    points : Tensor
        (T, d, N), single precision.
    laws : tuple
        What draws new points of each frame; None where there are only the particles.

    Examples
    --------
    >>> moved = Trajectory(torch.tensor([0.0]), torch.ones(1, 2, 3), torch.tensor([0.0]), (None,))
    >>> moved.sample(0, 5).shape
    torch.Size([2, 5])
    """

    times: Tensor
    points: Tensor
    discrepancy: Tensor
    laws: tuple[Law | None, ...]

    def __len__(self) -> int:
        return len(self.times)

    def sample(self, frame: int, count: int, seed: int = 0) -> Tensor:
        """New points (d, count) of a frame: from its network, else drawn among its particles."""
        if not -len(self) <= frame < len(self):
            raise InvalidInput(f"frame {frame}: there are {len(self)}, counted from 0")
        generator = torch.Generator().manual_seed(seed)
        law = self.laws[frame]
        if law is not None:
            return law.draw(count, generator)
        points = self.points[frame]
        return points[:, torch.randint(points.shape[1], (count,), generator=generator)]


class Recorder:
    """Keeps every k-th snapshot and the last, so that a movie has at most so many frames."""

    def __init__(self, frames: int, steps: int) -> None:
        self.every = max(1, -(-steps // max(1, frames - 2)))
        self._kept: list[Snapshot] = []
        self._last: Snapshot | None = None
        self._seen = 0

    @property
    def last(self) -> Snapshot | None:
        """The newest snapshot."""
        return self._last

    def add(self, snapshot: Snapshot) -> None:
        """Take the next snapshot."""
        if self._seen % self.every == 0:
            self._kept.append(snapshot)
        self._last = snapshot
        self._seen += 1

    def trajectory(self) -> Trajectory:
        """All that is kept."""
        kept = list(self._kept)
        if self._last is not None and self._last is not kept[-1]:
            kept.append(self._last)
        return Trajectory(
            torch.tensor([s.time for s in kept], dtype=torch.float64),
            torch.stack([s.points.float() for s in kept]),
            torch.tensor([s.discrepancy for s in kept], dtype=torch.float64),
            tuple(s.law for s in kept),
        )
