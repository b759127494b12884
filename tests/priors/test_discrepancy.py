"""Transport priors: what holds for them beyond the laws of all priors."""

from __future__ import annotations

from typing import Any

import ot
import pytest
import torch

from napari_invprior import jobs, registry
from napari_invprior.phantoms import ellipses
from napari_invprior.physics.inpainting import Denoising, DenoisingParameters
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.priors.base import Reference
from napari_invprior.priors.wasserstein.sinkhorn import (
    SemiUnbalancedParameters,
    SemiUnbalancedPatchPrior,
)
from napari_invprior.priors.wasserstein.wasserstein import (
    WassersteinParameters,
    WassersteinPatchPrior,
)
from napari_invprior.reconstruct.half_quadratic import HalfQuadratic, HalfQuadraticParameters

SLICE = Reference(torch.from_numpy(ellipses(64, seed=100))[None])
OTHER = torch.from_numpy(ellipses(48, seed=0))[None, None]


def texture(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    x = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
    for axis in range(1, x.ndim):
        x = x + x.roll(1, axis) + 0.5 * x.roll(2, axis)
    return (x - x.min()) / (x.max() - x.min())


def wasserstein(references: list[Reference], ndim: int = 2, **options: Any) -> Any:
    prior = WassersteinPatchPrior(WassersteinParameters(**options), ndim=ndim)
    return jobs.run(prior.fit(references))


def semi_unbalanced(references: list[Reference], **options: Any) -> Any:
    chosen = {"patch_size": 4, "scales": 1} | options
    prior = SemiUnbalancedPatchPrior(SemiUnbalancedParameters(**chosen), ndim=2)
    return jobs.run(prior.fit(references))


@pytest.mark.parametrize(("shape", "edge"), [((30, 26), 4), ((12, 11, 10), 3)])
def test_distance_to_itself_is_zero_and_a_shift_costs_its_square(
    shape: tuple[int, ...], edge: int
) -> None:
    image = texture(shape)
    prior = wasserstein([Reference(image)], len(shape), patch_size=edge)
    assert abs(float(prior.g(image[None]))) < 1e-5
    shift = 0.3
    expected = len(prior.scales) * edge ** len(shape) * shift**2
    assert float(prior.g(image[None] + shift)) == pytest.approx(expected, rel=1e-3)


def test_a_plane_with_no_more_patches_than_are_to_be_drawn_gives_each_of_them_once() -> None:
    image = texture((20, 18))
    prior = wasserstein([Reference(image)], patch_size=4, scales=1)
    every = prior.patch_grid((20, 18))
    few, all_, more = (
        prior.drawn_patches(image[None], count, torch.Generator().manual_seed(0))
        .extract(image[None])
        for count in (every.count - 1, every.count, 10 * every.count)
    )
    assert few.shape[1] == every.count - 1
    assert len(few.unique(dim=1).T) < every.count - 1, "drawn with replacement"
    assert torch.equal(all_, every.extract(image[None]))
    assert torch.equal(more, all_)


def test_turning_image_and_reference_alike_changes_nothing() -> None:
    image, other = texture((30, 30)), texture((30, 30), 1)
    plain = wasserstein([Reference(image)], patch_size=4)
    turned = wasserstein([Reference(image.rot90(1, (1, 2)))], patch_size=4)
    first = float(plain.g(other[None]))
    assert float(turned.g(other.rot90(1, (1, 2))[None])) == pytest.approx(first, rel=2e-3)


def test_value_is_the_transport_cost_of_all_patches() -> None:
    image, other = texture((24, 24)), texture((24, 24), 1)
    prior = wasserstein([Reference(image)], patch_size=3, scales=1)
    patches = prior.patch_grid((24, 24)).extract(other[None])
    cost = ot.dist(patches.T.double().numpy(), prior.scales[0].patches.T.double().numpy())
    assert float(prior.g(other[None])) == pytest.approx(ot.emd2([], [], cost), rel=2e-3)


def test_references_count_by_their_weight() -> None:
    references = [Reference(texture((30, 30), seed), weight=1.0 + 2 * seed) for seed in (0, 1)]
    prior = wasserstein(references, patch_size=4, scales=1)
    half = prior.scales[0].patches.shape[1] // 2
    assert float(prior.scales[0].weights[half:].sum()) == pytest.approx(0.75, abs=1e-5)


def test_patches_may_differ_from_axis_to_axis() -> None:
    prior = wasserstein([Reference(texture((12, 16, 18)))], 3, patch_size=(2, 4, 4), scales=1)
    assert prior.dim == 32
    assert prior.grad(texture((10, 16, 16), 1)[None]).shape == (1, 1, 10, 16, 16)


def test_turned_patches_multiply_a_small_region() -> None:
    image = texture((16, 16))
    plain = wasserstein([Reference(image)], patch_size=4, scales=1)
    more = wasserstein([Reference(image)], patch_size=4, scales=1, symmetries=True)
    assert more.scales[0].patches.shape[1] == 8 * plain.scales[0].patches.shape[1]
    pool = plain.scales[0].patches.view(4, 4, -1)
    turns = [p.rot90(k).flatten(0, 1) for p in (pool, pool.flip(0)) for k in range(4)]
    known = {tuple(column) for column in torch.cat(turns, 1).T.tolist()}
    assert {tuple(column) for column in more.scales[0].patches.T.tolist()} <= known


def test_small_regions_use_fewer_scales_and_say_so() -> None:
    events: list[jobs.Event] = []
    prior = WassersteinPatchPrior(WassersteinParameters(patch_size=6, scales=3), ndim=2)
    jobs.run(prior.fit([Reference(texture((24, 24)))]), events.append)
    assert len(prior.scales) < 3
    assert any(isinstance(e, jobs.Message) and "scales" in e.text for e in events)


def test_each_run_adapts_its_own_potential() -> None:
    prior = wasserstein([Reference(texture((40, 40)))], patch_size=4, reference_patches=200)
    x = texture((40, 40), 1)[None]
    results = []
    for _ in range(2):
        working = prior.for_run()
        generator = torch.Generator().manual_seed(0)
        values = [working.subset_value_and_grad(x, generator, 1)[0] for _ in range(12)]
        results.append(torch.cat(values))
    assert torch.equal(*results)
    assert float(results[0][-1]) > float(results[0][0]), "the dual value rises"
    assert working.running_imbalance < 0.6


def test_maps_name_the_patch_that_explains_each_place() -> None:
    image = texture((40, 36))
    prior = wasserstein([Reference(image)], patch_size=4, scales=1)
    cost, index = jobs.run(prior.maps(image[None]))
    assert (cost.name, index.kind) == ("transport_cost", "labels")
    assert cost.values.shape == index.values.shape == (1, 1, 40, 36)
    assert float(cost.values.max()) < 1e-6
    # the patch whose centre is (20, 18) starts at (19, 17) and is its own best explanation
    number = int(index.values[0, 0, 20, 18]) - 1
    assert torch.equal(prior.scales[0].patches[:, number].view(4, 4), image[0, 19:23, 17:21])


def test_small_views_are_told_of_the_relaxed_form() -> None:
    prior = wasserstein([Reference(texture((30, 30)))], patch_size=4)
    assert "semi-unbalanced" in prior.advice((120, 120))
    assert prior.advice((600, 600)) == ""
    relaxed = SemiUnbalancedPatchPrior(SemiUnbalancedParameters(), ndim=2)
    assert relaxed.advice((120, 120)) == ""


@pytest.mark.parametrize("name", ["wasserstein", "sinkhorn", "semi_unbalanced"])
@pytest.mark.parametrize("centred", [False, True])
def test_patches_are_denoised_between_the_reference_patches(name: str, centred: bool) -> None:
    method = registry.get("prior", name)
    options = {"patch_size": 4, "scales": 1, "reference_patches": 1000, "centred": centred}
    options |= {} if name == "wasserstein" else {"blur": 0.1}
    prior: Any = method.cls(method.parameters(**options), ndim=2)
    jobs.run(prior.fit([SLICE]))
    clean = prior.patch_grid((48, 48)).extract(OTHER)
    noisy = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    given = noisy.clone()
    denoised = prior.for_run().denoise_patches(noisy, 0.05)
    assert torch.equal(noisy, given)
    dual, mean = prior._dual(prior.scales[0]), noisy.mean(0) * centred
    averaged = dual.plan(noisy - mean, dual.epsilon + 2 * 0.05**2).targets + mean
    error, plain = (float((found - clean).square().mean()) for found in (denoised, averaged))
    assert error < 0.95 * plain
    assert error < 0.05**2 or name == "wasserstein", "it chooses where the others average"
    if centred:
        assert torch.allclose(denoised.mean(0), noisy.mean(0), atol=1e-5)


def test_splitting_adapts_the_potential() -> None:
    working = semi_unbalanced([SLICE], reference_patches=200).for_run()
    patches = working.patch_grid((48, 48)).extract(OTHER)
    imbalance = []
    for _ in range(15):
        working.denoise_patches(patches, 0.05)
        dual = working._running[0].dual
        imbalance.append(dual.imbalance(dual.plan(patches, dual.epsilon + 2 * 0.05**2).mass))
    assert imbalance[-1] < 0.8 * imbalance[0]


def test_splitting_denoises_and_leaves_the_prior_as_it_is() -> None:
    prior = semi_unbalanced([SLICE], reference_patches=1000, blur=0.1)
    physics = Denoising(DenoisingParameters(), 2)
    noise = GaussianNoise(GaussianParameters(sigma=0.05))
    y = noise.simulate(OTHER, torch.Generator().manual_seed(0))
    solver = HalfQuadratic(HalfQuadraticParameters(steps=10))
    first, second = (
        jobs.run(solver.solve(y, physics, noise, prior, weight=0.25)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert float((first - OTHER).square().mean()) < 0.5 * 0.05**2
