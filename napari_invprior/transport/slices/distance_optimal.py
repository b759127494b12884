"""Directions that are spread as far as can be, found once and kept.

Among sets of a given size, symmetrised, these maximise the sum of all distances
``|xi_p - xi_q| + |xi_p + xi_q|``: slices of the energy kernel then are nearest to the kernel
itself, on the mean over all differences. The search takes a second or two, so that what it found
lies in memory and in the cache folder of the platform; a cache that cannot be used is as good as
none.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from napari_invprior.numerics.lbfgs import minimise

MOST_AT_ONCE = 640
"""Larger sets are several of this size; a step costs the square."""
STEPS = 100
"""Steps of L-BFGS; at 640 directions, sums of kernels are no better after four times as many."""
GAIN, GAIN_STEPS = 1e-9, 10
"""The search ends where so many steps gain so little."""


@lru_cache(maxsize=64)
def distance_directions(count: int, dim: int) -> Tensor:
    """Unit vectors (count, dim) of float64, the same at every call; not to be written to.

    Examples
    --------
    >>> xi = distance_directions(3, 2)  # a regular hexagon, with their opposites
    >>> gram = (xi @ xi.T).abs()
    >>> [round(float(v), 3) for v in (gram[0, 1], gram[0, 2], gram[1, 2])]
    [0.5, 0.5, 0.5]
    """
    path = user_cache_path("napari-invprior") / "directions" / f"distance-{dim}-{count}.npy"
    found = _read(path, (count, dim))
    if found is None:
        found = _spread(count, dim).float().numpy()
        _write(path, found)
    return torch.nn.functional.normalize(torch.from_numpy(found).double(), dim=1)


def _spread(count: int, dim: int) -> Tensor:
    """Ascent from random orthonormal bases."""
    generator = torch.Generator().manual_seed(0)
    bases = torch.randn((-(-count // dim), dim, dim), generator=generator, dtype=torch.float64)
    start = torch.linalg.qr(bases)[0].reshape(-1, dim)[:count]
    values: list[float] = []

    def closeness(flat: Tensor) -> tuple[float, Tensor]:
        value, slope = _closeness(flat.view(count, dim))
        values.append(value)
        return value, slope.flatten()

    best = start
    for found in islice(minimise(closeness, start.flatten(), first_step=0.05), STEPS):
        best = found.view(count, dim)
        if len(values) > GAIN_STEPS and values[-GAIN_STEPS] - values[-1] < GAIN:
            break
    return torch.nn.functional.normalize(best, dim=1)


def _closeness(vectors: Tensor) -> tuple[float, Tensor]:
    """Minus the mean distance of the directions of some vectors, and its gradient in them."""
    length = vectors.norm(dim=1, keepdim=True)
    xi = vectors / length
    gram = (xi @ xi.T).clamp_(-1, 1).fill_diagonal_(0)
    apart, opposite = (2 - 2 * gram).sqrt_(), (2 + 2 * gram).sqrt_()
    value = -float(apart.mean() + opposite.mean())
    # directions that coincide do not push each other
    smallest = torch.finfo(xi.dtype).eps
    push = opposite.clamp_min_(smallest).reciprocal_() - apart.clamp_min_(smallest).reciprocal_()
    slope = push.fill_diagonal_(0) @ xi * (-2 / len(xi) ** 2)
    return value, (slope - (slope * xi).sum(1, keepdim=True) * xi) / length


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """What the cache holds, if these are unit vectors of the right shape."""
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError):
        return None
    if not isinstance(found, np.ndarray) or found.shape != shape or found.dtype != np.float32:
        return None
    good = np.abs(np.linalg.norm(found, axis=1) - 1) < 1e-5  # False for NaN
    return found if good.all() else None


def _write(path: Path, found: np.ndarray) -> None:
    """Under another name first, so that nobody reads half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                np.save(file, found, allow_pickle=False)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
