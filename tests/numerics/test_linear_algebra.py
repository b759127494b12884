"""Separable operators, mirror padding, conjugate gradients, splines: against independent code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from napari_invprior.numerics.krylov import conjugate_gradient, operator_norm
from napari_invprior.numerics.noise_level import estimate_sigma
from napari_invprior.numerics.reflect import pad_reflect, pad_reflect_adjoint
from napari_invprior.numerics.resample import spline_resample
from napari_invprior.numerics.separable import (
    SeparableOperator,
    gaussian_kernel,
    sampling_matrix,
)


@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 9), st.integers(0, 9))
def test_mirror_padding_equals_numpy(height: int, width: int, left: int, right: int) -> None:
    x = torch.rand(1, 1, height, width, dtype=torch.float64)
    margins = [(left, right), (right, left)]
    expected = np.pad(x[0, 0].numpy(), margins, mode="reflect")
    padded = pad_reflect(x, margins)
    assert np.array_equal(padded[0, 0].numpy(), expected)
    p = torch.rand_like(padded)
    assert float((padded * p).sum()) == pytest.approx(
        float((x * pad_reflect_adjoint(p, margins)).sum()), rel=1e-12
    )


@pytest.mark.parametrize(
    ("boundary", "mode"), [("circular", "wrap"), ("reflect", "mirror")]
)
def test_sampling_matrix_equals_scipy(boundary: str, mode: str) -> None:
    kernel = gaussian_kernel(7, 1.3)
    line = np.random.default_rng(0).random(24)
    matrix = sampling_matrix(24, kernel, 3, 3, boundary)
    expected = ndimage.correlate1d(line, kernel.numpy(), mode=mode)[::3]
    assert np.allclose(matrix.numpy() @ line, expected, atol=1e-12)


def test_normal_equations_are_solved_exactly() -> None:
    kernel = gaussian_kernel(6, 1.0)
    sizes = (12, 10, 8)
    matrices = [sampling_matrix(n, kernel, 2, 2, "reflect") for n in sizes]
    operator = SeparableOperator(matrices)
    dense = torch.kron(torch.kron(matrices[0], matrices[1]), matrices[2])
    y = torch.rand(1, 1, 6, 5, 4, dtype=torch.float64)
    expected = torch.linalg.solve(
        dense @ dense.T + 0.2 * torch.eye(dense.shape[0], dtype=torch.float64), y.flatten()
    )
    assert torch.allclose(operator.solve_normal(y, 0.2).flatten(), expected, atol=1e-10)
    assert operator.norm == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-10)


def test_conjugate_gradients_solve_each_system_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    matrix = a @ a.T + torch.eye(12, dtype=torch.float64)
    rhs = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    rhs[1] = 0
    solved = conjugate_gradient(lambda v: v @ matrix, rhs, tolerance=1e-12)
    assert torch.allclose(solved @ matrix, rhs, atol=1e-9)
    norm = operator_norm(
        lambda v: v @ a, lambda v: v @ a.T, torch.ones(1, 12, dtype=torch.float64),
        iterations=2000, tolerance=1e-12,
    )
    assert norm == pytest.approx(float(torch.linalg.matrix_norm(a, 2)), rel=1e-4)


def test_spline_recovers_a_cubic_at_shifted_positions() -> None:
    position = (np.arange(96) - 1.5) / 4
    coarse = np.arange(24.0)
    y = torch.from_numpy(np.outer(coarse, coarse))[None, None]
    fine = spline_resample(y, (96, 96), (4, 4), (1.5, 1.5))[0, 0].numpy()
    inner = slice(36, 60)
    assert np.allclose(fine[inner, inner], np.outer(position, position)[inner, inner], atol=1e-3)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("sigma", [0.01, 0.05])
def test_noise_level_of_a_smooth_image(ndim: int, sigma: float) -> None:
    space = (80, 90) if ndim == 2 else (24, 26, 28)
    generator = torch.Generator().manual_seed(0)
    clean = torch.from_numpy(
        ndimage.gaussian_filter(np.random.default_rng(0).random(space), 3, mode="wrap")
    )
    y = clean + sigma * torch.randn(space, generator=generator, dtype=torch.float64)
    estimate, spread = estimate_sigma(y[None, None])
    assert estimate == pytest.approx(sigma, rel=0.1)
    assert spread < 0.2 * sigma


def test_noise_level_leaves_missing_samples_out_and_admits_ignorance() -> None:
    y = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0))
    y[..., 40:60, 40:60] = torch.nan
    assert estimate_sigma(y)[0] == pytest.approx(1, rel=0.06)
    assert np.isnan(estimate_sigma(torch.rand(1, 1, 6, 6))[0])
