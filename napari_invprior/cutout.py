"""Where an image lies in the whole that it was cut from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cutout:
    """The place of an image in a larger one, so that what is done to it is done as to the whole.

    Random grids of patches then lie as they would in the whole, and means over all samples or
    patches count those of the whole.

    Attributes
    ----------
    start : tuple of int
        Sample of the whole at which the image begins, per space axis.
    whole : tuple of int
        Space shape of the whole.

    Examples
    --------
    >>> Cutout((4, 0), (20, 9)).aligned((1, 2), (3, 3))
    (0, 2)
    """

    start: tuple[int, ...]
    whole: tuple[int, ...]

    def aligned(self, offset: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
        """First sample of the image on the grid of the whole with this offset and stride."""
        return tuple(
            (o - a) % s for o, a, s in zip(offset, self.start, stride, strict=True)
        )

    def padded(self, margins: Sequence[tuple[int, int]]) -> Cutout:
        """The place of the image with a rim, in the whole with the same rim."""
        whole = tuple(n + sum(m) for n, m in zip(self.whole, margins, strict=True))
        return Cutout(self.start, whole)
