"""Half-quadratic splitting: against closed forms, every physics, shapes, events, stops."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Preview, Progress, Result, run
from napari_invprior.numerics.metrics import psnr
from napari_invprior.numerics.mixture import Mixture
from napari_invprior.parameters import validate
from napari_invprior.physics.base import Physics
from napari_invprior.physics.inpainting import Inpainting, InpaintingParameters
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.physics.superresolution import SuperResolution, SuperResolutionParameters
from napari_invprior.priors.base import Reference
from napari_invprior.priors.mixtures.gmm import GaussianMixture, GaussianMixtureParameters
from napari_invprior.reconstruct.half_quadratic import (
    HalfQuadratic,
    HalfQuadraticParameters,
    PatchAverage,
)
from napari_invprior.samples import binary_volume, load_sample

NOISE = GaussianNoise(GaussianParameters(sigma=0.05))



def prior_that(function, patch, channels=1, joint=False) -> GaussianMixture:
    """A mixture prior whose denoiser is replaced."""
    parameters = GaussianMixtureParameters(
        patch_size=patch, channels="joint" if joint else "separate"
    )
    prior = GaussianMixture(parameters, ndim=len(patch), channels=channels)
    prior.denoise_patches = function
    return prior


def single_gaussian(variance: float, mean: float, patch=(3, 3)) -> GaussianMixture:
    dim = math.prod(patch)
    prior = GaussianMixture(GaussianMixtureParameters(patch_size=patch), ndim=len(patch))
    mixture = Mixture.from_covariances(
        torch.ones(1), torch.full((1, dim), mean), variance * torch.eye(dim)[None]
    )
    prior.load_state(
        {
            "weights": mixture.weights, "means": mixture.means, "values": mixture.values,
            "vectors": mixture.vectors, "range": torch.tensor([0.0, 1.0]),
        }
    )
    return prior


def fitted(reference: torch.Tensor, components: int = 10, **choices) -> GaussianMixture:
    prior = GaussianMixture(
        GaussianMixtureParameters(components=components, **choices),
        ndim=reference.ndim - 1,
        channels=reference.shape[0],
    )
    return run(prior.fit([Reference(reference)]))


def solve(prior, y, physics, weight=0.25, noise=NOISE, **options):
    keys = ("start", "value_range", "seed", "should_stop", "time_budget_s")
    asked = {k: options.pop(k) for k in keys if k in options}
    solver = HalfQuadratic(HalfQuadraticParameters(**options))
    return run(solver.solve(y, physics, noise, prior, weight=weight, **asked))


# --- the average of patches ---------------------------------------------------------------------


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(
    ("space", "patch", "stride"),
    [((13, 17), (4, 3), (3, 3)), ((9, 10, 7), (2, 4, 3), (2, 3, 1)), ((5, 5), (5, 5), (4, 4))],
)
def test_patches_put_back_unchanged_give_the_image(space, patch, stride, periodic):
    prior = prior_that(lambda patches, sigma: patches, patch)
    x = torch.rand(2, 1, *space)
    average = PatchAverage(prior, stride, periodic, None, seed=0)
    for _ in range(3):
        for _ in average.slabs(x, 0.1):
            pass
        assert torch.allclose(average.average(), x, atol=1e-6)


def test_slabs_do_not_change_the_average(monkeypatch):
    prior = prior_that(lambda patches, sigma: patches - patches.mean(0), (3, 3, 3))
    x = torch.rand(1, 1, 11, 9, 10)
    results = []
    for limit in (1_000_000, 20):
        monkeypatch.setattr("napari_invprior.reconstruct.half_quadratic.SLAB_PATCHES", limit)
        average = PatchAverage(prior, (2, 2, 2), False, None, seed=3)
        slabs = len(list(average.slabs(x, 0.1)))
        results.append((slabs, average.average()))
    assert results[0][0] == 1 < results[1][0]
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6)


def test_periodic_patches_wrap_and_others_stay_inside():
    seen = []
    prior = prior_that(lambda patches, sigma: seen.append(patches.clone()) or patches, (3,) * 2)
    x = torch.arange(8.0)[:, None].expand(8, 8)[None, None].contiguous()
    for periodic in (True, False):
        average = PatchAverage(prior, (2, 2), periodic, None, seed=1)
        list(average.slabs(x, 0.1))
    jumps = [(p.view(3, 3, -1).diff(dim=0) < 0).any() for p in seen]
    assert bool(jumps[0])
    assert not bool(jumps[1])


def test_offsets_change_from_step_to_step_and_reach_every_place():
    corners = set()
    prior = prior_that(
        lambda patches, sigma: corners.update(patches[0].tolist()) or patches, (3, 3)
    )
    x = torch.arange(36.0).view(1, 1, 6, 6)
    average = PatchAverage(prior, (3, 3), True, None, seed=0)
    for _ in range(60):
        list(average.slabs(x, 0.1))
    assert corners == set(range(36))


def test_box_clips_what_is_denoised():
    seen = []
    prior = prior_that(lambda patches, sigma: seen.append(patches.clone()) or patches, (2, 2))
    x = torch.linspace(-1, 2, 36).view(1, 1, 6, 6)
    physics = Inpainting(InpaintingParameters(), 2, mask=torch.ones(6, 6))
    solve(prior, x, physics, steps=2, value_range=(0.2, 0.7))
    assert float(seen[0].min()) == pytest.approx(0.2)
    assert float(seen[0].max()) == pytest.approx(0.7)
    seen.clear()
    solve(prior, x, physics, steps=2, value_range=(0.2, 0.7), box=False)
    assert float(seen[0].min()) == pytest.approx(-1)


# --- the solution -------------------------------------------------------------------------------


def test_fixed_point_for_one_gaussian_is_known():
    """At constant sigma the loop ends in ``(y + m z) / (1 + m)``, ``z`` the Wiener estimate."""
    variance, mean, sigma, weight = 0.02, 0.3, 0.1, 0.5
    y = torch.rand((1, 1, 12, 12), generator=torch.Generator().manual_seed(0))
    physics = Inpainting(InpaintingParameters(), 2, mask=torch.ones(12, 12))
    x = solve(
        single_gaussian(variance, mean), y, physics, weight, steps=300, sigma_start=sigma,
        sigma_end=sigma, box=False,
    )
    m = weight * 0.05**2 / sigma**2
    share = variance / (variance + sigma**2)
    expected = (y + m * (1 - share) * mean) / (1 + m * (1 - share))
    assert torch.allclose(x, expected, atol=1e-5)


def test_photograph_is_restored_better_than_by_interpolation():
    picture = torch.from_numpy(load_sample("gravel") / 255.0).float()
    prior = fitted(picture[None, :150, :150], components=20)
    truth = picture[None, None, 100:164, 300:364]
    physics = SuperResolution(SuperResolutionParameters(factor=2), 2)
    noise = GaussianNoise(GaussianParameters(sigma=0.01))
    y = noise.simulate(physics.A(truth), torch.Generator().manual_seed(0))
    x = solve(prior, y, physics, 0.1, noise, steps=15)
    gain = psnr(x, truth, 8) - psnr(physics.start(y), truth, 8)
    print(f"gain over the cubic spline {gain:.2f} dB")
    assert gain > 0.8


class Squeezed(Physics):
    """An operator without a closed-form data step: sums of neighbours along the last axis."""

    def A(self, x):
        return 0.5 * (x + x.roll(1, -1))[..., ::2]

    def A_adjoint(self, y):
        spread = torch.zeros(*y.shape[:-1], 2 * y.shape[-1], dtype=y.dtype)
        spread[..., ::2] = 0.5 * y
        return spread + spread.roll(-1, -1)

    def out_shape(self, shape):
        return (*shape[:-1], shape[-1] // 2)

    def in_shape(self, shape):
        return (*shape[:-1], 2 * shape[-1])


def test_physics_without_closed_form_is_solved_by_conjugate_gradients():
    volume = torch.from_numpy(binary_volume((16, 14, 18), 1))[None, None]
    prior = fitted(torch.from_numpy(binary_volume((24, 24, 24), 0))[None])
    physics = Squeezed(InpaintingParameters(), 3)
    y = NOISE.simulate(physics.A(volume), torch.Generator().manual_seed(0))
    start = y.repeat_interleave(2, -1)
    x = solve(prior, y, physics, start=start, steps=20)
    assert psnr(x, volume) > psnr(start, volume) + 2


@pytest.mark.parametrize("boundary", ["reflect", "circular", "valid"])
def test_anisotropic_odd_batched_volumes_with_channels(boundary):
    generator = torch.Generator().manual_seed(0)
    prior = fitted(torch.rand((2, 14, 20, 20), generator=generator), patch_size=(2, 3, 3))
    physics = SuperResolution(
        SuperResolutionParameters(
            factor=(1, 2, 3), blur_sigma=(0, 1, 1), kernel_size=(1, 3, 3), boundary=boundary
        ),
        3,
    )
    shape = physics.fitting_shape((7, 12, 15))
    y = NOISE.simulate(physics.A(torch.rand(2, 2, *shape, generator=generator)), generator)
    x = solve(prior, y, physics, steps=3)
    assert x.shape == (2, 2, *shape)
    assert bool(torch.isfinite(x).all())
    alone = solve(prior, y[1:], physics, steps=3)
    assert torch.allclose(alone, x[1:], atol=1e-5)


def test_joint_channels_are_denoised_together():
    seen = []
    prior = prior_that(
        lambda patches, sigma: seen.append(patches.shape[0]) or patches, (2, 2), 3, joint=True
    )
    physics = Inpainting(InpaintingParameters(), 2, mask=torch.ones(8, 8))
    x = solve(prior, torch.rand(2, 3, 8, 8), physics, steps=1)
    assert seen == [12]
    assert x.shape == (2, 3, 8, 8)


# --- the job ------------------------------------------------------------------------------------


def wait_denoiser(seconds):
    def denoise(patches, sigma):
        time.sleep(seconds)
        sigmas.append(sigma)
        return patches

    sigmas: list[float] = []
    return prior_that(denoise, (2, 2)), sigmas


def test_noise_levels_fall_geometrically_from_start_to_end():
    prior, sigmas = wait_denoiser(0.0)
    physics = Inpainting(InpaintingParameters(), 2, mask=torch.ones(8, 8))
    solve(prior, torch.rand(1, 1, 8, 8), physics, steps=5, sigma_start=0.16, sigma_end=0.01)
    assert sigmas == pytest.approx([0.16, 0.08, 0.04, 0.02, 0.01])
    sigmas.clear()
    solve(prior, torch.rand(1, 1, 8, 8), physics, steps=1, sigma_end=0.02)
    assert sigmas == [0.02]


def test_time_budget_thins_out_the_levels_but_reaches_the_last():
    prior, sigmas = wait_denoiser(0.02)
    physics = Inpainting(InpaintingParameters(), 2, mask=torch.ones(8, 8))
    begin = time.monotonic()
    solve(prior, torch.rand(1, 1, 8, 8), physics, steps=200, time_budget_s=0.4)
    assert time.monotonic() - begin < 2
    assert len(sigmas) < 100
    assert sigmas[-1] == pytest.approx(0.01)
    assert sigmas == sorted(sigmas, reverse=True)


def test_events_come_in_time_and_previews_are_copies():
    prior, _ = wait_denoiser(0.03)
    physics = Inpainting(InpaintingParameters(), 2, mask=torch.ones(8, 8))
    solver = HalfQuadratic(HalfQuadraticParameters(steps=50))
    y = torch.rand(1, 1, 8, 8)
    events, times = [], []
    for event in solver.solve(y, physics, NOISE, prior, weight=1.0):
        events.append(event)
        times.append(time.monotonic())
    progress = [e for e in events if isinstance(e, Progress)]
    assert set(progress[-1].losses) == {"residual", "change"}
    assert progress[-1].step == 50
    previews = [e for e in events if isinstance(e, Preview)]
    assert 1 <= len(previews) <= 6
    assert previews[0].array.shape == (1, 1, 8, 8)
    assert isinstance(events[-1], Result)
    assert max(b - a for a, b in itertools.pairwise(times)) < 1


def test_should_stop_returns_the_present_image():
    prior, sigmas = wait_denoiser(0.0)
    physics = Inpainting(InpaintingParameters(), 2, mask=torch.ones(8, 8))
    x = solve(prior, torch.rand(1, 1, 8, 8), physics, should_stop=lambda: len(sigmas) >= 3)
    assert len(sigmas) == 3
    assert x.shape == (1, 1, 8, 8)


def test_what_cannot_be_solved_is_refused():
    physics = Inpainting(InpaintingParameters(), 2, mask=torch.ones(8, 8))
    y = torch.rand(1, 1, 8, 8)
    with pytest.raises(InvalidInput, match="can denoise patches"):
        solve(None, y, physics)
    with pytest.raises(InvalidInput, match="smaller than the patch"):
        solve(prior_that(lambda p, s: p, (9, 9)), y, physics)
    with pytest.raises(InvalidInput, match="steps = 0"):
        validate(HalfQuadraticParameters, {"steps": 0})
    with pytest.raises(InvalidInput, match="stride"):
        solve(prior_that(lambda p, s: p, (3, 3)), y, physics, stride=(1, 1, 1))
