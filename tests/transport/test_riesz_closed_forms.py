"""The known answers agree with each other and with particles."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
import torch

from napari_invprior.numerics.lbfgs import minimise
from napari_invprior.transport.riesz_flows import closed_forms as known
from napari_invprior.transport.riesz_flows.discrepancy import Discrepancy

CASES = [(1.0, 1), (1.0, 2), (1.5, 2), (0.5, 2), (0.5, 3), (1.5, 1)]


@pytest.mark.parametrize(("r", "d"), CASES)
def test_mean_square_is_that_of_the_radial_law(r: float, d: int) -> None:
    share = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    mass = known.radial_cdf(share, r, d)
    middle = (share[1:] + share[:-1]) / 2
    assert float((middle**2) @ mass.diff()) == pytest.approx(known.mean_square(r, d), rel=1e-4)


def test_sphere_where_repulsion_is_strong() -> None:
    assert known.shape(1, 3) is None and known.mean_square(1, 3) == 1
    assert known.radial_cdf(torch.tensor([0.99, 1.0]), 1, 3).tolist() == [0, 1]


@pytest.mark.parametrize("r", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("tau", [1e-8, 0.3, 5.0])
def test_implicit_scales_solve_their_equation(r: float, tau: float) -> None:
    scales = [0.0, *known.jko_scales([tau] * 4, r)]
    for before, after in pairwise(scales):
        assert after - before == pytest.approx(tau * after ** (r - 1), rel=1e-9)


@pytest.mark.parametrize("r", [0.5, 1.0, 1.5])
def test_small_implicit_steps_approach_the_flow(r: float) -> None:
    scale = known.jko_scales([1e-3] * 1000, r)[-1] * known.unit_radius(r, 2)
    assert scale == pytest.approx(known.radius(1.0, r, 2), rel=0.01)


@pytest.mark.parametrize(("r", "d"), [(1.0, 2), (1.5, 1), (0.5, 1)])
def test_particles_follow_the_recursion(r: float, d: int) -> None:
    """Check 5 of the sheet: three exact implicit steps of 300 particles, to 0.3 %."""
    tau, n, discrepancy = 0.3, 300, Discrepancy(None, r)
    x = 1e-6 * torch.randn((d, n), generator=torch.Generator().manual_seed(0)).double()
    for scale in known.jko_scales([tau] * 3, r):
        before = x

        def objective(y: torch.Tensor, before: torch.Tensor = before) -> tuple[float, torch.Tensor]:
            value, slope = discrepancy.value_and_grad(y)
            moves = y - before
            loss = 0.5 * float(moves.square().sum(0).mean()) + tau * value
            return loss, (moves + tau * slope) / n

        start = x * (1 + tau) + 0.1 * tau * torch.randn(
            x.shape, generator=torch.Generator().manual_seed(1)
        )
        *_, x = islice(minimise(objective, start, memory=30, first_step=0.1 * tau), 60)
        rms = float(x.square().sum(0).mean()) ** 0.5
        expected = known.unit_radius(r, d) * scale * known.mean_square(r, d) ** 0.5
        assert rms == pytest.approx(expected, rel=3e-3)
