"""A stack of planes that are read one by one: pages of a TIFF, or files of a folder."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

HELD = 256 << 20
"""Bytes of planes that are kept after they were read, because neighbours ask for them again."""


class Planes:
    """An array whose last axes are planes, read when they are needed.

    Parameters
    ----------
    shape : tuple of int
        Of the whole.
    dtype : numpy.dtype
        Of the samples.
    read : callable
        Reads the plane of a number, counted in C order over the leading axes.
    plane : int
        Axes of one plane.

    Examples
    --------
    >>> stack = Planes((3, 2, 4), np.dtype(int), lambda number: np.full((2, 4), number), 2)
    >>> stack[1:, 0, :2].tolist()
    [[1, 1], [2, 2]]
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], read: Callable[[int], np.ndarray],
        plane: int,
    ) -> None:
        self.shape, self.dtype, self.ndim = tuple(shape), np.dtype(dtype), len(shape)
        self._read, self._lead = read, len(shape) - plane
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        size = math.prod(self.shape[self._lead :]) * self.dtype.itemsize
        self._most = max(1, HELD // max(1, size))

    def __getitem__(self, index: Any) -> np.ndarray:
        """Whole numbers and slices; planes that are not asked for are not read."""
        given = index if isinstance(index, tuple) else (index,)
        if Ellipsis in given:
            place = given.index(Ellipsis)
            given = (*given[:place], *(slice(None),) * (self.ndim - len(given) + 1),
                     *given[place + 1 :])
        full = (*given, *(slice(None),) * (self.ndim - len(given)))
        inner = full[self._lead :]
        numbers = np.arange(math.prod(self.shape[: self._lead])).reshape(self.shape[: self._lead])
        wanted = numbers[full[: self._lead]]
        planes = [self._plane(int(number))[inner] for number in np.ravel(wanted)]
        if not planes:
            empty = np.empty(self.shape[self._lead :], self.dtype)[inner]
            return np.empty((*np.shape(wanted), *empty.shape), self.dtype)
        return np.stack(planes).reshape(*np.shape(wanted), *planes[0].shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype=dtype)

    def _plane(self, number: int) -> np.ndarray:
        with self._lock:  # readers hold one open file
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            found = self._kept[number] = self._read(number)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return found
