"""Reverse Kullback-Leibler training finds a posterior that is known (sheet 18, check 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_invprior.networks.conditional_flow import Condition, ConditionalFlow, FlowSize
from napari_invprior.networks.upscaling import pixel_unshuffle
from napari_invprior.priors.data_networks.energy_training import train

MEAN, STD, SIGMA = 0.4, 0.1, 0.03
"""Of the prior ``|x - m|^2 / (2 s^2)``, and of the noise."""
DATA = torch.tensor([[[[0.35, 0.5], [0.62, 0.2]]]])


def energy(x: Tensor, y: Tensor, _: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Gradient per image sample of ``|f(x) - y|^2 / (2 sigma^2) + |x - m|^2 / (2 s^2)``."""
    residual = F.avg_pool2d(x, 2) - y
    back = F.interpolate(residual, scale_factor=2) / 4
    gradient = back / SIGMA**2 + (x - MEAN) / STD**2
    return gradient / x.numel(), {"residual": float(residual.square().mean()) / SIGMA**2}


def posterior() -> tuple[Tensor, Tensor]:
    """Mean per block (4 blocks) and covariance of the four samples of a block."""
    a = torch.full((1, 4), 0.25)
    covariance = torch.linalg.inv(torch.eye(4) / STD**2 + a.T @ a / SIGMA**2)
    means = [covariance @ (torch.full((4,), MEAN / STD**2) + a[0] * y / SIGMA**2)
             for y in DATA.flatten()]
    return torch.stack(means, 1), covariance


def test_the_flow_finds_a_gaussian_posterior() -> None:
    torch.manual_seed(0)
    flow = ConditionalFlow((2, 2), size=FlowSize((2,), (16,), 1), spread=0.05)
    y = DATA.expand(64, -1, -1, -1)
    condition = Condition(y, F.interpolate(y, scale_factor=2))

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return *flow(flow.latent(condition, generator), condition), y

    generator = torch.Generator().manual_seed(1)
    for _ in train(flow, draw, energy, steps=500, learning_rate=1e-2, generator=generator):
        pass
    with torch.no_grad():
        x = torch.cat([flow.sample(condition, generator) for _ in range(200)])
    blocks = pixel_unshuffle(x, (2, 2)).flatten(2)  # (samples, 4 of a block, 4 blocks)
    means, covariance = posterior()
    std = covariance.diagonal().sqrt()[:, None]
    error = (blocks.mean(0) - means).abs() / std
    ratio = blocks.std(0) / std
    found = torch.stack([torch.cov(blocks[..., k].T) for k in range(4)])
    correlation = (found - covariance).abs() / covariance.diagonal().max()
    assert float(error.max()) < 0.05
    assert float((ratio - 1).abs().max()) < 0.1
    assert float(correlation.max()) < 0.1
