"""Chains over every kind of prior, and what goes wrong: explosions, no gradient, disagreement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_invprior import jobs, registry
from napari_invprior.errors import InvalidInput, JobError, OutOfMemory
from napari_invprior.physics.inpainting import Denoising, DenoisingParameters
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.physics.superresolution import SuperResolution, SuperResolutionParameters
from napari_invprior.posterior import chains
from napari_invprior.posterior.base import Posterior
from napari_invprior.posterior.chains import ChainParameters, ChainSampler
from napari_invprior.posterior.diagnostics import Convergence
from napari_invprior.posterior.evidence import counted_once, evidence_weight
from napari_invprior.posterior.spectral import SpectralScale
from napari_invprior.posterior.ula import Ula, UlaParameters, UlaTransition
from napari_invprior.posterior.underdamped import Underdamped, UnderdampedParameters
from napari_invprior.priors.base import Prior
from napari_invprior.priors.mixtures.gmm import GaussianMixture, GaussianMixtureParameters
from napari_invprior.priors.smooth_tv import SmoothTotalVariation, SmoothTotalVariationParameters
from tests.laws.test_priors import fitted, texture
from tests.posterior.gaussian import gaussian_prior, problem

CHAINS = [m for m in registry.methods("sampler") if issubclass(m.cls, ChainSampler)]
WEIGHTS = {"patchnr": None, "gmm": None, "pca_gmm": None, "wasserstein": 1.4, "adversarial": 0.5,
           "semi_unbalanced": 1.4}
"""Priors that are sampled, and their weights (None: every sample counts once)."""


def data(ndim: int) -> tuple[Tensor, SuperResolution, GaussianNoise]:
    physics = SuperResolution(SuperResolutionParameters(factor=2, blur_sigma=0.5), ndim)
    noise = GaussianNoise(GaussianParameters(sigma=0.05))
    x = texture(ndim, seed=3)[None][(..., *(slice(0, 12 if ndim == 3 else 24),) * ndim)]
    return noise.simulate(physics.A(x), torch.Generator().manual_seed(0)), physics, noise


def sampled(sampler: ChainSampler, prior: Prior, weight: float | None, ndim: int) -> Any:
    y, physics, noise = data(ndim)
    events: list[jobs.Event] = []
    posterior: Posterior = jobs.run(
        sampler.sample(y, physics, noise, prior, weight=weight, start=physics.start(y)),
        events.append,
    )
    return posterior, events


@pytest.mark.parametrize("method", CHAINS, ids=lambda m: m.name)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", [*WEIGHTS, "smooth_tv"])
def test_every_prior_can_be_sampled(name: str, ndim: int, method: registry.Method) -> None:
    if name == "smooth_tv":
        prior: Prior = SmoothTotalVariation(SmoothTotalVariationParameters(), ndim=ndim)
        weight: float | None = 4.0
    else:
        prior, weight = fitted(registry.get("prior", name), ndim), WEIGHTS[name]
    sampler = method.cls(method.parameters(samples=6, chains=2, steps=24, warm_up=12))
    posterior, events = sampled(sampler, prior, weight, ndim)
    y, physics, noise = data(ndim)
    assert bool(torch.isfinite(posterior.mean).all())
    assert float(posterior.std.min()) > 0
    misfit = noise.residual_ratio(physics.A(posterior.mean), y)
    assert misfit < 3, "the mean must explain the data"
    assert posterior.kept == len({e.slot for e in events if isinstance(e, jobs.Sample)})
    assert posterior.rhat is not None
    assert posterior.convergence is not None


def test_the_papers_chain_is_too_wide_as_theory_says() -> None:
    """Sheet 10, check 3: variance ``s^2 / (1 - h / (2 s^2))`` for independent noise."""
    s2 = 0.5
    for h, averaged in ((0.05, False), (0.5, False), (0.5, True)):
        transition = UlaTransition(
            _Quadratic(1 / s2), SpectralScale(torch.ones(40, 50)), torch.zeros((50, 1, 40, 50)),
            torch.Generator().manual_seed(0), h, averaged,
        )
        total, count = 0.0, 0
        for step in range(220):
            transition.step(False)
            if step >= 60:
                total += float(transition.states.square().mean())
                count += 1
        expected = s2 if averaged else s2 / (1 - h / (2 * s2))
        assert total / count == pytest.approx(expected, rel=0.01)


class _Quadratic:
    """``U(x) = c |x|^2 / 2`` in place of an objective."""

    def __init__(self, curvature: float) -> None:
        self.curvature, self.residual, self.weight = curvature, 1.0, 1.0

    def gradient(self, x: Tensor) -> Tensor:
        self.energies = self.curvature * x.square().flatten(1).sum(1) / 2
        return self.curvature * x / x[0].numel()


@pytest.mark.parametrize("method", [m for m in CHAINS if "step" in m.parameters.model_fields],
                         ids=lambda m: m.name)
def test_a_step_that_is_too_long_is_halved(  # row 48
    method: registry.Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = problem((12, 12))
    factor = 60.0
    monkeypatch.setattr(
        chains, "largest_curvature", lambda *_: 1 / factor
    )
    sampler = method.cls(method.parameters(samples=8, steps=400, warm_up=100))
    events: list[jobs.Event] = []
    posterior = jobs.run(
        sampler.sample(truth.y, truth.physics, truth.noise, truth.prior, weight=truth.weight,
                       start=truth.mean.float()),
        events.append,
    )
    texts = [e.text for e in events if isinstance(e, jobs.Message)]
    assert any("step halved" in text for text in texts)
    assert bool(torch.isfinite(posterior.mean).all())
    assert float((posterior.std / truth.std).mean()) == pytest.approx(1, abs=0.2)


class _Steep(SmoothTotalVariation):
    """A potential no step is short enough for."""

    def grad(self, x: Tensor) -> Tensor:
        return torch.full_like(x, torch.nan)


def test_chains_that_explode_again_and_again_end_with_a_reason() -> None:
    prior = _Steep(SmoothTotalVariationParameters(), ndim=2)
    with pytest.raises(JobError, match="exploded 8 times"):
        sampled(Ula(UlaParameters(steps=20)), prior, 4.0, 2)


def test_a_prior_without_gradient_is_refused() -> None:
    prior = gaussian_prior()
    prior.has_gradient = False  # type: ignore[misc]
    with pytest.raises(InvalidInput, match="amortised"):
        sampled(Underdamped(UnderdampedParameters()), prior, None, 2)


def test_a_prior_that_is_no_density_needs_a_weight() -> None:
    prior = SmoothTotalVariation(SmoothTotalVariationParameters(), ndim=2)
    with pytest.raises(InvalidInput, match="give the sampler's weight"):
        sampled(Underdamped(UnderdampedParameters()), prior, None, 2)


def test_too_many_chains_for_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "COPIES", 10**9)
    with pytest.raises(OutOfMemory, match="lower chains"):
        sampled(Underdamped(UnderdampedParameters()), gaussian_prior(), None, 2)


def two_grey_levels(sharp: float, dark: float = 0.3) -> GaussianMixture:
    """Patches that are dark or bright, and nothing between."""
    from napari_invprior.numerics.mixture import Mixture

    prior = GaussianMixture(
        GaussianMixtureParameters(patch_size=3, components=2, floor=1e-8), ndim=2
    )
    means = torch.tensor([[dark] * 9, [1 - dark] * 9]).double()
    cov = sharp**2 * torch.eye(9, dtype=torch.float64).expand(2, 9, 9)
    prior._adopt(Mixture.from_covariances(torch.full((2,), 0.5), means, cov, 1e-10))
    return prior


def test_chains_that_disagree_are_reported() -> None:
    physics = Denoising(DenoisingParameters(), 2)
    noise = GaussianNoise(GaussianParameters(sigma=1.5))
    y = torch.full((1, 1, 16, 16), 0.5)
    sampler = Underdamped(UnderdampedParameters(samples=8, steps=200, warm_up=50))
    posterior = jobs.run(sampler.sample(
        y, physics, noise, two_grey_levels(0.03), weight=None, start=y,
    ))
    assert posterior.convergence.rhat > 1.1
    assert any("disagree" in doubt for doubt in posterior.convergence.doubts)


class Counting(chains.Transition):
    """States that are the number of the step."""

    def step(self, warming_up: bool) -> None:
        self.states = self.states + 1
        self.energies = torch.zeros(len(self.states))

    def halve(self, states: Tensor) -> float:
        raise AssertionError


def counting() -> Counting:
    return Counting(
        _Quadratic(1.0), SpectralScale(torch.ones(2, 2)), torch.zeros((1, 1, 2, 2)),
        torch.Generator().manual_seed(0),
    )


def test_chains_that_disagree_go_on() -> None:
    """Few chains that have not met look like many independent images."""
    watch = chains._Watch(
        ChainParameters(samples=4), counting(), torch.Generator().manual_seed(0)
    )
    watch.kept = 4
    assert watch._enough(Convergence(300.0, 100.0, 1.05, 8, 3200))
    assert not watch._enough(Convergence(300.0, 100.0, 1.7, 8, 3200))
    assert not watch._enough(Convergence(100.0, 50.0, 1.0, 8, 3200))


def test_stop_in_the_warm_up_still_gives_samples_and_says_so() -> None:
    y, physics, noise = data(2)
    sampler = Underdamped(UnderdampedParameters(warm_up=1000))
    events: list[jobs.Event] = []
    posterior = jobs.run(sampler.sample(
        y, physics, noise, gaussian_prior(), weight=None, start=physics.start(y),
        should_stop=lambda: True,
    ), events.append)
    assert posterior.kept == 8
    assert any("warm-up" in e.text for e in events if isinstance(e, jobs.Message))


def test_every_candidate_is_kept_with_equal_chance() -> None:
    """Slots hold a uniform choice of all states, however long the chains are."""
    kept: dict[int, float] = {}
    parameters = ChainParameters(samples=200, steps=20_000, warm_up=0, stop_ess=1e6)
    watch = chains._Watch(parameters, counting(), torch.Generator().manual_seed(0))
    for event in watch.run(jobs.never, None):
        if isinstance(event, jobs.Sample):
            kept[event.slot] = float(event.image[0, 0, 0])
    values = np.sort(list(kept.values())) / 20_000
    assert len(values) == 200
    assert np.abs(values - (np.arange(200) + 0.5) / 200).max() < 0.12


@pytest.mark.parametrize("edge", [3, 4, 6, 8])
def test_the_rim_counts_samples_once(edge: int) -> None:
    prior, rim, n = gaussian_prior(2, edge), counted_once((edge, edge)), 30
    ones = torch.ones(1, 1, n + 2 * rim)
    cover = torch.nn.functional.unfold(ones[..., None], (edge, 1)).shape[-1]
    counts = np.zeros(n + 2 * rim)
    for start in range(cover):
        counts[start : start + edge] += 1
    folded = counts[rim : rim + n].copy()
    for k in range(1, rim + 1):  # mirror images lie in patches too
        folded[k] += counts[rim - k]
        folded[n - 1 - k] += counts[rim + n - 1 + k]
    assert np.abs(folded[1:-1] / edge - 1).max() <= 0.34
    weight = evidence_weight(prior, (n, n), rim)
    assert weight * n**2 / cover**2 == pytest.approx(0.9 / edge**2)
