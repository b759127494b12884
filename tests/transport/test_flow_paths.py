"""Paths and velocities of flow matching against the formula in t, in the user's units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.special import softmax

from napari_invprior.transport.cells.atoms import Atoms
from napari_invprior.transport.cells.flow_matching import FlowMatching


def gaussian(ndim: int, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((ndim, count), generator=generator, dtype=torch.float64)


def atoms(rows, weights=None, **options) -> Atoms:
    given = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
    return Atoms(torch.tensor(np.asarray(rows, float).T), given, **options)


def test_velocity_and_paths_are_those_of_the_formula_in_t() -> None:
    rows = 37 * gaussian(2, 5, 1).T.numpy() + 500
    chosen = atoms(rows, [0.1, 0.3, 0.2, 0.25, 0.15])
    flow = FlowMatching(chosen, tolerance=1e-9)

    def velocity(t, x):
        log = np.log(chosen.weights.numpy()) - ((x - t * rows) ** 2).sum(1) / (2 * (1 - t) ** 2)
        return (softmax(log) @ rows - x) / (1 - t)

    x = np.array([[3.0, -2.0], [250.0, 240.0]]).T
    found = flow.velocity_at(torch.tensor(x), 0.5)
    assert np.allclose(found.T, [velocity(0.5, place) for place in x.T], rtol=1e-8)
    starts = gaussian(2, 6, 4)
    times = torch.tensor([0.0, 0.01, 0.2, 0.7, 1.0], dtype=torch.float64)
    paths = flow.trajectories(starts, times).numpy()
    assert np.allclose(paths[0], starts)
    ends = rows[flow.arrival(starts).label]
    assert np.array_equal(paths[-1].T, ends)
    for k, start in enumerate(starts.T.numpy()):
        exact = solve_ivp(velocity, (0, 0.7), start, t_eval=[0.01, 0.2, 0.7], method="DOP853",
                          rtol=1e-11, atol=1e-11).y
        assert np.allclose(paths[1:4, :, k].T, exact, rtol=1e-5, atol=1e-4)


def test_paths_to_atoms_on_a_line_keep_what_is_across() -> None:
    flow = FlowMatching(atoms([[1, 1], [2, 2], [4, 4]]))
    starts = torch.tensor([[0.5], [-0.7]], dtype=torch.float64)
    halfway = flow.trajectories(starts, torch.tensor([0.5], dtype=torch.float64))[0, :, 0]
    assert float(halfway[0] - halfway[1]) == pytest.approx(0.5 * 1.2)
