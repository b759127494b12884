"""Laws that every registered sampler obeys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from napari_invprior import jobs, registry
from napari_invprior.errors import InvalidInput
from napari_invprior.physics.base import Physics
from napari_invprior.posterior.amortised import Amortised, AmortisedParameters
from napari_invprior.posterior.base import Posterior
from napari_invprior.priors.base import Prior
from tests.posterior.gaussian import Truth, problem

SAMPLERS = [pytest.param(m, id=m.name) for m in registry.methods("sampler")]
INDEPENDENT = ("exact_gaussian", "amortised")
"""Samplers that have no steps."""
LONG: dict[str, dict[str, Any]] = {
    "exact_gaussian": {"samples": 400}, "amortised": {"samples": 400},
    "ula": {"steps": 1200, "stop_ess": 1e5}, "mala": {"steps": 1500, "stop_ess": 1e5},
    "underdamped": {"steps": 1200, "stop_ess": 1e5},
}
SHORT: dict[str, dict[str, Any]] = {
    name: {"samples": 8} | ({} if name in INDEPENDENT else {"steps": 40, "warm_up": 10})
    for name in LONG
}


class Exact(Prior):
    """Draws from the closed form, as a network would that learnt it without fault."""

    name = "exact"
    is_fitted = True
    has_gradient = False

    def __init__(self, truth: Truth, off: float = 0.0) -> None:
        super().__init__(AmortisedParameters(), ndim=truth.physics.ndim)
        self.truth, self.off = truth, off
        self._factor = torch.linalg.cholesky(truth.covariance)

    def draws(
        self, y: torch.Tensor, physics: Physics, count: int, *, seed: int = 0,
        should_stop: jobs.ShouldStop = jobs.never,
    ) -> jobs.Job:
        generator, stage = torch.Generator().manual_seed(seed), jobs.Stage("sample", count)
        for slot in range(count):
            white = torch.randn(len(self._factor), generator=generator, dtype=torch.float64)
            x = self.truth.mean[0] + (self._factor @ white).view_as(self.truth.mean[0]) + self.off
            yield stage.progress(slot)
            yield jobs.Sample(slot, x.float())
            if should_stop():
                break
        yield jobs.Result(slot + 1)

    def fit(self, *_: Any, **__: Any) -> jobs.Job:
        raise NotImplementedError

    g = grad = state = load_state = fit  # type: ignore[assignment]


def prior_for(method: registry.Method, truth: Truth) -> Any:
    """What the sampler draws with: the potential, or the closed form."""
    return truth.prior if method.cls.needs_weight else Exact(truth)


def draw(
    method: registry.Method, truth: Truth, seed: int = 0, **options: Any
) -> tuple[Posterior, np.ndarray, list[jobs.Event]]:
    """The posterior, its samples (S, C, *space) and all events."""
    sampler = method.cls(method.parameters(**options))
    events: list[jobs.Event] = []
    start = torch.full_like(truth.mean, 0.5).float()
    posterior = jobs.run(
        sampler.sample(
            truth.y, truth.physics, truth.noise, prior_for(method, truth), weight=truth.weight,
            start=start,
            seed=seed,
        ),
        events.append,
    )
    kept = {e.slot: e.image.numpy() for e in events if isinstance(e, jobs.Sample)}
    return posterior, np.stack([kept[slot] for slot in range(len(kept))]), events


@pytest.fixture(scope="module")
def plane() -> Truth:
    return problem((32, 32))


@pytest.fixture(scope="module")
def small() -> Truth:
    return problem((9, 10))


@pytest.mark.parametrize("method", SAMPLERS)
def test_mean_and_deviation_are_those_of_the_closed_form(
    method: registry.Method, plane: Truth
) -> None:
    posterior, samples, _ = draw(method, plane, **LONG[method.name])
    judged = posterior.convergence
    worth = posterior.kept if judged is None else judged.ess
    assert worth > 300
    off = ((posterior.mean - plane.mean) / plane.std).square().mean().sqrt()
    assert float(off) < 1.5 / worth**0.5
    ratio = posterior.std / plane.std
    assert abs(float(ratio.mean()) - 1) < 0.01 + 0.5 / worth**0.5
    assert float((ratio - 1).square().mean().sqrt()) < 1.8 / (2 * worth) ** 0.5
    spread = torch.from_numpy(samples).std(0) / plane.std[0]
    assert float(spread.mean()) == pytest.approx(1, abs=0.1)
    if judged is not None:
        assert judged.rhat < 1.1
        assert not judged.doubts


@pytest.mark.parametrize("method", SAMPLERS)
def test_neighbours_are_as_correlated_as_they_should_be(
    method: registry.Method, small: Truth
) -> None:
    """The whole covariance, not the variances alone."""
    steps = {} if method.name in INDEPENDENT else {"steps": 1800, "stop_ess": 1e5}
    _, samples, _ = draw(method, small, samples=500, **steps)
    flat = samples.reshape(len(samples), -1)
    found = np.cov(flat.T)
    exact = small.covariance.numpy()
    scale = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))
    assert np.sqrt((((found - exact) / scale) ** 2).mean()) < 0.1
    next_to = np.arange(89)
    assert np.mean(found[next_to, next_to + 1]) == pytest.approx(
        np.mean(exact[next_to, next_to + 1]), rel=0.15
    )


@pytest.mark.parametrize("method", SAMPLERS)
@pytest.mark.parametrize("space", [(9, 10), (6, 7, 8)], ids=["2d", "3d"])
def test_same_seed_same_samples(method: registry.Method, space: tuple[int, ...]) -> None:
    truth = problem(space)
    options = SHORT[method.name]
    first, again, other = (draw(method, truth, seed=s, **options)[1] for s in (1, 1, 2))
    assert first.shape == (8, 1, *space)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("method", SAMPLERS)
def test_a_stop_keeps_the_samples_so_far(method: registry.Method, small: Truth) -> None:
    many = {"samples": 200} | ({} if method.name in INDEPENDENT else {"steps": 100_000})
    sampler, calls = method.cls(method.parameters(**many)), 0

    def should_stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > 3

    events: list[jobs.Event] = []
    posterior = jobs.run(
        sampler.sample(
            small.y, small.physics, small.noise, prior_for(method, small), weight=small.weight,
            start=small.mean.float(), should_stop=should_stop,
        ),
        events.append,
    )
    slots = {e.slot for e in events if isinstance(e, jobs.Sample)}
    assert slots == set(range(posterior.kept))
    assert 0 < posterior.kept < 200
    assert bool(torch.isfinite(posterior.std).all())


@pytest.mark.parametrize("method", SAMPLERS)
def test_arrays_of_the_user_stay_as_they_are(method: registry.Method, small: Truth) -> None:
    y, start = small.y.clone(), small.mean.float()
    kept = start.clone()
    sampler = method.cls(method.parameters(**SHORT[method.name]))
    jobs.run(sampler.sample(
        small.y, small.physics, small.noise, prior_for(method, small), weight=small.weight,
        start=start,
    ))
    assert torch.equal(small.y, y)
    assert torch.equal(start, kept)


def test_priors_that_draw_nothing_are_refused(small: Truth) -> None:
    sampler = Amortised(AmortisedParameters())
    with pytest.raises(InvalidInput, match="'underdamped', or the prior 'conditional_mmd'"):
        jobs.run(sampler.sample(
            small.y, small.physics, small.noise, small.prior, weight=None, start=small.mean
        ))


def test_chains_refuse_priors_without_a_gradient(small: Truth) -> None:
    method = registry.get("sampler", "underdamped")
    with pytest.raises(InvalidInput, match="choose the sampler 'amortised'"):
        jobs.run(method.cls(method.parameters()).sample(
            small.y, small.physics, small.noise, Exact(small), weight=1.0, start=small.mean
        ))


def test_the_data_step_brings_images_to_the_data_and_keeps_them_apart(small: Truth) -> None:
    """As the mean of a Gaussian each image gains what the data know, and their own noise."""
    off, sampler = Exact(small, off=0.5), Amortised(AmortisedParameters(samples=200))
    stepped = Amortised(AmortisedParameters(samples=200, data_step=0.5))
    options: dict[str, Any] = {"weight": None, "start": small.mean}
    y = small.physics.A(small.x).float()
    before, after = (
        jobs.run(s.sample(y, small.physics, small.noise, off, **options))
        for s in (sampler, stepped)
    )
    assert before.facts["sample_residual_ratio"] > 20
    assert after.facts["sample_residual_ratio"] == pytest.approx(1, abs=0.3)
    seen = small.physics.mask
    assert seen is not None
    # gain k = 0.25 / 0.26 on what the data see: variance (1 - k)^2 of the image's, k^2 of the noise
    gain = 0.25 / (0.25 + 0.1**2)
    variance = (1 - gain) ** 2 * small.std[..., seen] ** 2 + gain**2 * 0.1**2
    found = after.std[..., seen] / variance.sqrt()
    assert float(found.mean()) == pytest.approx(1, abs=0.03)
    assert torch.allclose(after.std[..., ~seen], before.std[..., ~seen], atol=1e-6)
    assert torch.allclose(after.mean[..., ~seen], before.mean[..., ~seen], atol=1e-6)
