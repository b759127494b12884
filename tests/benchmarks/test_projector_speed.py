"""Projectors against scikit-image at 256 x 256 and 180 angles, and the matrix they keep.

Both sides of a ratio are timed in turn in the same run and the best time of each counts, because
machines are shared. Run with ``make bench``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from skimage.transform import iradon, radon

from napari_invprior.numerics.backprojection import back_projection
from napari_invprior.numerics.projector import Projector
from napari_invprior.numerics.rays import Scan
from napari_invprior.phantoms import shepp_logan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

EDGE, GOAL = 256, 5.0
DEGREES = np.arange(180.0)
SCAN = Scan(tuple(np.deg2rad(DEGREES)), EDGE)


def best(*ways: Callable[[], object], rounds: int) -> list[float]:
    """Shortest seconds of each way, measured in turn."""
    times = [[float("inf")] for _ in ways]
    for _ in range(rounds):
        for way, found in zip(ways, times, strict=True):
            start = time.perf_counter()
            way()
            found.append(time.perf_counter() - start)
    return [min(found) for found in times]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(np.stack([shepp_logan(EDGE)] * 8))


@pytest.mark.parametrize("turned", [False, True], ids=["any angles", "angles in families"])
def test_forward_and_adjoint_beat_scikit_image(benchmark, images, turned):
    """The second scan maps onto itself by turns of the image, the first (0.1 degrees off) not."""
    angles = SCAN.angles if turned else tuple(np.deg2rad(DEGREES + 0.1))
    start = time.perf_counter()
    project = Projector(Scan(angles, EDGE), (EDGE, EDGE))
    build = time.perf_counter() - start
    one, y, stack = images[:1], project(images[:1]), project(images)
    plain, data = images[0].numpy(), y[0].numpy().T
    theirs, ours, theirs_back, ours_back, many, many_back = best(
        lambda: radon(plain, DEGREES, circle=True),
        lambda: project(one),
        lambda: iradon(data, DEGREES, filter_name=None, circle=True),
        lambda: project.adjoint(y),
        lambda: project(images),
        lambda: project.adjoint(stack),
        rounds=5,
    )
    benchmark.pedantic(project, (one,), rounds=5)
    print(
        f"\n    build {build:.2f} s; forward {1e3 * ours:.1f} ms, radon {1e3 * theirs:.0f} ms "
        f"({theirs / ours:.1f} x); adjoint {1e3 * ours_back:.1f} ms, back-projection "
        f"{1e3 * theirs_back:.0f} ms ({theirs_back / ours_back:.1f} x); per slice of 8: "
        f"{1e3 * many / 8:.1f} and {1e3 * many_back / 8:.1f} ms (goal: {GOAL:g} x, 12 ms)"
    )
    benchmark.extra_info.update(forward=theirs / ours, adjoint=theirs_back / ours_back)
    assert theirs / ours > GOAL
    assert theirs_back / ours_back > GOAL


def test_filtered_back_projection(benchmark, images):
    y = Projector(SCAN, (EDGE, EDGE))(images[:1])
    data = y[0].numpy().T
    theirs, ours = best(
        lambda: iradon(data, DEGREES, circle=True),
        lambda: back_projection(y, SCAN, (EDGE, EDGE), "ram-lak"),
        rounds=5,
    )
    benchmark.pedantic(back_projection, (y, SCAN, (EDGE, EDGE)), rounds=3)
    print(
        f"\n    filtered back-projection {1e3 * ours:.0f} ms, scikit-image {1e3 * theirs:.0f} ms "
        f"({theirs / ours:.2f} x)"
    )
