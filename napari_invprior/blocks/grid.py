"""How a volume is divided: blocks of the image, and the data that each of them needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from napari_invprior.errors import InvalidInput

Window = tuple[slice, ...]


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes
    ----------
    index, frame : int
        Its number, and the frame that it belongs to.
    place : tuple of int
        Its place on the grid of blocks.
    core : tuple of slice
        Data samples that belong to it alone.
    window : tuple of slice
        Data samples that it is computed from: the core and a halo, as far as there are data.
    target : tuple of slice
        Samples of the image that it gives.
    start : tuple of int
        Sample of the image at which that of the window begins.
    """

    index: int
    frame: int
    place: tuple[int, ...]
    core: Window
    window: Window
    target: Window
    start: tuple[int, ...]

    @property
    def inner(self) -> Window:
        """The target as a part of the window's image."""
        return tuple(
            slice(t.start - a, t.stop - a) for t, a in zip(self.target, self.start, strict=True)
        )


@dataclass(frozen=True)
class BlockGrid:
    """Blocks of equal size, the last ones smaller; each with a halo of data around it.

    Along an axis that may be cut, data sample ``j`` belongs to the image samples ``j * factor`` and
    the ``factor - 1`` behind it (the last one to all that are left). Other axes stay whole.

    Attributes
    ----------
    frames : int
        Frames of the data, blocks of their own.
    data, image : tuple of int
        Space shapes of data and image.
    factor : tuple of int
        Image samples per data sample along each axis.
    core, halo : tuple of int
        Data samples of a block, and beyond it on each side.
    period : int
        Windows begin at multiples of so many data samples.
    divisible : tuple of bool
        Whether an axis may be cut.

    Examples
    --------
    >>> grid = BlockGrid(1, (10, 8), (20, 16), (2, 2), (4, 8), (1, 1), 1, (True, True))
    >>> grid.counts, grid.block(1).window, grid.block(1).target
    ((3, 1), (slice(3, 9, None), slice(0, 8, None)), (slice(8, 16, None), slice(0, 16, None)))
    """

    frames: int
    data: tuple[int, ...]
    image: tuple[int, ...]
    factor: tuple[int, ...]
    core: tuple[int, ...]
    halo: tuple[int, ...]
    period: int
    divisible: tuple[bool, ...]

    def __post_init__(self) -> None:
        for n, core, halo, cut in zip(
            self.data, self.core, self.halo, self.divisible, strict=True
        ):
            if core < 1 or halo < 0 or (not cut and core < n):
                raise InvalidInput(
                    f"blocks of {self.core} data samples with a halo of {self.halo} do not fit "
                    f"data of {self.data} of which {self.divisible} may be cut; give at least 1 "
                    "and a halo of at least 0, and leave the other axes whole"
                )

    @property
    def counts(self) -> tuple[int, ...]:
        """Blocks along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.data, self.core, strict=True))

    @property
    def count(self) -> int:
        """All blocks."""
        return self.frames * math.prod(self.counts)

    def block(self, index: int) -> Block:
        """The block of this number.

        Raises
        ------
        InvalidInput
            If there is none.
        """
        if not 0 <= index < self.count:
            raise InvalidInput(f"block {index}: there are {self.count}, the first one is 0")
        frame, *place = (int(i) for i in np.unravel_index(index, (self.frames, *self.counts)))
        core, window, target, start = [], [], [], []
        for axis, (i, n, c, h, f) in enumerate(
            zip(place, self.data, self.core, self.halo, self.factor, strict=True)
        ):
            first, last = i * c, min((i + 1) * c, n)
            begin = max(0, first - h) // self.period * self.period
            end = min(n, last + h)
            core.append(slice(first, last))
            window.append(slice(begin, end))
            ends = last == n
            target.append(slice(first * f, self.image[axis] if ends else last * f))
            start.append(begin * f)
        return Block(
            index, frame, tuple(place), tuple(core), tuple(window), tuple(target), tuple(start)
        )

    def __iter__(self) -> Iterator[Block]:
        return map(self.block, range(self.count))

    @property
    def largest_window(self) -> int:
        """Data samples of the largest window."""
        return math.prod(
            min(n, c + 2 * h + self.period - 1)
            for n, c, h in zip(self.data, self.core, self.halo, strict=True)
        )
