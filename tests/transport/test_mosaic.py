"""Mosaics: periodic images with patches like those given, in 2D and 3D."""

from __future__ import annotations

import pytest
import torch

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import run
from napari_invprior.numerics.patches import PatchGrid
from napari_invprior.samples import binary_volume
from napari_invprior.transport.sliced_flows.energy_distance import energy_distance
from napari_invprior.transport.sliced_flows.mosaic import MosaicPlan, _unwrap, _wrap, mosaic


def blobs(space: tuple[int, ...], patch: int, seed: int) -> torch.Tensor:
    """1500 patches of a smooth two-phase image."""
    image = torch.from_numpy(binary_volume(space, seed, width=1.2))[None, None]
    cloud = PatchGrid(space, patch).extract(image)
    order = torch.randperm(cloud.shape[1], generator=torch.Generator().manual_seed(seed))
    return cloud[:, order[:1500]]


@pytest.mark.parametrize("space", [(5, 7), (4, 5, 6)])
def test_wrapping_and_its_adjoint(space: tuple[int, ...]) -> None:
    block = (3,) * len(space)
    x = torch.rand(1, 2, *space, dtype=torch.float64, requires_grad=True)
    padded = _wrap(x, block)
    assert torch.equal(padded[:, :, -2:], padded[:, :, :2])
    pull = torch.rand(padded.shape, generator=torch.Generator().manual_seed(0)).double()
    (padded * pull).sum().backward()
    assert torch.allclose(_unwrap(pull, space), x.grad)


@pytest.mark.parametrize(
    ("space", "patch", "steps", "size", "share"),
    # between seeds the share varies from .07 to .13 and, in the volume, from .23 to .31
    [((64, 64), 8, 60, (40, 36), 0.3), ((20, 20, 20), 6, 40, (24, 22, 20), 0.5)],
)
def test_patches_become_alike(
    space: tuple[int, ...], patch: int, steps: int, size: tuple[int, ...], share: float
) -> None:
    edges, plan = (patch,) * len(space), MosaicPlan(steps=steps)
    image = run(mosaic(blobs(space, patch, 0), edges, size, plan))
    assert image.shape == (1, 1, *size)
    other = blobs(space, 4, 0)
    found = PatchGrid(size, 4).extract(image)
    noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    white = other.mean() + other.std() * noise
    far, near = (float(energy_distance(x, other)) for x in (white, found))
    assert near < share * far
    again = run(mosaic(blobs(space, patch, 0), edges, size, MosaicPlan(steps=2), seed=4))
    assert not torch.equal(again, image)


def test_stopped_early_it_has_its_full_size() -> None:
    cloud = blobs((40, 40), 12, 0)
    image = run(mosaic(cloud, (12, 12), (30, 31), should_stop=lambda: True))
    assert image.shape == (1, 1, 30, 31)


@pytest.mark.parametrize(
    ("numbers", "space", "reason"),
    [
        (15, (20, 20), "15 numbers"), (16, (3, 20), "smaller than its patches"),
        (16, (20, 20, 20), "2 or 3 axes"),
    ],
)
def test_what_does_not_fit_is_refused(numbers: int, space: tuple[int, ...], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        run(mosaic(torch.rand(numbers, 30), (4, 4), space))


def test_equal_patches_are_refused() -> None:
    with pytest.raises(InvalidInput, match="targets are equal"):
        run(mosaic(torch.ones(16, 30), (4, 4), (8, 8)))
