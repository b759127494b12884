"""Laws that every registered sampler obeys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from napari_invprior import jobs, registry
from napari_invprior.posterior.base import Posterior
from tests.posterior.gaussian import Truth, problem

SAMPLERS = [
    pytest.param(m, id=m.name) for m in registry.methods("sampler") if m.cls.needs_weight
]
LONG: dict[str, dict[str, Any]] = {
    "exact_gaussian": {"samples": 400},
    "ula": {"steps": 1200, "stop_ess": 1e5}, "mala": {"steps": 2500, "stop_ess": 1e5},
    "underdamped": {"steps": 1200, "stop_ess": 1e5},
}
SHORT: dict[str, dict[str, Any]] = {
    name: {"samples": 8} | ({} if name == "exact_gaussian" else {"steps": 40, "warm_up": 10})
    for name in LONG
}


def draw(
    method: registry.Method, truth: Truth, seed: int = 0, **options: Any
) -> tuple[Posterior, np.ndarray, list[jobs.Event]]:
    """The posterior, its samples (S, C, *space) and all events."""
    sampler = method.cls(method.parameters(**options))
    events: list[jobs.Event] = []
    start = torch.full_like(truth.mean, 0.5).float()
    posterior = jobs.run(
        sampler.sample(
            truth.y, truth.physics, truth.noise, truth.prior, weight=truth.weight, start=start,
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
    steps = {} if method.name == "exact_gaussian" else {"steps": 2500, "stop_ess": 1e5}
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
    many = {"samples": 200} | ({} if method.name == "exact_gaussian" else {"steps": 100_000})
    sampler, calls = method.cls(method.parameters(**many)), 0

    def should_stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > 3

    events: list[jobs.Event] = []
    posterior = jobs.run(
        sampler.sample(
            small.y, small.physics, small.noise, small.prior, weight=small.weight,
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
        small.y, small.physics, small.noise, small.prior, weight=small.weight, start=start
    ))
    assert torch.equal(small.y, y)
    assert torch.equal(start, kept)
