"""The kernel two-sample test: its statistic, its level and its power."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import kstest

from napari_invprior.errors import InvalidInput
from napari_invprior.transport.kernel_sums import two_sample
from napari_invprior.transport.kernel_sums.two_sample import two_sample_test


def normal(n: int, d: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn((d, n), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("method", ["dense", "sliced"])
def test_statistic_is_the_energy_distance(method: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = normal(50, 2, generator), normal(60, 2, generator) + 0.4
    a, b, c = (cdist(p.T, q.T) for p, q in ((x, x), (y, y), (x, y)))
    right = 2 * c.mean() - a.sum() / (50 * 49) - b.sum() / (60 * 59)
    found = two_sample_test(x, y, "energy", method=method, slices=100)
    assert found.statistic == pytest.approx(right, rel=1e-9 if method == "dense" else 0.02)


@pytest.mark.parametrize(("kernel", "slices"), [("gauss", None), ("energy", 16)])
def test_p_values_are_uniform_under_the_null(kernel: str, slices: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [
        two_sample_test(
            normal(12, 2, generator), normal(15, 2, generator), kernel, permutations=39,
            generator=generator, slices=slices, method="sliced" if slices else "dense",
        ).p_value
        for _ in range(200)
    ]
    assert min(values) >= 1 / 40
    # they are multiples of 1 / 40: moved into the middle of their steps
    assert kstest(np.array(values) - 1 / 80, "uniform").pvalue > 0.01
    assert np.mean(np.array(values) <= 0.05) < 0.09


@pytest.mark.parametrize("kernel", ["gauss", "energy", "laplace"])
def test_finds_a_shift_and_a_wider_spread(kernel: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = normal(150, 4, generator)
    for other in (normal(150, 4, generator) + 0.4, 1.5 * normal(150, 4, generator)):
        found = two_sample_test(x, other, kernel)
        assert found.p_value < 0.01
        assert found.statistic > found.quantiles()[-1]
    same = two_sample_test(x, normal(150, 4, generator), kernel)
    assert same.p_value > 0.05
    assert same.quantiles() == sorted(same.quantiles())
    assert len(same.null) == 200


@pytest.mark.parametrize("method", ["dense", "sliced"])
def test_batches_change_nothing(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = normal(30, 3, generator), normal(20, 3, generator)
    whole = two_sample_test(x, y, "energy", method=method, slices=24)
    monkeypatch.setattr(two_sample, "BATCH_NUMBERS", 7 * 50)
    parts = two_sample_test(x, y, "energy", method=method, slices=24)
    assert parts.p_value == whole.p_value
    assert torch.allclose(parts.null, whole.null)


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros((2, 5))
    for given in ((x, x[:, :1]), (x, x[:1]), (x[0], x[0])):
        with pytest.raises(InvalidInput, match="two points"):
            two_sample_test(*given)
    with pytest.raises(InvalidInput, match="permutations = 0"):
        two_sample_test(x, x, permutations=0)
    with pytest.raises(InvalidInput, match="not finite"):
        two_sample_test(x, x / 0)


def test_whole_groups_change_sides() -> None:
    generator = torch.Generator().manual_seed(0)
    # twelve copies of each of eight draws: as single points they would prove anything
    alone, grouped = [], []
    for _ in range(40):
        x, y = (normal(8, 2, generator).repeat_interleave(12, 1) for _ in range(2))
        groups = torch.arange(8).repeat_interleave(12)
        options: dict[str, Any] = {"permutations": 39, "generator": generator}
        alone.append(two_sample_test(x, y, "energy", **options).p_value)
        grouped.append(
            two_sample_test(x, y, "energy", groups=(groups, groups), **options).p_value
        )
    assert np.mean(np.array(alone) <= 0.05) > 0.5
    assert np.mean(np.array(grouped) <= 0.05) < 0.15
