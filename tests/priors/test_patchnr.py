"""patchNR as a prior: presets, data it refuses, learning, stopping, continuing, saving."""

import itertools
import math

import pytest
import torch

from napari_invprior import jobs
from napari_invprior.errors import InvalidInput, JobError
from napari_invprior.networks.training import Trainer
from napari_invprior.parameters import validate
from napari_invprior.priors import patchnr
from napari_invprior.priors.base import Reference
from napari_invprior.priors.patchnr import PatchNR, PatchNRParameters

SMALL = {"patch_size": 4, "hidden": 16, "blocks": 3, "batch": 64, "steps": 200}


def texture(*space, seed=0, channels=1):
    """Smooth noise, squashed: neither Gaussian nor white."""
    x = torch.randn(channels, 1, *space, generator=torch.Generator().manual_seed(seed))
    pool = torch.nn.functional.avg_pool2d if len(space) == 2 else torch.nn.functional.avg_pool3d
    for _ in range(2):
        x = pool(x, 3, stride=1, padding=1)
    return torch.sigmoid(8 * x)[:, 0]


def prior(ndim=2, channels=1, **options):
    return PatchNR(validate(PatchNRParameters, SMALL | options), ndim=ndim, channels=channels)


def fitted(reference=None, seed=0, **options):
    made = prior(**options)
    jobs.run(made.fit([Reference(texture(64, 64) if reference is None else reference)], seed=seed))
    return made


def events(job):
    found = list(jobs.guard(job))
    return found, [e.text for e in found if isinstance(e, jobs.Message) and e.level == "warning"]


def test_paper_preset_is_the_papers():
    plan = PatchNRParameters(preset="paper").plan()
    assert (plan.hidden, plan.blocks, plan.batch, plan.steps) == (512, 5, 32, 750_000)
    assert (plan.learning_rate, plan.one_cycle, plan.whiten) == (1e-4, False, False)
    assert (plan.noise, plan.symmetries, plan.average, plan.stop_early) == (0.0, "off", 0.0, False)
    made = PatchNR(PatchNRParameters(preset="paper"), ndim=2)._skeleton(0, None)
    # The paper's flow: 10 sub-nets 18 -> 512 -> 512 -> 36 with biases.
    assert made.flow.weights.numel() == 10 * (512 * 19 + 512 * 513 + 36 * 513)


@pytest.mark.parametrize("preset", ["fast", "good", "paper"])
def test_presets_can_be_overridden_knob_by_knob(preset):
    plan = PatchNRParameters(preset=preset).plan()
    assert plan == patchnr.PRESETS[preset]
    changed = PatchNRParameters(preset=preset, hidden=99, whiten=False, average=0.0).plan()
    assert (changed.hidden, changed.whiten, changed.average) == (99, False, 0.0)
    assert changed.batch == plan.batch


def test_bad_parameters_are_refused_by_name():
    for bad in ({"hidden": 0}, {"average": 1.0}, {"patch_size": 1}, {"preset": "best"}):
        with pytest.raises(InvalidInput, match=next(iter(bad))):
            validate(PatchNRParameters, bad)


@pytest.mark.parametrize(("ndim", "edge"), [(2, 6), (3, 4)])
def test_default_patch(ndim, edge):
    assert PatchNR(PatchNRParameters(), ndim=ndim).patch == (edge,) * ndim


def test_learns_more_than_a_gaussian_and_reports_levels():
    found, _ = events(prior().fit([Reference(texture(64, 64))]))
    assert isinstance(found[-1], jobs.Result)
    steps = [e for e in found if isinstance(e, jobs.Progress)]
    assert set(steps[-1].losses) == {"train", "held_out", "gaussian", "gmm"}
    assert steps[-1].losses["held_out"] < steps[-1].losses["gaussian"] - 0.2
    assert steps[-1].step == 200


def test_previews_are_patches(monkeypatch):
    monkeypatch.setattr(patchnr, "_PREVIEW_SECONDS", 0.0)
    found, _ = events(prior(steps=300).fit([Reference(texture(40, 40))]))
    shown = [e for e in found if isinstance(e, jobs.Preview)]
    assert shown
    assert shown[0].kind == "patches"
    assert shown[0].array.shape[1:] == (1, 4, 4)


def test_events_come_often_but_not_too_often():
    job = prior(steps=500, stop_early=False).fit([Reference(texture(64, 64))])
    found = [event.seconds for event in job if isinstance(event, jobs.Progress)]
    gaps = [b - a for a, b in itertools.pairwise(found[:-1])]
    assert gaps
    assert min(gaps) > 0.09


@pytest.mark.parametrize("channels", ["separate", "joint"])
def test_colour_and_volumes(channels):
    options = validate(
        PatchNRParameters, SMALL | {"patch_size": (2, 3, 3), "steps": 20, "channels": channels}
    )
    volume = PatchNR(options, ndim=3, channels=2)
    jobs.run(volume.fit([Reference(texture(12, 14, 14, channels=2))]))
    x = torch.rand(2, 2, 6, 7, 8)
    assert volume.g(x).shape == (2,)
    assert volume.grad(x).shape == x.shape
    assert volume.sample_patches(3, 0).shape == (18 if channels == "separate" else 36, 3)


