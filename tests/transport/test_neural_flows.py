"""The neural schemes: splitting points, drawing new ones, graded steps, divergence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from napari_invprior import jobs
from napari_invprior.errors import InvalidInput, JobError
from napari_invprior.transport.riesz_flows import closed_forms as known
from napari_invprior.transport.riesz_flows.backward import BackwardFlow, BackwardParameters
from napari_invprior.transport.riesz_flows.discrepancy import Cloud
from napari_invprior.transport.riesz_flows.forward import ForwardFlow, ForwardParameters
from napari_invprior.transport.riesz_flows.neural import NeuralFlow
from napari_invprior.transport.riesz_flows.trajectory import Trajectory

BOTH = pytest.mark.parametrize("cls", [BackwardFlow, ForwardFlow])


def flowed(
    cls: type[NeuralFlow], start: torch.Tensor, target: Cloud | None = None, **parameters: Any
) -> Trajectory:
    flow = cls(cls.Parameters(**parameters))  # type: ignore[arg-type]
    movie: Trajectory = jobs.run(flow.run(start, target))
    return movie


@BOTH
def test_a_point_becomes_a_disc(cls: type[NeuralFlow]) -> None:
    movie = flowed(cls, torch.zeros(2, 1), particles=800, tau=0.2, final_time=0.4, iterations=400)
    for time, points in zip(movie.times[1:], movie.points[1:], strict=True):
        rho = points.norm(dim=0) / known.radius(float(time), 1, 2)
        assert float(rho.square().mean()) == pytest.approx(0.667, abs=0.06)
        assert float(rho.quantile(0.5)) == pytest.approx(0.75**0.5, abs=0.1)
        assert float(points.mean(1).norm()) < 0.12 * known.radius(float(time), 1, 2)


@BOTH
def test_new_points_follow_the_law_of_the_particles(cls: type[NeuralFlow]) -> None:
    movie = flowed(cls, torch.zeros(2, 1), particles=800, tau=0.2, final_time=0.4, iterations=150)
    fresh = movie.sample(-1, 800, seed=5)
    assert torch.equal(fresh, movie.sample(-1, 800, seed=5))
    assert not torch.equal(fresh, movie.sample(-1, 800, seed=6))
    assert float(torch.cdist(fresh.T, movie.points[-1].T).amin(1).max()) > 1e-3, "not copies"
    spread = [float(p.square().sum(0).mean()) for p in (fresh, movie.points[-1])]
    assert spread[0] == pytest.approx(spread[1], rel=0.06)
    assert movie.sample(0, 3).tolist() == [[0.0] * 3] * 2, "the start has no network"
    with pytest.raises(InvalidInput, match="there are 3"):
        movie.sample(3, 1)


@BOTH
def test_two_points_flow_to_a_cloud(cls: type[NeuralFlow]) -> None:
    target = Cloud(torch.rand((2, 300), generator=torch.Generator().manual_seed(1)) - 0.5)
    start = torch.tensor([[-0.5, 0.5], [0.5, -0.5]])
    movie = flowed(
        cls, start, target, particles=300, tau=0.5, final_time=3.0, iterations=150, batch=64
    )
    assert float(movie.discrepancy[-1]) < 0.03 * float(movie.discrepancy[0])


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("r", [0.5, 1.5])
def test_backward_steps_of_other_powers(r: float, residual: bool) -> None:
    flow = BackwardFlow(
        BackwardParameters(
            r=r, tau=0.2, final_time=0.4, particles=300, iterations=200, batch=64,
            residual=residual,
        )
    )
    steps = flow.schedule()
    assert len(steps) == (10 if r < 1 else 2) and sum(steps) == pytest.approx(0.4)
    if r < 1:
        assert steps[0] == pytest.approx(1e-8) and steps[3] == pytest.approx(1e-5)
        return  # each step a training: in the acceptance checks
    movie = jobs.run(flow.run(torch.zeros(2, 1), None))
    scale = known.jko_scales(steps, r)[-1] * known.unit_radius(r, 2)
    rms = float(movie.points[-1].square().sum(0).mean()) ** 0.5
    assert rms == pytest.approx(scale * known.mean_square(r, 2) ** 0.5, rel=0.15)


def test_forward_refuses_infinite_speed() -> None:
    with pytest.raises(InvalidInput, match="choose the backward"):
        flowed(ForwardFlow, torch.zeros(2, 1), r=0.5, particles=20)


@BOTH
def test_divergence_ends_with_a_diagnosis_and_keeps_the_movie(cls: type[NeuralFlow]) -> None:
    flow = cls(cls.Parameters(particles=50, learning_rate=0.1))  # type: ignore[arg-type]
    fresh = flow.fresh_kernel

    def broken(*arguments: Any, **options: Any) -> Any:
        kernel = fresh(*arguments, **options)
        kernel.net.biases[-1].data.fill_(torch.nan)
        return kernel

    flow.fresh_kernel = broken  # type: ignore[method-assign]
    found: list[jobs.Event] = []
    with pytest.raises(JobError, match="diverged 4 times"):
        jobs.run(flow.run(torch.zeros(2, 1), None), found.append)
    assert sum(isinstance(e, jobs.Message) and e.level == "warning" for e in found) == 3
    assert flow.trajectory is not None and len(flow.trajectory) == 1


def test_presets_are_those_of_the_paper_and_fields_overlay_them() -> None:
    made = ForwardParameters(preset="two_diracs", tau=0.3)
    assert (made.clock().tau, made.clock().final_time) == (0.3, 40)
    assert (made.networks().hidden_layers, made.networks().width) == (4, 128)
