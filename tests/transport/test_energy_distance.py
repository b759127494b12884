"""The energy distance and its gradient: all pairs, scipy, ties, types, strides, bad input."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_invprior.errors import InvalidInput
from napari_invprior.transport.sliced_flows import energy_distance as module
from napari_invprior.transport.sliced_flows import sorted_rows as lines
from napari_invprior.transport.sliced_flows.energy_distance import (
    Directions,
    SlicedTarget,
    energy_distance,
    energy_gradient,
    sliced_energy_distance,
    sliced_energy_gradient,
)
from napari_invprior.transport.sliced_flows.sorted_rows import SortedRows
from napari_invprior.transport.slices.directions import directions


def cloud(d: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn((d, n), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def on_lines(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """D^2 of each row over all pairs; autograd gives equal numbers no slope."""

    def mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a[:, :, None] - b[:, None]).abs().mean((1, 2))

    return mean(x, y) - (mean(x, x) + mean(y, y)) / 2


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)]
)
@pytest.mark.parametrize("levels", [0, 2])
def test_line_gradient_is_autograd_of_all_pairs(
    dtype: torch.dtype, tolerance: float, levels: int
) -> None:  # sheet 17, check 1
    x, y = (cloud(5, n, n, dtype) for n in (120, 90))
    if levels:  # many ties within and between both
        x, y = (x * levels).round() / levels, (y * levels).round() / levels
    exact = x.double().requires_grad_()
    value = on_lines(exact, y.double())
    value.sum().backward()
    target = SortedRows(y)
    assert float((target.gradient(x) - exact.grad).abs().max()) < tolerance
    assert torch.allclose(target.distance(x), value.detach(), atol=10 * tolerance)


@given(n=st.integers(1, 30), m=st.integers(1, 30), levels=st.integers(1, 4))
def test_line_gradient_with_any_numbers_and_ties(n: int, m: int, levels: int) -> None:
    x, y = (cloud(3, n) * levels).round(), (cloud(3, m, 1) * levels).round()
    exact = x.clone().requires_grad_()
    on_lines(exact, y).sum().backward()
    assert torch.allclose(SortedRows(y).gradient(x), exact.grad, atol=1e-12)


def test_identical_sets_have_no_distance_and_no_gradient() -> None:
    for x in (cloud(4, 50, dtype=torch.float32), torch.full((4, 50), 0.3)):
        target = SortedRows(x.flip(1))
        assert float(target.gradient(x).abs().max()) == 0
        assert float(target.distance(x).abs().max()) == 0
        assert float(energy_gradient(x, x).abs().max()) < 1e-6
        assert float(energy_distance(x, x)) == 0


def test_both_zeros_are_tied() -> None:
    x, y = torch.tensor([[0.0, -0.0, 1.0]]), torch.tensor([[-0.0, 0.0]])
    assert torch.equal(SortedRows(y).gradient(x), SortedRows(y.abs()).gradient(x.abs()))


def test_equals_scipy_on_the_line() -> None:  # sheet 17, check 4
    x, y = cloud(1, 300), 0.5 + 2 * cloud(1, 211, 1)
    expected = scipy.stats.energy_distance(x[0].numpy(), y[0].numpy()) ** 2 / 2
    line = torch.ones(1, 1, dtype=torch.float64)
    assert float(sliced_energy_distance(x, y, line)) == pytest.approx(expected, abs=1e-12)
    assert float(energy_distance(x, y)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dim", [2, 3, 10])
def test_many_slices_are_all_pairs(dim: int) -> None:
    x, y = cloud(dim, 80), cloud(dim, 60, 1) + 0.5
    xi = directions(20_000, dim, torch.Generator().manual_seed(0), dtype=torch.float64)
    value = float(energy_distance(x, y))
    assert float(sliced_energy_distance(x, y, xi)) == pytest.approx(value, rel=0.02)
    exact, found = energy_gradient(x, y), sliced_energy_gradient(x, y, xi)
    assert float((found - exact).norm() / exact.norm()) < 1.3 * math.sqrt(dim / len(xi))


def test_dense_gradient_and_equal_points() -> None:  # row 47
    x, y = cloud(3, 30), cloud(3, 20, 1)
    exact = x.clone().requires_grad_()
    away = (x[:, :, None] - y[:, None]).norm(dim=0)
    assert float(away.min()) > 0
    value = (exact[:, :, None] - y[:, None]).norm(dim=0).mean()
    pairs = torch.triu_indices(30, 30, 1)
    value = value - (exact[:, pairs[0]] - exact[:, pairs[1]]).norm(dim=0).sum() / 900
    value.backward()
    assert torch.allclose(energy_gradient(x, y), exact.grad, atol=1e-14)
    doubled = torch.cat([x, x], 1)
    assert torch.allclose(energy_gradient(doubled, y)[:, :30], exact.grad / 2, atol=1e-14)
    assert float(energy_gradient(torch.ones(3, 5), torch.ones(3, 4)).abs().max()) == 0


def test_blocks_do_not_change_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud(6, 70), cloud(6, 50, 1)
    xi = directions(40, 6, torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = sliced_energy_gradient(x, y, xi), sliced_energy_distance(x, y, xi)
    dense = energy_gradient(x, y)
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 500)
    monkeypatch.setattr(module, "PAIRS", 300)
    monkeypatch.setattr(lines, "BLOCK_KEYS", 300)
    assert torch.allclose(sliced_energy_gradient(x, y, xi), whole[0], atol=1e-15)
    assert torch.allclose(sliced_energy_distance(x, y, xi), whole[1], atol=1e-15)
    assert torch.allclose(energy_gradient(x, y), dense, atol=1e-15)


def test_both_are_differentiable() -> None:
    x, y = cloud(2, 7).requires_grad_(), cloud(2, 5, 1).requires_grad_()
    xi = directions(4, 2, torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: sliced_energy_distance(a, b, xi), (x, y))
    assert torch.autograd.gradcheck(energy_distance, (x, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_of_any_stride_stay_untouched(dtype: torch.dtype) -> None:
    x, y = cloud(40, 8, 0, dtype).T, cloud(16, 90, 1, dtype)[::2, ::3]
    xi = directions(12, 8, torch.Generator().manual_seed(0), dtype=dtype)
    copies = x.clone(), y.clone(), xi.clone()
    found = sliced_energy_gradient(x, y, xi)
    energy_gradient(x, y)
    assert found.dtype == dtype
    assert torch.equal(found, sliced_energy_gradient(*copies))
    for given_, copy in zip((x, y, xi), copies, strict=True):
        assert torch.equal(given_, copy)


def test_a_target_serves_many_steps() -> None:
    x, y = cloud(3, 40), cloud(3, 30, 1)
    xi = directions(16, 3, torch.Generator().manual_seed(0), dtype=torch.float64)
    target = SlicedTarget(y, Directions(xi))
    for cloud_now in (x, x + 1):
        assert torch.equal(target.gradient(cloud_now), sliced_energy_gradient(cloud_now, y, xi))
        assert torch.equal(
            target.distance(cloud_now), sliced_energy_distance(cloud_now, y, xi)
        )


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (torch.zeros(2, 0), torch.zeros(2, 3), r"shape \(2, 0\)"),
        (torch.zeros(3), torch.zeros(2, 3), r"shape \(3,\)"),
        (torch.zeros(2, 3), torch.zeros(3, 3), "2 numbers .* and of 3"),
        (torch.zeros(2, 3), torch.zeros(2, 3).double(), "float64"),
        (torch.zeros(2, 3), torch.full((2, 3), torch.nan), "6 NaN or infinite"),
        (torch.zeros(2, 3, dtype=torch.int), torch.zeros(2, 3), "int32"),
    ],
)
def test_bad_clouds_are_refused(x: torch.Tensor, y: torch.Tensor, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        energy_distance(x, y)
    with pytest.raises(InvalidInput, match=reason):
        sliced_energy_distance(x, y, torch.eye(2))


def test_lines_of_another_dimension_are_refused() -> None:
    with pytest.raises(InvalidInput, match="do not fit the slices"):
        sliced_energy_gradient(torch.zeros(2, 3), torch.zeros(2, 3), torch.eye(5))
