"""The particle scheme against the known answers, and its control of the step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from napari_invprior import jobs
from napari_invprior.errors import JobError
from napari_invprior.transport.riesz_flows import closed_forms as known
from napari_invprior.transport.riesz_flows.discrepancy import Cloud, Discrepancy
from napari_invprior.transport.riesz_flows.particle import Descent, ParticleFlow, ParticleParameters
from napari_invprior.transport.riesz_flows.trajectory import Trajectory


def flowed(d: int, target: Cloud | None = None, **parameters: Any) -> Trajectory:
    flow = ParticleFlow(ParticleParameters(**parameters))
    movie: Trajectory = jobs.run(flow.run(torch.zeros(d, 1), target))
    return movie


def radii(movie: Trajectory) -> torch.Tensor:
    return movie.points[-1].double().norm(dim=0)


def test_disc() -> None:
    """Check 1 of the sheet."""
    rho = radii(flowed(2, particles=600, tau=0.02, final_time=1.0)) / known.radius(1.0, 1, 2)
    assert float(rho.square().mean()) == pytest.approx(0.667, abs=0.01)
    assert float(rho.quantile(0.99)) == pytest.approx(1, abs=0.06)


def test_sphere() -> None:
    """Check 2: the law is on the sphere; 600 particles overshoot, so that no maximum is tested."""
    rho = radii(flowed(3, particles=600, tau=0.02, final_time=1.0)) / known.radius(1.0, 1, 3)
    assert float(rho.square().mean()) == pytest.approx(1, abs=0.02)
    assert float(rho.median()) == pytest.approx(1, abs=0.1)


def test_line_is_exact() -> None:
    """Check 3."""
    movie = flowed(1, particles=101, tau=0.1, final_time=2.0)
    found = movie.points[-1][0].double().sort().values
    assert float((found - known.line_positions(101, 2.0)).abs().max()) < 1e-6


@pytest.mark.parametrize(("r", "d"), [(0.5, 1), (0.5, 2), (1.5, 1), (1.5, 2)])
def test_other_powers(r: float, d: int) -> None:
    """An explicit step errs by its length: a quarter of it, in the scale of r = 1.5."""
    errors = []
    for tau in (0.02, 0.005):
        rho = radii(flowed(d, r=r, particles=200, tau=tau, final_time=1.0)) / known.radius(1, r, d)
        errors.append(abs(float(rho.square().mean()) / known.mean_square(r, d) - 1))
    assert errors[1] < 0.08 and errors[1] < errors[0] + 0.005


def test_small_powers_do_not_explode() -> None:
    """From a point, close particles part so fast that a step of tau would throw them far away."""
    discrepancy = Discrepancy(None, 0.5)
    x = 1e-9 * torch.randn((2, 50), generator=torch.Generator().manual_seed(0)).double()
    thrown = 0.1 * discrepancy.value_and_grad(x)[1]
    assert float(thrown.norm(dim=0).max()) > 100
    movie = flowed(2, r=0.5, particles=50, tau=0.1, final_time=0.1)
    assert float(radii(movie).max()) < 2 * known.radius(0.1, 0.5, 2)


@pytest.mark.parametrize("r", [0.5, 1.0, 1.5])
def test_reaches_a_cloud(r: float) -> None:
    target = Cloud(torch.randn((2, 200), generator=torch.Generator().manual_seed(1)))
    movie = flowed(2, target, r=r, particles=200, final_time=10.0)
    assert float(movie.discrepancy[-1]) < 0.02 * float(movie.discrepancy[0])
    assert float(movie.discrepancy.diff().max()) < 1e-4, "it sinks all the way"


def test_one_particle_rests_on_one_point() -> None:
    movie = flowed(2, Cloud(torch.tensor([[3.0], [4.0]])), particles=1, final_time=8.0)
    assert float((movie.points[-1][:, 0] - torch.tensor([3.0, 4.0])).norm()) < 0.1
    assert float(movie.points[10].norm()) == pytest.approx(1.0, abs=0.06), "unit speed"


def test_a_descent_that_cannot_descend_says_so() -> None:
    class Broken(Discrepancy):
        def value_and_grad(self, x: torch.Tensor, tie: float = 0.0) -> tuple[float, torch.Tensor]:
            value, gradient = super().value_and_grad(x)
            return (value, gradient) if float(x.abs().max()) == 1 else (math.nan, gradient)

    descent = Descent(Broken(None, 1.0), torch.tensor([[-1.0, 1.0]]), 0.1)
    with pytest.raises(JobError, match="check the scale"):
        list(descent.advance(1.0))
