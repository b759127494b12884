"""The flow is invertible, its log-determinant is true, and it is deterministic."""

import math

import pytest
import torch

from napari_invprior.errors import InvalidInput
from napari_invprior.networks.coupling import CLAMP, CouplingFlow
from napari_invprior.networks.density import PatchDensity
from napari_invprior.networks.whitening import Whitening

CASES = [(16, 0), (7, 0), (2, 0), (7, 2)]


def make(dim, condition, dtype=torch.float64, **options):
    flow = CouplingFlow(dim, 16, 3, condition, seed=3, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(dim, 10, generator=generator, dtype=dtype)
    extra = torch.randn(condition, 10, generator=generator, dtype=dtype) if condition else None
    return flow, x, extra


@pytest.mark.parametrize(("dim", "condition"), CASES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_inverse_undoes_forward(dim, condition, dtype, bound):
    flow, x, extra = make(dim, condition, dtype)
    z, there = flow.inverse(x, extra)
    back, again = flow.forward(z, extra)
    assert (back - x).abs().max() < bound
    assert (there + again).abs().max() < bound


@pytest.mark.parametrize(("dim", "condition"), CASES)
def test_log_det_is_that_of_the_jacobian(dim, condition):
    flow, x, extra = make(dim, condition)

    def latent(column):
        return flow.inverse(column[:, None], None if extra is None else extra[:, :1])[0][:, 0]

    jacobian = torch.autograd.functional.jacobian(latent, x[:, 0])
    truth = torch.linalg.slogdet(jacobian).logabsdet
    assert abs(float(truth)) > 1e-3
    assert abs(float(truth - flow.inverse(x, extra)[1][0])) < 1e-9


def test_log_scales_are_clamped():  # row 46
    flow, x, _ = make(6, 0)
    flow.weights.mul_(1e4)
    _, log_det = flow.inverse(x)
    assert log_det.abs().max() < 6 * 3 * CLAMP
    assert torch.isfinite(flow.inverse(x)[0]).all()


def test_log_prob_integrates_to_one_in_two_dimensions():
    flow, _, _ = make(2, 0)
    line = torch.linspace(-12, 12, 600, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij")).flatten(1)
    mass = flow.log_prob(grid).exp().sum() * (line[1] - line[0]) ** 2
    assert abs(float(mass) - 1) < 1e-3


def test_zero_last_layers_give_the_fitted_gaussian():
    x = torch.randn(5, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) @ x + 0.5
    flow = CouplingFlow(5, 8, zero_last=True, dtype=torch.float64)
    potential = PatchDensity(flow, Whitening.fit(x)).potential(x)
    gaussian = torch.distributions.MultivariateNormal(x.mean(1), torch.cov(x, correction=0))
    truth = -gaussian.log_prob(x.T) - 2.5 * math.log(2 * math.pi)
    assert (potential - truth).abs().max() < 1e-9


def test_whitening_floor_keeps_flat_directions_finite():  # row 46
    x = torch.rand(4, 100, generator=torch.Generator().manual_seed(0))
    x[3] = x[2]
    white = Whitening.fit(x, floor=1e-4)
    assert white.values.min() >= 0.99e-4 * white.values.max()
    assert torch.isfinite(white.inverse(x)[0]).all()


def test_whitening_log_det_and_pull_back_with_noise_levels():
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    white = Whitening.fit(x)
    sigma = torch.linspace(0.1, 0.5, 50, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: white.inverse(v[:, None], sigma[7:8])[0][:, 0], x[:, 7]
    )
    assert torch.isclose(
        torch.linalg.slogdet(jacobian).logabsdet, white.inverse(x, sigma)[1][7], atol=1e-12
    )
    gradient = torch.randn(4, 1, dtype=torch.float64)
    assert torch.allclose(white.pull_back(gradient, sigma[7:8]), jacobian.T @ gradient)
    assert torch.allclose(white.forward(white.inverse(x, sigma)[0], sigma)[0], x)


def test_seed_decides_permutations_weights_and_samples():
    flows = [CouplingFlow(6, 8, seed=seed) for seed in (4, 4, 5)]
    assert torch.equal(flows[0].weights, flows[1].weights)
    assert not torch.equal(flows[0].permutations, flows[2].permutations)
    draws = [flows[0].sample(3, torch.Generator().manual_seed(9)) for _ in range(2)]
    assert torch.equal(*draws)


def test_refusals_name_the_fault():
    with pytest.raises(InvalidInput, match="at least 2"):
        CouplingFlow(1)
    with pytest.raises(InvalidInput, match="condition rows"):
        CouplingFlow(4, 8, condition=1).inverse(torch.rand(4, 2))
