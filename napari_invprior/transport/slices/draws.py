"""Where the slices of a flow come from: directions of the whole space, or of windows of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.transport.sliced_flows.energy_distance import Directions, Slices, check_cloud
from napari_invprior.transport.slices.directions import DirectionKind, directions
from napari_invprior.transport.slices.local import Layout, LocalSlices, WindowSlices

LINES_PER_ROOT = 12
FEWEST_LINES, MOST_LINES = 32, 512
MOST_SEEN = 1000
"""Images that the spread in the windows is taken from."""


class SliceDraw(Protocol):
    """Random slices for clouds of one kind.

    Attributes
    ----------
    unit : float
        Length of a step of one: about the spread of the targets, beyond which steps overshoot.
    """

    unit: float

    def __call__(self, generator: torch.Generator) -> Slices:
        """New slices."""


def usual_lines(dim: int) -> int:
    """Lines per step that a flow gets along with: its momentum averages over steps.

    Examples
    --------
    >>> usual_lines(2), usual_lines(256), usual_lines(10**6)
    (32, 192, 512)
    """
    return min(MOST_LINES, max(FEWEST_LINES, round(LINES_PER_ROOT * math.sqrt(dim))))


def spread(points: Tensor) -> float:
    """Root of the total variance of points (d, M), or of the mean one of several such clouds.

    Raises
    ------
    InvalidInput
        If all points are equal: steps have no scale then.
    """
    found = math.sqrt(float(points.double().var(-1, correction=0).sum(-1).mean()))
    if found == 0:
        raise InvalidInput(
            f"all {points.shape[-1]} targets are equal: give at least two different ones"
        )
    return found


def _trust(lines: int, dim: int) -> float:
    """How far to go where the lines span part of the space: each stands for several then."""
    return lines / (lines + dim)


class DirectionDraw:
    """Directions of the whole space.

    Parameters
    ----------
    targets : Tensor
        (d, M), with the condition if there is one.
    count : int, optional
        Lines; `usual_lines` by default.

    Examples
    --------
    >>> draw = DirectionDraw(torch.eye(3))
    >>> draw(torch.Generator().manual_seed(0)).directions.shape, round(draw.unit, 4)
    (torch.Size([32, 3]), 0.7465)
    """

    def __init__(
        self, targets: Tensor, count: int | None = None, kind: DirectionKind = "auto"
    ) -> None:
        check_cloud(targets, "targets")
        self._kind, self._like = kind, targets[:0]
        self._shape = usual_lines(len(targets)) if count is None else count, len(targets)
        self.unit = spread(targets) * _trust(*self._shape)

    def __call__(self, generator: torch.Generator) -> Directions:
        drawn = directions(*self._shape, generator, self._kind, self._like.dtype)
        return Directions(drawn.to(self._like))


class LocalDraw:
    """Windows of several sizes at random places, which cover the image once with each size.

    A direction is a random block of ``patch`` samples per axis, repeated ``s + 1`` times per axis
    (``s = 0, 1, ...``). The steps of each size follow the spread of the targets as it sees them,
    so that none needs a step of its own.

    Parameters
    ----------
    targets : Tensor
        (C * prod(space), M): images as columns.
    space : sequence of int
        Shape of the images, 2D or 3D.
    patch : int
        Edge of the block, px; the whole axis where that is shorter.
    scales : int
        Sizes, at most; those that do not fit are left out.
    count : int, optional
        Lines per size; `usual_lines` of the block by default.
    layout : str
        ``"tiled"``: the block repeats side by side; ``"stretched"``: each of its samples does.

    Examples
    --------
    >>> images = torch.rand((100, 20), generator=torch.Generator().manual_seed(0))
    >>> draw = LocalDraw(images, (10, 10), patch=4, count=8)
    >>> slices = draw(torch.Generator().manual_seed(1))
    >>> slices.project(images).shape, slices.scatter(slices.project(images)).shape
    (torch.Size([16, 20]), torch.Size([100, 20]))
    """

    unit = 1.0

    def __init__(
        self,
        targets: Tensor,
        space: Sequence[int],
        *,
        patch: int = 7,
        scales: int = 4,
        count: int | None = None,
        layout: Layout = "tiled",
    ) -> None:
        check_cloud(targets, "targets")
        self._space, self._layout, self._like = tuple(space), layout, targets[:0]
        self._channels, rest = divmod(len(targets), math.prod(space))
        if rest or not self._channels or min(patch, scales) < 1:
            raise InvalidInput(
                f"images of {len(targets)} numbers in blocks of {patch} px at {scales} sizes: give "
                f"whole channels of {self._space} px, at least 1 px and 1 size"
            )
        self._block = tuple(min(patch, n) for n in self._space)
        fitting = min(n // b for n, b in zip(self._space, self._block, strict=True))
        self._repeats = range(1, max(1, min(scales, fitting)) + 1)
        dim = self._channels * math.prod(self._block)
        self._count = usual_lines(dim) if count is None else count
        self._weights = dict.fromkeys(self._repeats, 1.0)
        generator = torch.Generator().manual_seed(0)
        seen = {repeat: self._size(repeat, generator) for repeat in self._repeats}
        for repeat, windows in seen.items():
            seen_spread = spread(windows.folded(targets[:, :MOST_SEEN]))
            self._weights[repeat] = seen_spread * _trust(windows.lines, dim) / len(seen)

    def __call__(self, generator: torch.Generator) -> LocalSlices:
        return LocalSlices([self._size(repeat, generator) for repeat in self._repeats])

    def _size(self, repeat: int, generator: torch.Generator) -> WindowSlices:
        counts = [max(1, n // (b * repeat)) for n, b in zip(self._space, self._block, strict=True)]
        windows = math.prod(counts)
        lines = max(1, round(self._count / windows))
        dim = self._channels * math.prod(self._block)
        drawn = directions(windows * lines, dim, generator, dtype=self._like.dtype)
        if dim == 1:
            drawn, lines = drawn.expand(windows, 1), 1
        starts = [
            torch.arange(count) * n // count + torch.randint(n, (), generator=generator)
            for count, n in zip(counts, self._space, strict=True)
        ]
        return WindowSlices(
            self._space, self._channels, self._block, repeat,
            torch.cartesian_prod(*starts), drawn.to(self._like).view(windows, lines, dim),
            layout=self._layout, weight=self._weights[repeat],
        )
