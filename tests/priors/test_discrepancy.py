"""Transport priors: what holds for them beyond the laws of all priors."""

from __future__ import annotations

from typing import Any

import ot
import pytest
import torch

from napari_invprior import jobs
from napari_invprior.priors.base import Reference
from napari_invprior.priors.sinkhorn import SemiUnbalancedParameters, SemiUnbalancedPatchPrior
from napari_invprior.priors.wasserstein import WassersteinParameters, WassersteinPatchPrior


def texture(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    x = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
    for axis in range(1, x.ndim):
        x = x + x.roll(1, axis) + 0.5 * x.roll(2, axis)
    return (x - x.min()) / (x.max() - x.min())


def wasserstein(references: list[Reference], ndim: int = 2, **options: Any) -> Any:
    prior = WassersteinPatchPrior(WassersteinParameters(**options), ndim=ndim)
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
