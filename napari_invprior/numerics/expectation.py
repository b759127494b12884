"""Expectation-maximisation for Gaussian mixtures, and the k-means start.

Moments are taken about the present means in the precision of the patches and summed in float64,
so that small variances beside large means are not lost to cancellation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from napari_invprior.memory import require
from napari_invprior.numerics.mixture import Mixture
from napari_invprior.numerics.pairs import BLOCK, PairwiseDensity

MATRIX_COPIES = 6
"""Float64 copies of all covariances in one step: moments, new ones, roots, precisions."""


@dataclass(frozen=True)
class Regularisation:
    """What keeps covariances of small components sane.

    Attributes
    ----------
    target : Tensor
        (d, d) covariance that is mixed in.
    count : float
        Weight of ``target`` in pseudo-patches.
    floor : float
        Smallest eigenvalue.
    """

    target: Tensor
    count: float = 0.0
    floor: float = 0.0


class AnyMixture(Protocol):
    """What an expectation step needs of a mixture."""

    @property
    def weights(self) -> Tensor:
        """(K,)."""

    @property
    def means(self) -> Tensor:
        """(K, d)."""

    def density(
        self, variance: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> PairwiseDensity:
        """The mixture widened by white noise, at one precision."""


class Moments:
    """Sums of one expectation step, taken about the present means (no cancellation).

    Examples
    --------
    >>> x = torch.randn((2, 500), generator=torch.Generator().manual_seed(0))
    >>> start = Mixture.from_covariances(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    >>> moments = Moments(start)
    >>> for _ in moments.add(x): pass
    >>> new = moments.update(Regularisation(torch.eye(2)))
    >>> bool(torch.allclose(new.means[0], x.double().mean(1), atol=1e-6))
    True
    """

    def __init__(self, mixture: AnyMixture, dtype: torch.dtype = torch.float32) -> None:
        self.mixture = mixture
        self.patches, self.log_likelihood = 0, 0.0
        self._density = mixture.density(dtype=dtype)
        self._mass = torch.zeros_like(mixture.weights)
        self._first = torch.zeros_like(mixture.means)
        self._second = mixture.means.new_zeros((*mixture.means.shape, mixture.means.shape[1]))
        self._worst: list[tuple[float, Tensor]] = []

    @property
    def mean_nll(self) -> float:
        """Mean ``-log p`` of the patches seen, without ``d/2 log 2 pi``."""
        return -self.log_likelihood / max(self.patches, 1)

    def add(self, patches: Tensor) -> Iterator[int]:
        """Take patches (d, N) in, one block after the other; yields the count so far."""
        for here, pairs in self._density.pairs(patches):
            weighted = pairs.differences * pairs.shares[:, None]
            self._mass.index_add_(0, pairs.components, pairs.shares.double())
            self._first.index_add_(0, pairs.components, weighted.double())
            for k, part in pairs.by_component():
                self._second[k] += weighted[part].T @ pairs.differences[part]
            self.patches += pairs.values.numel()
            self.log_likelihood += float(pairs.values.double().sum())
            value, column = pairs.values.min(0)
            self._worst.append((float(value), patches[:, here][:, int(column)].double()))
            yield self.patches

    def statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Patches (K,), mean (K, d) and scatter matrix (K, d, d) of each component."""
        mass = self._mass.clamp_min(10 * torch.finfo(torch.float64).eps)
        shift = self._first / mass[:, None]
        scatter = self._second - mass[:, None, None] * (shift[:, :, None] * shift[:, None, :])
        return mass, self.mixture.means + shift, scatter

    def update(self, regularisation: Regularisation) -> Mixture:
        """The maximisation step; components without patches move to the worst explained ones."""
        mass, means, scatter = self.statistics()
        covariances = (scatter + regularisation.count * regularisation.target) / (
            mass + regularisation.count
        )[:, None, None]
        spare = sorted(self._worst, key=lambda pair: pair[0])
        for k in (self._mass < 0.5).nonzero().flatten().tolist():
            if spare:
                means[k], mass[k] = spare.pop(0)[1], 1.0
                covariances[k] = regularisation.target
        return Mixture.from_covariances(mass, means, covariances, regularisation.floor)


def require_mixture(components: int, dim: int) -> None:
    """Refuse covariances that cannot be held, with the copies that a step makes.

    Raises
    ------
    OutOfMemory
        With the numbers, and what to lower.
    """
    require(
        MATRIX_COPIES * 8 * components * dim**2,
        f"a mixture of {components} components over patches of {dim} samples",
        "lower components or patch_size",
    )


def covariance(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of the columns, float64."""
    exact = patches.double()
    mean = exact.mean(1)
    centred = exact - mean[:, None]
    return mean, centred @ centred.T / patches.shape[1]


def asymmetry(spread: Tensor, group: Tensor, floor: float) -> float:
    """How much a covariance changes under a group of row permutations (G, d), 0 for not at all.

    Root mean square over all directions of the relative difference between the covariance and
    its mean over the group. Isotropic textures give about 0.1 (finite samples), bricks 0.6.

    Examples
    --------
    >>> swap = torch.tensor([[0, 1], [1, 0]])
    >>> asymmetry(torch.eye(2).double(), swap, 0.0)
    0.0
    """
    mean = torch.zeros_like(spread)
    for rows in group.to(spread.device):
        mean += spread[rows][:, rows] / len(group)
    values, vectors = torch.linalg.eigh(mean)
    whitening = vectors * values.clamp_min(max(floor, 1e-12)).rsqrt()
    return float((whitening.T @ (spread - mean) @ whitening).norm()) / len(mean) ** 0.5


def k_means(patches: Tensor, components: int, steps: int, generator: torch.Generator) -> Tensor:
    """Labels (N,) of Lloyd's algorithm from random distinct patches; empty clusters stay."""
    n = patches.shape[1]
    picked = torch.randperm(n, generator=generator)[:components].to(patches.device)
    centres = patches[:, picked].T.contiguous()
    labels = patches.new_zeros(n, dtype=torch.long)
    for _ in range(max(steps, 1)):
        energy = 0.5 * (centres**2).sum(1, keepdim=True)
        for start in range(0, n, BLOCK):
            block = slice(start, start + BLOCK)
            labels[block] = torch.addmm(energy, centres, patches[:, block], alpha=-1).argmin(0)
        sums = torch.zeros_like(centres).index_add_(0, labels, patches.T.contiguous())
        counts = torch.bincount(labels, minlength=components)
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), centres)
    return labels


def from_labels(patches: Tensor, labels: Tensor, regularisation: Regularisation) -> Mixture:
    """Mixture whose components are the Gaussians of the given clusters (empty ones left out)."""
    counts, means, spreads = cluster_statistics(patches, labels)
    counts = counts[:, None, None]
    covariances = (counts * spreads + regularisation.count * regularisation.target) / (
        counts + regularisation.count
    )
    return Mixture.from_covariances(counts[:, 0, 0], means, covariances, regularisation.floor)


def cluster_statistics(patches: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Patches (K,), mean (K, d) and covariance (K, d, d) of the clusters that are not empty."""
    order = labels.argsort(stable=True)
    found = [
        (float(members.numel()), *covariance(patches[:, members]))
        for members in order.split(torch.bincount(labels).tolist())
        if members.numel()
    ]
    counts, means, spreads = zip(*found, strict=True)
    return (
        torch.tensor(counts, dtype=torch.float64, device=patches.device),
        torch.stack(means),
        torch.stack(spreads),
    )
