"""PCA-GMM: the joint mixture as estimator and as prior, geometry, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Message, Result, run
from napari_invprior.numerics.metrics import psnr
from napari_invprior.physics.blocks import block_factor, from_blocks, magnification, to_blocks
from napari_invprior.physics.blur import Blur, BlurParameters
from napari_invprior.physics.inpainting import Inpainting, InpaintingParameters
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.physics.superresolution import SuperResolution, SuperResolutionParameters
from napari_invprior.priors.base import Measurement, Reference
from napari_invprior.priors.mixtures.pca_gmm import PcaMixture, PcaMixtureParameters
from napari_invprior.reconstruct.direct import Direct, DirectParameters
from napari_invprior.samples import binary_volume, load_sample

NOISE = GaussianNoise(GaussianParameters(sigma=0.01))


def photograph(name: str, size: int = 160) -> torch.Tensor:
    return torch.from_numpy(load_sample(name)[:size, : size - 16] / 255.0).float()[None]


def operator(factor: int | tuple[int, ...] = 2, ndim: int = 2, **options) -> SuperResolution:
    return SuperResolution(SuperResolutionParameters(factor=factor, **options), ndim)


def learnt(physics, reference, ndim: int = 2, sigma: float = 0.01, **options) -> PcaMixture:
    options = {"components": 2, "mode": "full"} | options
    prior = PcaMixture(PcaMixtureParameters(**options), ndim=ndim)
    noise = GaussianNoise(GaussianParameters(sigma=sigma))
    run(prior.fit([reference], seed=0, measurement=Measurement(None, physics, noise)))
    return prior


def solved(prior, physics, truth, noise=NOISE) -> tuple[torch.Tensor, torch.Tensor]:
    """The one-pass image and the data."""
    y = noise.simulate(physics.A(truth[None]), torch.Generator().manual_seed(0))
    solver = Direct(DirectParameters())
    return run(solver.solve(y, physics, noise, prior, weight=1.0)), y


# --- estimate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "physics",
    [
        operator(2),
        operator(2, boundary="circular"),
        operator(4, boundary="circular", kernel_size=16),
        operator(3),
        operator((2, 1)),
        operator(2, boundary="valid"),
        Blur(BlurParameters(blur_sigma=1.5), 2),
    ],
    ids=["x2", "circular corner", "x4 corner", "x3", "x2 along one axis", "valid", "deblurring"],
)
def test_one_pass_beats_the_start_for_every_operator(physics):
    prior = learnt(physics, Reference(photograph("gravel-reference", 256)))
    window = tuple(slice(0, n) for n in physics.fitting_shape((96, 84)))
    truth = photograph("gravel-test")[(slice(None), *window)]
    x, y = solved(prior, physics, truth)
    rim = 12
    assert x.shape[1:] == truth.shape
    assert psnr(x, truth[None], rim) > psnr(physics.start(y), truth[None], rim) + 0.4


def test_volumes():
    physics = operator(2, 3, blur_sigma=1.0, pixel_average=True)
    volume = torch.from_numpy(binary_volume((28, 24, 26), width=2.5))[None]
    prior = learnt(physics, Reference(volume), 3, patch_size=4, components=1)
    truth = torch.from_numpy(binary_volume((20, 24, 22), seed=1, width=2.5))[None]
    x, y = solved(prior, physics, truth)
    assert x.shape[1:] == truth.shape
    assert psnr(x, truth[None], 4) > psnr(physics.start(y), truth[None], 4) + 0.5


def test_a_given_pair_teaches_an_operator_that_nobody_knows():
    """The poor image here is inverted: no interpolation could guess that."""
    fine = photograph("brick-reference")
    pair = 0.9 - 0.8 * functional.avg_pool2d(fine, 2)
    prior = PcaMixture(PcaMixtureParameters(components=2, mode="full"), ndim=2)
    run(prior.fit([Reference(fine, pair=pair)]))
    test = photograph("brick-test")
    y = 0.9 - 0.8 * functional.avg_pool2d(test, 2)
    x = run(prior.estimate(y[None]))
    assert prior.factor == (2, 2)
    assert psnr(x, test[None], 8) > 30


def test_channels_and_batches_are_estimated_alike():
    fine = photograph("brick-reference", 96)
    colour = torch.cat([fine, 1 - fine, fine**2])
    for channels in ("separate", "joint"):
        prior = PcaMixture(
            PcaMixtureParameters(components=1, patch_size=4, channels=channels), ndim=2, channels=3
        )
        pair = functional.avg_pool2d(colour, 2)
        run(prior.fit([Reference(colour, pair=pair)]))
        together = run(prior.estimate(torch.stack([pair, pair.flip(1)])))
        assert together.shape == (2, 3, 96, 80)
        alone = run(prior.estimate(pair.flip(1)[None]))
        assert torch.allclose(together[1:], alone, atol=1e-5)
        assert psnr(together[:1], colour[None], 4) > 25


def test_more_noise_than_in_training_is_allowed_for():
    physics, truth = operator(2), photograph("brick-test")
    prior = learnt(physics, Reference(photograph("brick-reference")), sigma=0.01)
    loud = GaussianNoise(GaussianParameters(sigma=0.08))
    y = loud.simulate(physics.A(truth[None]), torch.Generator().manual_seed(0))
    plain = run(prior.estimate(y))
    allowed = run(prior.at_noise(0.08**2).estimate(y))
    assert psnr(allowed, truth[None], 8) > psnr(plain, truth[None], 8) + 1
    assert prior.at_noise(0.005**2) is prior
    x, _ = solved(prior, physics, truth, loud)
    assert torch.allclose(x, allowed, atol=1e-4)


def test_the_posterior_spread_covers_the_error_and_maps_lie_on_the_image():
    physics, truth = operator(2), photograph("brick-test")
    prior = learnt(physics, Reference(photograph("brick-reference")), components=4)
    x, _ = solved(prior, physics, truth)
    maps = {m.name: m for m in run(prior.maps(x))}
    assert set(maps) == {"component", "log_likelihood", "posterior_std"}
    assert all(m.values.shape == x.shape for m in maps.values())
    assert maps["component"].kind == "labels"
    assert set(maps["component"].values.unique().tolist()) <= set(range(1, 5))
    inner = (..., slice(8, -8), slice(8, -8))
    error = ((x - truth[None]) ** 2)[inner].mean().sqrt()
    spread = (maps["posterior_std"].values ** 2)[inner].mean().sqrt()
    assert 0.6 < float(error / spread) < 1.5
    # a foreign texture is less likely
    strange = run(prior.maps(torch.rand_like(x)))[1].values.mean()
    assert float(strange) < float(maps["log_likelihood"].values.mean()) - 1
    names = [m.name for m in run(prior.maps(x[..., :40, :40]))]
    assert "posterior_std" not in names


def test_a_stopped_estimate_is_whole_and_finite():
    physics, truth = operator(2), photograph("brick-test")
    prior = learnt(physics, Reference(photograph("brick-reference")), components=1)
    y = physics.A(truth[None])
    x = run(prior.estimate(y, should_stop=lambda: True))
    assert x.shape[1:] == truth.shape
    assert bool(torch.isfinite(x).all())


# --- learning ---------------------------------------------------------------------------------


def test_the_automatic_choice_does_not_lose_to_one_gaussian():
    """Few patches of many numbers: a large mixture would learn them by heart."""
    physics = operator(2, 3, blur_sigma=1.0, pixel_average=True)
    reference = Reference(torch.from_numpy(binary_volume((30, 30, 30)))[None])
    truth = torch.from_numpy(binary_volume((24, 24, 24), seed=1))[None]
    figures = {}
    for name, options in {
        "auto": {"components": None, "mode": "auto"}, "one": {"components": 1},
    }.items():
        prior = learnt(physics, reference, 3, patch_size=4, steps=4, **options)
        figures[name] = psnr(solved(prior, physics, truth)[0], truth[None], 4)
    assert figures["auto"] > figures["one"] - 0.05


def test_a_pair_out_of_register_is_reported():
    fine = photograph("brick-reference")
    pair = functional.avg_pool2d(fine, 2)
    for shift, warned in ((0, False), (3, True)):
        prior = PcaMixture(PcaMixtureParameters(components=1, patch_size=4), ndim=2)
        moved = Reference(fine, pair=pair.roll(shift, 1))
        texts = [e.text for e in prior.fit([moved]) if isinstance(e, Message)]
        assert any("(+3.0, +0.0)" in t for t in texts) == warned


def test_too_many_components_are_dropped_with_a_warning():  # row 46
    prior = PcaMixture(PcaMixtureParameters(components=500, rank=10, mode="hddc"), ndim=2)
    fine = photograph("brick-reference", 80)
    events = list(prior.fit([Reference(fine, pair=functional.avg_pool2d(fine, 2))]))
    assert prior.mixture.components < 100
    assert any("500 components need more" in e.text for e in events if isinstance(e, Message))


def test_duplicates_are_learnt_without_harm():  # row 47
    """Every patch of this image occurs many times."""
    tile = torch.rand((1, 4, 4), generator=torch.Generator().manual_seed(0))
    fine = tile.repeat(1, 16, 16)
    prior = PcaMixture(PcaMixtureParameters(components=4, patch_size=4), ndim=2)
    run(prior.fit([Reference(fine, pair=functional.avg_pool2d(fine, 2))]))
    x = run(prior.estimate(functional.avg_pool2d(fine, 2)[None]))
    assert float((x - fine).abs().max()) < 0.02
    assert bool(torch.isfinite(prior.grad(fine[None])).all())


def test_samples_beyond_the_border_and_the_mask_are_not_learnt():
    fine = photograph("brick-reference")
    mask = torch.ones(fine.shape[1:], dtype=torch.bool)
    mask[100:] = False
    spoiled = fine.clone()
    spoiled[:, 100:] = math.nan
    physics = operator(2)
    states = [
        learnt(physics, reference).state()["means"]
        for reference in (Reference(fine, mask), Reference(spoiled))
    ]
    assert torch.equal(*states)


def test_an_inpainting_mask_leaves_the_good_patches():
    fine = photograph("brick-reference", 80)
    physics = Inpainting(InpaintingParameters(), 2, mask=torch.ones(80, 64))
    prior = PcaMixture(PcaMixtureParameters(components=2, patch_size=4), ndim=2)
    measurement = Measurement(None, physics, NOISE)
    events = list(prior.fit([Reference(fine)], measurement=measurement))
    assert any("mask" in e.text for e in events if isinstance(e, Message))
    assert isinstance(events[-1], Result)
    assert prior.factor is None
    with pytest.raises(InvalidInput, match="without a low-resolution image"):
        run(prior.estimate(fine[None]))
    with pytest.raises(InvalidInput, match="not for inpainting"):
        solved(prior, physics, fine)


@pytest.mark.parametrize("options", [{"start": "neighbours"}, {"optimiser": "palm"},
                                     {"mode": "fixed"}, {"combine": "best"}])
def test_the_papers_options_work(options):
    physics = operator(2)
    options = {"rank": 6, "components": 3, "steps": 3, "mode": "learnt", "patch_size": 4} | options
    prior = learnt(physics, Reference(photograph("brick-reference", 100)), **options)
    truth = photograph("brick-test", 64)
    x, y = solved(prior, physics, truth)
    assert prior.mixture.rank == 6
    assert psnr(x, truth[None], 8) > psnr(physics.start(y), truth[None], 8)


# --- geometry and refusals --------------------------------------------------------------------


@pytest.mark.parametrize("boundary", ["reflect", "circular"])
def test_block_grids_are_inverse_and_centred(boundary):
    physics = operator(4, boundary=boundary, kernel_size=16)
    x = torch.rand(1, 1, 64, 48)
    y = physics.A(x)
    blocks = to_blocks(x, physics, y.shape[2:])
    assert torch.equal(from_blocks(blocks, physics, y.shape[2:]), x)
    assert block_factor(physics) == (4, 4)
    smooth = torch.cos(2 * math.pi * torch.arange(64) / 64).expand(48, 64).T[None, None]
    coarse = functional.avg_pool2d(to_blocks(smooth, physics, (16, 12)), 4)
    inner = (..., slice(3, -3), slice(3, -3))
    assert float((physics.A(smooth) - coarse)[inner].abs().max()) < 0.08


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(InvalidInput, match="whole multiple"):
        magnification((64, 63), (32, 31))
    fine = photograph("brick-reference", 80)
    prior = PcaMixture(PcaMixtureParameters(patch_size=7), ndim=2)
    with pytest.raises(InvalidInput, match=r"choose \(8, 8\)"):
        run(prior.fit([Reference(fine, pair=functional.avg_pool2d(fine, 2))]))
    pair = Reference(fine, pair=functional.avg_pool2d(fine, 2))
    with pytest.raises(InvalidInput, match="disagree"):
        learnt(operator(4), pair)
    prior = learnt(operator(2), Reference(photograph("brick-reference", 100)))
    with pytest.raises(InvalidInput, match="train the prior for this operator"):
        solved(prior, operator(4), photograph("brick-test", 80)[:, :, :64])
    with pytest.raises(InvalidInput, match="train a new one"):
        run(prior.fit([Reference(fine)], measurement=Measurement(None, operator(4), NOISE)))
    assert prior.factor == (2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("geometry"), "'geometry' is missing"),
        (lambda s: s.update(geometry=torch.tensor([[8, 8], [3, 3]])), "'geometry'"),
        (lambda s: s.update(geometry=torch.tensor([[6, 6], [2, 2]])), "'means' has shape"),
        (lambda s: s.update(values=-s["values"]), "'values' holds values of 0 or less"),
        (lambda s: s.update(noises=s["noises"] * math.nan), "'noises' holds NaN"),
        (lambda s: s.update(vectors=2 * s["vectors"]), "'vectors' are not orthonormal"),
    ],
)
def test_damaged_states_are_refused_by_name(change, message):
    prior = learnt(operator(2), Reference(photograph("brick-reference", 100)))
    state = dict(prior.state())
    change(state)
    with pytest.raises(InvalidInput, match=message):
        PcaMixture(prior.parameters, ndim=2).load_state(state)


def test_a_state_keeps_magnification_and_noise():
    prior = learnt(operator(3), Reference(photograph("brick-reference", 120)), sigma=0.02)
    again = PcaMixture(prior.parameters, ndim=2)
    again.load_state(prior.state())
    assert again.factor == (3, 3)
    assert again.patch == (12, 12)
    y = torch.rand(1, 1, 12, 13)
    assert torch.equal(run(again.estimate(y)), run(prior.estimate(y)))
    assert again.at_noise(0.02**2 * 1.0001)._extra < 1e-6
    assert again.at_noise(0.1)._extra == pytest.approx(0.1 - 0.02**2, rel=1e-3)
