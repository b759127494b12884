"""Dots in place of grey."""

from __future__ import annotations

import pytest
import torch

from napari_invprior import jobs
from napari_invprior.transport.riesz_flows.density import Density, density_of
from napari_invprior.transport.riesz_flows.discrepancy import Discrepancy
from napari_invprior.transport.riesz_flows.halftone import HalftoneParameters, halftone
from napari_invprior.transport.riesz_flows.image_potential import ImagePotential


def blobs(ndim: int = 2) -> Density:
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 24 if ndim == 2 else 12)] * ndim, indexing="ij")
    square = sum(a**2 for a in axes)
    return density_of(-torch.exp(-3 * square), background=0)


@pytest.mark.parametrize("ndim", [2, 3])
def test_dots_are_nearer_to_the_image_than_draws(ndim: int) -> None:
    density = blobs(ndim)
    target = Discrepancy(ImagePotential(density), 1.0)
    dots = jobs.run(halftone(density, HalftoneParameters(dots=150)))
    assert dots.shape == (ndim, 150)
    value, _ = target.value_and_grad(density.to_points(dots))
    drawn, _ = target.value_and_grad(density.draw(150, torch.Generator().manual_seed(0)))
    assert value < 0.85 * drawn
    again = jobs.run(halftone(density, HalftoneParameters(dots=150)))
    other = jobs.run(halftone(density, HalftoneParameters(dots=150), seed=1))
    assert torch.equal(dots, again) and not torch.equal(dots, other)


def test_dots_keep_their_distance() -> None:
    density = Density(torch.ones(20, 20))
    dots = jobs.run(halftone(density, HalftoneParameters(dots=100)))
    nearest = (torch.cdist(dots.T, dots.T) + 99 * torch.eye(100)).amin(0)
    # the closest packing of 100 dots in 400 pixels has a distance of 2.15 pixels
    assert float(nearest.min()) > 1.2 and float(nearest.std() / nearest.mean()) < 0.15


def test_few_dots_and_an_early_stop() -> None:
    one = jobs.run(halftone(blobs(), HalftoneParameters(dots=1)))
    assert torch.allclose(one[:, 0], torch.tensor([11.5, 11.5]), atol=0.1), "the middle"
    found: list[jobs.Event] = []
    dots = jobs.run(
        halftone(blobs(), HalftoneParameters(dots=50), should_stop=lambda: True), found.append
    )
    assert dots.shape == (2, 50) and bool(dots.isfinite().all())
    assert any(isinstance(e, jobs.Message) and "after 1 step" in e.text for e in found)
    assert [e.array.shape for e in found if isinstance(e, jobs.Preview)][-1] == (50, 2)
