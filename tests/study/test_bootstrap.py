"""Intervals over images against scipy's, and what pairing gains."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from napari_invprior.study.bootstrap import mean_interval, paired_interval


@pytest.mark.parametrize("count", [4, 12, 60])
def test_intervals_agree_with_scipy(count: int) -> None:
    values = np.random.default_rng(count).gamma(2.0, 1.5, count)
    ours = mean_interval(values.tolist(), seed=1)
    theirs = stats.bootstrap(
        (values,), np.mean, confidence_level=0.95, n_resamples=9999, method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert ours is not None
    spread = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * spread)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * spread)
    assert ours.mean == pytest.approx(values.mean())


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(400):
        found = mean_interval(generator.normal(3.0, 1.0, 40).tolist(), resamples=500, seed=trial)
        assert found is not None
        held += found.low <= 3.0 <= found.high
    assert 0.90 <= held / 400 <= 0.98


def test_one_image_has_no_interval_and_a_seed_decides() -> None:
    assert mean_interval([3.0]) is None
    assert mean_interval([1.0, 2.0, 4.0], seed=5) == mean_interval([1.0, 2.0, 4.0], seed=5)
    assert mean_interval([1.0, 2.0, 4.0], seed=5) != mean_interval([1.0, 2.0, 4.1], seed=5)


def test_pairing_tells_apart_what_overlaps() -> None:
    generator = np.random.default_rng(3)
    images = generator.normal(30, 4, 12)
    good, poor = images + 0.2, images + generator.normal(0, 0.05, 12)
    first, second = mean_interval(good.tolist()), mean_interval(poor.tolist())
    gap = paired_interval(poor.tolist(), good.tolist())
    assert first is not None and second is not None and gap is not None
    assert first.low < second.high, "the intervals overlap"
    assert gap.high < 0
