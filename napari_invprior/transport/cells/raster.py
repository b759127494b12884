"""Cells of flow matching on a grid, computed only where labels differ.

A coarse grid first; then, level by level, samples take the label of their coarse neighbour, and
those that touch another label are computed, until every sample that touches another label has been
computed. The paper shows that cells are open and simply connected: from one sample of a cell its
border is followed all around. So that no small cell is missed, a source point of every cell is
found by carrying its atom back to the start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Event, Preview, Result, ShouldStop, Stage, never
from napari_invprior.transport.cells.atoms import Atoms
from napari_invprior.transport.cells.flow_matching import FlowMatching

COARSEST = {2: 64, 3: 16}
"""Samples along an edge of the first grid, at least."""
MOST_SAMPLES = 1 << 26
MOST_SEEDED = 500
"""So many atoms are carried back at most; with more, cells are about as small as samples."""
FEW = 1 << 15
"""So few pairs of samples and atoms take as long as some more: the samples' neighbours are computed
with them, which saves a round."""
AT_A_TIME = {"cpu": 1 << 17, "cuda": 1 << 22}
"""Points between two signs of life."""


@dataclass(frozen=True)
class Grid:
    """Samples at the centres of equal boxes that fill the cube ``[-extent, extent]^ndim``.

    Array axis k is coordinate k.

    Attributes
    ----------
    extent : float
        Half the edge, in standard deviations of the source.
    resolution : int
        Samples along an edge.

    Examples
    --------
    >>> Grid(1.0, 2, 2).points(torch.tensor([1, 2])).tolist()
    [[-0.5, 0.5], [0.5, -0.5]]
    """

    extent: float
    resolution: int
    ndim: int

    def __post_init__(self) -> None:
        samples = self.resolution**self.ndim
        if samples > MOST_SAMPLES:
            most = int(MOST_SAMPLES ** (1 / self.ndim) + 1e-6)
            raise InvalidInput(
                f"resolution {self.resolution}: {samples} samples; at most {most} along each of "
                f"{self.ndim} axes can be held"
            )

    @property
    def spacing(self) -> float:
        """Edge of a box."""
        return 2 * self.extent / self.resolution

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return (self.resolution,) * self.ndim

    def points(self, flat: Tensor, stride: int = 1) -> Tensor:
        """Coordinates (d, N) of samples by their flat index, in a grid of every ``stride``-th."""
        shape = tuple(-(-n // stride) for n in self.shape)
        index = torch.stack(torch.unravel_index(flat, shape)).double()
        return index.mul_(stride).add_(0.5).mul_(self.spacing).sub_(self.extent)

    def all_points(self, device: str | torch.device = "cpu") -> Iterator[tuple[slice, Tensor]]:
        """Flat indices and coordinates of all samples, part by part."""
        part = AT_A_TIME[torch.device(device).type]
        for start in range(0, math.prod(self.shape), part):
            stop = min(start + part, math.prod(self.shape))
            yield slice(start, stop), self.points(torch.arange(start, stop, device=device))


@dataclass(frozen=True)
class CellImage:
    """Labels of the samples of a grid.

    Attributes
    ----------
    label : Tensor
        (*shape), int32, number of the distinct atom.
    undecided : Tensor
        (*shape), bool; these samples lie on a border as far as can be told.
    computed : int
        Samples that were integrated.
    """

    label: Tensor
    undecided: Tensor
    computed: int

    def numbered(self, atoms: Atoms) -> np.ndarray:
        """The given atoms' numbers plus one, and 0 where undecided, int32."""
        return numbered(self.label, self.undecided, atoms)


def numbered(label: Tensor, undecided: Tensor | None, atoms: Atoms) -> np.ndarray:
    """Distinct atoms' numbers as those of the given atoms plus one, and 0 where undecided."""
    numbers = (atoms.index + 1).to(label.device, torch.int32)[label.long()]
    if undecided is not None:
        numbers.masked_fill_(undecided, 0)
    return numbers.cpu().numpy()


def rasterise(
    flow: FlowMatching, grid: Grid, *, should_stop: ShouldStop = never
) -> Iterator[Event]:
    """Compute the cells on a grid; the `Result` is a `CellImage`.

    A `Preview` of kind ``"cells"`` follows each level: `numbered` labels of every second, fourth,
    ... sample along each axis.

    Examples
    --------
    >>> flow = FlowMatching(Atoms(torch.tensor([[-1.0, 1.0], [0.0, 0.0]])))
    >>> image = list(rasterise(flow, Grid(4.0, 256, 2)))[-1].value
    >>> image.label[:, 0].sum().item(), image.computed < 256**2 / 10
    (128, True)
    """
    stride = 1 << max(0, int(math.log2(grid.resolution / COARSEST[grid.ndim])))
    level = _Level.coarsest(flow, grid, stride)
    stage, done = Stage("cells", stride.bit_length()), 0
    while True:
        for _ in level.settle(should_stop):
            yield stage.progress(done)
        done += 1
        yield stage.progress(done)
        if level.stride == 1:
            break
        yield Preview("cells", numbered(level.label, level.undecided, flow.atoms), "cells")
        level = level.finer()
    yield Result(CellImage(level.label, level.undecided, level.computed))


