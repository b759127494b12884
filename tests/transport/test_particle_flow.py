"""Particle flows: where they end, what stays, when they stop, what they refuse."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import make_moons

from napari_invprior.errors import InvalidInput, JobError
from napari_invprior.jobs import Message, Progress, Result, run
from napari_invprior.transport.sliced_flows import particle_flow
from napari_invprior.transport.sliced_flows.energy_distance import energy_distance
from napari_invprior.transport.sliced_flows.particle_flow import (
    ParticleFlow,
    Schedule,
    flow_particles,
)
from napari_invprior.transport.slices.draws import DirectionDraw, LocalDraw, usual_lines
from napari_invprior.transport.slices.local import as_columns


def uniform(d: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand((d, n), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moons(count: int, seed: int) -> torch.Tensor:
    points = make_moons(count, noise=0.05, random_state=seed)[0]
    return torch.from_numpy(points.T.copy()).float()


def flowed(flow: ParticleFlow, steps: int, **options: float) -> torch.Tensor:
    for _ in flow.advance(steps, **options):
        pass
    return flow.particles


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_moons_after_100_steps(dtype: torch.dtype) -> None:  # sheet 17, check 5
    targets = moons(500, 0).to(dtype)
    flow = ParticleFlow(uniform(2, 500, 1, dtype), targets, DirectionDraw(targets, 100))
    assert float(energy_distance(flowed(flow, 100), targets)) < 3e-5
    assert flow.particles.dtype == dtype


def test_inputs_and_conditions_stay_as_they_are() -> None:
    x, y, known, theirs = uniform(2, 80), uniform(2, 60, 1), uniform(3, 80, 2), uniform(3, 60, 3)
    copies = [t.clone() for t in (x, y, known, theirs)]
    joint = torch.cat([y, theirs])
    flow = ParticleFlow(
        x, y, DirectionDraw(joint), condition=known, target_condition=theirs, seed=3
    )
    before = flow.distance()
    flowed(flow, 40)
    assert flow.distance() < before
    assert torch.equal(flow.condition, known), "bit for bit"
    assert not torch.equal(flow.particles, x)
    for tensor, copy in zip((x, y, known, theirs), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_a_condition_of_no_width_is_none() -> None:
    x, y = uniform(2, 50), uniform(2, 40, 1)
    plain = flowed(ParticleFlow(x, y), 10)
    empty = ParticleFlow(x, y, condition=torch.zeros(0, 50), target_condition=torch.zeros(0, 40))
    assert torch.equal(flowed(empty, 10), plain)


def test_conditions_guide_the_particles() -> None:
    """Targets at the side that their condition names: particles go to the side of theirs."""
    side = torch.tensor([[-1.0, 1.0]]).repeat(1, 100)
    y = 2 * side + 0.1 * uniform(1, 200)
    flow = ParticleFlow(uniform(1, 200, 1), y, condition=side, target_condition=side)
    found = run(flow_particles(flow, Schedule(steps=600)))
    assert found.distance < 0.5 * found.chance
    assert float((found.particles.sign() == side).double().mean()) > 0.9


def test_one_seed_one_flow() -> None:
    x, y = uniform(3, 50), uniform(3, 40, 1)
    first, second, other = (flowed(ParticleFlow(x, y, seed=s), 20) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_steps_follow_the_scale_of_the_targets(scale: float) -> None:
    x, y = uniform(4, 100, 0, torch.float64), uniform(4, 90, 1, torch.float64) + 0.5
    plain, scaled = (flowed(ParticleFlow(s * x, s * y), 10) / s for s in (1.0, scale))
    assert torch.allclose(plain, scaled)


@pytest.mark.parametrize(("space", "channels"), [((14, 14), 1), ((9, 8), 2), ((6, 6, 7), 1)])
def test_images_flow_by_local_slices(space: tuple[int, ...], channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((150, channels, *space), generator=generator).square()
    y = as_columns(images)
    x = 3 + torch.rand((len(y), 100), generator=generator)
    flow = ParticleFlow(x, y, LocalDraw(y, space, patch=4, scales=2))
    before = float(energy_distance(x, y))
    found = run(flow_particles(flow, Schedule(steps=120, final_steps=40))).particles
    assert float(energy_distance(found, y)) < 0.02 * before


def test_the_job_tells_and_keeps_the_best() -> None:
    y = moons(300, 0)
    flow = ParticleFlow(uniform(2, 300), y)
    plan = Schedule(steps=120, final_steps=20)
    events = list(flow_particles(flow, plan))
    result = events[-1]
    assert isinstance(result, Result)
    found = result.value
    last = [e for e in events if isinstance(e, Progress)][-1]
    assert last.step == last.total == 120
    assert set(last.losses) == {"distance", "independent"}
    assert found.history[-1][0] == 120
    assert found.distance == min(d for _, d in found.history)
    assert flow.distance(found.particles) == pytest.approx(found.distance)
    assert any(isinstance(e, Message) and "independent sample" in e.text for e in events)


def test_stops_without_gain_and_at_what_is_asked_for() -> None:
    y = moons(200, 0)
    plan = Schedule(steps=3000, final_steps=10, every=10)
    assert run(flow_particles(ParticleFlow(uniform(2, 200), y), plan)).history[-1][0] < 2900
    soon = Schedule(steps=3000, final_steps=10, every=10, enough=1.0)
    assert run(flow_particles(ParticleFlow(uniform(2, 200), y), soon)).history[-1][0] <= 60


def test_stopping_and_closing_lose_nothing() -> None:
    y = moons(200, 0)
    flow = ParticleFlow(uniform(2, 200), y)
    before = flow.distance()
    result = run(flow_particles(flow, Schedule(steps=500), should_stop=lambda: flow.taken >= 30))
    assert result.history[-1][0] == 30
    assert result.distance < 0.1 * before
    job = flow_particles(flow, Schedule(steps=500))
    next(job)
    job.close()  # type: ignore[attr-defined]
    assert flow.taken > 30
    assert run(flow_particles(flow, Schedule(steps=60, final_steps=30))).distance < result.distance


def test_the_distance_by_chance_is_that_of_independent_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn((3, 400), generator=generator)
    chance = ParticleFlow(uniform(3, 100), y, DirectionDraw(y, 300)).chance
    clouds = torch.randn((40, 3, 100), generator=generator)
    found = [float(energy_distance(x, y)) for x in clouds]
    assert sum(found) / len(found) == pytest.approx(chance, rel=0.1)


def test_flying_apart_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:  # row 45
    y = moons(100, 0)
    flow = ParticleFlow(uniform(2, 100), y)
    texts = []
    with pytest.raises(JobError, match=r"flew apart 4 times .* choose a step below 1"):
        for event in flow_particles(flow, Schedule(steps=400, step=1e30, every=5)):
            texts += [event.text] if isinstance(event, Message) else []
    assert len(texts) == 3
    assert torch.equal(flow.particles, uniform(2, 100)), "back at the best place seen"
    monkeypatch.setattr(particle_flow, "EXPLODED", 2.0)
    saved = ParticleFlow(uniform(2, 100), y)
    result = run(flow_particles(saved, Schedule(steps=200, step=4.0, momentum=0.9, every=5)))
    assert result.distance < 1e-2


@pytest.mark.parametrize("count", [1, 2])
def test_few_particles(count: int) -> None:
    y = uniform(3, 50)
    x = flowed(ParticleFlow(uniform(3, count, 1) + 5, y), 60, step=0.3)
    assert float((x.mean(1) - y.mean(1)).norm()) < 0.3


def test_duplicates_do_not_disturb() -> None:  # row 47
    y = uniform(2, 20).repeat(1, 5)
    x = uniform(2, 10, 1).repeat(1, 5)
    found = flowed(ParticleFlow(x, y), 50)
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize(
    ("x", "y", "options", "reason"),
    [
        (uniform(2, 5), uniform(3, 5), {}, "do not match"),
        (uniform(2, 0), uniform(2, 5), {}, r"shape \(2, 0\)"),
        (uniform(2, 5), uniform(2, 5) * torch.nan, {}, "10 NaN"),
        (uniform(2, 5), torch.ones(2, 5), {}, "all 5 targets are equal"),
        (torch.ones(2, 5), uniform(2, 5), {}, "all 5 particles are equal"),
        (uniform(2, 5), uniform(2, 1), {}, "all 1 targets are equal"),
        (uniform(2, 5), uniform(2, 4), {"condition": uniform(1, 5)}, "do not match"),
        (uniform(2, 5), uniform(2, 4), {"condition": uniform(1, 4)}, "5 particles with 4"),
    ],
)
def test_bad_input_is_refused(
    x: torch.Tensor, y: torch.Tensor, options: dict[str, torch.Tensor], reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason):
        ParticleFlow(x, y, **options)  # type: ignore[arg-type]


def test_usual_lines_grow_with_the_root_of_the_dimension() -> None:
    assert usual_lines(1600) == 2 * usual_lines(400)
