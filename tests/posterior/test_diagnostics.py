"""R-hat and effective sample sizes against what is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_invprior.numerics.moments import Moments
from napari_invprior.posterior.diagnostics import (
    Convergence,
    Traces,
    effective_samples,
    split_rhat,
)


def autoregressive(rho: float, chains: int, draws: int, quantities: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(chains, draws, quantities)) * np.sqrt(1 - rho**2)
    x = np.empty_like(noise)
    x[:, 0] = rng.normal(size=(chains, quantities))
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + noise[:, t]
    return x


@pytest.mark.parametrize("rho", [-0.4, 0.0, 0.5, 0.9])
@pytest.mark.parametrize("chains", [1, 4])
def test_effective_samples_of_an_autoregression(rho: float, chains: int) -> None:
    draws = 8000 // chains
    found = np.median(effective_samples(autoregressive(rho, chains, draws, 40)))
    assert found == pytest.approx(8000 * (1 - rho) / (1 + rho), rel=0.12)


def test_chains_that_disagree_are_found() -> None:
    x = autoregressive(0.5, 4, 400, 10)
    assert split_rhat(x).max() < 1.1
    x[0] += 3
    judged = Convergence.of(x)
    assert judged.rhat > 1.5
    assert judged.ess < 50
    assert len(judged.doubts) == 2
    assert "disagree" in judged.doubts[0]


def test_a_chain_that_drifts_is_found_by_its_halves() -> None:
    drift = np.linspace(0, 3, 400)[None, :, None] + autoregressive(0.0, 4, 400, 3)
    assert split_rhat(drift).min() > 1.1


def test_stuck_and_short_chains_are_doubted_without_nan() -> None:
    still = np.ones((3, 50, 2))
    assert split_rhat(still).tolist() == pytest.approx([np.sqrt(24 / 25)] * 2)
    assert Convergence.of(still).doubts
    apart = still * np.arange(3)[:, None, None]
    assert np.isinf(split_rhat(apart)).all()
    assert Convergence.of(np.ones((3, 2, 2))).doubts


def test_running_moments_are_those_of_all_states() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn((37, 3, 1, 4, 5), generator=generator, dtype=torch.float64) + 100
    moments = Moments(states[0])
    for each in states:
        moments.add(each)
    flat = states.flatten(0, 1)
    assert torch.allclose(moments.mean[0], flat.mean(0))
    assert torch.allclose(moments.std[0], flat.std(0))
    rhat = moments.rhat
    assert rhat is not None
    assert float(rhat.max()) < 1.2
    within, between = states.var(0).mean(0), states.mean(0).var(0)
    assert torch.allclose(rhat[0], (36 / 37 + between / within).sqrt())


def test_moments_of_one_state_and_of_still_states() -> None:
    moments = Moments(torch.zeros(2, 3))
    moments.add(torch.ones(2, 3))
    assert moments.rhat is None
    assert moments.std.tolist() == [[0.0] * 3]
    moments.add(torch.ones(2, 3))
    rhat = moments.rhat
    assert rhat is not None
    assert bool((rhat <= 1).all())


def test_traces_grow() -> None:
    traces = Traces(2, 3)
    for value in range(200):
        traces.add(np.full((2, 3), value))
    assert traces.values.shape == (2, 200, 3)
    assert traces.values[1, :, 2].tolist() == list(range(200))


def test_long_traces_are_thinned() -> None:
    traces = Traces(4, 5, capacity=500)
    for value in autoregressive(0.9, 4, 3000, 5).swapaxes(0, 1):
        traces.add(value)
    held = traces.values
    assert held.shape == (4, 375, 5)
    assert np.median(effective_samples(held)) == pytest.approx(12_000 * 0.1 / 1.9, rel=0.25)
    assert Traces(10_000, 17)._values.nbytes < 50e6
    assert Traces(8, 257)._capacity >= 1500
