"""Directions on the sphere and the constants of slicing."""

from __future__ import annotations

import math

import pytest
import torch

from napari_invprior.transport.slicing import directions, slice_constant


@pytest.mark.parametrize(
    ("dim", "value"), [(2, math.pi / 2), (3, 2.0), (10, 3.865631585), (784, 35.0816073)]
)
def test_constants(dim: int, value: float) -> None:
    assert slice_constant(dim) == pytest.approx(value, rel=1e-8)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("kind", ["iid", "orthogonal", "auto"])
@pytest.mark.parametrize("dim", [2, 3, 7])
def test_mean_of_slices_is_the_radial_function(dim: int, kind: str, exponent: float) -> None:
    xi = directions(20_000, dim, torch.Generator().manual_seed(0), kind, torch.float64)
    x = torch.arange(1.0, dim + 1, dtype=torch.float64)
    mean = (xi @ x).abs().pow(exponent).mean() * slice_constant(dim, exponent)
    assert float(mean) == pytest.approx(float(x.norm() ** exponent), rel=0.02)
    assert torch.allclose(xi.norm(dim=1), torch.ones(len(xi), dtype=torch.float64))


def test_one_seed_one_set_and_the_line_has_one_direction() -> None:
    first, second = (directions(9, 5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert directions(50, 1, torch.Generator()).tolist() == [[1.0]]
