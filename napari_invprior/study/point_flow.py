"""Coordinates for flows of points: of unit size, whatever the user's own are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Frame(Protocol):
    """The way between the user's coordinates and those of about unit size, in which flows run."""

    def to_points(self, pixels: Tensor) -> Tensor:
        """The user's coordinates (d, N), made small."""
        ...

    def to_pixels(self, points: Tensor) -> Tensor:
        """The inverse."""
        ...


class BoxFrame:
    """The middle of a box becomes 0, its longest edge 1, as in `Density`.

    Parameters
    ----------
    clouds : sequence of Tensor
        (d, N) each; the box holds them all. Points that coincide keep their unit.

    Examples
    --------
    >>> frame = BoxFrame([torch.tensor([[0.0, 10.0], [0.0, 20.0]])])
    >>> frame.to_points(torch.tensor([[0.0], [20.0]])).tolist()
    [[-0.25], [0.5]]
    """

    def __init__(self, clouds: Sequence[Tensor]) -> None:
        joined = torch.cat([cloud.double() for cloud in clouds], 1)
        low, high = joined.amin(1, keepdim=True), joined.amax(1, keepdim=True)
        self.middle = (low + high) / 2
        self.longest = float((high - low).max()) or 1.0

    def to_points(self, pixels: Tensor) -> Tensor:
        """The user's coordinates (d, N), made small."""
        return (pixels.double() - self.middle) / self.longest

    def to_pixels(self, points: Tensor) -> Tensor:
        """The inverse."""
        return points.double() * self.longest + self.middle


def movie_rows(frames: Tensor, frame: Frame) -> np.ndarray:
    """All points of a movie (T, d, N) as rows: frame number, the user's coordinates.

    Examples
    --------
    >>> movie_rows(torch.zeros(2, 2, 1), BoxFrame([torch.full((2, 1), 3.0)])).tolist()
    [[0.0, 3.0, 3.0], [1.0, 3.0, 3.0]]
    """
    count, dim, particles = frames.shape
    flat = frames.permute(1, 0, 2).reshape(dim, -1)
    places = frame.to_pixels(flat).T.numpy(force=True)
    numbers = np.repeat(np.arange(count, dtype=np.float64), particles)
    return np.concatenate([numbers[:, None], places], 1).astype(np.float32)
