"""Real images, problems and baselines that the acceptance checks share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_invprior.image import Image
from napari_invprior.io.images import load
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.physics.superresolution import SuperResolution, SuperResolutionParameters
from napari_invprior.sources import Source

Problem = tuple[Tensor, SuperResolution, GaussianNoise]


def grey(path: Path) -> Tensor:
    """An image file as (1, 1, H, W) in [0, 1]."""
    image: Image = load(Source(path=str(path)))
    return torch.from_numpy(image.normalised().mean(1, keepdims=True).astype(np.float32))


def paper_operator(factor: int = 4) -> SuperResolution:
    """The super-resolution operator of the papers: 16 x 16 Gaussian, circular, corner anchor."""
    return SuperResolution(
        SuperResolutionParameters(
            factor=factor, blur_sigma=factor / 2, kernel_size=4 * factor, boundary="circular"
        ),
        ndim=2,
    )


def measured(truth: Tensor, physics: Physics, sigma: float = 0.01, seed: int = 0) -> Problem:
    """Data of the truth with white noise, the operator and the noise model."""
    noise = GaussianNoise(GaussianParameters(sigma=sigma))
    y = noise.simulate(physics.A(truth), torch.Generator().manual_seed(seed))
    return y, physics, noise  # type: ignore[return-value]


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a figure past pytest's capture."""

    def write(text: str) -> None:
        with capsys.disabled():
            print(f"\n    {text}", end="")

    return write
