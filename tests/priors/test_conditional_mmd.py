"""Conditional MMD flows: pairs for every kind of operator, training that goes on, recipes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from napari_invprior import jobs, recipes
from napari_invprior.errors import InvalidInput
from napari_invprior.io.images import image_from_array
from napari_invprior.networks.unet import UNetSize
from napari_invprior.physics.base import Physics
from napari_invprior.physics.inpainting import (
    Denoising,
    DenoisingParameters,
    Inpainting,
    InpaintingParameters,
)
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.physics.piece import take_piece
from napari_invprior.physics.superresolution import SuperResolution, SuperResolutionParameters
from napari_invprior.physics.tomography import Tomography, TomographyParameters
from napari_invprior.priors.base import Measurement, Reference
from napari_invprior.priors.conditional.centre import Centre, fit_centre
from napari_invprior.priors.conditional.conditional_mmd import (
    ConditionalMMD,
    ConditionalMMDParameters,
)
from napari_invprior.priors.conditional.simulated_pairs import Pairs, simulated_pairs
from napari_invprior.samples import load_sample

QUICK: dict[str, Any] = {
    "patch_size": 8, "pairs": 120, "centre_steps": 3, "networks": 1, "steps": 2, "first_flow": 2,
    "batch": 8, "samples": 3, "shown": 2,
}
NOISE = GaussianNoise(GaussianParameters(sigma=0.02))


def picture(*space: int, seed: int = 0) -> torch.Tensor:
    """A smooth random image (1, *space) in [0, 1]."""
    x = torch.randn((1, *space), generator=torch.Generator().manual_seed(seed))
    for axis in range(1, x.ndim):
        x = x + x.roll(1, axis) + 0.5 * x.roll(2, axis)
    return (x - x.min()) / (x.max() - x.min())


def zoom(factor: int | tuple[int, ...] = 2, ndim: int = 2, **options: Any) -> SuperResolution:
    return SuperResolution(SuperResolutionParameters(factor=factor, **options), ndim)


def hidden(*space: int) -> Inpainting:
    mask = torch.rand(space, generator=torch.Generator().manual_seed(5)) < 0.4
    return Inpainting(InpaintingParameters(), len(space), mask=mask)


def scan(count: int = 12) -> Tomography:
    return Tomography(TomographyParameters(angle_count=count), 2)


def trained(physics: Physics, reference: torch.Tensor, **changes: Any) -> ConditionalMMD:
    prior = ConditionalMMD(ConditionalMMDParameters(**QUICK | changes), ndim=physics.ndim)
    job = prior.fit([Reference(reference)], measurement=Measurement(None, physics, NOISE))
    assert jobs.run(job) is prior
    return prior


def window(edge: int, ndim: int = 2) -> ConditionalMMD:
    return ConditionalMMD(ConditionalMMDParameters(patch_size=edge), ndim=ndim)


def pairs(physics: Physics, reference: Reference, edge: int = 8, count: int = 200) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    prior = window(edge, physics.ndim)
    return simulated_pairs([reference], physics, NOISE, prior, count, generator)


@pytest.mark.parametrize(
    ("physics", "reference", "truth", "data"),
    [
        (zoom(2), (30, 31), (18, 20), (9, 10)),
        (zoom(3, boundary="circular"), (30, 31), (27, 30), (9, 10)),
        (zoom((1, 2)), (30, 31), (9, 20), (9, 10)),
        (hidden(26, 27), (30, 31), (26, 27), (26, 27)),
        (hidden(40, 41), (30, 31), (40, 41), (40, 41)),
        (scan(), (30, 31), (30, 30), (12, 30)),
        (zoom(2, 3), (14, 15, 16), (8, 10, 12), (4, 5, 6)),
    ],
    ids=["x2", "x3", "x1x2", "mask", "large mask", "scan", "volume"],
)
def test_every_kind_of_operator(
    physics: Physics, reference: tuple[int, ...], truth: tuple[int, ...], data: tuple[int, ...]
) -> None:
    prior = trained(physics, picture(*reference), patch_size=6)
    x = picture(*truth, seed=3)[None]
    y = NOISE.simulate(physics.A(x), torch.Generator().manual_seed(1))
    assert y.shape[2:] == data
    mean = jobs.run(prior.estimate(y, seed=2))
    assert mean.shape == x.shape
    std, samples = jobs.run(prior.maps(mean, Measurement(y, physics, NOISE), seed=2))
    assert samples.values.shape == (2, *x.shape)
    assert std.values.shape == x.shape
    assert 0 < float(std.values.mean()) < 1
    three = [
        e.image for e in prior.draws(y, physics, 3, seed=2) if isinstance(e, jobs.Sample)
    ]
    assert torch.allclose(torch.stack(three).mean(0)[None], mean, atol=1e-5)
    assert torch.equal(torch.stack(three[:2])[:, None], samples.values)


@pytest.mark.parametrize(
    "physics", [Denoising(DenoisingParameters(), 2), hidden(30, 31), hidden(20, 50)],
    ids=["all", "mask", "other mask"],
)
def test_windows_and_their_first_images_belong_together(physics: Physics) -> None:
    found = pairs(physics, Reference(picture(30, 31)))
    seen = torch.ones_like(found.truth) if found.seen is None else found.seen
    error = (found.first - found.truth)[seen.bool()]
    assert float(error.std()) == pytest.approx(NOISE.sigma, rel=0.1)
    assert 200 <= len(found.truth) < 210


@pytest.mark.parametrize("taps", [1, 3, 7])
@pytest.mark.parametrize("boundary", ["circular", "reflect"])
def test_networks_see_all_images_in_step(taps: int, boundary: str) -> None:
    """A spline through samples of the image meets it there: at one place of each 2 x 2 block."""
    physics = zoom(2, blur_sigma=0, kernel_size=taps, boundary=boundary, anchor="corner")
    quiet = GaussianNoise(GaussianParameters(sigma=1e-4))
    found = simulated_pairs(
        [Reference(picture(41, 40))], physics, quiet, window(8), 200,
        torch.Generator().manual_seed(0),
    )
    error = (found.first - found.truth).abs().mean((0, 1))
    inner = error[2:6, 2:6].unfold(0, 2, 2).unfold(1, 2, 2).amax((0, 1))
    prior = trained(physics, picture(41, 40), centre_steps=0)
    x = picture(20, 22, seed=3)[None]
    canvas = prior.at_operator(physics)._canvas(physics.A(x))
    error = torch.full(canvas.middle.shape[2:], torch.nan)
    error[canvas.inside] = (canvas.middle[(..., *canvas.inside)] - x)[0, 0].abs()
    start = [s.start + 4 + s.start % 2 for s in canvas.inside]
    middle = error[start[0] : start[0] + 8, start[1] : start[1] + 8]
    used = middle.unfold(0, 2, 2).unfold(1, 2, 2).amax((0, 1))
    assert int((inner < 1e-3).sum()) == int((used < 1e-3).sum()) == 1
    assert int(inner.argmin()) == int(used.argmin())


def test_windows_stay_inside_the_picked_region() -> None:
    image = picture(40, 40)
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[5:30, 7:33] = True
    spoilt = torch.where(mask, image, torch.nan)
    found = pairs(zoom(2), Reference(spoilt, mask))
    assert bool(torch.isfinite(found.first).all())
    inside = image[0][5:30, 7:33].unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 64)
    exact = "donot_use_mm_for_euclid_dist"
    nearest = torch.cdist(found.truth.flatten(1), inside, compute_mode=exact).amin(1)
    assert float(nearest.max()) == 0


def test_a_piece_of_the_data_is_seen_like_the_whole() -> None:
    """Blocks begin elsewhere in the image of a piece; what the networks see must not shift."""
    physics = zoom(3, boundary="circular")
    prior = trained(physics, picture(40, 40), centre_steps=20)
    y = physics.A(picture(60, 60, seed=4)[None])
    piece = take_piece(physics, (slice(3, 16), slice(2, 16)), (20, 20))
    whole, part = (
        p._canvas(data) for p, data in (
            (prior.at_operator(physics), y),
            (prior.at_operator(piece.physics), y[piece.data_index]),
        )
    )
    middle = whole.middle[(..., *whole.inside)][piece.image_window]
    inner = (..., slice(15, -15), slice(15, -15))
    assert torch.allclose(part.middle[(..., *part.inside)][inner], middle[inner], atol=2e-3)


def test_the_centre_learns_middle_and_spread() -> None:
    """``x = c^2 + |c| u``: known in closed form."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand((400, 1, 6, 6), generator=generator)
    truth = first**2 + 0.2 * first * torch.randn(first.shape, generator=generator)
    found = Pairs(truth, first, None)
    centre = Centre(2, 1, masked=False, size=UNetSize(8, (1,), 1, normalised=False))
    centre.measure(found)
    job = fit_centre(
        centre, found, steps=300, batch=16, learning_rate=5e-3, generator=generator
    )
    jobs.run(job)
    known = centre.requires_grad_(False)(first, None)
    off, at_first = ((m - first**2).square().mean().sqrt() for m in (known.middle, first))
    assert float(off) < 0.3 * float(at_first)
    assert float((known.spread / (0.2 * first).clamp_min(0.02)).log().abs().mean()) < 0.25


