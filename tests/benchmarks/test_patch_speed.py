"""Patch extraction and its adjoint beside torch's own ways, as ratios in one run.

Torch's ways allocate their result. What that costs depends on the history of the process: pages
that are new from the system take twice as long as pages left over from something else. Free memory
is therefore given back before each of their calls, and the time of a plain copy of the same bytes
into used memory stands beside as the limit.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from napari_invprior.numerics.patches import PatchGrid, extract_patches

pytestmark = pytest.mark.slow


def best(work: Callable[[], Any], repeats: int = 15, *, fresh: bool = False) -> float:
    """Shortest time of one call in ms, after a warm-up; ``fresh``: in memory new to the process."""
    work()
    found = []
    for _ in range(repeats):
        if fresh:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
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
    unfold = best(lambda: F.unfold(x, 6), fresh=True)
    fold = best(lambda: F.fold(patches[None], (512, 512), 6), fresh=True)
    twin = patches.clone()
    copy = best(lambda: patches.copy_(twin))
    benchmark(lambda: grid.extract(x, grid.buffer(x)))
    with capsys.disabled():
        print(
            f"\n    512^2, 6x6: extract {ours:.2f} ms, F.unfold {unfold:.1f} (x{unfold / ours:.1f},"
            f" goal 8), a plain copy {copy:.2f}; adjoint {adjoint:.2f} ms, F.fold {fold:.1f} "
            f"(x{fold / adjoint:.1f}, goal 3)"
        )
    assert unfold >= 8 * ours
    assert fold >= 3 * adjoint


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

    a, b, c = best(ours), best(through_unfold, 5, fresh=True), best(reused)
    benchmark(reused)
    with capsys.disabled():
        print(
            f"\n    64^3, 4^3: forward and backward {a:.1f} ms, in reused buffers {c:.1f}; "
            f"Tensor.unfold with autograd {b:.1f} (x{b / a:.1f} and x{b / c:.1f}, goal 5)"
        )
    assert b >= 5 * c
