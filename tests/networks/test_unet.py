"""UNet and perceptron: any size, zero at first, gradients everywhere, the paper's size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_invprior.networks.unet import PAPER, SMALL, UNet, UNetSize

TINY = UNetSize(4, (1, 2, 3), 1)


def woken(net: torch.nn.Module) -> torch.nn.Module:
    """The network with random numbers where it has zeros."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net


@settings(max_examples=25)
@given(
    space=st.lists(st.integers(1, 11), min_size=2, max_size=3), inputs=st.integers(1, 3),
    outputs=st.integers(1, 2),
)
def test_images_of_any_size(space: list[int], inputs: int, outputs: int) -> None:
    net = UNet(len(space), inputs, outputs, TINY)
    x = torch.rand(2, inputs, *space)
    assert float(net(x).detach().abs().max()) == 0
    found = woken(net)(x)
    assert tuple(found.shape) == (2, outputs, *space)
    assert bool(torch.isfinite(found).all())
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_padding_continues_the_border() -> None:
    net = woken(UNet(2, 1, 1, TINY)).double()
    x = torch.rand(1, 1, 7, 8, dtype=torch.float64)
    longer = torch.cat([x, x[:, :, -1:]], 2)
    assert torch.allclose(net(x), net(longer)[:, :, :7])


@pytest.mark.parametrize("normalised", [True, False])
def test_only_normalised_networks_see_all_of_an_image(normalised: bool) -> None:
    net = woken(UNet(2, 1, 1, UNetSize(4, (1, 2), 1, normalised))).double()
    x = torch.rand(1, 1, 64, 8, dtype=torch.float64)
    other = x.clone()
    other[:, :, 48:] += 5
    same = torch.allclose(net(x)[:, :, :8], net(other)[:, :, :8], atol=1e-9)
    assert same is not normalised


@pytest.mark.parametrize(("size", "weights"), [(PAPER, (3e6, 4e6)), (SMALL, (1e5, 2e5))])
def test_sizes(size: UNetSize, weights: tuple[float, float]) -> None:
    count = sum(parameter.numel() for parameter in UNet(2, 1, 1, size).parameters())
    assert weights[0] < count < weights[1]