def test_gradient_of_the_image_potential():
    made = fitted()
    x = texture(12, 12, seed=5)[None].requires_grad_(True)
    z, log_det = made.density.flow.inverse(
        made.density.whitening.inverse(patchnr_patches(made, x))[0]
    )
    white = made.density.whitening.inverse(patchnr_patches(made, x))[1]
    (0.5 * z.square().sum(0) - log_det - white).mean().backward()
    assert (made.grad(x.detach()) - x.grad).abs().max() < 1e-4


def patchnr_patches(made, x):
    windows = x[0, 0].unfold(0, 4, 1).unfold(1, 4, 1)
    return windows.reshape(-1, 16).T


def test_untrained_says_so():
    with pytest.raises(InvalidInput, match="not trained yet"):
        prior().g(torch.rand(1, 1, 8, 8))


def test_constant_references_are_refused():
    with pytest.raises(InvalidInput, match="zero variance"):
        jobs.run(prior().fit([Reference(torch.full((1, 30, 30), 0.4))]))


def test_fewer_than_a_hundred_patches_are_refused_and_few_are_reported():
    with pytest.raises(InvalidInput, match=r"64 patches.*100 are needed"):
        jobs.run(prior().fit([Reference(texture(11, 11))]))
    _, warnings = events(prior(steps=20).fit([Reference(texture(30, 30))]))
    assert "729 distinct patches" in warnings[0]
    assert "48 x 48 px" in warnings[0]
    _, warnings = events(prior(steps=20).fit([Reference(texture(64, 64))]))
    assert not warnings


def test_overfit_is_seen_reported_and_not_kept():
    made = prior(hidden=64, steps=600, symmetries="off", stop_early=False, one_cycle=False)
    found, warnings = events(made.fit([Reference(texture(18, 18))]))
    assert any("by heart" in text for text in warnings)
    worst = max(e.losses["held_out"] for e in found if isinstance(e, jobs.Progress))
    verdict = next(e.text for e in found if isinstance(e, jobs.Message) and e.level == "info")
    best = float(verdict.split("held-out ")[1].split(" nats")[0])
    assert best < worst - 5
    draws = made._draws([Reference(texture(18, 18))], torch.Generator().manual_seed(0))
    assert float(made.potential(draws.held_out.T).mean()) == pytest.approx(best, abs=0.06)


def test_stops_early_on_a_plateau():
    noise = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    found, _ = events(prior(steps=4000).fit([Reference(noise)]))
    verdict = next(e.text for e in found if isinstance(e, jobs.Message) and e.level == "info")
    assert verdict.startswith("no further gain")
    assert [e for e in found if isinstance(e, jobs.Progress)][-1].step < 4000


def test_symmetries_are_used_where_the_texture_has_no_direction():
    made = prior()
    draws = made._draws([Reference(texture(80, 80))], torch.Generator().manual_seed(0))
    assert made._turns(draws).shape == (8, 16)
    stripes = texture(80, 80) * 0.2 + torch.sin(torch.arange(80.0))[None, None, :]
    draws = made._draws([Reference(stripes)], torch.Generator().manual_seed(0))
    assert made._turns(draws) is None


def test_same_seed_same_prior_and_two_threads_agree():
    x = texture(64, 64, seed=9)[None]
    first, second = fitted(seed=3), fitted(seed=3)
    assert torch.equal(first.g(x), second.g(x))
    assert not torch.equal(first.g(x), fitted(seed=4).g(x))
    torch.set_num_threads(2)
    try:
        third = fitted(seed=3)
    finally:
        torch.set_num_threads(1)
    assert float((third.g(x) - first.g(x)).abs()) < 1e-4 * float(first.g(x).abs())


def test_fit_does_not_touch_the_global_random_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fitted()
    assert torch.equal(before, torch.get_rng_state())


def test_save_and_load_are_identical():
    made, x = fitted(), texture(20, 20, seed=2)[None]
    other = prior()
    other.load_state(made.state())
    assert torch.equal(made.g(x), other.g(x))
    assert torch.equal(made.grad(x), other.grad(x))
    assert torch.equal(made.sample_patches(4, 1), other.sample_patches(4, 1))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("weights", lambda t: t[:-1]),
        ("weights", lambda t: t.double()),
        ("weights", lambda t: t * math.nan),
        ("permutations", torch.zeros_like),
        ("values", lambda t: -t),
        ("mean", None),
    ],
)
def test_broken_state_is_refused_by_name_and_changes_nothing(name, change):
    made, x = fitted(steps=20), texture(20, 20, seed=2)[None]
    before, state = made.g(x), made.state()
    if change is None:
        del state[name]
    else:
        state[name] = change(state[name])
    with pytest.raises(InvalidInput, match=name):
        made.load_state(state)
    assert torch.equal(made.g(x), before)


