"""The semi-dual against POT: exact, entropic and semi-unbalanced transport."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch

from napari_invprior.transport.semi_discrete import semi_dual
from napari_invprior.transport.semi_discrete.semi_dual import SemiDual

Clouds = tuple[torch.Tensor, torch.Tensor]


def gaussian_clouds(n: int = 300, count: int = 200, d: int = 9) -> Clouds:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn((d, n), generator=generator)
    return points, 0.7 * torch.randn((d, count), generator=generator) + 0.3


def costs(points: torch.Tensor, sites: torch.Tensor) -> np.ndarray:
    return ot.dist(points.T.double().numpy(), sites.T.double().numpy())


def solved(dual: SemiDual, points: torch.Tensor, tolerance: float, rounds: int = 1) -> float:
    for _ in dual.solve(points, tolerance, rounds):
        pass
    return float(dual.value(dual.plan(points)))


def test_reaches_exact_transport_from_below() -> None:
    points, sites = gaussian_clouds()
    exact = ot.emd2([], [], costs(points, sites))
    value = solved(SemiDual(sites), points, 0.005)
    assert value <= exact * (1 + 1e-6)
    assert value >= exact * (1 - 0.005)


def test_weights_of_the_sites_count() -> None:
    points, sites = gaussian_clouds()
    weights = torch.rand(200, generator=torch.Generator().manual_seed(1)) + 0.1
    exact_weights = (weights / weights.sum()).double().numpy()
    exact = ot.emd2([], exact_weights / exact_weights.sum(), costs(points, sites))
    assert solved(SemiDual(sites, weights), points, 0.005) == pytest.approx(exact, rel=0.005)


def test_large_problems_start_from_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semi_dual, "SMALL", 100)
    points, sites = gaussian_clouds()
    exact = ot.emd2([], [], costs(points, sites))
    assert solved(SemiDual(sites), points, 0.005) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(("epsilon", "rho"), [(0.5, 1.0), (0.2, 0.3)])
def test_semi_unbalanced_equals_pot(epsilon: float, rho: float) -> None:
    points, sites = (cloud.double() for cloud in gaussian_clouds())
    plan = ot.unbalanced.sinkhorn_unbalanced(
        np.ones(300) / 300, np.ones(200) / 200, costs(points, sites) / 2, epsilon,
        (float("inf"), rho), method="sinkhorn_stabilized", reg_type="kl", numItermax=20000,
        stopThr=1e-12,
    )
    dual = SemiDual(sites, epsilon=2 * epsilon, rho=2 * rho)
    solved(dual, points, 1e-9, 60)
    mass = dual.plan(points).mass.numpy()
    assert np.abs(mass - plan.sum(0)).max() * 200 < 1e-6
    assert mass.sum() == pytest.approx(1, abs=1e-6), "the points' side is exact"


def test_large_reach_is_balanced() -> None:
    points, sites = gaussian_clouds()
    dual = SemiDual(sites, epsilon=0.4, rho=2000.0)
    solved(dual, points, 1e-6, 40)
    assert float((dual.plan(points).mass * 200 - 1).abs().max()) < 0.01


def test_entropic_transport_equals_sinkhorn() -> None:
    points, sites = (cloud.double() for cloud in gaussian_clouds(80, 60))
    cost = costs(points, sites)
    plan = ot.sinkhorn(
        np.ones(80) / 80, np.ones(60) / 60, cost, 0.5, numItermax=100_000, stopThr=1e-13
    )
    dual = SemiDual(sites, epsilon=0.5)
    value = solved(dual, points, 1e-9, 60)
    relative = (plan * np.log(plan * 80 * 60)).sum()
    assert value == pytest.approx((plan * cost).sum() + 0.5 * relative, rel=1e-5)
    targets = (sites.numpy() @ plan.T) * 80
    assert np.abs(dual.plan(points).targets.numpy() - targets).max() < 1e-3


@pytest.mark.parametrize("ndim", [2, 3])
def test_gradient_in_the_points_is_that_of_emd(ndim: int) -> None:
    generator = torch.Generator().manual_seed(ndim)
    d = 4 if ndim == 2 else 8
    points = torch.randn((d, 60), generator=generator, dtype=torch.float64)
    sites = torch.randn((d, 60), generator=generator, dtype=torch.float64)
    dual = SemiDual(sites)
    solved(dual, points, 1e-6, 60)
    plan = dual.plan(points, dual.last_level)
    gradient = 2 / 60 * (points - plan.targets)
    for _ in range(10):
        direction = torch.randn((d, 60), generator=generator, dtype=torch.float64)
        step = 1e-5
        ahead, behind = (
            ot.emd2([], [], costs(points + s * direction, sites)) for s in (step, -step)
        )
        slope = float((gradient * direction).sum())
        assert slope == pytest.approx((ahead - behind) / (2 * step), rel=0.01, abs=1e-3)


def test_stochastic_ascent_approaches_the_maximum() -> None:
    points, sites = gaussian_clouds(2000, 50)
    exact = solved(SemiDual(sites), points, 1e-3, 5)
    dual = SemiDual(sites)
    first = float(dual.value(dual.plan(points)))
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        some = torch.randperm(2000, generator=generator)[:500]
        dual.ascend(dual.plan(points[:, some]))
    last = float(dual.value(dual.plan(points)))
    assert last > first
    assert last == pytest.approx(exact, rel=0.05)


def test_identical_patches_give_finite_numbers() -> None:  # row 47
    dual = SemiDual(torch.full((4, 30), 0.5))
    value = solved(dual, torch.full((4, 50), 0.5), 0.01, 3)
    assert abs(value) < 1e-6
    assert bool(torch.isfinite(dual.psi).all())