def test_training_goes_on_where_it_was() -> None:
    physics = zoom(2)
    prior = trained(physics, picture(30, 30))
    before = {name: value.clone() for name, value in prior.state().items()}
    again = ConditionalMMD(prior.parameters, ndim=2)
    again.load_state(before)
    for one in (prior, again):
        jobs.run(one.fit(
            [Reference(picture(30, 30))], seed=7, measurement=Measurement(None, physics, NOISE)
        ))
        assert len(one.chain.networks) == 2
    after, other = prior.state(), again.state()
    for name, value in before.items():
        if name.startswith(("centre", "chain.networks", "chain.condition")):
            assert torch.equal(value, after[name]), name
    assert all(torch.equal(value, other[name]) for name, value in after.items())
    with pytest.raises(InvalidInput, match="call at_operator first"):
        fresh = ConditionalMMD(prior.parameters, ndim=2)
        fresh.load_state(after)
        fresh.estimate(torch.rand(1, 1, 8, 8))


def test_for_another_operator_it_begins_anew() -> None:
    prior = trained(zoom(2), picture(30, 30))
    jobs.run(prior.fit(
        [Reference(picture(30, 30))], measurement=Measurement(None, hidden(30, 30), NOISE)
    ))
    assert len(prior.chain.networks) == 1
    assert bool(prior.state()["masked"])
    with pytest.raises(InvalidInput, match=r"with a mask; train the prior for this operator"):
        prior.at_operator(Denoising(DenoisingParameters(), 2))


