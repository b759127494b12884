"""The conditional flow of images: inverse, determinant and beginning (sheet 18, check 2)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.networks.conditional_flow import (
    Condition,
    ConditionalFlow,
    FlowSize,
)

PLAIN = FlowSize(steps=(2, 1), hidden=(8, 4), mixing=2)
PREPARED = FlowSize(steps=(2, 1), hidden=(8, 4), mixing=1, features=8)
FACTORS = [(1, 1), (2, 2), (4, 4), (8, 8), (3, 3), (6, 6), (2, 3), (2, 2, 2), (1, 2, 2), (1, 1, 1)]


def made(factor: tuple[int, ...], size: FlowSize, *, trained: bool = True) -> ConditionalFlow:
    """A flow; as if trained, its last layers are not zero."""
    torch.manual_seed(0)
    flow = ConditionalFlow(factor, size=size, spread=0.1)
    if trained:
        for parameter in flow.parameters():
            parameter.data += 0.04 * torch.randn_like(parameter)
    return flow


def drawn(
    flow: ConditionalFlow, data: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Condition]:
    generator = torch.Generator().manual_seed(1)
    fine = tuple(n * f for n, f in zip(data, flow.factor, strict=True))
    y = torch.rand((2, 1, *data), generator=generator, dtype=dtype)
    first = torch.rand((2, 1, *fine), generator=generator, dtype=dtype)
    return torch.randn((2, 1, *fine), generator=generator, dtype=dtype), Condition(y, first)


@pytest.mark.parametrize("size", [PLAIN, PREPARED], ids=["plain", "prepared"])
@pytest.mark.parametrize("factor", FACTORS, ids=str)
@torch.no_grad()
def test_the_inverse_undoes_the_flow(factor: tuple[int, ...], size: FlowSize) -> None:
    flow = made(factor, size)
    z, condition = drawn(flow, (4, 6, 2)[: len(factor)])
    x, log_det = flow(z, condition)
    back, inverse_log_det = flow.inverse(x, condition)
    again, _ = flow(back, condition)
    assert float((again - x).abs().max()) < 1e-4
    assert float((back - z).abs().max()) < 1e-3
    assert float((log_det + inverse_log_det).abs().max()) < 1e-2
    assert float((x - condition.first).abs().max()) > 0.1


@pytest.mark.parametrize("size", [PLAIN, PREPARED], ids=["plain", "prepared"])
@pytest.mark.parametrize(
    ("factor", "data"),
    [((2, 2), (2, 2)), ((4, 4), (1, 1)), ((1, 1), (4, 4)), ((3, 3), (2, 1)), ((2, 2, 2), (1, 2, 1)),
     ((1, 2, 2), (2, 1, 2)), ((6, 6), (1, 1))],
    ids=str,
)  # fmt: skip
def test_the_determinant_is_that_of_the_jacobian(
    factor: tuple[int, ...], data: tuple[int, ...], size: FlowSize
) -> None:
    flow = made(factor, size).double()
    z, condition = drawn(flow, data, torch.float64)
    one = Condition(*(part[:1] for part in condition))
    _, log_det = flow(z[:1], one)
    jacobian = torch.autograd.functional.jacobian(lambda latent: flow(latent, one)[0], z[:1])
    expected = torch.linalg.slogdet(jacobian.view(z[0].numel(), -1)).logabsdet
    assert float((log_det.detach() - expected).abs()) < 1e-4


@pytest.mark.parametrize("size", [PLAIN, PREPARED], ids=["plain", "prepared"])
@pytest.mark.parametrize("factor", FACTORS, ids=str)
def test_an_untrained_flow_moves_samples_only(factor: tuple[int, ...], size: FlowSize) -> None:
    flow = made(factor, size, trained=False)
    z, condition = drawn(flow, (4, 6, 2)[: len(factor)])
    x, log_det = flow(z, condition)
    latent = (x - condition.first) / flow.spread
    assert torch.allclose(latent.flatten(1).sort().values, z.flatten(1).sort().values, atol=1e-5)
    assert torch.allclose(log_det, torch.tensor(z[0].numel() * math.log(0.1)))


def test_density_and_samples() -> None:
    flow = made((2, 2), PLAIN, trained=False)
    _, condition = drawn(flow, (4, 6))
    x = flow.sample(condition, torch.Generator().manual_seed(3))
    assert torch.equal(x, flow.sample(condition, torch.Generator().manual_seed(3)))
    expected = torch.distributions.Normal(condition.first, 0.1).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(flow.log_prob(x, condition), expected, rtol=1e-4)


def test_conditions_that_do_not_fit_are_refused() -> None:
    flow = made((1, 1), PLAIN)
    z, condition = drawn(flow, (4, 5))
    with pytest.raises(InvalidInput, match=r"\(4, 5\).*multiple of \(2, 2\)"):
        flow(z, condition)
    with pytest.raises(InvalidInput, match=r"needs \(8, 8\)"):
        made((2, 2), PLAIN)(z, Condition(z[..., :4, :4], z[..., :4, :4]))
