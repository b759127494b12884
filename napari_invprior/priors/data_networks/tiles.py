"""Equal pieces of measured data to train a network on, with the operator that belongs to each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.numerics.resample import spline_resample
from napari_invprior.physics.base import Physics
from napari_invprior.physics.blocks import block_factor, block_shift
from napari_invprior.physics.piece import take_piece

SMALLEST_TILE = 8


class Border(NamedTuple):
    """How data are continued before a network sees them.

    In the outermost data samples of its tiles a network is not held to the data, because the
    operator looks beyond the tile; there it obeys the prior alone. Data in use are continued by
    as many samples, so that this place lies outside.

    Attributes
    ----------
    margin : int
        Data samples beyond the border.
    circular : bool
        Continued by the opposite end instead of by the mirror image.
    """

    margin: int
    circular: bool

    def continued(self, y: Tensor, multiple: Sequence[int] | None = None) -> Tensor:
        """Data (..., *space) continued on all sides, and behind to a ``multiple`` per axis.

        Examples
        --------
        >>> y = torch.tensor([[[1, 2, 3]]])
        >>> Border(2, circular=False).continued(y).tolist()
        [[[2, 1, 1, 2, 3, 3, 2]]]
        >>> Border(2, circular=True).continued(y, (4,)).tolist()
        [[[2, 3, 1, 2, 3, 1, 2, 3]]]
        """
        for axis, n in enumerate(y.shape[2:]):
            behind = self.margin
            if multiple is not None:
                behind += -(n + 2 * self.margin) % multiple[axis]
            index = torch.arange(-self.margin, n + behind)
            index %= n if self.circular else 2 * n
            index = torch.minimum(index, 2 * n - 1 - index)
            y = y.index_select(axis + 2, index.to(y.device))
        return y

    def inside(self, x: Tensor, space: Sequence[int], factor: Sequence[int]) -> Tensor:
        """What of an image of continued data belongs to data of space ``space``."""
        for axis, (n, f) in enumerate(zip(space, factor, strict=True), 2):
            x = x.narrow(axis, self.margin * f, n * f)
        return x


@dataclass(frozen=True)
class Tiles:
    """Tiles of the data and of its first image.

    Attributes
    ----------
    data, first : Tensor
        (N, 1, *tile) and (N, 1, *(tile * factor)), the latter on the block grid.
    physics : Physics
        From the inner part of a tile's image to the inner part of its data.
    data_window, image_window : tuple of slice
        The inner parts, as indices into batches.
    border : Border
        What lies outside the inner part of the data.
    """

    data: Tensor
    first: Tensor
    physics: Physics
    data_window: tuple[Any, ...]
    image_window: tuple[Any, ...]
    border: Border

    def draw(
        self, count: int, generator: torch.Generator, channels: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Data and first images of ``count`` random tiles, or a few more.

        The ``channels`` of one place are drawn together and follow each other.
        """
        places = torch.randint(
            len(self.data) // channels, (-(-count // channels), 1), generator=generator
        )
        drawn = (places * channels + torch.arange(channels)).flatten().to(self.data.device)
        return self.data[drawn], self.first[drawn]

    def cropped(self, size: Sequence[int]) -> Tiles:
        """The first corner of each tile, this many data samples; the inner parts are not cut."""
        fine = [n * f // m for n, f, m in zip(
            size, self.first.shape[2:], self.data.shape[2:], strict=True
        )]
        data: Any = (..., *(slice(n) for n in size))
        image: Any = (..., *(slice(n) for n in fine))
        return dataclasses.replace(self, data=self.data[data], first=self.first[image])


def as_single(x: Tensor) -> Tensor:
    """Channels as images of their own, (B C, 1, *space)."""
    return x.reshape(-1, 1, *x.shape[2:])


def first_image(y: Tensor, factor: tuple[int, ...]) -> Tensor:
    """Cubic spline through data (B, C, *space) on the block grid (see `physics.blocks`)."""
    fine = tuple(n * f for n, f in zip(y.shape[2:], factor, strict=True))
    return spline_resample(y, fine, factor, tuple((f - 1) / 2 for f in factor), "nearest")


def cut_tiles(
    y: Tensor, physics: Physics, edge: int, multiple: tuple[int, ...] | None = None
) -> Tiles:
    """Half-overlapping tiles of ``edge`` data samples (fewer where the data are smaller).

    Parameters
    ----------
    multiple : tuple of int, optional
        The edges are whole multiples of these, one per axis.

    Raises
    ------
    InvalidInput
        If the operator is not the same everywhere, or sees further than a tile.

    Examples
    --------
    >>> from napari_invprior.physics.superresolution import (
    ...     SuperResolution, SuperResolutionParameters)
    >>> physics = SuperResolution(SuperResolutionParameters(factor=2), ndim=2)
    >>> tiles = cut_tiles(torch.rand(1, 1, 20, 30), physics, 12)
    >>> tiles.data.shape, tiles.first.shape
    (torch.Size([12, 1, 12, 12]), torch.Size([12, 1, 24, 24]))
    """
    if physics.mask is not None:
        raise InvalidInput(
            "a network needs an operator that is the same everywhere; masks are not, choose "
            "another prior"
        )
    space = tuple(y.shape[2:])
    factor = block_factor(physics)
    size = tuple(
        min(edge, n) // m * m for n, m in zip(space, multiple or (1,) * len(space), strict=True)
    )
    if min(size) < SMALLEST_TILE:
        raise InvalidInput(f"data of {space} px are too small; {SMALLEST_TILE} px per axis needed")
    part, data_window, image_window = _inner_operator(physics, size, factor)
    starts = [
        sorted({*range(0, n - t + 1, max(1, t // 2)), n - t})
        for n, t in zip(space, size, strict=True)
    ]
    data, first = as_single(y), first_image(as_single(y), factor)
    found = []
    for corner in itertools.product(*starts):
        coarse = tuple(slice(c, c + t) for c, t in zip(corner, size, strict=True))
        fine = tuple(
            slice(c * f, (c + t) * f) for c, t, f in zip(corner, size, factor, strict=True)
        )
        found.append((data[(..., *coarse)], first[(..., *fine)]))  # type: ignore[index]
    return Tiles(
        torch.cat([a for a, _ in found]).contiguous(),
        torch.cat([b for _, b in found]).contiguous(),
        part, data_window, image_window,
        Border(data_window[2].start, physics.boundary == "circular"),
    )


def _inner_operator(
    physics: Physics, size: tuple[int, ...], factor: tuple[int, ...]
) -> tuple[Physics, tuple[Any, ...], tuple[Any, ...]]:
    """Operator of the largest inner window of a tile's data that looks at the tile alone."""
    fine = tuple(t * f for t, f in zip(size, factor, strict=True))
    shift = block_shift(physics)
    beyond = tuple(t + 1 for t in size)  # never the whole of the data
    for margin in range(min(size) // 2):
        window = tuple(slice(margin, t - margin) for t in size)
        piece = take_piece(physics, window, beyond)
        start = tuple(a + s for a, s in zip(piece.image_start, shift, strict=True))
        piece = dataclasses.replace(piece, image_start=start)
        if piece.lies_inside(fine):
            batch = (slice(None), slice(None))
            return piece.physics, (*batch, *window), piece.image_window
    raise InvalidInput(
        f"the operator looks at {physics.reach()} px, more than a tile of {size} data samples; "
        "choose larger tiles"
    )
