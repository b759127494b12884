"""Slices of images that look at periodic windows: a small block, repeated to several sizes.

Directions of the whole image see all samples at once and need as many lines as there are samples;
windows hold few numbers, and texture is local. Images are the columns of ``(C prod(space), N)``
matrices, in C order over (channel, axes).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from napari_invprior.transport.slices.directions import slice_constant

Layout = Literal["tiled", "stretched"]


def as_columns(images: Tensor) -> Tensor:
    """Images (N, C, *space) as columns (C prod(space), N).

    Examples
    --------
    >>> as_columns(torch.zeros(5, 2, 3, 4)).shape
    torch.Size([24, 5])
    """
    return images.flatten(1).T.contiguous()


def as_images(columns: Tensor, space: Sequence[int]) -> Tensor:
    """The images (N, C, *space) of columns (C prod(space), N)."""
    return columns.T.reshape(columns.shape[1], -1, *space)


class WindowSlices:
    """Lines through windows of one size: the sum over the windows of sliced energy distances.

    A window is cut into ``repeat`` parts per axis and these are added up; the lines run through
    what results, in the dimension of one block.

    Parameters
    ----------
    space : sequence of int
        Shape of the images.
    channels : int
        Their channels.
    block : sequence of int
        Edges of the block.
    repeat : int
        Blocks per axis of a window.
    starts : Tensor
        (W, ndim), first samples of the windows; they go on at the opposite side.
    directions : Tensor
        (W, P, C prod(block)), of unit length.
    layout : str
        ``"tiled"``: blocks lie side by side; ``"stretched"``: each sample of one repeats.
    weight : float
        Factor of the sum.

    Examples
    --------
    >>> starts, lines = torch.tensor([[1, 1]]), torch.ones(1, 1, 1)
    >>> corner = WindowSlices((2, 2), 1, (1, 1), 2, starts, lines)
    >>> corner.project(torch.tensor([[1.0], [2.0], [3.0], [4.0]])).tolist()
    [[5.0]]
    """

    def __init__(
        self,
        space: Sequence[int],
        channels: int,
        block: Sequence[int],
        repeat: int,
        starts: Tensor,
        directions: Tensor,
        *,
        layout: Layout = "tiled",
        weight: float = 1.0,
    ) -> None:
        self._rows = channels * math.prod(space)
        self._directions = directions
        # the lines are of unit length in the window, not in the block
        self._norm = repeat ** (-len(block) / 2)
        self._weight = weight
        inside = _inside(block, repeat, layout) + starts[:, None, None]  # (W, repeats, block, axes)
        flat = torch.zeros(inside.shape[:-1], dtype=torch.long)
        for axis, n in enumerate(space):
            flat = flat * n + inside[..., axis] % n
        planes = torch.arange(channels)[:, None] * math.prod(space)
        self._index = (flat[:, :, None] + planes).flatten(2).to(directions.device)

    @property
    def lines(self) -> int:
        """Lines through each window."""
        return self._directions.shape[1]

    def folded(self, x: Tensor) -> Tensor:
        """The sums of the parts of each window of images (d, N): (W, C prod(block), N)."""
        windows, repeats, dim = self._index.shape
        rows = x.index_select(0, self._index.flatten())
        return rows.view(windows, repeats, dim, -1).sum(1).mul_(self._norm)

    def project(self, x: Tensor) -> Tensor:
        return torch.bmm(self._directions, self.folded(x)).flatten(0, 1)

    def scatter(self, gradient: Tensor) -> Tensor:
        windows, lines, _ = self._directions.shape
        pulls = torch.bmm(self._directions.mT, gradient.view(windows, lines, -1))
        pulls *= self._norm * self._share
        found = pulls.new_zeros((self._rows, pulls.shape[2]))
        for part in self._index.unbind(1):
            found.index_add_(0, part.flatten(), pulls.flatten(0, 1))
        return found

    def weighted(self, distances: Tensor) -> Tensor:
        return distances.sum() * self._share

    @property
    def _share(self) -> float:
        _, lines, dim = self._directions.shape
        return self._weight * slice_constant(dim) / lines


class LocalSlices:
    """Windows of several sizes together.

    Parameters
    ----------
    sizes : sequence of WindowSlices
        One for each size.
    """

    def __init__(self, sizes: Sequence[WindowSlices]) -> None:
        self.sizes = list(sizes)

    def project(self, x: Tensor) -> Tensor:
        return torch.cat([size.project(x) for size in self.sizes])

    def scatter(self, gradient: Tensor) -> Tensor:
        split = gradient.split(self._lines())
        found = self.sizes[0].scatter(split[0])
        for size, part in zip(self.sizes[1:], split[1:], strict=True):
            found += size.scatter(part)
        return found

    def weighted(self, distances: Tensor) -> Tensor:
        split = distances.split(self._lines())
        parts = [size.weighted(part) for size, part in zip(self.sizes, split, strict=True)]
        return torch.stack(parts).sum()

    def parts(self, most: int) -> Iterator[LocalSlices]:
        """The sizes one by one: a window's lines stay together, whatever ``most`` is."""
        for size in self.sizes:
            yield LocalSlices([size])

    def _lines(self) -> list[int]:
        return [math.prod(size._directions.shape[:2]) for size in self.sizes]


def _inside(block: Sequence[int], repeat: int, layout: Layout) -> Tensor:
    """Places in a window: (repeats, samples of the block, axes)."""
    ndim = len(block)
    parts = torch.cartesian_prod(*[torch.arange(repeat)] * ndim).view(-1, 1, ndim)
    samples = torch.cartesian_prod(*(torch.arange(b) for b in block)).view(1, -1, ndim)
    if layout == "tiled":
        return parts * torch.tensor(block) + samples
    return parts + samples * repeat
