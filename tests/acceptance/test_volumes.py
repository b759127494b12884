"""The 3D prior against its own baselines (findings-3d.md): x2 super-resolution of volumes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from napari_invprior import recipes, registry
from napari_invprior.io.arrays import image_from_array
from napari_invprior.jobs import run
from napari_invprior.numerics.metrics import psnr
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.physics.piece import representative_piece
from napari_invprior.physics.superresolution import SuperResolution, SuperResolutionParameters
from napari_invprior.priors.base import Reference
from napari_invprior.priors.mixtures.gmm import GaussianMixture, GaussianMixtureParameters
from napari_invprior.priors.patchnr import PatchNR, PatchNRParameters
from napari_invprior.reconstruct.half_quadratic import HalfQuadratic, HalfQuadraticParameters
from napari_invprior.reconstruct.propose import (
    Candidate,
    propose_prior,
)
from napari_invprior.reconstruct.weight import PIECE_SAMPLES, choose_weight
from napari_invprior.samples import binary_volume, grey_volume
from napari_invprior.study.baselines import best_total_variation
from napari_invprior.study.lineup import usual_solver

pytestmark = pytest.mark.slow
Show = Callable[[str], None]

NOISE = GaussianNoise(GaussianParameters(sigma=0.01))
RIM = 6
CPU_SECONDS = 20.0


def volume(kind: str, seed: int, shape: tuple[int, ...] = (48, 48, 48)) -> Tensor:
    """A volume of the findings, (1, *space)."""
    make = {
        "bin 2": lambda: binary_volume(shape, seed, width=2.0),
        "bin 3": lambda: binary_volume(shape, seed, width=3.0),
        "grey": lambda: grey_volume(shape, seed),
        "thick slices": lambda: binary_volume(shape, seed, width=(1.0, 3.0, 3.0)),
    }[kind]
    return torch.from_numpy(make())[None]


def operator(**choices: object) -> SuperResolution:
    """Gaussian of standard deviation 1, 9 taps, and a mean over 2 voxels per axis."""
    settings = {"factor": 2, "blur_sigma": 1.0, "kernel_size": 9, "pixel_average": True}
    return SuperResolution(SuperResolutionParameters(**settings | choices), ndim=3)  # type: ignore[arg-type]


def observed(x: Tensor, physics: Physics) -> Tensor:
    return NOISE.simulate(physics.A(x), torch.Generator().manual_seed(0))


def solved(y: Tensor, physics: Physics, prior: GaussianMixture, weight: float = 0.25) -> Tensor:
    solver = HalfQuadratic(HalfQuadraticParameters())
    job = solver.solve(
        y, physics, NOISE, prior, weight=weight, value_range=prior.value_range, seed=0
    )
    result: Tensor = run(job)
    return result


def learned(reference: Tensor, **choices: object) -> GaussianMixture:
    prior = GaussianMixture(GaussianMixtureParameters(**choices), ndim=3)  # type: ignore[arg-type]
    run(prior.fit([Reference(reference)], seed=0))
    return prior


@lru_cache(maxsize=16)
def total_variation_levels(kind: str, truth: int) -> tuple[float, float]:
    """PSNR of total variation, its weight chosen with the truth, without and with the box."""
    x, physics = volume(kind, truth)[None], operator(boundary="circular")
    return levels(observed(x, physics), physics, x, RIM)


def levels(y: Tensor, physics: Physics, x: Tensor, rim: int) -> tuple[float, float]:
    plain, boxed = (psnr(image, x, rim) for image in baselines(y, physics, x, rim))
    return plain, boxed


def baselines(y: Tensor, physics: Physics, x: Tensor, rim: int) -> list[Tensor]:
    """The total-variation images of highest PSNR, without and with the range of the truth."""
    box = float(x.min()), float(x.max())
    return [
        best_total_variation(y, physics, NOISE, x, rim, b, refinements=1)[0] for b in (None, box)
    ]


@pytest.mark.parametrize(
    ("kind", "least", "over_tv", "over_box"),
    [("bin 2", 24.6, 2.5, 0.4), ("bin 3", 29.0, 2.5, 1.2), ("grey", 28.9, 0.3, 0.3)],
)
@pytest.mark.parametrize(("truth", "reference"), [(1, 0), (2, 5), (3, 8)])
def test_mixture_beats_total_variation(
    kind: str, least: float, over_tv: float, over_box: float, truth: int, reference: int, show: Show
) -> None:
    x, physics = volume(kind, truth)[None], operator(boundary="circular")
    y = observed(x, physics)
    begin = time.process_time()
    prior = learned(volume(kind, reference))
    learning = time.process_time() - begin
    ours = psnr(solved(y, physics, prior), x, RIM)
    seconds = time.process_time() - begin
    cubic = psnr(physics.start(y), x, RIM)
    plain, boxed = total_variation_levels(kind, truth)
    # The thresholds belong to the first pair; other volumes differ by 0.2 dB.
    least = least if truth == 1 else least - 0.3
    show(
        f"{kind} {truth}/{reference}: {ours:.2f} dB (>= {least:.1f}) in {learning:.1f} + "
        f"{seconds - learning:.1f} CPU-s (< {CPU_SECONDS:.0f}); cubic {cubic:.2f}, TV {plain:.2f}, "
        f"TV + box {boxed:.2f}"
    )
    assert ours >= least
    assert ours >= plain + over_tv
    assert ours >= boxed + over_box
    assert seconds < CPU_SECONDS


@pytest.mark.parametrize(
    ("kind", "factor", "patch", "over"),
    [("thick slices", (1, 2, 2), (2, 4, 4), 0.5), ("bin 3", (3, 1, 1), (4, 4, 4), 0.5)],
    ids=["voxels 3:1:1", "thick slices to cubes"],
)
def test_anisotropic_volume_without_periodic_border(
    kind: str, factor: tuple[int, ...], patch: tuple[int, ...], over: float, show: Show
) -> None:
    """Data are cut out of a larger scene, so that the border is not the operator's own."""
    sigma = tuple(0.0 if f == 1 else f / 2 for f in factor)
    taps = tuple(1 if f == 1 else 9 for f in factor)
    physics = operator(factor=factor, blur_sigma=sigma, kernel_size=taps, boundary="reflect")
    scene = volume(kind, 1, (72, 72, 72))[None]
    inner = (slice(None), slice(None), slice(12, 60), slice(12, 60), slice(12, 60))
    y = observed(scene, physics)[
        (slice(None), slice(None), *(slice(12 // f, 60 // f) for f in factor))
    ]
    x = scene[inner]
    begin = time.process_time()
    prior = learned(volume(kind, 0), patch_size=patch)
    found = solved(y, physics, prior)
    seconds = time.process_time() - begin
    rivals = baselines(y, physics, x, 2)
    plain, boxed = (psnr(image, x, 2) for image in rivals)
    at_border = max(psnr(image, x, 0) for image in rivals)
    figures = {rim: psnr(found, x, rim) for rim in (0, 2, RIM)}
    show(
        f"{kind} x{factor}, reflect: {figures[2]:.2f} dB without a rim of 2 (all "
        f"{figures[0]:.2f}, TV {at_border:.2f}; rim 6 {figures[6]:.2f}) in {seconds:.1f} CPU-s; "
        f"cubic {psnr(physics.start(y), x, 2):.2f}, TV {plain:.2f}, TV + box {boxed:.2f}"
    )
    assert figures[2] >= max(plain, boxed) + over
    # The mirror that the operator assumes is not what lies beyond the border. All methods lose
    # there; ours, which trusts the data more, up to 0.5 dB more than TV + box (measured, x3).
    assert figures[0] >= at_border - 1.0
    assert seconds < CPU_SECONDS


def test_small_reference_gains_by_symmetries(show: Show) -> None:
    x, physics = volume("bin 3", 1)[None], operator(boundary="circular")
    y = observed(x, physics)
    reference = volume("bin 3", 0)[:, :24, :24, :24]
    figures = {
        choice: psnr(solved(y, physics, learned(reference, symmetries=choice)), x, RIM)
        for choice in ("off", "auto")
    }
    show(f"bin 3 from 24^3 voxels: {figures['off']:.2f}, with symmetries {figures['auto']:.2f} dB")
    assert figures["auto"] >= figures["off"] + 0.5
    assert figures["auto"] >= total_variation_levels("bin 3", 1)[1] + 0.3


def test_the_proposed_prior_is_the_one_that_wins_in_earnest(show: Show) -> None:
    x, physics = volume("bin 3", 1)[None], operator(boundary="circular")
    y, reference = observed(x, physics), volume("bin 3", 0)
    solver = HalfQuadratic(HalfQuadraticParameters())
    few, many = (
        Candidate(
            name, GaussianMixture, GaussianMixtureParameters(components=k), solver, (0.25,)
        )
        for name, k in (("one Gaussian", 1), ("100 Gaussians", 100))
    )
    ranking = run(propose_prior(Reference(reference), physics, NOISE, [few, many]))
    names = [score.name for score in ranking]
    show(", ".join(f"{s.name} {s.psnr:.2f} dB ({s.seconds:.0f} s)" for s in ranking))
    assert names[0] == many.name
    assert names.index(few.name) > names.index("total variation in the references' range")
    earnest = {
        few.name: psnr(solved(y, physics, learned(reference, components=1)), x, RIM),
        many.name: psnr(solved(y, physics, learned(reference, components=100)), x, RIM),
        "total variation in the references' range": total_variation_levels("bin 3", 1)[1],
    }
    assert sorted(earnest, key=lambda n: -earnest[n]) == [n for n in names if n in earnest]


@pytest.mark.parametrize("kind", ["bin 2", "bin 3", "grey"])
def test_automatic_weight(kind: str, show: Show) -> None:
    x, physics = volume(kind, 1)[None], operator(boundary="circular")
    y, prior = observed(x, physics), learned(volume(kind, 0))
    solver = HalfQuadratic(HalfQuadraticParameters())
    piece = representative_piece(y, physics, PIECE_SAMPLES[3])
    job = choose_weight(
        solver, y[piece.data_index], piece.physics, NOISE, prior, value_range=prior.value_range
    )
    weight = run(job).weight
    ours = psnr(solved(y, physics, prior, weight), x, RIM)
    scores = {
        w: psnr(solved(y, physics, prior, w), x, RIM) for w in [2 ** (k / 2) for k in range(-7, 1)]
    }
    oracle = max(scores.values())
    show(
        f"{kind}: automatic {ours:.2f} dB at {weight:.3f}; oracle {oracle:.2f} at "
        f"{max(scores, key=scores.__getitem__):.3f}; loss {oracle - ours:.2f} (<= 0.15)"
    )
    assert ours >= oracle - 0.15


@pytest.mark.parametrize(
    "name",
    [m.name for m in registry.methods("prior") if 3 in m.dimensions and m.needs_references],
)
def test_every_prior_on_64_cubed_in_three_minutes(name: str, show: Show) -> None:
    """Training, automatic weight and image, with the defaults and the solver of the window."""
    images = {"truth": volume("grey", 1, (64, 64, 64)), "reference": volume("grey", 0)}
    recipe = {
        "observation": {"simulate_from": {"layer": "truth"}},
        "references": [{"layer": "reference"}],
        "physics": {"kind": "superresolution", "factor": 2, "blur_sigma": 1},
        "noise": {"kind": "gaussian", "sigma": 0.01},
        "prior": {"kind": name},
        "solver": {"kind": usual_solver(registry.get("prior", name), 3).name},
        "baselines": False,
        "rim": RIM,
    }
    arrays = {
        key: image_from_array(x[0].numpy(), name=key, ndim=3)
        for key, x in images.items()
    }
    torch.set_num_threads(2)
    begin = time.monotonic(), time.process_time()
    outcome = recipes.execute(recipe, arrays=arrays)
    seconds, cpu = time.monotonic() - begin[0], time.process_time() - begin[1]
    torch.set_num_threads(1)
    figures = outcome.metrics
    show(
        f"64^3 x2, {name}: {figures['psnr']:.2f} dB, weight {figures.get('weight', 1):.4g}, "
        f"{seconds:.0f} s ({cpu:.0f} CPU-s), peak {outcome.peak_memory_mb:.0f} MB"
    )
    assert seconds < 180


@pytest.mark.parametrize("kind", ["bin 3", "grey"])
def test_the_noise_conditional_flow_beats_tv_and_meets_the_mixture(kind: str, show: Show) -> None:
    x, physics = volume(kind, 1)[None], operator(boundary="circular")
    y, reference = observed(x, physics), volume(kind, 0)
    parameters = PatchNRParameters(noise_conditional=True, hidden=96, batch=512, steps=4000)
    prior = PatchNR(parameters, ndim=3)
    run(prior.fit([Reference(reference)], seed=0))
    extremes = float(reference.min()), float(reference.max())
    solver = HalfQuadratic(HalfQuadraticParameters())
    job = solver.solve(y, physics, NOISE, prior, weight=0.35, value_range=extremes)
    ours, levels = psnr(run(job), x, RIM), total_variation_levels(kind, 1)
    show(f"{kind}, noise-conditional patchNR: {ours:.2f} dB; TV, TV + box: {levels}")
    mixture = psnr(solved(y, physics, learned(reference)), x, RIM)
    show(f"the mixture on the same data: {mixture:.2f} dB")
    assert ours > max(levels)
    assert ours > mixture - 0.1
