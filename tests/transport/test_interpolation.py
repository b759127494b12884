"""Denoising by a plan that interpolates between sites."""

from __future__ import annotations

import pytest
import torch

from napari_invprior import memory
from napari_invprior.errors import OutOfMemory
from napari_invprior.transport.semi_discrete.interpolation import Interpolation
from napari_invprior.transport.semi_discrete.semi_dual import SemiDual


def cloud(count: int, d: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((d, count), generator=generator, dtype=torch.float64)


def test_a_plan_that_reaches_all_sites_is_the_wiener_filter_of_their_gaussian() -> None:
    sites, points = cloud(50) + 3, cloud(20, seed=1)
    weights = torch.rand(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.1
    plan = Interpolation(SemiDual(sites, weights)).plan(points, 1e9, 0.3)
    share = weights / weights.sum()
    mean = sites @ share
    away = sites - mean[:, None]
    covariance = (share * away) @ away.T
    filtered = covariance @ torch.linalg.inv(covariance + 0.3 * torch.eye(3).double())
    expected = mean[:, None] + filtered @ (points - mean[:, None])
    assert torch.allclose(plan.targets, expected, atol=1e-6)


def test_it_is_the_plan_of_the_potential() -> None:
    sites, points = cloud(50), cloud(20, seed=1)
    dual = SemiDual(sites, epsilon=0.1, rho=0.5)
    dual.psi = 0.3 * cloud(50, 1, seed=3)[0]
    plan, plain = Interpolation(dual).plan(points, 0.4, 0.1), dual.plan(points, 0.4)
    assert torch.allclose(plan.mass, plain.mass)
    assert torch.allclose(plan.potentials, plain.potentials)
    assert plan.cost == pytest.approx(float((points - plan.targets).square().sum(0).mean()))


def test_it_finds_points_between_the_sites_that_averages_of_sites_miss() -> None:
    """Sites on a curved surface, met with noise: what lies between them is on the surface too."""
    place = torch.rand((2, 2000), generator=torch.Generator().manual_seed(0)) * 2 - 1
    surface = torch.cat([place, place.square().sum(0, keepdim=True) / 2, torch.zeros(5, 2000)])
    sites, clean = surface[:, :300], surface[:, 300:]
    noise = 0.03
    noisy = clean + noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    dual, level = SemiDual(sites), 2 * (noise**2 + 0.1**2)
    found = Interpolation(dual).plan(noisy, level, noise**2).targets
    errors = {
        "interpolated": float((found - clean).square().mean()),
        "averaged": float((dual.plan(noisy, level).targets - clean).square().mean()),
        "nearest": float((dual.plan(noisy, 0).targets - clean).square().mean()),
    }
    assert errors["interpolated"] < 0.6 * min(errors["averaged"], errors["nearest"], noise**2)


def test_one_site_and_no_noise_are_no_obstacle() -> None:
    points = cloud(5).float()
    plan = Interpolation(SemiDual(torch.ones(3, 1))).plan(points, 1e-4, 0.0)
    assert torch.allclose(plan.targets, torch.ones(3, 5))


def test_what_cannot_be_held_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 10_000)
    with pytest.raises(OutOfMemory, match=r"50 patches of 36 samples needs .* reference_patches"):
        Interpolation(SemiDual(cloud(50, 36)))
