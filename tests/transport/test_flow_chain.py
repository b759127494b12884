"""Chains of networks: they learn, grow, stop, are saved, and refuse what does not fit."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from napari_invprior.errors import InvalidInput, JobError
from napari_invprior.jobs import Message, never, run
from napari_invprior.networks.unet import UNet, UNetSize
from napari_invprior.transport.sliced_flows.displacement import Fitting, fit_displacement
from napari_invprior.transport.sliced_flows.energy_distance import energy_distance
from napari_invprior.transport.sliced_flows.flow_chain import ChainPlan, FlowChain
from tests.transport.test_particle_flow import moons, uniform
from tests.transport.vectors import VectorNet

QUICK = ChainPlan(blocks=2, first=4, growth=16, fitting=Fitting(30, 64, 3e-3))


def chain(k: int = 0) -> FlowChain:
    return FlowChain(lambda: VectorNet(2 + k, 2, (32,)), (2,))


def test_blocks_grow_as_in_the_paper() -> None:
    paper = ChainPlan()
    steps = [paper.flow_steps(k) for k in range(60)]
    by_hand = [32]
    for k in range(59):
        by_hand.append(min(by_hand[-1] + min(2 ** (5 + k), 2048), 30_000))
    assert steps == by_hand
    short = ChainPlan(first=8, growth=1024, most=100)
    assert [short.flow_steps(k) for k in range(6)] == [8, 16, 32, 64, 100, 100]


def test_fresh_noise_becomes_like_the_targets() -> None:
    y = moons(400, 0)
    made = chain()
    plan = ChainPlan(blocks=5, first=8, growth=32, fitting=Fitting(300, 128, 5e-3))
    run(made.train(y, plan=plan))
    start = made.noise(400, torch.Generator().manual_seed(9))
    assert float(energy_distance(made.sample(400, 9), y)) < 0.15 * float(energy_distance(start, y))
    assert torch.equal(made.sample(7, 3), made.sample(7, 3))
    assert not torch.equal(made.sample(7, 3), made.sample(7, 4))


def test_images_and_conditions_pass_the_network_as_channels() -> None:
    size = UNetSize(4, (1, 2), 1)
    made = FlowChain(lambda: UNet(2, 3, 1, size), (1, 5, 6))
    y, known = uniform(30, 40), uniform(60, 40, 1)
    run(made.train(y, target_condition=known, plan=QUICK))
    assert made.sample(4, 0, known[:, :4]).shape == (30, 4)
    with pytest.raises(InvalidInput, match="of 0 numbers: the chain was trained with 60"):
        made.sample(4, 0)


def test_particles_keep_their_conditions_when_a_chain_goes_on() -> None:
    made = chain(1)
    run(made.train(moons(100, 0), target_condition=uniform(1, 100), plan=QUICK))
    before = made.state()["condition"]
    run(made.train(
        moons(70, 1), target_condition=uniform(1, 70, 2), particles=made.count, plan=QUICK
    ))
    assert torch.equal(made.state()["condition"], before)
    assert len(made.networks) == 4


def test_images_of_another_size() -> None:
    made = FlowChain(lambda: UNet(2, 2, 1, UNetSize(4, (1, 2), 1, normalised=False)), (1, 6, 6))
    with pytest.raises(InvalidInput, match="only a trained chain"):
        made.resized((1, 9, 7))
    run(made.train(uniform(36, 60), target_condition=uniform(36, 60, 1), plan=QUICK))
    large = made.resized((1, 9, 7))
    x = large.noise(3, torch.Generator().manual_seed(0))
    same = made.noise(3, torch.Generator().manual_seed(0))
    assert x.shape == (63, 3)
    assert large.apply(0, x, uniform(63, 3, 2)).shape == (63, 3)
    assert abs(float(x.std() / same.std()) - 1) < 0.2
    assert made.shape == (1, 6, 6)


def test_a_saved_chain_draws_the_same_and_goes_on() -> None:
    y = moons(200, 0)
    first = chain()
    run(first.train(y, plan=QUICK, seed=1))
    state = first.state()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    second = chain()
    second.load_state(state)
    assert torch.equal(second.sample(20, 5), first.sample(20, 5))
    for made in (first, second):
        run(made.train(y, plan=QUICK, seed=2))
        assert len(made.networks) == 4
    assert torch.equal(second.sample(20, 5), first.sample(20, 5))


def _at_three(made: FlowChain) -> Callable[[], bool]:
    return lambda: len(made.networks) == 3


def test_each_finished_network_stays() -> None:
    y = moons(100, 0)
    for leave in ("close", "stop"):
        made = chain()
        texts = []
        job = made.train(
            y, plan=ChainPlan(blocks=50, first=4, growth=4, patience=50, fitting=Fitting(500)),
            should_stop=_at_three(made) if leave == "stop" else never,
        )
        for event in job:
            texts += [event.text] if isinstance(event, Message) else []
            if leave == "close" and len(made.networks) == 3:
                job.close()  # type: ignore[attr-defined]
                break
        assert 3 <= len(made.networks) < 50
        assert made.sample(5, 0).shape == (2, 5)
        assert leave == "close" or texts[0].startswith("stopped by you")


def test_ends_when_fresh_points_come_no_closer() -> None:
    y = moons(100, 0)
    made = chain()
    plan = ChainPlan(blocks=40, first=8, growth=8, patience=2, fitting=Fitting(40, 64, 3e-3))
    texts = [e.text for e in made.train(y, plan=plan) if isinstance(e, Message)]
    assert len(made.networks) < 40
    assert texts[-1].startswith("no further gain")


def test_a_block_starts_from_the_weights_of_the_last() -> None:
    made = chain()
    plan = ChainPlan(blocks=3, first=2, growth=2, fitting=Fitting(1, learning_rate=1e-7))
    run(made.train(moons(50, 0), plan=plan))
    for a, b in itertools.pairwise(made.networks):
        for one, other in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def test_coloured_noise_has_the_covariance_of_the_targets() -> None:
    y = torch.randn((3, 2000), generator=torch.Generator().manual_seed(0)).cumsum(0)
    made = FlowChain(lambda: VectorNet(3, 3), (3,), coloured=True)
    run(made.train(y, plan=QUICK))
    noise = made.noise(20_000, torch.Generator().manual_seed(0))
    assert torch.allclose(torch.cov(noise), torch.cov(y), atol=0.1)


def test_diverging_fits_end_with_advice() -> None:
    x = uniform(1, 50).T
    with pytest.raises(JobError, match=r"diverged 4 times .* choose a smaller learning rate"):
        list(fit_displacement(VectorNet(1, 1), x, x * torch.nan, Fitting(10), 0))


def _broken(name: str, value: torch.Tensor | None) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(state: dict[str, torch.Tensor]) -> None:
        if value is None:
            del state[name]
        else:
            state[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_broken("scales", None), "'scales' is missing"),
        (_broken("moments", torch.tensor([0.0, torch.nan])), "'moments' holds NaN"),
        (_broken("particles", torch.zeros(3, 5)), r"'particles' has shape \(3, 5\)"),
        (_broken("mean", None), "'mean' has shape None"),
        (_broken("networks.001.layers.0.bias", None), "network 1 does not fit"),
        (_broken("networks.000.layers.0.bias", torch.zeros(5)), "network 0 does not fit"),
    ],
)
def test_broken_states_are_refused_and_change_nothing(
    change: Callable[[dict[str, torch.Tensor]], None], reason: str
) -> None:
    made = chain()
    run(made.train(moons(60, 0), plan=QUICK))
    before, state = made.sample(5, 0), made.state()
    change(state)
    with pytest.raises(InvalidInput, match=reason):
        made.load_state(state)
    assert torch.equal(made.sample(5, 0), before)


def test_bad_input_is_refused() -> None:
    made = chain()
    with pytest.raises(InvalidInput, match="not trained yet"):
        made.sample(3, 0)
    with pytest.raises(InvalidInput, match=r"expected \(2, count\)"):
        run(made.train(uniform(3, 20), plan=QUICK))
    with pytest.raises(InvalidInput, match="constant"):
        run(made.train(torch.ones(2, 20), plan=QUICK))
    run(made.train(moons(60, 0), plan=QUICK))
    with pytest.raises(InvalidInput, match="50 particles: this chain goes on with the 60"):
        run(made.train(moons(50, 0), plan=QUICK))
