"""A set of points as the engine sees it: coordinates of the user, and a name for messages."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from napari_invprior.errors import InvalidInput

MOST_POINTS, MOST_COORDINATES = 1_000_000, 100


@dataclass(frozen=True)
class PointSet:
    """Points in pixels of an image, or in coordinates of their own.

    Attributes
    ----------
    array : numpy.ndarray
        (n, d), float64, finite.
    name : str
        For messages.
    """

    array: np.ndarray
    name: str = "points"

    @property
    def ndim(self) -> int:
        """Coordinates of a point."""
        return int(self.array.shape[1])

    def __len__(self) -> int:
        return len(self.array)

    def digest(self) -> str:
        """SHA-256 of shape and coordinates; recorded as provenance."""
        digest = hashlib.sha256(str(self.array.shape).encode())
        digest.update(np.ascontiguousarray(self.array).data)
        return digest.hexdigest()


def point_set(array: np.ndarray, name: str) -> PointSet:
    """Points from an array of a file, a layer or a script.

    Raises
    ------
    InvalidInput
        If it is no (n, d) array of finite real numbers, or has far too many of them.

    Examples
    --------
    >>> len(point_set(np.zeros((5, 2)), "five"))
    5
    """
    array = np.asarray(array)
    if array.ndim != 2 or array.dtype.kind not in "iuf" or 0 in array.shape:
        raise InvalidInput(
            f"{name}: an array of shape {array.shape} and type {array.dtype} is no set of points; "
            "give one row of coordinates for each point"
        )
    if len(array) > MOST_POINTS or array.shape[1] > MOST_COORDINATES:
        raise InvalidInput(
            f"{name}: {len(array)} points of {array.shape[1]} coordinates; at most {MOST_POINTS} "
            f"points of {MOST_COORDINATES} coordinates can be used"
        )
    values = array.astype(np.float64)
    broken = int((~np.isfinite(values)).any(1).sum())
    if broken:
        raise InvalidInput(
            f"{name}: {broken} points have coordinates that are NaN or infinite; remove them"
        )
    return PointSet(values, name)
