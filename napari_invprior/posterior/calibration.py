"""Do the intervals hold what they promise? Coverage and ranks of a truth among samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Central intervals that are checked."""
RANK_BINS = 10

Slabs = Iterable[tuple[slice, np.ndarray]]
"""Parts of the first space axis and the samples there, (S, frames, C, *part)."""


def interval(samples: np.ndarray, level: float) -> np.ndarray:
    """Ends of the central interval of each image sample: (2, ...), from samples (S, ...).

    Order statistics at ``p (S + 1)``: with independent samples and a truth from the same posterior,
    the interval holds the truth with probability ``level`` for any number of samples (as long as
    they are many enough: 19 for 0.9).

    Examples
    --------
    >>> interval(np.arange(1.0, 20.0), 0.9).tolist()
    [1.0, 19.0]
    """
    ends = [(1 - level) / 2, (1 + level) / 2]
    return np.quantile(samples, ends, axis=0, method="weibull")


def quantile_images(slabs: Slabs, probabilities: Sequence[float], shape: tuple[int, ...]) -> Any:
    """Quantiles of each image sample: (len(probabilities), *shape), ``shape`` (frames, C, *space).

    Raises nothing for one sample: all quantiles are that sample.
    """
    found = np.empty((len(probabilities), *shape), np.float32)
    for part, samples in slabs:
        found[:, :, :, part] = np.quantile(samples, probabilities, axis=0, method="weibull")
    return found


def exceedance(slabs: Slabs, threshold: float, shape: tuple[int, ...]) -> Any:
    """Share of the samples above a threshold at each image sample: (frames, C, *space)."""
    found = np.empty(shape, np.float32)
    for part, samples in slabs:
        found[:, :, part] = (samples > threshold).mean(0)
    return found


def calibration(slabs: Slabs, truth: np.ndarray, rim: int = 0) -> dict[str, Any]:
    """Coverage of central intervals and the rank histogram of a truth (frames, C, *space).

    Returns
    -------
    dict
        ``coverage``: share of the image samples whose interval holds the truth, by level;
        ``ranks``: share of the image samples in each of ten bins of the truth's rank among the
        samples (flat where the posterior is calibrated, a bowl where it is too narrow).
    """
    held = dict.fromkeys(LEVELS, 0)
    ranks, total = np.zeros(RANK_BINS), 0
    for part, samples in slabs:
        inside, count = _inner(part, rim, truth.shape[2:])
        if count == 0:
            continue
        values, true = samples[inside], truth[:, :, part][inside[1:]]
        for level in LEVELS:
            low, high = interval(values, level)
            held[level] += int(((true >= low) & (true <= high)).sum())
        rank = (values < true).sum(0) + 0.5 * (values == true).sum(0)
        bins = np.minimum(rank / (len(values) + 1e-9) * RANK_BINS, RANK_BINS - 1).astype(int)
        ranks += np.bincount(bins.ravel(), minlength=RANK_BINS)
        total += true.size
    total = max(total, 1)
    return {
        "coverage": {f"{level:g}": held[level] / total for level in LEVELS},
        "ranks": [float(v) for v in ranks / total],
    }


def _inner(part: slice, rim: int, space: tuple[int, ...]) -> tuple[tuple[slice, ...], int]:
    """Index of what lies inside the rim in a part of the first space axis, and its length there."""
    start = max(rim, part.start) - part.start
    stop = min(space[0] - rim, part.stop) - part.start
    rest = tuple(slice(rim, n - rim) for n in space[1:])
    return (slice(None), slice(None), slice(None), slice(start, stop), *rest), max(0, stop - start)
