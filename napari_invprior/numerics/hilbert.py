"""A curve through all cells of a grid that keeps neighbours together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def hilbert_order(shape: Sequence[int]) -> np.ndarray:
    """Flat indices of the cells of a grid in the order in which Hilbert's curve meets them.

    The curve is that of the smallest cube with a power of two as its edge; cells outside the grid
    are left out.

    References
    ----------
    Skilling, Programming the Hilbert curve, AIP Conference Proceedings 707, 2004.

    Examples
    --------
    >>> hilbert_order((2, 2)).tolist()
    [0, 1, 3, 2]
    """
    ndim, bits = len(shape), max(1, math.ceil(math.log2(max(shape))))
    cells = np.indices(shape, dtype=np.int64).reshape(ndim, -1)
    _transpose(cells, bits)
    place = np.zeros(cells.shape[1], dtype=np.int64)
    for bit in range(bits - 1, -1, -1):
        for axis in range(ndim):
            place = (place << 1) | ((cells[axis] >> bit) & 1)
    return np.argsort(place, kind="stable")


def _transpose(cells: np.ndarray, bits: int) -> None:
    """Turn coordinates into the bits of the place on the curve, axis by axis, in place."""
    for level in range(bits - 1, 0, -1):
        low = (1 << level) - 1
        for axis in range(len(cells)):
            high = (cells[axis] >> level) & 1
            swap = np.where(high, 0, (cells[0] ^ cells[axis]) & low)
            cells[0] ^= np.where(high, low, swap)
            cells[axis] ^= swap
    for axis in range(1, len(cells)):
        cells[axis] ^= cells[axis - 1]
    turn = np.zeros(cells.shape[1], dtype=np.int64)
    for level in range(bits - 1, 0, -1):
        turn ^= np.where((cells[-1] >> level) & 1, (1 << level) - 1, 0)
    cells ^= turn