def test_state_is_a_copy():
    made, x = fitted(steps=20), texture(20, 20)[None]
    before = made.g(x)
    for tensor in made.state().values():
        tensor.zero_()
    assert torch.equal(made.g(x), before)


def test_closing_the_job_keeps_the_best_and_training_again_continues():
    reference, x = Reference(texture(64, 64)), texture(64, 64, seed=9)[None]
    made = prior(steps=2000, stop_early=False)
    job = jobs.guard(made.fit([reference]))
    step = 0
    while step < 150:
        event = next(job)
        step = event.step if isinstance(event, jobs.Progress) else step
    job.close()
    cancelled = float(made.g(x))
    gaussian = float(made.density.whitening.potential(patchnr_patches(made, x)).mean())
    assert cancelled < gaussian - 0.2
    weights = made.density.flow.weights.clone()
    again = made.fit([reference])
    next(again)
    assert torch.equal(made.density.flow.weights, weights)
    for event in again:
        if isinstance(event, jobs.Progress) and event.step > 300:
            again.close()
            break
    assert float(made.g(x)) < cancelled


def test_closing_before_the_first_evaluation_keeps_what_was_learned(monkeypatch):
    monkeypatch.setattr(patchnr, "_EVALUATE_EVERY", 10**6)
    monkeypatch.setattr(patchnr, "_RAREST", 10**6)
    made, x = prior(steps=2000), texture(64, 64, seed=9)[None]
    job = made.fit([Reference(texture(64, 64))])
    start = None
    for event in job:
        start = float(made.g(x)) if start is None else start
        if isinstance(event, jobs.Progress) and event.step > 400:
            break
    job.close()
    assert float(made.g(x)) < start - 0.2


def test_continuing_takes_a_third_of_the_step(monkeypatch):
    made, seen = fitted(steps=20), []
    monkeypatch.setattr(
        patchnr,
        "Trainer",
        lambda start, rows, plan, **rest: seen.append(plan) or Trainer(start, rows, plan, **rest),
    )
    jobs.run(made.fit([Reference(texture(64, 64, seed=8))]))
    assert seen[0].learning_rate == pytest.approx(made.plan.learning_rate / 3)


def test_asking_to_stop_ends_with_a_result():
    made, count = prior(steps=10_000, stop_early=False), iter(range(10_000))
    found, _ = events(made.fit([Reference(texture(64, 64))], should_stop=lambda: next(count) > 30))
    assert found[-1].value is made
    assert made.is_fitted
    assert "stopped by you after 32 steps" in found[-2].text


def test_divergence_never_spoils_an_earlier_state(monkeypatch):
    made, x = fitted(), texture(20, 20)[None]
    before, weights = made.g(x), made.density.flow.weights.clone()
    monkeypatch.setattr(Trainer, "_pass", lambda self, columns, levels: math.nan)
    seen = []
    with pytest.raises(JobError, match="diverged"):
        jobs.run(made.fit([Reference(texture(64, 64))]), seen.append)
    assert torch.equal(made.density.flow.weights, weights)
    assert torch.equal(made.g(x), before)
    warnings = [e for e in seen if isinstance(e, jobs.Message) and e.level == "warning"]
    assert len(warnings) == 3


@pytest.mark.parametrize(
    ("preset", "ndim", "edge", "conditional"),
    [("fast", 2, 6, False), ("fast", 3, 4, True), ("good", 2, 8, True), ("paper", 3, 4, False)],
)
def test_presets_choose_patch_and_noise_levels(preset, ndim, edge, conditional):
    made = PatchNR(PatchNRParameters(preset=preset), ndim=ndim)
    assert (made.patch, made.noise_conditional) == ((edge,) * ndim, conditional)
    given = PatchNRParameters(preset=preset, patch_size=5, noise_conditional=not conditional)
    other = PatchNR(given, ndim=ndim)
    assert (other.patch, other.noise_conditional) == ((5,) * ndim, not conditional)


def test_noise_conditional_prior_denoises():
    made = fitted(noise_conditional=True, steps=400, batch=256)
    clean = patchnr_patches(made, texture(30, 30, seed=9)[None])
    noisy = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    denoised = made.denoise_patches(noisy, 0.2)
    assert float((denoised - clean).square().mean()) < 0.5 * float((noisy - clean).square().mean())
    made.sigma = 0.2
    assert torch.equal(made.potential(noisy), made.potential(noisy, 0.2))
    assert torch.equal(made.potential_and_grad(noisy)[0], made.potential_and_grad(noisy, 0.2)[0])
    made.sigma = None
    assert torch.equal(made.potential(noisy), made.potential(noisy, 0.01))
    with pytest.raises(InvalidInput, match="noise_conditional"):
        fitted(steps=20).denoise_patches(noisy, 0.2)
