"""Acceptance of sliced kernel sums (sheet 16): errors against dense sums, beside the thresholds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.datasets import load_digits
from torch import Tensor

from napari_invprior.transport.kernel_sums.kernel_sum import (
    kernel_sum,
    kernel_sum_with_error,
    median_scale,
)
from napari_invprior.transport.kernel_sums.kernels import Gauss
from napari_invprior.transport.kernel_sums.two_sample import two_sample_test
from napari_invprior.transport.slices import distance_optimal as distance_directions
from napari_invprior.transport.slices.directions import directions, slice_constant

pytestmark = pytest.mark.slow
Show = Callable[[str], None]

LIMITS = {
    ("gauss", 10): {"distance": 2e-4, "orthogonal": 4e-3, "iid": 2.5e-2},
    ("gauss", 50): {"distance": 5e-3, "orthogonal": 5e-3, "iid": 3e-2},
    ("energy", 10): {"distance": 5e-4},
    ("energy", 50): {"distance": 5e-3},
    ("laplace", 10): {"distance": 1.5e-3},
}


def normal(d: int, n: int = 2000, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn((d, n), generator=generator) for _ in range(2))
    return x, y, torch.full((n,), 1 / n)


def apart(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right.double()).abs().sum() / right.double().abs().sum())


def test_transform_of_the_gaussian(show: Show) -> None:
    """``sum_k fhat(k) cos(2 pi k t)`` on the torus of period 1, d = 10, s = 0.05."""
    scale, dim = 0.05, 10
    k = torch.arange(1, 400, dtype=torch.float64)
    hat = 2 * Gauss().log_transform(k * scale, dim).exp() * scale
    t = torch.linspace(0, 0.2, 201, dtype=torch.float64)
    found = (2 * torch.pi * k[:, None] * t).cos().T @ hat
    right = special.hyp1f1(dim / 2, 0.5, -(t.numpy() ** 2) / (2 * scale**2))
    error = float(np.abs(found.numpy() - right).max())
    show(f"transform of the Gaussian, d = 10: largest error {error:.1e} (< 1e-7)")
    assert error < 1e-7


@pytest.mark.parametrize(("kernel", "d"), LIMITS)
def test_errors_at_640_slices(kernel: str, d: int, show: Show) -> None:
    x, y, w = normal(d)
    right = kernel_sum(x.double(), y.double(), w.double(), kernel, method="dense")
    for kind, limit in LIMITS[kernel, d].items():
        found = kernel_sum(x, y, w, kernel, method="sliced", slices=640, kind=kind)
        error = apart(found, right)
        show(f"{kernel}, d = {d}, 640 {kind} slices: {error:.1e} (< {limit:.1e})")
        assert error < limit


def test_energy_on_the_line(show: Show) -> None:
    x, y, w = normal(1)
    right = kernel_sum(x.double(), y.double(), w.double(), "energy", method="dense")
    error = apart(kernel_sum(x, y, w, "energy", method="sliced", slices=1), right)
    show(f"energy, d = 1, one slice: {error:.1e} (< 1e-5)")
    assert error < 1e-5


def gradients(kernel: str, dtype: torch.dtype, **options: Any) -> tuple[Tensor, ...]:
    """Of the sum over all targets, in x, y and w."""
    x, y, w = (t.to(dtype).requires_grad_() for t in normal(10))
    return torch.autograd.grad(kernel_sum(x, y, w, kernel, **options).sum(), (x, y, w))


def ranked(xi: Tensor) -> Tensor:
    """The gradient of the sliced energy sum in y, exact by ranks (2 to 3 s)."""
    x, y, w = (t.double().numpy() for t in normal(10))
    slope = np.zeros_like(y)
    for direction in xi.numpy():
        t, u = np.sort(direction @ x), direction @ y
        below = np.searchsorted(t, u, "left") + np.searchsorted(t, u, "right")
        slope -= direction[:, None] * (below / len(w) - 1)
    return torch.from_numpy(slope * (slice_constant(10) / len(xi)))


@pytest.mark.parametrize(("kernel", "limit"), [("gauss", 1e-3), ("energy", 5e-3)])
def test_gradients_at_640_slices(kernel: str, limit: float, show: Show) -> None:
    """The sheet asks for five times the threshold of the value: 1e-3 and 2.5e-3.

    For the energy kernel these directions cannot reach that: the same slices, summed exactly by
    ranks, are 2.5e-3 away from the dense gradient too. The sums must add nothing to it.
    """
    right = gradients(kernel, torch.float64, method="dense")
    found = gradients(kernel, torch.float32, method="sliced", slices=640)
    errors = [apart(*pair) for pair in zip(found, right, strict=True)]
    show(
        f"{kernel}, d = 10, gradients in x, y, w: "
        + ", ".join(f"{error:.2e}" for error in errors)
        + f" (< {limit:.1e})"
    )
    assert max(errors) < limit
    if kernel == "energy":
        xi = directions(640, 10, torch.Generator().manual_seed(0), dtype=torch.float64)
        exact = apart(ranked(xi), right[1])
        show(f"the same slices summed exactly: {exact:.2e}; ours {errors[1]:.2e} (at most 1.05 x)")
        assert errors[1] < 1.05 * exact


def test_rate_of_iid_slices(show: Show) -> None:
    x, y, w = normal(10)
    right = kernel_sum(x, y, w, "gauss", method="dense")
    generator = torch.Generator().manual_seed(0)
    errors = []
    for slices in (64, 256, 1024):
        runs = [
            kernel_sum(
                x, y, w, "gauss", method="sliced", slices=slices, kind="iid", generator=generator
            )
            for _ in range(16)
        ]
        errors.append(float(np.mean([apart(run, right) for run in runs])))
    falls = [errors[0] / errors[1], errors[1] / errors[2]]
    show(
        "iid slices, 64 / 256 / 1024: errors " + " / ".join(f"{e:.1e}" for e in errors)
        + f", falling by {falls[0]:.2f} and {falls[1]:.2f} (2 +- 35 %)"
    )
    assert all(1.3 < fall < 2.7 for fall in falls)


def test_the_estimate_is_honest(show: Show) -> None:
    """Adaptive slices on digits: the true error beside the estimated one and the tolerance."""
    digits = torch.from_numpy(load_digits().data.T).float()
    x, y = digits[:, ::2].contiguous(), digits[:, 1::2].contiguous()
    w = torch.full((x.shape[1],), 1 / x.shape[1])
    for kernel in ("gauss", "laplace", "energy"):
        right = kernel_sum(x, y, w, kernel, method="dense")
        for tolerance in (2e-2, 5e-3):
            found = kernel_sum_with_error(x, y, w, kernel, method="sliced", tolerance=tolerance)
            error = apart(found.value, right)
            show(
                f"digits, {kernel}, tolerance {tolerance:.0e}: {found.slices} slices, error "
                f"{error:.1e}, estimated {found.error:.1e}"
            )
            assert found.error <= tolerance
            assert error < 1.5 * found.error


@pytest.mark.parametrize("d", [3, 10, 20, 50])
def test_distance_directions_are_found_soon(d: int, show: Show) -> None:
    start = time.perf_counter()
    xi = distance_directions._spread(640, d)
    seconds = time.perf_counter() - start
    many = torch.nn.functional.normalize(
        torch.randn((d, 4000), generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        dim=0,
    )
    means = (xi @ many).abs().mean(0)
    spread = float(means.std() / means.mean())
    show(f"640 distance directions, d = {d}: {seconds:.1f} s, slices differ by {spread:.1e}")
    assert spread < 0.01


@pytest.mark.parametrize("kernel", ["gauss", "energy"])
def test_level_and_power_of_the_two_sample_test(kernel: str, show: Show) -> None:
    generator = torch.Generator().manual_seed(0)

    def rejected(shift: float, slices: int | None) -> float:
        p_values = [
            two_sample_test(
                torch.randn((16, 200), generator=generator),
                torch.randn((16, 200), generator=generator) + shift,
                kernel, permutations=99, generator=generator, slices=slices,
                method="sliced" if slices else "dense",
            ).p_value
            for _ in range(100 if slices else 200)
        ]
        return float(np.mean(np.array(p_values) <= 0.05))

    for slices in (None, 32):
        level, power = rejected(0.0, slices), rejected(0.15, slices)
        show(
            f"two-sample test, {kernel}, {slices or 'no'} slices: rejects {level:.1%} of equal "
            f"clouds (5 %), {power:.0%} of clouds 0.15 apart in each of 16 coordinates"
        )
        assert level < 0.12
        assert power > 0.8


def test_a_million_points(show: Show) -> None:
    x, y, _ = normal(16, 1_000_000)
    w = torch.full((1_000_000,), 1e-6)
    scale = median_scale(x, y)
    start = time.perf_counter()
    found = kernel_sum_with_error(x, y, w, "gauss", scale=scale, tolerance=1e-2)
    seconds = time.perf_counter() - start
    some = y[:, :200].contiguous()
    right = kernel_sum(x, some, w, "gauss", scale=scale, method="dense")
    error = apart(found.value[:200], right)
    show(
        f"n = m = 10^6, d = 16: {found.slices} slices in {seconds:.1f} s, error {error:.1e}, "
        f"estimated {found.error:.1e} (< 1e-2)"
    )
    assert found.method == "sliced"
    assert error < 1.5e-2