class _Level:
    """Every ``stride``-th sample of a grid along each axis: what is known of it."""

    def __init__(
        self, flow: FlowMatching, grid: Grid, stride: int, label: Tensor, undecided: Tensor,
        known: Tensor, todo: Tensor, computed: int,
    ) -> None:
        self.flow, self.grid, self.stride = flow, grid, stride
        self.label, self.undecided, self.known = label, undecided, known
        self._todo, self.computed = todo, computed

    @classmethod
    def coarsest(cls, flow: FlowMatching, grid: Grid, stride: int) -> _Level:
        shape = tuple(-(-n // stride) for n in grid.shape)
        label = torch.zeros(shape, dtype=torch.int32, device=flow.device)
        blank = torch.zeros(shape, dtype=torch.bool, device=flow.device)
        todo = torch.arange(label.numel(), device=flow.device)
        return cls(flow, grid, stride, label, blank, blank.clone(), todo, 0)

    def finer(self) -> _Level:
        """The level of half the stride: filled from this one, with what is to be computed."""
        stride = self.stride // 2
        label, undecided = (_doubled(a, self.grid, stride) for a in (self.label, self.undecided))
        known = torch.zeros_like(undecided)
        every_second = (slice(None, None, 2),) * label.ndim
        known[every_second] = True
        undecided &= known
        todo = _at_borders(label)
        if int(todo.sum()) * len(self.flow.atoms) < FEW:
            todo |= _beside(todo)
        if stride == 1:
            todo.view(-1)[_seeds(self.flow, self.grid)] = True
        todo = torch.nonzero((todo & ~known).view(-1))[:, 0]
        return _Level(
            self.flow, self.grid, stride, label, undecided, known, todo, self.computed
        )

    def settle(self, should_stop: ShouldStop) -> Iterator[None]:
        """Compute samples until every one that touches another label is computed."""
        label, known = self.label.view(-1), self.known.view(-1)
        while len(self._todo):
            changed = []
            for part in self._todo.split(AT_A_TIME[label.device.type]):
                points = self.grid.points(part, self.stride)
                arrival = self.flow.arrival(points, should_stop)
                new = arrival.label.int()
                changed.append(part[new != label[part]])
                label[part] = new
                self.undecided.view(-1)[part] = ~arrival.decided
                known[part] = True
                yield
            self.computed += len(self._todo)
            self._todo = self._unknown_neighbours(torch.cat(changed))

    def _unknown_neighbours(self, samples: Tensor) -> Tensor:
        """Samples not computed yet that touch one of these and have another label."""
        shape, label, known = self.label.shape, self.label.view(-1), self.known.view(-1)
        index = torch.stack(torch.unravel_index(samples, shape))
        found, jump = [], self.label.numel()
        for axis, length in enumerate(shape):
            jump //= length
            for way in (-1, 1):
                place = index[axis] + way
                inside = samples[(place >= 0) & (place < length)]
                near = inside + way * jump
                found.append(near[~known[near] & (label[near] != label[inside])])
        return torch.cat(found).unique()


def _doubled(array: Tensor, grid: Grid, stride: int) -> Tensor:
    """Each sample twice along each axis, cut to the grid of every ``stride``-th sample."""
    for axis, length in enumerate(grid.shape):
        array = array.repeat_interleave(2, axis).narrow(axis, 0, -(-length // stride))
    return array.contiguous()


def _at_borders(label: Tensor) -> Tensor:
    """Samples that have a neighbour along an axis with another label."""
    found = torch.zeros_like(label, dtype=torch.bool)
    for axis in range(label.ndim):
        length = label.shape[axis] - 1
        differs = label.narrow(axis, 0, length) != label.narrow(axis, 1, length)
        found.narrow(axis, 0, length).logical_or_(differs)
        found.narrow(axis, 1, length).logical_or_(differs)
    return found


def _beside(chosen: Tensor) -> Tensor:
    """Samples next to a chosen one along an axis."""
    found = torch.zeros_like(chosen)
    for axis in range(chosen.ndim):
        length = chosen.shape[axis] - 1
        low, high = chosen.narrow(axis, 0, length), chosen.narrow(axis, 1, length)
        found.narrow(axis, 0, length).logical_or_(high)
        found.narrow(axis, 1, length).logical_or_(low)
    return found


def _seeds(flow: FlowMatching, grid: Grid) -> Tensor:
    """Flat indices of samples next to a source point of every cell that has one in the grid."""
    atoms = flow.atoms
    if not 1 < len(atoms) <= MOST_SEEDED:
        return torch.zeros(0, dtype=torch.long, device=flow.device)
    points = atoms.lift(flow.origins())
    index = ((points + grid.extent) / grid.spacing).floor().long()
    inside = index[:, ((index >= 0) & (index < grid.resolution)).all(0)]
    flat = torch.zeros_like(inside[0])
    for row in inside:
        flat = flat * grid.resolution + row
    return flat
