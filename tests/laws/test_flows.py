"""Laws that every registered flow of particles obeys, in 2D and 3D."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from napari_invprior import jobs, registry
from napari_invprior.errors import InvalidInput
from napari_invprior.transport.riesz_flows.density import density_of
from napari_invprior.transport.riesz_flows.discrepancy import Cloud, Target
from napari_invprior.transport.riesz_flows.image_potential import ImagePotential
from napari_invprior.transport.riesz_flows.trajectory import Trajectory

QUICK: dict[str, dict[str, Any]] = {
    "particle": {},
    "backward": {"iterations": 60, "batch": 32},
    "forward": {"iterations": 60, "batch": 32},
}
"""Parameters that make a run take a second."""

EACH = pytest.mark.parametrize(
    ("method", "ndim"),
    [
        pytest.param(m, ndim, id=f"{m.name}-{ndim}d")
        for m in registry.methods("flow")
        for ndim in m.dimensions
    ],
)


def cloud(ndim: int, n: int = 60, seed: int = 0) -> torch.Tensor:
    return torch.rand((ndim, n), generator=torch.Generator().manual_seed(seed)) - 0.5


def made(method: registry.Method, **options: Any) -> Any:
    usual = {"particles": 60, "tau": 0.2, "final_time": 1.0}
    return method.cls(method.parameters(**QUICK[method.name] | usual | options))


def flowed(
    method: registry.Method, start: torch.Tensor, target: Target | None, seed: int = 0,
    **options: Any,
) -> Trajectory:
    movie: Trajectory = jobs.run(made(method, **options).run(start, target, seed=seed))
    return movie


@EACH
def test_approaches_the_target(method: registry.Method, ndim: int) -> None:
    movie = flowed(method, torch.zeros(ndim, 1), Cloud(cloud(ndim)))
    assert movie.times.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert movie.points.shape == (6, ndim, 60)
    assert len(movie.laws) == len(movie.discrepancy) == len(movie) == 6
    assert float(movie.discrepancy[-1]) < 0.3 * float(movie.discrepancy[0])


@EACH
def test_one_seed_one_movie(method: registry.Method, ndim: int) -> None:
    first, again, other = (
        flowed(method, torch.zeros(ndim, 2), Cloud(cloud(ndim)), seed, final_time=0.4)
        for seed in (3, 3, 4)
    )
    assert torch.equal(first.points, again.points)
    assert not torch.equal(first.points, other.points)


@EACH
def test_identical_points_part_with_finite_speed(method: registry.Method, ndim: int) -> None:
    start = torch.full((ndim, 60), 0.25)
    for target in (None, Cloud(start)):
        movie = flowed(method, start, target, final_time=0.4)
        assert bool(movie.points.isfinite().all() and movie.discrepancy.isfinite().all())
    alone = flowed(method, start, None, final_time=0.4)
    assert float(alone.points[-1].std(1).min()) > 0.02


@EACH
def test_one_particle(method: registry.Method, ndim: int) -> None:
    target = Cloud(torch.ones(ndim, 1))
    movie = flowed(method, torch.zeros(ndim, 1), target, particles=1)
    assert movie.points.shape == (6, ndim, 1)
    away = (movie.points[:, :, 0] - 1).norm(dim=1)
    assert float(away[-1]) < float(away[0])
    still = flowed(method, torch.zeros(ndim, 1), None, particles=1)
    assert bool(still.points.isfinite().all())


@EACH
def test_a_start_that_is_the_target_stays(method: registry.Method, ndim: int) -> None:
    start = cloud(ndim)
    movie = flowed(method, start, Cloud(start), final_time=0.6)
    moved = (movie.points[-1] - movie.points[0]).norm(dim=0).mean()
    # an implicit step is a trained network, which is never exact; the others must not move at all
    assert float(moved) < (0.06 if method.name == "backward" else 1e-9)
    assert float(movie.discrepancy.max()) < 0.01


@EACH
def test_an_image_is_a_target(method: registry.Method, ndim: int) -> None:
    image = torch.ones((12,) * ndim)
    image[(slice(2, 6),) * ndim] = 0
    target = ImagePotential(density_of(image))
    movie = flowed(method, torch.zeros(ndim, 1), target)
    assert float(movie.discrepancy[-1]) < 0.3 * float(movie.discrepancy[0])


@EACH
def test_stopping_keeps_the_beginning_of_the_movie(method: registry.Method, ndim: int) -> None:
    whole = flowed(method, torch.zeros(ndim, 1), Cloud(cloud(ndim)))
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > (3 if method.name == "particle" else 12)

    flow = made(method, tau=0.2)
    kept = jobs.run(flow.run(torch.zeros(ndim, 1), Cloud(cloud(ndim)), should_stop=stop))
    assert 1 <= len(kept) < len(whole)
    assert torch.equal(kept.points, whole.points[: len(kept)])
    assert flow.trajectory is kept


@EACH
def test_closing_keeps_the_beginning_too(method: registry.Method, ndim: int) -> None:
    flow = made(method)
    job = flow.run(torch.zeros(ndim, 1), None)
    next(job)
    job.close()
    assert flow.trajectory is not None and len(flow.trajectory) >= 1


@EACH
def test_events(method: registry.Method, ndim: int) -> None:
    found: list[jobs.Event] = []
    movie = jobs.run(made(method).run(torch.zeros(ndim, 1), None), found.append)
    progress = [e for e in found if isinstance(e, jobs.Progress)]
    assert progress[-1].stage == "flow" and progress[-1].step == progress[-1].total == 5
    assert progress[-1].losses["time"] == pytest.approx(1.0)
    assert progress[-1].losses["discrepancy"] == float(movie.discrepancy[-1])
    shown = [e for e in found if isinstance(e, jobs.Preview)][-1]
    assert shown.kind == "points" and shown.array.shape == (60, ndim)
    assert isinstance(found[-1], jobs.Result) and found[-1].value is movie


@EACH
def test_movies_are_short(method: registry.Method, ndim: int) -> None:
    options = {"iterations": 2} if method.name != "particle" else {}
    movie = flowed(
        method, torch.zeros(ndim, 1), None, frames=6, tau=0.02, final_time=1.0, **options
    )
    assert len(movie) <= 6 and movie.times[[0, -1]].tolist() == pytest.approx([0, 1])
    assert bool((movie.times.diff() > 0).all())


@EACH
def test_points_are_repeated_equally(method: registry.Method, ndim: int) -> None:
    start = cloud(ndim, 7)
    options = {"iterations": 2} if method.name != "particle" else {}
    movie = flowed(method, start, None, particles=20, final_time=0.2, **options)
    assert movie.points.shape[2] == 21, "three for each"
    assert torch.allclose(movie.points[0][:, ::3], start, atol=1e-6)


@EACH
def test_bad_inputs_are_refused_before_the_run(method: registry.Method, ndim: int) -> None:
    start = cloud(ndim)
    broken = start.clone()
    broken[0, 3] = torch.nan
    for points, target, word in (
        (broken, None, "the start has 1 coordinates that are NaN"),
        (start[:, :0], None, "at least one point"),
        (start[0], None, "columns of a"),
        (start, Cloud(torch.zeros(ndim + 1, 4)), f"the start has {ndim} coordinates, the target"),
    ):
        with pytest.raises(InvalidInput, match=word):
            made(method).run(points, target)
    with pytest.raises(InvalidInput, match="choose tau = "):
        made(method, tau=1e-6, final_time=1.0).run(start, None)
