"""PCA-GMM sheet, checks 4 to 6, and what the project asks of its own mixtures."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from torch import Tensor

from napari_invprior import jobs
from napari_invprior.numerics.low_rank_mixture import LowRankMixture
from napari_invprior.numerics.metrics import psnr
from napari_invprior.numerics.regression import Regression
from napari_invprior.numerics.resample import spline_resample
from napari_invprior.priors.base import Measurement, Reference
from napari_invprior.priors.mixtures.pca_gmm import PcaMixture, PcaMixtureParameters
from napari_invprior.priors.patch_estimate import PatchEstimate
from napari_invprior.samples import binary_volume
from tests.acceptance.conftest import grey
from tests.acceptance.test_volumes import NOISE, operator

pytestmark = pytest.mark.slow
Show = Callable[[str], None]


@lru_cache(maxsize=4)
def goldhill(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Fine and coarse image, (1, H, W)."""
    content = scipy.io.loadmat(folder / "goldhill" / f"{name}.mat")
    fine, coarse = (torch.from_numpy(content[key]).float()[None] for key in ("img_hr", "img_lr"))
    return fine, coarse


def own(folder: Path, factor: int, **options: Any) -> tuple[float, PcaMixture, float]:
    """PSNR on goldhill after training on the training pair, the prior and CPU seconds."""
    fine, coarse = goldhill(folder, f"learn_x{factor}")
    start = time.process_time()
    prior = PcaMixture(PcaMixtureParameters(**options), ndim=2)
    jobs.run(prior.fit([Reference(fine, pair=coarse)], seed=0))
    truth, y = goldhill(folder, f"test_x{factor}")
    x = jobs.run(prior.estimate(y[None]))
    return psnr(x, truth[None]), prior, time.process_time() - start


@pytest.mark.parametrize(("combine", "official"), [("best", 31.003), ("mean", 31.021)])
def test_the_official_model_gives_the_official_figure(
    combine: str, official: float, shared_data: Path, show: Show
) -> None:
    model = scipy.io.loadmat(shared_data / "goldhill" / "official_pca8_x2_K100.mat")
    basis = torch.from_numpy(np.ascontiguousarray(model["us"].transpose(2, 0, 1)))
    spread = torch.from_numpy(np.ascontiguousarray(model["sigmas"].transpose(2, 0, 1)))
    values, turned = torch.linalg.eigh(spread)
    mixture = LowRankMixture(
        torch.from_numpy(model["alphas"][:, 0]),
        torch.from_numpy(np.ascontiguousarray(model["bs"].T)),
        values, basis @ turned, torch.from_numpy(model["sigma_sq"][:, 0]),
    )
    truth, y = goldhill(shared_data, "test_x2")
    regression = Regression(mixture, 64, best=combine == "best")
    work = PatchEstimate(regression, (8, 8), (4, 4), (2, 2), 0.12)
    image, _ = jobs.run(work.image(y[None], jobs.never))
    found = psnr(image, truth[None])
    show(f"goldhill x2, official model, {combine}: {found:.3f} dB ({official} +- 0.01)")
    assert found == pytest.approx(official, abs=0.01)


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"mode": "full"}, 31.5),
        ({"mode": "fixed", "rank": 8}, 30.7),
        ({"mode": "hddc", "rank": 8}, 30.2),
        ({"mode": "learnt", "rank": 16}, 30.8),
        ({"mode": "learnt", "rank": 24}, 31.25),
    ],
    ids=lambda o: "-".join(map(str, o.values())) if isinstance(o, dict) else "",
)
def test_own_training_x2(
    options: dict[str, Any], least: float, shared_data: Path, show: Show
) -> None:
    found, prior, seconds = own(shared_data, 2, components=20, steps=10, **options)
    show(
        f"goldhill x2, K = {prior.mixture.components}, {options}: {found:.3f} dB (>= {least}), "
        f"{seconds:.1f} CPU-s"
    )
    assert found >= least


def test_the_defaults_x2_and_x4(shared_data: Path, show: Show) -> None:
    for factor, least, official in ((2, 31.25, 31.352), (4, 27.4, 27.619)):
        truth, y = goldhill(shared_data, f"test_x{factor}")
        half = (factor - 1) / 2
        spline = spline_resample(y[None], truth.shape[1:], (factor,) * 2, (half,) * 2)
        found, prior, seconds = own(shared_data, factor)
        show(
            f"goldhill x{factor}, defaults: {found:.3f} dB (>= {least}; best official model "
            f"{official}), K = {prior.mixture.components}, rank {prior.mixture.rank}, "
            f"{seconds:.1f} CPU-s; spline {psnr(spline, truth[None]):.2f}"
        )
        assert found >= least


