"""A rectangular piece of the data with the operator that belongs to it alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from napari_invprior.physics.base import Physics


@dataclass(frozen=True)
class Piece:
    """Part of a problem.

    Attributes
    ----------
    physics : Physics
        Operator of the piece (the whole operator itself when the piece is all of the data).
    data_window : tuple of slice
        Space slices of the data.
    image_start : tuple of int
        Sample of the whole image at which the piece's image begins; it may be negative, because
        an operator looks beyond the border of the image.
    image_shape : tuple of int
        Space shape of the piece's image.
    """

    physics: Physics
    data_window: tuple[slice, ...]
    image_start: tuple[int, ...]
    image_shape: tuple[int, ...]

    @property
    def data_index(self) -> tuple[slice, ...]:
        """Index into (B, C, *space) data."""
        return (slice(None), slice(None), *self.data_window)

    @property
    def image_window(self) -> tuple[slice, ...]:
        """Index into the whole (B, C, *space) image; only for pieces inside it."""
        return (
            slice(None),
            slice(None),
            *(slice(a, a + n) for a, n in zip(self.image_start, self.image_shape, strict=True)),
        )

    def lies_inside(self, shape: tuple[int, ...]) -> bool:
        """Whether the piece's image does not leave an image of space ``shape``."""
        ends = (a + n for a, n in zip(self.image_start, self.image_shape, strict=True))
        return min(self.image_start) >= 0 and all(e <= n for e, n in zip(ends, shape, strict=True))


def take_piece(physics: Physics, window: tuple[slice, ...], data_space: tuple[int, ...]) -> Piece:
    """The piece of the problem that explains the data in ``window``."""
    sizes = tuple(w.stop - w.start for w in window)
    if sizes == tuple(data_space):
        shape = physics.in_shape(data_space)
        return Piece(physics, window, (0,) * len(window), shape)
    part, start = physics.restricted(window)
    return Piece(part, window, start, part.in_shape(sizes))


def representative_piece(y: Tensor, physics: Physics, image_samples: int = 150**2) -> Piece:
    """The piece of about ``image_samples`` whose contrast and mean are closest to the whole's.

    The whole is taken when it is not much larger. Pieces whose image would leave the whole are
    avoided.
    """
    space = tuple(y.shape[2:])
    image = physics.in_shape(space)
    cut = physics.divisible()
    share = (image_samples / math.prod(image)) ** (1 / max(1, sum(cut)))
    whole = tuple(slice(0, n) for n in space)
    sizes = tuple(
        min(n, max(8, round(n * share))) if divisible else n
        for n, divisible in zip(space, cut, strict=True)
    )
    if share > 0.8 or sizes == space:
        return take_piece(physics, whole, space)
    plane = y[0].mean(0).numpy(force=True).astype(np.float64)
    energy = np.sum([np.gradient(plane, axis=a) ** 2 for a in range(plane.ndim)], axis=0)
    starts = [
        sorted({round(t) for t in np.linspace(0, n - s, min(7, n - s + 1))})
        for n, s in zip(space, sizes, strict=True)
    ]
    found = []
    for corner in np.ndindex(*(len(s) for s in starts)):
        window = tuple(
            slice(starts[a][i], starts[a][i] + sizes[a]) for a, i in enumerate(corner)
        )
        mismatch = abs(math.log((energy[window].mean() + 1e-12) / (energy.mean() + 1e-12)))
        mismatch += abs(plane[window].mean() - plane.mean()) / (plane.std() + 1e-12)
        piece = take_piece(physics, window, space)
        found.append((not piece.lies_inside(image), mismatch, corner, piece))
    return min(found, key=lambda entry: entry[:3])[3]
