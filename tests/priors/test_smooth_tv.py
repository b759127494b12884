"""Smoothed total variation against the exact one."""

from __future__ import annotations

import pytest
import torch

from napari_invprior import jobs
from napari_invprior.physics.inpainting import Denoising, DenoisingParameters
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.priors.smooth_tv import SmoothTotalVariation, SmoothTotalVariationParameters
from napari_invprior.reconstruct.total_variation import gradient, total_variation
from napari_invprior.reconstruct.variational import Variational, VariationalParameters


def prior(smoothing: float, ndim: int = 2) -> SmoothTotalVariation:
    return SmoothTotalVariation(SmoothTotalVariationParameters(smoothing=smoothing), ndim=ndim)


@pytest.mark.parametrize("space", [(9, 7), (5, 6, 4)])
def test_gradient_is_the_derivative(space: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((2, 2, *space), generator=generator, dtype=torch.float64, requires_grad=True)
    one = prior(0.05, len(space))
    (slope,) = torch.autograd.grad(_reference(x, 0.05).sum(), x)
    assert torch.allclose(one.g(x.detach()), _reference(x, 0.05).detach())
    assert torch.allclose(one.grad(x.detach()), slope, atol=1e-12)


def _reference(x: torch.Tensor, s: float) -> torch.Tensor:
    steps = torch.stack([
        torch.diff(x, dim=axis, append=x.narrow(axis, x.shape[axis] - 1, 1))
        for axis in range(2, x.ndim)
    ])
    return ((steps.square().sum(0) + s**2).sqrt() - s).flatten(1).mean(1)


def test_little_smoothing_is_total_variation() -> None:
    x = torch.rand((1, 1, 20, 20), generator=torch.Generator().manual_seed(0))
    exact = float(gradient(x).norm(dim=0).mean())
    assert float(prior(1e-5).g(x)) == pytest.approx(exact, rel=1e-3)


def test_descent_finds_the_image_of_the_primal_dual_solver() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros((1, 1, 24, 24))
    x[..., 6:18, 8:20] = 1
    noise = GaussianNoise(GaussianParameters(sigma=0.1))
    physics = Denoising(DenoisingParameters(), 2)
    y = noise.simulate(x, generator)
    exact = total_variation(y, physics, 0.01, 12.0, iterations=2000, tolerance=1e-7)
    solver = Variational(VariationalParameters(optimiser="lbfgs", iterations=400, plateau=0))
    found = jobs.run(solver.solve(y, physics, noise, prior(0.003), weight=12.0))
    assert float((found - exact).square().mean().sqrt()) < 0.01
    assert float((y - exact).square().mean().sqrt()) > 0.05
