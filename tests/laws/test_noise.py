"""Laws that every registered noise model obeys."""

from __future__ import annotations

import pytest
import torch

from napari_invprior import registry

OPTIONS = {
    "gaussian": {"sigma": 0.05},
    "poisson": {"peak": 200.0},
    "transmission": {"photons": 4096.0, "attenuation": 2.0},
}
NOISES = [pytest.param(m, id=m.name) for m in registry.methods("noise")]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = 0.1 + 0.8 * torch.rand((2, 1, 6, 7), generator=generator, dtype=torch.float64)
    return z, (z + 0.05 * torch.randn(z.shape, generator=generator, dtype=torch.float64)).abs()


@pytest.mark.parametrize("method", NOISES)
def test_gradient_is_the_derivative(method: registry.Method) -> None:
    noise = method.cls(method.parameters(**OPTIONS[method.name]))
    z, y = data()
    z[0, 0, 0] = -0.01
    z[0, 0, 1] = 0.0
    direction = torch.randn_like(z)
    step = 1e-6
    difference = (noise.nll(z + step * direction, y) - noise.nll(z - step * direction, y)) / (
        2 * step
    )
    slope = (noise.nll_grad(z, y) * direction).flatten(1).sum(1)
    assert torch.allclose(difference, slope, rtol=1e-5)


@pytest.mark.parametrize("method", NOISES)
def test_simulation_has_the_stated_mean_and_spread(method: registry.Method) -> None:
    noise = method.cls(method.parameters(**OPTIONS[method.name]))
    z = torch.full((1, 1, 400, 400), 0.6)
    y = noise.simulate(z, torch.Generator().manual_seed(0))
    assert float(y.mean()) == pytest.approx(0.6, abs=1e-3)
    assert float(y.std()) == pytest.approx(float(noise.std(z).mean()), rel=0.02)
    assert noise.residual_ratio(z, y) == pytest.approx(1, abs=0.02)
    again = noise.simulate(z, torch.Generator().manual_seed(0))
    assert torch.equal(y, again)


@pytest.mark.parametrize("method", NOISES)
def test_the_truth_is_most_likely_on_average(method: registry.Method) -> None:
    noise = method.cls(method.parameters(**OPTIONS[method.name]))
    z = torch.full((1, 1, 200, 200), 0.5)
    y = noise.simulate(z, torch.Generator().manual_seed(1))
    here = noise.nll(z, y)
    assert bool(here < noise.nll(1.02 * z, y))
    assert bool(here < noise.nll(0.98 * z, y))