def test_a_stop_before_the_first_network_leaves_middle_and_noise() -> None:
    physics = zoom(2)
    prior = ConditionalMMD(ConditionalMMDParameters(**QUICK), ndim=2)
    jobs.run(prior.fit(
        [Reference(picture(30, 30))], measurement=Measurement(None, physics, NOISE),
        should_stop=lambda: True,
    ))
    assert prior.is_fitted
    assert prior.chain.networks == []
    assert jobs.run(prior.estimate(torch.rand(1, 1, 9, 9))).shape == (1, 1, 18, 18)
    fresh = ConditionalMMD(prior.parameters, ndim=2)
    fresh.load_state(prior.state())
    assert fresh.is_fitted
    jobs.run(fresh.fit([Reference(picture(30, 30))], measurement=Measurement(None, physics, NOISE)))
    assert len(fresh.chain.networks) == 1


def test_what_cannot_be_learnt_is_refused() -> None:
    prior = ConditionalMMD(ConditionalMMDParameters(**QUICK), ndim=2)
    with pytest.raises(InvalidInput, match="choose the physics and the noise"):
        jobs.run(prior.fit([Reference(picture(30, 30))]))
    with pytest.raises(InvalidInput, match="not trained yet"):
        prior.at_operator(zoom(2))
    small = hidden(6, 6)
    with pytest.raises(InvalidInput, match="choose a smaller patch_size"):
        jobs.run(prior.fit(
            [Reference(picture(30, 30))], measurement=Measurement(None, small, NOISE)
        ))
    with pytest.raises(InvalidInput, match="smaller than the"):
        large = Tomography(TomographyParameters(angle_count=5, image_size=64), 2)
        jobs.run(prior.fit(
            [Reference(picture(30, 30))], measurement=Measurement(None, large, NOISE)
        ))


@pytest.mark.parametrize(
    "physics",
    [
        {"kind": "superresolution", "factor": 2},
        {"kind": "inpainting", "missing": 0.5},
        {"kind": "tomography", "angle_count": 20},
    ],
    ids=lambda p: p["kind"],
)
def test_recipes_reconstruct_and_sample(physics: dict[str, Any]) -> None:
    truth = load_sample("brick-test")[100:132, 40:72]
    recipe = {
        "observation": {"simulate_from": {"layer": "truth"}}, "references": [{"layer": "good"}],
        "physics": physics, "noise": {"kind": "gaussian", "sigma": 0.02},
        "prior": {"kind": "conditional_mmd", **QUICK}, "solver": {"kind": "direct"},
        "sampler": {"kind": "amortised", "samples": 4, "data_step": 0.05}, "seed": 5,
        "baselines": False,
    }
    arrays = {
        name: image_from_array(np.asarray(values), name=name, ndim=2)
        for name, values in (("truth", truth), ("good", load_sample("brick-reference")[:80, :80]))
    }
    done = recipes.execute(recipe | {"maps": True}, arrays=arrays)
    assert [layer.name for layer in done.layers] == ["reconstruction", "std", "samples"]
    drawn = recipes.execute(recipe | {"task": "sample"}, arrays=arrays)
    assert {"mean", "std", "samples"} <= {layer.name for layer in drawn.layers}
    assert all(np.isfinite(layer.array).all() for layer in (*done.layers, *drawn.layers))
    assert drawn.metrics["samples"] == 4
    assert drawn.metrics["sample_residual_ratio"] > 0
