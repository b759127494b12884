"""Coverage and ranks: exact where samples and truth come from the same distribution."""

from __future__ import annotations

import numpy as np
import pytest

from napari_invprior.posterior.calibration import (
    calibration,
    exceedance,
    interval,
    quantile_images,
)

SHAPE = (1, 1, 60, 50)


def slabs(samples: np.ndarray, step: int = 17) -> list[tuple[slice, np.ndarray]]:
    n = samples.shape[3]
    parts = [slice(a, min(a + step, n)) for a in range(0, n, step)]
    return [(part, samples[:, :, :, part]) for part in parts]


@pytest.mark.parametrize("count", [19, 64])
def test_a_calibrated_posterior_covers_what_it_promises(count: int) -> None:
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(count, *SHAPE)), rng.normal(size=SHAPE)
    found = calibration(slabs(samples), truth)
    for level, share in found["coverage"].items():
        if count >= 2 / (1 - float(level)) - 1:
            assert share == pytest.approx(float(level), abs=0.025)
    assert sum(found["ranks"]) == pytest.approx(1)
    assert np.ptp(found["ranks"]) < 0.07


def test_a_posterior_that_is_too_narrow_or_off_is_seen() -> None:
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(64, *SHAPE)), rng.normal(size=SHAPE)
    narrow = calibration(slabs(0.3 * samples), truth)
    assert narrow["coverage"]["0.9"] < 0.5
    assert narrow["ranks"][0] + narrow["ranks"][-1] > 0.5
    shifted = calibration(slabs(samples), truth + 2)
    assert shifted["ranks"][-1] > 0.4


def test_parts_and_rim_agree_with_the_whole() -> None:
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(20, *SHAPE)), rng.normal(size=SHAPE)
    whole = calibration(slabs(samples[..., 5:-5, 5:-5], 100), truth[..., 5:-5, 5:-5])
    assert calibration(slabs(samples), truth, rim=5) == whole
    found = quantile_images(slabs(samples), [0.05, 0.5, 0.95], SHAPE)
    assert np.allclose(found[[0, 2]], interval(samples, 0.9), atol=1e-6)
    assert np.allclose(exceedance(slabs(samples), 0.2, SHAPE), (samples > 0.2).mean(0))


def test_one_sample_gives_finite_numbers() -> None:
    samples = np.ones((1, *SHAPE))
    found = calibration(slabs(samples), np.zeros(SHAPE))
    assert found["coverage"]["0.9"] == 0
    assert np.isfinite(quantile_images(slabs(samples), [0.05, 0.95], SHAPE)).all()
