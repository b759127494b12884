"""Acceptance of WPPFlow (sheet 18): the mean of its samples, and whether its spread is honest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from napari_invprior import jobs, registry
from napari_invprior.numerics.metrics import psnr, ssim
from napari_invprior.physics.blocks import from_blocks
from napari_invprior.priors.base import Measurement, Reference
from tests.acceptance.conftest import grey, measured, paper_operator

pytestmark = pytest.mark.slow


def test_wppflow(shared_data: Path, show: Callable[[str], None]) -> None:
    import h5py

    reference, truth = grey(shared_data / "sic/reference.png"), grey(shared_data / "sic/test.png")
    y, physics, noise = measured(truth, paper_operator(4))
    with h5py.File(shared_data / "wppnets/train_SiC_x4.h5") as file:
        tiles = torch.cat([torch.from_numpy(file[key][()]).float() for key in file])
    method = registry.get("prior", "wppflow")
    prior = method.cls(method.parameters(), ndim=2)
    jobs.run(prior.fit([Reference(reference[0])], measurement=Measurement(tiles, physics, noise)))
    samples = from_blocks(jobs.run(prior.draw(y, 16)), physics, tuple(y.shape[2:]))
    mean, std = samples.mean(0), samples.std(0)
    inner = (..., slice(40, -40), slice(40, -40))
    covered = float(((truth - mean).abs() <= 1.64 * std)[inner].float().mean())
    error, spread = (float(x[inner].square().mean().sqrt()) for x in (truth - mean, std))
    figures = [psnr(x, truth, 40) for x in (mean, samples[0], physics.start(y))]
    show(
        f"WPPFlow: mean of 16 samples {figures[0]:.2f} dB (asked 27.0; spline {figures[2]:.2f}), "
        f"SSIM {ssim(mean, truth, 40):.3f}, one sample {figures[1]:.2f} dB; std {spread:.4f}, "
        f"error {error:.4f}, mean +- 1.64 std covers {covered:.3f} (asked .85 to .96); residual "
        f"ratio of the mean {noise.residual_ratio(physics.A(mean), y):.2f}"
    )
    assert figures[0] >= 27.0
    assert 0.85 <= covered <= 0.96
