"""Gaussian mixture: equality with scikit-learn, exact gradients, learning, refusals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Message, Progress, Result, run
from napari_invprior.numerics import mixture as mixture_module
from napari_invprior.numerics import pairs as pairs_module
from napari_invprior.numerics.expectation import Moments, Regularisation, from_labels, k_means
from napari_invprior.numerics.mixture import Mixture, MixtureDensity
from napari_invprior.priors.base import Reference
from napari_invprior.priors.mixtures.gmm import GaussianMixture, GaussianMixtureParameters
from napari_invprior.samples import binary_volume, load_sample


def random_mixture(components=5, dim=12, seed=0, smallest=1e-5) -> Mixture:
    """Components of very unequal variances, as patches of materials have."""
    generator = torch.Generator().manual_seed(seed)
    shape = torch.randn((components, dim, dim), generator=generator, dtype=torch.float64)
    vectors = torch.linalg.qr(shape)[0]
    exponents = torch.rand((components, dim), generator=generator, dtype=torch.float64)
    values = smallest * (0.1 / smallest) ** exponents
    means = torch.rand((components, dim), generator=generator, dtype=torch.float64)
    weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.1
    return Mixture(weights / weights.sum(), means, values, vectors)


def in_sklearn(mixture: Mixture) -> SklearnMixture:
    peer = SklearnMixture(
        mixture.components,
        weights_init=mixture.weights.numpy(),
        means_init=mixture.means.numpy(),
        precisions_init=torch.linalg.inv(mixture.covariances()).numpy(),
        reg_covar=0.0,
        tol=0.0,
        max_iter=1,
    )
    peer.weights_, peer.means_ = mixture.weights.numpy(), mixture.means.numpy()
    peer.precisions_cholesky_ = np.linalg.cholesky(torch.linalg.inv(mixture.covariances()).numpy())
    return peer


def fitted_to(mixture: Mixture, patch=(3, 4), dtype=None) -> GaussianMixture:
    prior = GaussianMixture(GaussianMixtureParameters(patch_size=patch), ndim=len(patch))
    state = {"weights": mixture.weights, "means": mixture.means, "values": mixture.values}
    prior.load_state({**state, "vectors": mixture.vectors, "range": torch.tensor([0.0, 1.0])})
    return prior


def gravel(size=80) -> Reference:
    picture = torch.from_numpy(load_sample("gravel-reference")[:size, :size] / 255.0).float()
    return Reference(picture[None])


# --- density ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-7)])
def test_log_prob_equals_sklearn(dtype, tolerance):
    mixture = random_mixture()
    patches = torch.cat(
        [
            mixture.sample(300, torch.Generator().manual_seed(1)),
            torch.rand((12, 50), dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
        ],
        1,
    ).to(dtype)
    expected = in_sklearn(mixture).score_samples(patches.T.double().numpy())
    found = fitted_to(mixture).log_prob(patches).double().numpy()
    scale = np.maximum(1.0, np.abs(expected))
    assert (np.abs(found - expected) / scale).max() < tolerance


def test_blocks_chunks_and_pieces_do_not_change_the_result(monkeypatch):
    mixture = random_mixture(smallest=1e-3)
    patches = mixture.sample(700, torch.Generator().manual_seed(1))
    whole = MixtureDensity(mixture, dtype=torch.float64)
    values, gradient = whole.potential_and_grad(patches)
    monkeypatch.setattr(pairs_module, "BLOCK", 300)
    monkeypatch.setattr(mixture_module, "CHUNK_NUMBERS", 64 * 91)
    monkeypatch.setattr(pairs_module, "PAIR_NUMBERS", 200)
    monkeypatch.setattr(mixture_module, "DENSE_PAIRS", 1000)
    parts = MixtureDensity(mixture, dtype=torch.float64)
    again, again_gradient = parts.potential_and_grad(patches)
    assert torch.allclose(again, values, rtol=1e-9)
    assert torch.allclose(again_gradient, gradient, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dense_pairs", [0, 10_000], ids=["dense", "pairs"])
@pytest.mark.parametrize("variance", [0.0, 0.01])
def test_gradient_equals_autograd(monkeypatch, dense_pairs, variance):
    monkeypatch.setattr(mixture_module, "DENSE_PAIRS", dense_pairs)
    mixture = random_mixture(smallest=1e-4)
    patches = mixture.sample(40, torch.Generator().manual_seed(3)).requires_grad_()
    covariances = mixture.covariances() + variance * torch.eye(12)
    logs = torch.stack(
        [
            w.log() + torch.distributions.MultivariateNormal(m, c).log_prob(patches.T)
            for w, m, c in zip(mixture.weights, mixture.means, covariances, strict=True)
        ]
    ).logsumexp(0)
    (expected,) = torch.autograd.grad(-logs.sum(), patches)
    density = MixtureDensity(mixture, variance, torch.float64)
    values, gradient = density.potential_and_grad(patches.detach())
    assert torch.allclose(values, -logs.detach() - 6 * math.log(2 * math.pi), rtol=1e-8)
    assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-7)


def test_float32_gradient_is_accurate_at_the_variance_floor():
    mixture = random_mixture(components=8, smallest=1e-6)
    patches = mixture.sample(500, torch.Generator().manual_seed(3))
    _, exact = MixtureDensity(mixture, dtype=torch.float64).potential_and_grad(patches)
    _, single = MixtureDensity(mixture).potential_and_grad(patches.float())
    assert float((single - exact).norm() / exact.norm()) < 1e-3


def test_denoising_is_the_posterior_mean_of_simulated_patches():
    """Regression check against Monte Carlo: E[clean | noisy] minimises the squared error."""
    mixture = random_mixture(components=3, dim=4, smallest=1e-3)
    prior = fitted_to(mixture, (2, 2))
    generator = torch.Generator().manual_seed(5)
    clean = mixture.sample(20_000, generator)
    sigma = 0.1
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    result = prior.denoise_patches(noisy, sigma)
    error = clean - result
    # A posterior mean leaves an error that no function of the noisy patch predicts.
    for feature in (noisy, result, noisy**2, torch.tanh(5 * noisy)):
        feature = feature - feature.mean(1, keepdim=True)
        correlation = (error @ feature.T) / (error.norm() * feature.norm())
        assert float(correlation.abs().max()) < 0.02
    assert float((error**2).mean()) < 0.7 * sigma**2


def test_denoising_with_one_component_is_the_wiener_filter():
    mixture = random_mixture(components=1, smallest=1e-3)
    patches = torch.rand((12, 30), dtype=torch.float64)
    centred = patches - mixture.means[0][:, None]
    covariance = mixture.covariances()[0]
    expected = mixture.means[0][:, None] + covariance @ torch.linalg.solve(
        covariance + 0.04 * torch.eye(12), centred
    )
    assert torch.allclose(fitted_to(mixture).denoise_patches(patches, 0.2), expected, atol=1e-9)


def test_samples_have_the_moments_of_the_mixture_and_depend_on_the_seed():
    mixture = random_mixture(components=2, dim=4, smallest=1e-3)
    prior = fitted_to(mixture, (2, 2))
    draws = prior.sample_patches(40_000, seed=1)
    assert torch.allclose(draws.double().mean(1), mixture.weights @ mixture.means, atol=0.01)
    assert torch.equal(draws, prior.sample_patches(40_000, seed=1))
    assert not torch.equal(draws, prior.sample_patches(40_000, seed=2))


def test_image_gradient_is_the_derivative_of_g():
    prior = fitted_to(random_mixture(smallest=1e-3))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((2, 1, 9, 11), generator=generator, dtype=torch.float64)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    step = 1e-5
    numeric = (prior.g(x + step * direction) - prior.g(x - step * direction)) / (2 * step)
    analytic = (prior.grad(x) * direction).flatten(1).sum(1)
    assert torch.allclose(analytic, numeric, rtol=1e-5)


# --- expectation-maximisation -----------------------------------------------------------------


def test_em_follows_sklearn_from_the_same_start():
    patches = random_mixture(dim=6, smallest=1e-3).sample(3000, torch.Generator().manual_seed(4))
    labels = k_means(patches, 4, 5, torch.Generator().manual_seed(0))
    nothing = Regularisation(torch.zeros(6, 6, dtype=torch.float64))
    mixture = from_labels(patches, labels, nothing)
    peer = in_sklearn(mixture)
    peer.max_iter = 10
    with pytest.warns(ConvergenceWarning):
        peer.fit(patches.T.numpy())
    likelihoods = []
    for _ in range(10):
        moments = Moments(mixture, torch.float64)
        assert [*moments.add(patches)][-1] == 3000
        likelihoods.append(-moments.mean_nll)
        mixture = moments.update(nothing)
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(likelihoods))
    assert mixture.weights.numpy() == pytest.approx(peer.weights_, rel=1e-4)
    assert mixture.means.numpy() == pytest.approx(peer.means_, rel=1e-4, abs=1e-5)
    assert mixture.covariances().numpy() == pytest.approx(peer.covariances_, rel=1e-3, abs=1e-6)


def test_an_empty_component_moves_to_the_worst_explained_patch():  # row 46
    patches = 0.1 * torch.randn((3, 400), generator=torch.Generator().manual_seed(0))
    patches[:, 7] = 3.0
    start = Mixture.from_covariances(
        torch.tensor([1.0, 1e-6]),
        torch.tensor([[0.0] * 3, [-50.0] * 3]),
        torch.eye(3).expand(2, 3, 3) * torch.tensor([1.0, 1e-4])[:, None, None],
    )
    moments = Moments(start)
    for _ in moments.add(patches):
        pass
    new = moments.update(Regularisation(0.01 * torch.eye(3).double(), 1.0, 1e-5))
    assert torch.allclose(new.means[1], torch.full((3,), 3.0, dtype=torch.float64))
    assert bool((new.weights > 0).all())


def test_k_means_finds_separate_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    patches = (centres.repeat(100, 1) + 0.1 * torch.randn((300, 2), generator=generator)).T
    labels = k_means(patches.contiguous(), 3, 10, generator)
    groups = labels.view(100, 3)
    assert bool((groups == groups[0]).all())
    assert len(groups[0].unique()) == 3


# --- fitting ----------------------------------------------------------------------------------


def test_fit_beats_a_gaussian_on_held_out_patches_and_reports_it():
    prior = GaussianMixture(GaussianMixtureParameters(components=8), ndim=2)
    events = list(prior.fit([gravel(200)], seed=1))
    assert isinstance(events[-1], Result)
    assert events[-1].value is prior
    progress = [e for e in events if isinstance(e, Progress)]
    assert progress[0].step == 0
    last = progress[-1].losses
    assert set(last) == {"train", "held_out", "gaussian"}
    assert last["held_out"] < last["gaussian"] - 3
    trains = [e.losses["train"] for e in progress if "train" in e.losses]
    assert trains[-1] < trains[0]
    held_out = prior.potential(prior.sample_patches(2000))
    assert float(held_out.mean()) == pytest.approx(last["train"], abs=6)


def test_fit_is_reproducible_and_the_seed_matters():
    states = []
    for seed in (0, 0, 1):
        prior = GaussianMixture(GaussianMixtureParameters(components=4, steps=2), ndim=2)
        states.append(run(prior.fit([gravel(40)], seed=seed)).state()["means"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_second_fit_starts_from_the_present_mixture():
    prior = GaussianMixture(GaussianMixtureParameters(components=5, steps=3), ndim=2)
    first = [e.losses for e in prior.fit([gravel()]) if isinstance(e, Progress)][-1]
    second = [e.losses for e in prior.fit([gravel()]) if isinstance(e, Progress)]
    assert next(x for x in second if "train" in x)["train"] < first["train"] + 0.01


def test_closing_the_job_keeps_the_best_state_so_far():
    prior = GaussianMixture(GaussianMixtureParameters(components=5), ndim=2)
    job = prior.fit([gravel()], seed=3)
    reported = []
    for event in job:
        if isinstance(event, Progress) and "held_out" in event.losses:
            reported.append(event.losses["held_out"])
            if event.step == 3:
                break
    job.close()
    _, held_out, _ = prior._patches([gravel()], torch.Generator().manual_seed(3))
    assert min(reported) < reported[0]
    assert float(prior.potential(held_out).mean()) == pytest.approx(min(reported), abs=1e-3)


def test_should_stop_ends_the_job():
    prior = GaussianMixture(GaussianMixtureParameters(components=5, steps=1000), ndim=2)
    stopped = list(prior.fit([gravel()], should_stop=lambda: prior.is_fitted))
    assert isinstance(stopped[-1], Result)
    assert max(e.step for e in stopped if isinstance(e, Progress)) == 0


def test_more_components_than_patches_allow_is_reduced_with_a_warning():  # row 46
    prior = GaussianMixture(GaussianMixtureParameters(components=500), ndim=2)
    events = list(prior.fit([gravel(30)]))
    texts = [e.text for e in events if isinstance(e, Message) and e.level == "warning"]
    assert any("500 components need 5000 patches" in text for text in texts)
    assert prior.mixture.components < 100


def test_symmetries_make_the_mixture_blind_to_direction():
    stripes = torch.sin(torch.arange(60) / 2.0).expand(60, 60) * 0.4 + 0.5
    noise = 0.02 * torch.randn((60, 60), generator=torch.Generator().manual_seed(0))
    reference = Reference((stripes + noise)[None])
    gaps = []
    for choice in ("off", "on"):
        prior = GaussianMixture(
            GaussianMixtureParameters(components=6, symmetries=choice), ndim=2
        )
        run(prior.fit([reference]))
        along = prior.g(reference.image[None])
        across = prior.g(reference.image.mT[None])
        gaps.append(abs(float(along - across)))
    assert gaps[1] < 0.2 * gaps[0]


def test_automatic_symmetries_tell_gravel_from_brick():
    chosen = {}
    for name in ("gravel", "brick"):
        picture = torch.from_numpy(load_sample(f"{name}-reference")[:150, :150] / 255.0).float()
        prior = GaussianMixture(GaussianMixtureParameters(components=50), ndim=2)
        patches, _, _ = prior._patches([Reference(picture[None])], torch.Generator().manual_seed(0))
        chosen[name] = patches.shape[1] > 145**2
    assert chosen == {"gravel": True, "brick": False}


@pytest.mark.parametrize("channels", ["separate", "joint"])
def test_channels_and_anisotropic_patches(channels):
    image = torch.from_numpy(load_sample("grass")[:120, :60] / 255.0).float()
    colour = torch.stack([image, image**2, 1 - image])
    prior = GaussianMixture(
        GaussianMixtureParameters(patch_size=(3, 5), channels=channels, components=4),
        ndim=2,
        channels=3,
    )
    run(prior.fit([Reference(colour)]))
    assert prior.dim == (45 if channels == "joint" else 15)
    x = torch.rand(2, 3, 13, 14)
    assert prior.g(x).shape == (2,)
    assert prior.grad(x).shape == x.shape


def test_cubes_in_three_dimensions():
    volume = torch.from_numpy(binary_volume((16, 20, 18)))
    prior = GaussianMixture(GaussianMixtureParameters(components=5), ndim=3)
    run(prior.fit([Reference(volume[None])]))
    assert prior.dim == 64
    assert prior.value_range == pytest.approx((0.1, 0.9), abs=0.02)
    assert bool(torch.isfinite(prior.grad(volume[None, None])).all())


# --- refusals ---------------------------------------------------------------------------------


def test_constant_references_and_few_patches_are_refused():  # row 8
    prior = GaussianMixture(GaussianMixtureParameters(), ndim=2)
    with pytest.raises(InvalidInput, match="constant"):
        run(prior.fit([Reference(torch.full((1, 40, 40), 0.3))]))
    with pytest.raises(InvalidInput, match="at least 100"):
        run(prior.fit([gravel(12)]))
    with pytest.raises(InvalidInput, match="not fitted"):
        prior.g(torch.rand(1, 1, 10, 10))
    assert not prior.is_fitted


def test_state_survives_a_round_trip():
    prior = fitted_to(random_mixture())
    copy = GaussianMixture(prior.parameters, ndim=2)
    copy.load_state(prior.state())
    x = torch.rand(1, 1, 8, 9)
    assert torch.equal(copy.g(x), prior.g(x))
    assert copy.value_range == prior.value_range


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("means"), "'means' is missing"),
        (lambda s: s.update(means=s["means"][:, :-1]), "'means' has shape"),
        (lambda s: s.update(values=s["values"] * math.nan), "'values' holds NaN"),
        (lambda s: s.update(values=-s["values"]), "'values' holds values of 0 or less"),
        (lambda s: s.update(weights=s["weights"].long()), "'weights' has type"),
        (lambda s: s.update(vectors=2 * s["vectors"]), "'vectors' are not orthonormal"),
        (dict.clear, "'weights' is missing"),
    ],
)
def test_damaged_states_are_refused_by_name(change, message):
    prior = fitted_to(random_mixture())
    state = dict(prior.state())
    change(state)
    with pytest.raises(InvalidInput, match=message):
        GaussianMixture(prior.parameters, ndim=2).load_state(state)
