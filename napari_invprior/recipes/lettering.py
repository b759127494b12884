"""Where numbers fit into a picture of cells, and beside the dots on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from napari_invprior.recipes.drawing import Panel, Words


@dataclass(frozen=True)
class Box:
    """Room that a text takes: its middle and half its sides.

    Examples
    --------
    >>> Box(0, 0, 2, 1).overlap(Box(3, 0, 2, 1))
    2
    """

    x: float
    y: float
    wide: float
    high: float

    def overlap(self, other: Box) -> float:
        """Area that both take."""
        wide = min(self.x + self.wide, other.x + other.wide) - max(
            self.x - self.wide, other.x - other.wide
        )
        high = min(self.y + self.high, other.y + other.high) - max(
            self.y - self.high, other.y - other.high
        )
        return max(wide, 0) * max(high, 0)


def depths(label: np.ndarray) -> np.ndarray:
    """About how many samples each one is away from another label or the edge.

    Examples
    --------
    >>> depths(np.zeros((5, 5), int))[2].tolist()
    [0, 1, 2, 1, 0]
    """
    depth = np.zeros(label.shape, np.int32)
    padded = np.pad(label, 1, constant_values=-2)
    inside = np.ones(label.shape, bool)
    for near in _shifted(padded, False):
        inside &= near == label
    corners = True
    while inside.any():
        depth += inside
        padded = np.pad(inside, 1)
        for near in _shifted(padded, corners):
            inside = inside & near
        corners = not corners  # octagons are rounder than squares
    return depth


def _shifted(padded: np.ndarray, corners: bool) -> Iterator[np.ndarray]:
    """The neighbours of all samples, one direction after another."""
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    for down in (0, 1, 2):
        for right in (0, 1, 2):
            if (down, right) != (1, 1) and (corners or 1 in (down, right)):
                yield padded[down : down + height, right : right + width]


def widest(mask: np.ndarray, depth: np.ndarray) -> tuple[float, float, float]:
    """Row and column of the middle of the deepest place of a mask, and its depth.

    Examples
    --------
    >>> label = np.zeros((5, 5), int)
    >>> widest(label == 0, depths(label))
    (2.5, 2.5, 2.0)
    """
    inside = np.where(mask, depth, -1)
    most = int(inside.max())
    if most < 1:
        return 0, 0, 0
    rows, columns = np.nonzero(inside >= most - (most > 4))
    row, column = rows.mean(), columns.mean()
    at = int(((rows - row) ** 2 + (columns - column) ** 2).argmin())
    deep = inside[rows[at], columns[at]]
    return float(rows[at] + 0.5), float(columns[at] + 0.5), float(deep)


def free_place(
    x: float, y: float, gap: float, size: Box, taken: Sequence[Box], panel: Panel
) -> Box:
    """The place around a dot where a text hides least.

    Examples
    --------
    >>> panel = Panel(0, 0, 100, 4.0)
    >>> free_place(99, 50, 2, text_box("7", 10), [], panel).x < 99
    True
    """
    best, least = None, math.inf
    for angle in np.radians([-45, 0, -90, 45, 180, 135, -135, 90]):
        at_x = x + (gap + size.wide) * math.cos(angle)
        at_y = y + (gap + size.high) * math.sin(angle)
        box = Box(at_x, at_y, size.wide, size.high)
        hidden = sum(box.overlap(other) for other in taken)
        for start, at, half in ((panel.left, at_x, size.wide), (panel.top, at_y, size.high)):
            hidden += 100 * max(0, start - at + half, at + half - start - panel.edge)
        if hidden < least:
            best, least = box, hidden
    assert best is not None
    return best


def half_size(text: str, size: float) -> tuple[float, float]:
    """Half the width and the height of digits.

    Examples
    --------
    >>> half_size("12", 10)
    (5.8, 3.7)
    """
    return 0.29 * size * len(text), 0.37 * size


def text_box(text: str, size: float) -> Box:
    """Room of digits around the origin.

    Examples
    --------
    >>> text_box("12", 10).wide
    5.8
    """
    return Box(0, 0, *half_size(text, size))


def centred(
    text: str, x: float, y: float, size: float, ink: str, halo: float = 0.0
) -> Words:
    """Digits with their middle at a place.

    Examples
    --------
    >>> centred("1", 0, 0, 10, "#000000").anchor
    'middle'
    """
    return Words(x, y + 0.355 * size, text, size, ink, "middle", halo)
