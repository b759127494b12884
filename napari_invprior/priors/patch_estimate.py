"""From patches to images: predicted patches averaged where they overlap, and maps of patches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from napari_invprior.jobs import Job, Result, ShouldStop, Stage
from napari_invprior.numerics.pairs import PairwiseDensity
from napari_invprior.numerics.patches import PatchGrid
from napari_invprior.numerics.regression import Regression

SLAB_PATCHES = 16_384
"""Patches worked on in one go; bounds memory and the time between two events."""


class PatchEstimate:
    """Predicts a good patch for every poor one and averages them where they overlap.

    A sample at distance ``r`` from the centre of its patch has the weight
    ``exp(-gamma / 2 |r|^2)``. The poor image is not continued beyond its border: mirrored data
    were measured to change nothing at best (docs/methods.md).

    Parameters
    ----------
    regression : Regression
        From poor to good patches.
    patch, small : sequence of int
        Edges of the good and of the poor patch.
    factor : sequence of int
        Good samples per poor sample.
    gamma : float
        Decay of the weights, 1 / px^2.
    """

    def __init__(
        self,
        regression: Regression,
        patch: Sequence[int],
        small: Sequence[int],
        factor: Sequence[int],
        gamma: float,
    ) -> None:
        self._regression = regression
        self._patch, self._small, self._factor = tuple(patch), tuple(small), tuple(factor)
        self._lines = [
            torch.exp(-0.5 * gamma * (torch.arange(p) - 0.5 * (p - 1)) ** 2) for p in patch
        ]

    def image(self, y: Tensor, should_stop: ShouldStop) -> Job:
        """Events, and a `Result` with image and variance (B, C, *(q space)) of data (B, C, *space).

        The variance is the patches' own, averaged like them. Lines not reached when the user
        stops hold the nearest data.
        """
        grid = PatchGrid(y.shape[2:], self._small)
        rows = grid.counts[0]
        fine = [n * f for n, f in zip(grid.space, self._factor, strict=True)]
        total, variance = (y.new_zeros((*y.shape[:2], *fine)) for _ in range(2))
        reached = y.new_zeros(fine[0])
        stage = Stage("reconstruct", rows)
        for first, last in _slabs(rows, math.prod(grid.counts[1:])):
            self._slab(y, first, last, total, variance, reached)
            if stage.due() or last == rows:
                yield stage.progress(last)
            if should_stop():
                break
        weight = self._weight(fine, reached)
        nearest = y
        for axis, f in enumerate(self._factor, 2):
            nearest = nearest.repeat_interleave(f, axis)
        image = torch.where(weight > 0, total / weight, nearest)
        yield Result((image, torch.where(weight > 0, variance / weight, 0.0)))

    def _slab(
        self, y: Tensor, first: int, last: int, total: Tensor, variance: Tensor, reached: Tensor
    ) -> None:
        """Add the patches whose first row is ``first`` to ``last - 1``."""
        part = y[:, :, first : last + self._small[0] - 1]
        poor = PatchGrid(part.shape[2:], self._small).extract(part)
        result = self._regression(poor, variance=True)
        start = first * self._factor[0]
        length = part.shape[2] * self._factor[0]
        grid = PatchGrid((length, *total.shape[3:]), self._patch, self._factor)
        weights = self._patch_weights(part.shape[1]).to(part)[:, None]
        total[:, :, start : start + length] += grid.adjoint(result.mean * weights)
        variance[:, :, start : start + length] += grid.adjoint(result.variance * weights)
        for row in range(last - first):
            place = start + row * self._factor[0]
            reached[place : place + self._patch[0]] += self._lines[0].to(reached)

    def _patch_weights(self, channels: int) -> Tensor:
        weights = torch.ones(1)
        for line in self._lines:
            weights = (weights[:, None] * line).flatten()
        return weights.repeat(channels)

    def _weight(self, fine: Sequence[int], reached: Tensor) -> Tensor:
        """Sum of the weights at each sample, (1, 1, *fine)."""
        weight = reached
        for n, line, p, f in zip(
            fine[1:], self._lines[1:], self._patch[1:], self._factor[1:], strict=True
        ):
            covers = reached.new_zeros(n)
            for place in range(0, n - p + 1, f):
                covers[place : place + p] += line.to(reached)
            weight = weight[..., None] * covers
        return weight[None, None]


def label_and_likelihood(density: PairwiseDensity, patch: Sequence[int], x: Tensor) -> Job:
    """Most probable component and mean log-likelihood (1, 1, *space) of a plane (1, C, *space).

    A sample has the component of the patch around it, and the mean of ``log p`` per number of a
    patch over the patches that hold it.
    """
    rows = x.shape[2] - patch[0] + 1
    counts = [n - p + 1 for n, p in zip(x.shape[2:], patch, strict=True)]
    labels = torch.empty(counts, dtype=torch.long, device=x.device)
    likelihood = torch.zeros_like(x[:, :1])
    stage = Stage("maps", rows)
    for first, last in _slabs(rows, math.prod(counts[1:])):
        part = x[:, :, first : last + patch[0] - 1]
        grid = PatchGrid(part.shape[2:], patch)
        values, best = _values_and_labels(density, grid.extract(part))
        labels[first:last] = best.view(last - first, *counts[1:])
        spread = (values / density.dim).expand(math.prod(patch), -1)
        likelihood[:, :, first : first + part.shape[2]] += grid.adjoint(spread)
        if stage.due():
            yield stage.progress(last)
    for axis, (n, p) in enumerate(zip(x.shape[2:], patch, strict=True)):
        centres = (torch.arange(n, device=x.device) - p // 2).clamp(0, n - p)
        labels = labels.index_select(axis, centres)
    covers = PatchGrid(x.shape[2:], patch).multiplicity(dtype=x.dtype, device=x.device)
    yield Result((labels[None, None].int(), likelihood / covers))


def _values_and_labels(density: PairwiseDensity, patches: Tensor) -> tuple[Tensor, Tensor]:
    """``log p`` (N,) without the constant and most probable component (N,) of columns."""
    values = patches.new_empty(patches.shape[1])
    labels = patches.new_empty(patches.shape[1], dtype=torch.long)
    for here, pairs in density.pairs(patches):
        values[here] = pairs.values
        labels[here] = pairs.components[pairs.best()]
    return values, labels


def _slabs(rows: int, per_row: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold about `SLAB_PATCHES` patches."""
    size = max(1, SLAB_PATCHES // max(1, per_row))
    for first in range(0, rows, size):
        yield first, min(first + size, rows)

