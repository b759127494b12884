"""Adam under guard: rolling back, giving up, settling."""

from __future__ import annotations

import math

import pytest
import torch

from napari_invprior.errors import JobError
from napari_invprior.networks.descent import SETTLING, GuardedAdam
from napari_invprior.networks.perceptron import Perceptron


@pytest.fixture
def adam() -> GuardedAdam:
    return GuardedAdam(Perceptron(2, 2, 1, 16, torch.Generator().manual_seed(0)), 1e-2)


def step(adam: GuardedAdam, loss: float = 1.0, slope: float = 1.0) -> bool:
    output = adam.net(torch.ones(2, 4))
    return adam.step(loss, output, torch.full_like(output, slope))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e5])
def test_explosions_roll_back_and_halve_the_rate(adam: GuardedAdam, bad: float) -> None:  # row 45
    adam.begin(1000)
    for _ in range(60):
        assert step(adam)
    before = adam.net(torch.ones(2, 1)).detach()
    for halvings in (1, 2, 3):
        assert not step(adam, bad)
        assert adam.factor == 0.5**halvings
    assert not torch.equal(adam.net(torch.ones(2, 1)), before), "back to the weights of step 50"
    with pytest.raises(JobError, match=r"diverged 4 times .* smaller learning_rate or tau"):
        step(adam, bad)


def test_broken_gradients_are_never_taken(adam: GuardedAdam) -> None:
    adam.begin(10)
    assert not step(adam, slope=math.nan)
    assert all(bool(p.isfinite().all()) for p in adam.net.parameters())


def test_training_ends_where_there_is_no_gain(adam: GuardedAdam) -> None:
    adam.begin(10_000)
    while not adam.done:
        if adam.taken % 25 == 0:
            adam.judge(math.exp(-adam.taken / 50), 0.01)
        step(adam)
    assert 300 < adam.taken < 700
    adam.begin(10_000)
    while not adam.done:
        if adam.taken % 25 == 0:
            adam.judge(0.0, 0.01)
        step(adam)
    assert adam.taken == 75 + SETTLING, "nothing to gain from the start"


def test_no_plateau_means_all_steps(adam: GuardedAdam) -> None:
    adam.begin(150)
    while not adam.done:
        adam.judge(0.0, 0.0)
        step(adam)
    assert adam.taken == 150


def test_rescaling_multiplies_the_answers() -> None:
    net = Perceptron(3, 2, 2, 8, torch.Generator().manual_seed(0))
    before = net(torch.ones(3, 4)).detach()
    net.rescale(2.0)
    assert torch.allclose(net(torch.ones(3, 4)), 2 * before)
