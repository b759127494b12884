"""Training finds known densities, recovers from blow-ups and splits its patches honestly."""

import dataclasses
import math

import pytest
import torch

from napari_invprior.errors import JobError
from napari_invprior.networks.coupling import CouplingFlow
from napari_invprior.networks.density import PatchDensity
from napari_invprior.networks.draws import draw_patches, split_positions
from napari_invprior.networks.training import Trainer, Training
from napari_invprior.networks.whitening import Whitening

PLAN = Training(256, 400, 4e-3, True, 0.0, 0.99)


def train(rows, plan=PLAN, *, whiten=False, seed=0):
    flow = CouplingFlow(rows.shape[1], 32, 3, seed=seed, zero_last=whiten)
    density = PatchDensity(flow, Whitening.fit(rows.T) if whiten else None)
    trainer = Trainer(density, rows, plan, seed=seed)
    for _ in range(plan.steps):
        trainer.step()
    density.flow.weights.copy_(trainer.weights)
    return density


def gaussian(dim, seed):
    mix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)) / dim**0.5
    return torch.distributions.MultivariateNormal(torch.ones(dim), mix @ mix.T + torch.eye(dim) / 4)


@pytest.mark.parametrize("whiten", [False, True])
def test_gaussian_is_learned_to_its_entropy(whiten):
    truth = gaussian(6, 1)
    torch.manual_seed(0)
    density = train(truth.sample((20000,)), whiten=whiten)
    score = float(density.potential(truth.sample((5000,)).T).mean()) + 3 * math.log(2 * math.pi)
    print(f"cross-entropy {score:.3f}, entropy {float(truth.entropy()):.3f} (within 0.1)")
    assert abs(score - float(truth.entropy())) < 0.1


def test_training_and_gradient_follow_the_noise_level():
    """For Gaussian data the noisy density is known at each level."""
    truth = gaussian(4, 2)
    torch.manual_seed(0)
    rows = truth.sample((20000,)) * 0.1
    flow = CouplingFlow(4, 16, 2, 1, zero_last=True)
    density = PatchDensity(flow, Whitening.fit(rows.T), (0.01, 0.3))
    trainer = Trainer(density, rows, Training(256, 200, 1e-3, True, 0.0, 0.99))
    for _ in range(200):
        trainer.step()
    density.flow.weights.copy_(trainer.weights)
    for sigma in (0.02, 0.2):
        covariance = 0.01 * truth.covariance_matrix + sigma**2 * torch.eye(4)
        noisy = torch.distributions.MultivariateNormal(0.1 * truth.mean, covariance)
        x = noisy.sample((2000,))
        score = density.potential(x.T, sigma).mean() + 2 * math.log(2 * math.pi)
        assert abs(float(score - noisy.entropy())) < 0.15


def test_same_seed_same_weights_whatever_the_threads():
    rows = torch.rand(2000, 9, generator=torch.Generator().manual_seed(0))
    plan = Training(64, 100, 2e-3, True, 0.01, 0.99)
    first, second = (train(rows, plan, seed=3).flow.weights for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, train(rows, plan, seed=4).flow.weights)
    torch.set_num_threads(2)
    try:
        third = train(rows, plan, seed=3).flow.weights
    finally:
        torch.set_num_threads(1)
    assert float((third - first).abs().max()) < 1e-4


def test_one_cycle_rises_and_falls():
    rows = torch.rand(300, 4)
    trainer = Trainer(PatchDensity(CouplingFlow(4, 8)), rows, PLAN)
    rates = [trainer.rate(step) for step in range(PLAN.steps)]
    peak = rates.index(max(rates))
    assert 0.05 < peak / PLAN.steps < 0.15
    assert max(rates) == pytest.approx(PLAN.learning_rate, rel=1e-3)
    assert rates[-1] < 0.01 * PLAN.learning_rate


def test_settling_falls_from_the_present_rate_to_the_end():
    plan = dataclasses.replace(PLAN, steps=200)
    trainer = Trainer(PatchDensity(CouplingFlow(4, 8)), torch.rand(300, 4), plan)
    for _ in range(60):
        trainer.step()
    before = trainer.rate(60)
    assert not trainer.settle(150)
    assert trainer.settle(40)
    rates = [trainer.rate(step) for step in range(60, trainer.steps)]
    assert trainer.steps == 100
    assert rates[0] == pytest.approx(before)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(1e-3 * plan.learning_rate)
    constant = dataclasses.replace(plan, one_cycle=False)
    assert not Trainer(PatchDensity(CouplingFlow(4, 8)), torch.rand(9, 4), constant).settle(5)


def test_roll_back_halves_the_step_and_gives_up_with_a_diagnosis():  # row 45
    rows = torch.rand(300, 4)
    trainer = Trainer(PatchDensity(CouplingFlow(4, 8)), rows, PLAN)
    for _ in range(20):
        trainer.step()
    trainer.mark_good()
    good = trainer.weights.clone()
    rows.fill_(math.nan)
    for expected in (0.5, 0.25, 0.125):
        assert math.isnan(trainer.step())
        assert trainer.factor == expected
        assert torch.equal(trainer.weights, good)
    with pytest.raises(JobError, match="smaller learning rate"):
        trainer.step()


def test_roll_back_recovers_when_the_fault_passes():  # row 45
    rows = torch.rand(300, 4)
    trainer = Trainer(PatchDensity(CouplingFlow(4, 8)), rows, PLAN)
    first = trainer.step()
    trainer.mark_good()
    kept = rows.clone()
    rows.mul_(1e6)
    trainer.step()
    rows.copy_(kept)
    losses = [trainer.step() for _ in range(100)]
    assert trainer.factor == 0.5
    assert losses[-1] < first


@pytest.mark.parametrize(
    ("counts", "patch"), [((27, 27), (6, 6)), ((200, 150), (6, 6)), ((21, 21, 21), (4, 4, 4))]
)
def test_no_training_patch_touches_a_held_out_one(counts, patch):
    valid = torch.ones(counts, dtype=torch.bool)
    train, held_out = split_positions(valid, patch, torch.Generator().manual_seed(0))
    share = float(held_out.sum()) / valid.numel()
    assert 0.08 < share < 0.2
    assert float(train.sum()) / valid.numel() > 0.6
    ours, theirs = train.nonzero(), held_out.nonzero()
    gap = (ours[:, None] - theirs[None, :: max(1, len(theirs) // 500)]).abs()
    apart = (gap >= torch.tensor(patch)).any(-1)
    assert bool(apart.all())


def test_patches_outside_the_mask_or_with_nan_are_not_drawn():
    image = torch.rand(1, 40, 40)
    image[0, :, 20] = math.nan
    mask = torch.ones(40, 40, dtype=torch.bool)
    mask[30:] = False
    image[0, 30:] = 7.0
    draws = draw_patches([(image, mask)], (5, 5), torch.Generator().manual_seed(0), 10**6)
    assert draws.distinct == 26 * (16 + 15)
    both = torch.cat((draws.train, draws.held_out))
    assert torch.isfinite(both).all()
    assert both.max() <= 1


def test_draws_are_limited():
    image = torch.rand(1, 60, 60)
    draws = draw_patches([(image, None)], (5, 5), torch.Generator().manual_seed(0), 500)
    assert 400 < len(draws.train) + len(draws.held_out) <= 500
    assert draws.distinct > 2500
