"""The Riesz discrepancy against finite differences, SciPy and slices; ties; one-sided slopes."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import energy_distance

from napari_invprior.errors import InvalidInput
from napari_invprior.transport.riesz_flows import directional
from napari_invprior.transport.riesz_flows import discrepancy as riesz
from napari_invprior.transport.riesz_flows.directional import DirectionalDerivative
from napari_invprior.transport.riesz_flows.discrepancy import Cloud, Discrepancy, mean_power
from napari_invprior.transport.slices.directions import directions, slice_constant

POWERS = pytest.mark.parametrize("r", [0.5, 1.0, 1.5])


def cloud(d: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((d, n), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(n: int) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@POWERS
@pytest.mark.parametrize("d", [1, 2, 3, 7])
@pytest.mark.parametrize("alone", [True, False])
def test_gradient_is_that_of_the_value(r: float, d: int, alone: bool) -> None:
    target = None if alone else Cloud(cloud(d, 15, 1), weights(15))
    discrepancy, x, n = Discrepancy(target, r), cloud(d, 12), 12
    _, gradient = discrepancy.value_and_grad(x)
    direction, step = cloud(d, 12, 2), 1e-6
    ahead, behind = (discrepancy.value_and_grad(x + s * direction)[0] for s in (step, -step))
    slope = float((gradient * direction).sum()) / n
    assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=1e-6)


def test_half_the_energy_distance_on_the_line() -> None:
    x, y, w = cloud(1, 30), cloud(1, 20, 1), weights(20)
    value, _ = Discrepancy(Cloud(y, w), 1.0).value_and_grad(x)
    other = energy_distance(x[0].numpy(), y[0].numpy(), v_weights=w.numpy())
    # SciPy's is the square root of 2 E|X - Y| - ...
    assert value == pytest.approx(other**2 / 2, rel=1e-10)


@POWERS
def test_zero_for_the_same_law_only(r: float) -> None:
    x = cloud(2, 40)
    discrepancy = Discrepancy(Cloud(x), r)
    assert discrepancy.value_and_grad(x)[0] == pytest.approx(0, abs=1e-14)
    assert discrepancy.value_and_grad(x + 0.01)[0] > 1e-6
    assert float(discrepancy.value_and_grad(x)[1].abs().max()) < 1e-12


@POWERS
def test_blocks_change_nothing(r: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud(3, 50), cloud(3, 40, 1)
    whole = *mean_power(x, y, r, weights(40)), Cloud(y).mass_at(x, 1.0)
    monkeypatch.setattr(riesz, "BLOCK_NUMBERS", 120)
    parts = *mean_power(x, y, r, weights(40)), Cloud(y).mass_at(x, 1.0)
    assert all(torch.allclose(a, b, rtol=1e-13) for a, b in zip(whole, parts, strict=True))


def test_single_precision_is_nearly_double() -> None:
    x, y = cloud(2, 300), cloud(2, 200, 1)
    exact, rough = mean_power(x, y, 1.5), mean_power(x.float(), y.float(), 1.5)
    assert rough[1].dtype == torch.float32
    assert torch.allclose(exact[1].float(), rough[1], atol=1e-5)


@POWERS
def test_points_that_coincide_do_not_push(r: float) -> None:  # row 47
    x = torch.full((2, 30), 0.5, dtype=torch.float64)
    for target in (None, Cloud(x)):
        value, gradient = Discrepancy(target, r).value_and_grad(x)
        assert value == 0 and not bool(gradient.any())
    mixed = torch.cat([x, cloud(2, 5)], 1)
    assert bool(Discrepancy(Cloud(mixed), r).value_and_grad(mixed)[1].isfinite().all())


@POWERS
def test_points_that_nearly_coincide_can_count_as_one(r: float) -> None:
    x = torch.tensor([[0.0, 5e-11, 1.0]], dtype=torch.float64)
    _, apart = mean_power(x, x, r)
    _, tied = mean_power(x, x, r, tie=1e-10)
    assert float(apart[0, 0]) < float(tied[0, 0]) - 1e-6
    assert torch.allclose(tied[0, :2], torch.tensor(-r / 3).double())
    if r == 1:
        v = torch.tensor([[-1.0, 2.0, 0.0]], dtype=torch.float64)
        slopes = [
            DirectionalDerivative(Discrepancy(None, r), places).value_and_grad(v)[0]
            for places in (x, torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))
        ]
        assert slopes[0] == pytest.approx(slopes[1], rel=1e-9)


@pytest.mark.parametrize("d", [2, 3, 10])
def test_gradient_is_a_mean_over_slices(d: int) -> None:
    """On a line the pull of a cloud is the share on the left minus that on the right."""
    x, y, count = cloud(d, 200), cloud(d, 150, 1) + 0.5, 500
    xi = directions(count, d, torch.Generator().manual_seed(0), "iid", torch.float64)

    def left_minus_right(sites: torch.Tensor) -> torch.Tensor:
        signs = (xi @ x)[:, :, None] - (xi @ sites)[:, None, :]
        return signs.sign().mean(2)

    sliced = slice_constant(d) / count * xi.T @ (left_minus_right(y) - left_minus_right(x))
    dense = Discrepancy(Cloud(y), 1.0).value_and_grad(x)[1]
    error = float((sliced - dense).norm() / dense.norm())
    assert error < 1.3 * math.sqrt(d / count)


@POWERS
def test_slope_where_nothing_coincides_is_the_gradient(r: float) -> None:
    x, v = cloud(2, 20), cloud(2, 20, 3)
    discrepancy = Discrepancy(Cloud(cloud(2, 10, 1)), r)
    value, gradient = DirectionalDerivative(discrepancy, x).value_and_grad(v)
    assert torch.allclose(gradient * 20, discrepancy.value_and_grad(x)[1])
    assert value == pytest.approx(float((gradient * v).sum()))


def tied() -> tuple[torch.Tensor, Cloud]:
    """Particles that coincide with each other, and with the target, and others."""
    x = torch.cat([torch.zeros(2, 8).double(), cloud(2, 6), torch.ones(2, 3).double()], 1)
    return x, Cloud(torch.cat([torch.ones(2, 2).double(), cloud(2, 5, 1)], 1))


@pytest.mark.parametrize("alone", [True, False])
def test_slope_is_one_sided_where_points_coincide(alone: bool) -> None:
    x, target = tied()
    discrepancy = Discrepancy(None if alone else target, 1.0)
    derivative, v, step = DirectionalDerivative(discrepancy, x), cloud(2, x.shape[1], 3), 1e-7
    ahead = discrepancy.value_and_grad(x + step * v)[0]
    value, gradient = derivative.value_and_grad(v)
    assert (ahead - derivative.start) / step == pytest.approx(value, rel=1e-4)
    smooth = float((discrepancy.value_and_grad(x)[1] * v).mean(1).sum())
    assert abs(value - smooth) > 0.05, "what coincides counts"
    around = [derivative.value_and_grad(v + s * v.flip(1))[0] for s in (1e-6, -1e-6)]
    slope = float((gradient * v.flip(1)).sum())
    assert (around[0] - around[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("r", [1.0, 1.5])
def test_slope_is_positively_homogeneous(r: float) -> None:
    x, target = tied()
    derivative, v = DirectionalDerivative(Discrepancy(target, r), x), cloud(2, x.shape[1], 3)
    one, two = (derivative.value_and_grad(k * v)[0] for k in (1, 2))
    assert two == pytest.approx(2 * one, rel=1e-6)
    back = derivative.value_and_grad(-v)[0]
    assert (back == pytest.approx(-one, rel=1e-6)) == (r > 1), "not linear: only for r = 1"
    still, gradient = derivative.value_and_grad(0 * v)
    assert still == 0 and bool(gradient.isfinite().all())


def test_infinite_slopes_are_refused_with_advice() -> None:
    x, _ = tied()
    with pytest.raises(InvalidInput, match=r"r = 0.5: .* infinite speed; choose the backward"):
        DirectionalDerivative(Discrepancy(None, 0.5), x)


def test_slope_of_drawn_particles_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    x, target = tied()
    monkeypatch.setattr(directional, "BLOCK_NUMBERS", 20)
    derivative, v = DirectionalDerivative(Discrepancy(target, 1.0), x), cloud(2, x.shape[1], 3)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(1500):
        some = torch.randperm(x.shape[1], generator=generator)[:6]
        found.append(derivative.value_and_grad(v[:, some], some)[0])
    mean, error = torch.tensor(found).mean(), torch.tensor(found).std() / len(found) ** 0.5
    assert abs(float(mean) - derivative.value_and_grad(v)[0]) < 3 * float(error)


def test_ties_are_found_wherever_they_are() -> None:
    x = cloud(3, 200)
    x[0, :50] = 0.25
    assert not directional._any_tie(x)
    x[:, 30] = x[:, 7] + 1e-12
    assert directional._any_tie(x)
    assert directional._any_tie(torch.zeros(2, 2)) and not directional._any_tie(torch.zeros(2, 1))


def test_bad_clouds_are_refused_by_name() -> None:
    for points, word in (
        (torch.empty(2, 0), r"shape \(2, 0\)"),
        (torch.zeros(3), r"shape \(3,\)"),
        (torch.tensor([[0.0, torch.nan], [torch.inf, 1.0]]), "2 coordinates that are NaN"),
    ):
        with pytest.raises(InvalidInput, match=word):
            Cloud(points)
    for given, word in (
        (torch.ones(3), "for 2 points"), (torch.tensor([1.0, -1.0]), "none negative"),
        (torch.zeros(2), "one positive"), (torch.tensor([1.0, torch.nan]), "finite"),
    ):
        with pytest.raises(InvalidInput, match=word):
            Cloud(torch.zeros(2, 2), given)
    for r in (0.0, 2.0, math.nan):
        with pytest.raises(InvalidInput, match="between 0 and 2"):
            Discrepancy(None, r)
