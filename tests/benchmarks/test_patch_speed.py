"""Patch extraction and its adjoint beside torch's own ways, as ratios in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from napari_invprior.numerics.patches import PatchGrid, extract_patches

pytestmark = pytest.mark.slow


def best(work: Callable[[], Any], repeats: int = 15) -> float:
    """Shortest time of one call in ms, after a warm-up."""
    work()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found) * 1e3


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_2d_extraction_and_adjoint(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.rand(1, 1, 512, 512)
    grid = PatchGrid((512, 512), 6)
    patches = grid.extract(x)
    image = torch.empty_like(x)
    ours, adjoint = best(lambda: grid.extract(x, grid.buffer(x))), best(
        lambda: grid.adjoint(patches, image)
    )
    unfold, fold = best(lambda: F.unfold(x, 6)), best(
        lambda: F.fold(patches[None], (512, 512), 6)
    )
    rows = best(lambda: F.unfold(x, 6)[0].T.contiguous(), 5)
    benchmark(lambda: grid.extract(x, grid.buffer(x)))
    with capsys.disabled():
        print(
            f"\n    512^2, 6x6: extract {ours:.2f} ms, F.unfold {unfold:.1f} (x{unfold / ours:.1f},"
            f" goal 8), as rows {rows:.1f} (x{rows / ours:.1f}); adjoint {adjoint:.2f} ms, F.fold "
            f"{fold:.1f} (x{fold / adjoint:.1f}, goal 3)"
        )


def test_3d_forward_and_backward(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.rand(1, 1, 64, 64, 64, requires_grad=True)
    grid = PatchGrid((64, 64, 64), 4)
    weights = torch.rand(64, grid.count)

    def ours() -> None:
        torch.autograd.grad(extract_patches(x, grid), x, weights)

    def through_unfold() -> None:
        windows = x.unfold(2, 4, 1).unfold(3, 4, 1).unfold(4, 4, 1)
        rows = windows.reshape(-1, 64)
        torch.autograd.grad(rows, x, weights.view(rows.shape))

    still = x.detach()
    buffer, image = grid.buffer(still), torch.empty_like(still)

    def reused() -> None:
        grid.adjoint(grid.extract(still, buffer), image)

    a, b, c = best(ours), best(through_unfold, 5), best(reused)
    benchmark(reused)
    with capsys.disabled():
        print(
            f"\n    64^3, 4^3: forward and backward {a:.1f} ms, in reused buffers {c:.1f}; "
            f"Tensor.unfold with autograd {b:.1f} (x{b / a:.1f} and x{b / c:.1f}, goal 5)"
        )
