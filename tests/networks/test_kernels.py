"""The hand-written passes equal autograd and finite differences."""

import pytest
import torch

from napari_invprior.errors import InvalidInput
from napari_invprior.networks.coupling import CouplingFlow
from napari_invprior.networks.density import PatchDensity
from napari_invprior.networks.kernels import FlowKernel
from napari_invprior.networks.whitening import Whitening
from napari_invprior.numerics.patches import PatchGrid


def columns(dim, n, dtype=torch.float64, seed=0):
    return torch.randn(dim, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("dim", "condition"), [(16, 0), (7, 0), (2, 0), (7, 2)])
def test_gradients_equal_autograd(dim, condition):
    flow = CouplingFlow(dim, 12, 3, condition, seed=2, dtype=torch.float64)
    x, extra = columns(dim, 9), columns(condition, 9) if condition else None
    gradient = torch.full_like(flow.weights, torch.nan)
    kernel = FlowKernel(flow, 9, gradient=gradient)
    value = kernel.potential(x, extra).clone()
    by_hand = kernel.backward(0.3).clone()
    x.requires_grad_(True)
    flow.weights.requires_grad_(True)
    z, log_det = flow.inverse(x, extra)
    truth = 0.5 * z.square().sum(0) - log_det
    (0.3 * truth.sum()).backward()
    assert (value - truth).abs().max() < 1e-12
    assert (by_hand - x.grad).abs().max() < 1e-12
    assert (gradient - flow.weights.grad).abs().max() < 1e-12


def test_gradient_equals_finite_differences_through_the_whitening():
    data = columns(5, 300) * torch.tensor([1.0, 2, 3, 4, 5])[:, None]
    flow = CouplingFlow(5, 8, 2, 1, seed=1, dtype=torch.float64)
    density = PatchDensity(flow, Whitening.fit(data), (0.05, 0.5))
    x, step = data[:, :4].clone(), 1e-6
    _, gradient = density.potential_and_grad(x, 0.2)
    for row in range(5):
        shift = torch.zeros_like(x)
        shift[row] = step
        slope = (density.potential(x + shift, 0.2) - density.potential(x - shift, 0.2)) / 2 / step
        assert (slope - gradient[row]).abs().max() < 1e-6


@pytest.mark.parametrize("hidden", [64, 256])
@pytest.mark.parametrize("count", [1, 127, 256, 4096, 4097, 9000])
def test_blocks_of_columns_do_not_change_the_result(count, hidden):
    density = PatchDensity(CouplingFlow(6, hidden, 2, seed=1))
    x = columns(6, count, torch.float32)
    value, gradient = density.potential_and_grad(x)
    z, log_det = density.flow.inverse(x)
    assert torch.allclose(value, 0.5 * z.square().sum(0) - log_det, atol=1e-4)
    alone = [density.potential_and_grad(x[:, i : i + 1]) for i in (0, count // 2, count - 1)]
    for place, (one, slope) in zip((0, count // 2, count - 1), alone, strict=True):
        assert torch.allclose(value[place], one[0], atol=1e-5)
        assert torch.allclose(gradient[:, place], slope[:, 0], atol=1e-5)
    assert torch.allclose(density.potential(x), value, atol=1e-5)


def test_no_columns_give_no_values():
    value, gradient = PatchDensity(CouplingFlow(6, 8)).potential_and_grad(torch.empty(6, 0))
    assert value.shape == (0,)
    assert gradient.shape == (6, 0)


def test_kernel_sees_new_weights():
    density = PatchDensity(CouplingFlow(6, 8, seed=1))
    x = columns(6, 50, torch.float32)
    before = density.potential(x)
    density.flow.weights.mul_(1.5)
    z, log_det = density.flow.inverse(x)
    after = density.potential(x)
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.allclose(after, 0.5 * z.square().sum(0) - log_det, atol=1e-4)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_low_precision_gradient_of_an_image_is_within_one_per_cent(low):
    """The figure that a solver sees: patch gradients overlap-added to an image."""
    density = PatchDensity(CouplingFlow(36, 128, 5, seed=0))
    grid = PatchGrid((40, 40), 6)
    x = grid.extract(torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0)))
    value, gradient = density.potential_and_grad(x)
    low_value, low_gradient = density.potential_and_grad(x, low=low)
    error, size = (float(grid.adjoint(g).norm()) for g in (low_gradient - gradient, gradient))
    print(f"{low}: relative gradient error {error / size:.2e} (< 1e-2)")
    assert 0 < error < 1e-2 * size
    assert low_value.dtype == torch.float32
    assert float((low_value - value).abs().mean()) < 0.05


def test_noise_levels_are_checked():
    plain = PatchDensity(CouplingFlow(4, 8))
    with pytest.raises(InvalidInput, match="not trained with noise"):
        plain.potential(torch.rand(4, 2), 0.1)
    conditional = PatchDensity(CouplingFlow(4, 8, condition=1), None, (0.01, 0.3))
    with pytest.raises(InvalidInput, match=r"0\.01 to 0\.3"):
        conditional.potential(torch.rand(4, 2), 0.5)
