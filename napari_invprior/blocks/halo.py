"""How far a border is felt: measured on the data at hand, by cutting them.

Every sample of an iterative result depends on all of the data, but less and less on those far
away: exponentially less, as long as data and noise hold the image together. So two bars of the
same data are computed, one of which begins a little later, and compared behind that cut.

Where an optimiser does not settle (a step of Adam on a network with kinks), rounding alone changes
its result by more than is asked for. That level is measured by changing the data by a millionth
of their noise, and blocks can be asked to agree no better than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from napari_invprior.errors import InvalidInput

MARGIN = 1.25
"""The halo over the distance at which a border is felt no more: one bar is not all of the data."""
SHARES = 1 / 10, 1 / 3
"""Of the tolerance; the first one that is reached, so that faces of blocks drown in rounding."""
RESTLESS = 3.0
"""Differences may be so many times what rounding alone makes, where that is more than is asked."""
RARE = 2.0
"""The level that is told, over that one: all of the data hold rarer cases than one bar."""


@dataclass(frozen=True)
class Reach:
    """What was measured.

    Attributes
    ----------
    halo : int
        Image samples that blocks need around them.
    level : float
        What blocks and the whole may differ by: the tolerance, or what rounding makes (of 0-1).
    curve : tuple of float
        Largest difference at each distance from a cut.
    """

    halo: int
    level: float
    curve: tuple[float, ...]


def difference_by_distance(whole: np.ndarray, part: np.ndarray, axis: int) -> np.ndarray:
    """Largest difference at each distance from the cut.

    Parameters
    ----------
    whole, part : numpy.ndarray
        ([C,] *space), ``part`` the last samples of ``whole`` along ``axis``.

    Examples
    --------
    >>> a = np.array([[0.0, 1.0, 2.0, 3.0]])
    >>> difference_by_distance(a, np.array([[1.5, 2.0, 3.0]]), 1).tolist()
    [0.5, 0.0, 0.0]
    """
    length = part.shape[axis]
    same = np.take(whole, range(whole.shape[axis] - length, whole.shape[axis]), axis)
    others = tuple(a for a in range(part.ndim) if a != axis % part.ndim)
    found: np.ndarray = np.abs(same - part).max(others)
    return found


def reach_of(
    curves: Sequence[np.ndarray], tolerance: float, restlessness: Callable[[], float]
) -> Reach:
    """The halo that brings all differences below the tolerance.

    Parameters
    ----------
    curves : sequence of numpy.ndarray
        `difference_by_distance`, one for each axis.
    tolerance : float
        What is asked for.
    restlessness : callable
        Measures what rounding alone changes; called where the curves do not reach the tolerance.

    Raises
    ------
    InvalidInput
        If borders are felt beyond the bars.

    Examples
    --------
    >>> decay = 0.1 * np.exp(-np.arange(60) / 2)
    >>> reach_of([decay], 1e-5, lambda: 0.0).halo
    31
    """
    length = max(len(curve) for curve in curves)
    worst = np.zeros(length)
    for curve in curves:
        worst[: len(curve)] = np.maximum(worst[: len(curve)], curve)
    behind = np.maximum.accumulate(worst[::-1])[::-1]  # the largest at this distance or beyond
    far = behind[length // 2]
    level = next((s for s in SHARES if far <= s * tolerance), SHARES[-1]) * tolerance
    if far > level:
        level = max(level, RESTLESS * restlessness())
    near = np.flatnonzero(behind <= level)
    if not len(near) or near[0] > length // 2:
        raise InvalidInput(
            f"a border is still felt {length // 2} samples away by {far:.1g} (of "
            f"0-1), more than blocks.tolerance = {tolerance:g}: this method needs the whole image "
            "at once; choose another solver or prior, or a larger tolerance"
        )
    halo = math.ceil(MARGIN * int(near[0])) + 1
    told = tolerance if level <= SHARES[-1] * tolerance else max(tolerance, RARE * level)
    return Reach(halo, told, tuple(float(v) for v in worst))
