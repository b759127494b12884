"""Nearest weighted sites: against brute force in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_invprior.transport.semi_discrete import nearest
from napari_invprior.transport.semi_discrete.nearest import Sites


def cloud(d: int, n: int, seed: int) -> torch.Tensor:
    return torch.rand((d, n), generator=torch.Generator().manual_seed(seed))


def distances(points: torch.Tensor, sites: torch.Tensor, psi: torch.Tensor) -> torch.Tensor:
    difference = points.T.double()[:, None] - sites.T.double()
    return (difference**2).sum(2) - psi.double()


@settings(deadline=None, max_examples=40)
@given(
    d=st.integers(1, 40), n=st.integers(1, 300), count=st.integers(1, 200),
    spread=st.floats(0, 1), offset=st.floats(-3, 3),
)
def test_equals_brute_force(d: int, n: int, count: int, spread: float, offset: float) -> None:
    points, sites = cloud(d, n, 0) + offset, cloud(d, count, 1) + offset
    psi = spread * cloud(1, count, 2)[0]
    value, index = Sites(sites).nearest(points, psi)
    exact = distances(points, sites, psi)
    assert torch.allclose(value.double(), exact.min(1).values, atol=1e-5 * (1 + d))
    there = exact.gather(1, index[:, None])[:, 0]
    assert bool((there <= exact.min(1).values + 1e-5 * (1 + d)).all())


def test_many_sites_are_met_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    points, sites, psi = cloud(8, 500, 0), cloud(8, 700, 1), 0.1 * cloud(1, 700, 2)[0]
    whole = Sites(sites).nearest(points, psi)
    monkeypatch.setattr(nearest, "SITES_PER_PART", 128)
    monkeypatch.setattr(nearest, "BLOCK_NUMBERS", 5000)
    parts = Sites(sites).nearest(points, psi)
    assert torch.equal(whole[1], parts[1])
    assert torch.allclose(whole[0], parts[0], atol=1e-6)


def test_duplicates_and_ties_give_finite_numbers() -> None:  # row 47
    sites = torch.full((9, 50), 0.5)
    value, index = Sites(sites).nearest(torch.full((9, 20), 0.5))
    assert float(value.abs().max()) < 1e-6
    assert bool(((index >= 0) & (index < 50)).all())


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 10.0])
def test_soft_minimum_is_the_log_sum(epsilon: float) -> None:
    points, sites, psi = cloud(5, 60, 0), cloud(5, 40, 1), 0.2 * cloud(1, 40, 2)[0]
    weights = torch.rand(40, generator=torch.Generator().manual_seed(3))
    scores = -distances(points, sites, psi) / epsilon + weights.double().log()
    expected = -epsilon * torch.logsumexp(scores, 1)
    found, shares = torch.empty(60), torch.empty(40, 60)
    blocks = Sites(sites).soft_minimum(points, psi, weights.log(), epsilon)
    for here, values, parts, totals in blocks:
        found[here], shares[:, here] = values, parts / totals
    assert torch.allclose(found.double(), expected, atol=1e-5)
    assert torch.allclose(shares.double(), torch.softmax(scores, 1).T, atol=2e-3)
    assert torch.allclose(shares.sum(0), torch.ones(60), atol=1e-5)
    assert math.isfinite(float(found.sum()))
