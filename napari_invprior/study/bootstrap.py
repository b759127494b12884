"""Bootstrap intervals over images: how far a mean would move with other images of the kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 9999
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over images and the bootstrap interval around it."""

    mean: float
    low: float
    high: float


def mean_interval(
    values: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Percentile bootstrap interval of the mean; None for fewer than two values.

    Two calls with as many values draw the same images, so that methods are compared on equal terms.

    Examples
    --------
    >>> interval = mean_interval([1.0, 2.0, 3.0, 4.0])
    >>> interval.mean, interval.low < 2.5 < interval.high
    (2.5, True)
    """
    numbers = np.asarray(values, float)
    if len(numbers) < 2:
        return None
    draws = np.random.default_rng(seed).integers(len(numbers), size=(resamples, len(numbers)))
    low, high = np.quantile(numbers[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(numbers.mean()), float(low), float(high))


def paired_interval(
    values: Sequence[float], rival: Sequence[float], **options: int | float
) -> Interval | None:
    """Interval of the mean difference ``values - rival``, image by image.

    Images differ more among each other than methods do on one image: an interval of the difference
    that leaves 0 out tells methods apart whose own intervals overlap.

    Examples
    --------
    >>> paired_interval([1.0, 5.0, 9.0], [2.0, 6.0, 10.0])
    Interval(mean=-1.0, low=-1.0, high=-1.0)
    """
    differences = [a - b for a, b in zip(values, rival, strict=True)]
    return mean_interval(differences, **options)  # type: ignore[arg-type]
