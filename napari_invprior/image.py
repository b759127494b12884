"""An image as the engine sees it: samples, channels, frames, placement and intensity scale."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from napari_invprior.geometry import Geometry


@dataclass(frozen=True)
class Image:
    """Samples of one or several frames.

    Attributes
    ----------
    array : numpy.ndarray
        (frames, channels, *space) in the user's own numbers and type; never written to.
    geometry : Geometry
        Placement of the space axes.
    value_range : tuple of float
        The values that map to 0 and 1.
    name : str
        For messages.
    frame_axes : tuple of int
        Lengths of the leading axes (time, position, ...) that were flattened into frames.
    channel_axis : int or None
        Axis of the user's array that held the channels; None when there was none.
    rgb : bool
        Whether the channels are colours on the last axis.
    """

    array: np.ndarray
    geometry: Geometry
    value_range: tuple[float, float]
    name: str = "image"
    frame_axes: tuple[int, ...] = ()
    channel_axis: int | None = None
    rgb: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ndim(self) -> int:
        """Space dimensions."""
        return self.array.ndim - 2

    @property
    def space(self) -> tuple[int, ...]:
        """Shape of the space axes."""
        return self.array.shape[2:]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.array.shape[1])

    def normalised(self) -> np.ndarray:
        """A float32 copy with ``value_range`` mapped to [0, 1]."""
        low, high = self.value_range
        return ((self.array.astype(np.float64) - low) / (high - low)).astype(np.float32)

    def digest(self) -> str:
        """SHA-256 of shape, type and samples; recorded as provenance."""
        digest = hashlib.sha256(f"{self.array.shape}{self.array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(self.array).data)
        return digest.hexdigest()


def denormalised(values: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Map [0, 1] back to the user's numbers (float32)."""
    low, high = value_range
    return (values * (high - low) + low).astype(np.float32)
