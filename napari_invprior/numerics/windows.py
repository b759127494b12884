"""Boxes in images: where a random one begins, and the slices that cut it out."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def random_corner(
    space: Sequence[int], shape: Sequence[int], generator: torch.Generator
) -> tuple[int, ...]:
    """Where a random box of a shape begins in an image, all places equally likely.

    Examples
    --------
    >>> random_corner((5, 8), (5, 8), torch.Generator())
    (0, 0)
    """
    return tuple(
        int(torch.randint(n - s + 1, (), generator=generator))
        for n, s in zip(space, shape, strict=True)
    )


def box(corner: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """Slices of the box of a shape that begins at a corner.

    Examples
    --------
    >>> box((1, 2), (3, 4))
    (slice(1, 4, None), slice(2, 6, None))
    """
    return tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))