def test_a_measured_pair_of_sandstone(shared_data: Path, show: Show) -> None:
    fine, coarse = (
        grey(shared_data / "textures" / f"sandstone_registered_{name}.png")[0]
        for name in ("hr", "lr")
    )
    pair = Reference(fine[:, :, :400], pair=coarse[:, :, :200])
    prior = PcaMixture(PcaMixtureParameters(), ndim=2)
    events: list[jobs.Event] = []
    jobs.run(prior.fit([pair], seed=0), events.append)
    truth, y = fine[:, :, 400:], coarse[:, :, 200:]
    x = jobs.run(prior.estimate(y[None]))
    # the two scans have scales of their own: the spline gets the best line between them
    wide = spline_resample(coarse[None], fine.shape[1:], (2, 2), (0.5, 0.5))[0]
    line = np.polyfit(wide[:, :, :400].flatten().numpy(), fine[:, :, :400].flatten().numpy(), 1)
    spline = (line[0] * wide + line[1])[None, :, :, 400:].float()
    warned = [e.text for e in events if isinstance(e, jobs.Message)]
    ours, plain = psnr(x, truth[None], 8), psnr(spline, truth[None], 8)
    show(
        f"measured sandstone x2, right third: {ours:.2f} dB, spline {plain:.2f}; K = "
        f"{prior.mixture.components}; said: {warned or 'nothing'}"
    )
    assert ours > plain + 0.5


def test_volume_with_the_automatic_choice(show: Show) -> None:
    reference, truth = (torch.from_numpy(binary_volume(seed=seed))[None] for seed in (0, 1))
    physics = operator(boundary="circular")
    y = NOISE.simulate(physics.A(truth[None]), torch.Generator().manual_seed(1))
    cubic = psnr(physics.start(y), truth[None], 6)
    figures = {}
    for name, options in {
        "auto": {}, "K = 1, full": {"components": 1, "mode": "full"},
        "K = 8, s = 60": {"components": 8, "mode": "hddc", "rank": 60, "steps": 10},
    }.items():
        start = time.process_time()
        prior = PcaMixture(PcaMixtureParameters(**options), ndim=3)  # type: ignore[arg-type]
        jobs.run(prior.fit([Reference(reference)], measurement=Measurement(y, physics, NOISE)))
        figures[name] = psnr(jobs.run(prior.estimate(y)), truth[None], 6)
        show(
            f"48^3 x2, {name}: {figures[name]:.2f} dB, {time.process_time() - start:.1f} CPU-s "
            f"(K = {prior.mixture.components}, rank {prior.mixture.rank})"
        )
    show(f"48^3 x2, cubic: {cubic:.2f} dB (auto >= cubic + 1.5)")
    assert cubic == pytest.approx(15.13, abs=0.05)
    assert figures["auto"] >= cubic + 1.5
    assert figures["auto"] >= figures["K = 1, full"] - 0.01


def test_a_volume_of_64_voxels_in_three_minutes(show: Show) -> None:
    torch.set_num_threads(2)
    start = time.monotonic()
    reference, truth = (
        torch.from_numpy(binary_volume((64, 64, 64), seed=seed, width=3.0))[None]
        for seed in (0, 1)
    )
    physics = operator(boundary="circular")
    y = NOISE.simulate(physics.A(truth[None]), torch.Generator().manual_seed(1))
    prior = PcaMixture(PcaMixtureParameters(patch_size=8), ndim=3)
    jobs.run(prior.fit([Reference(reference)], measurement=Measurement(y, physics, NOISE)))
    x = jobs.run(prior.estimate(y))
    seconds = time.monotonic() - start
    torch.set_num_threads(1)
    found, cubic = psnr(x, truth[None], 6), psnr(physics.start(y), truth[None], 6)
    show(
        f"64^3 x2, D = 576: {found:.2f} dB, cubic {cubic:.2f}; {seconds:.0f} s (< 180), K = "
        f"{prior.mixture.components}, rank {prior.mixture.rank}"
    )
    assert found > cubic + 1
    assert seconds < 180
