"""Starts and steps of expectation-maximisation for mixtures of few principal directions."""

from __future__ import annotations

import torch
from torch import Tensor

from napari_invprior.numerics.expectation import Moments, cluster_statistics, k_means
from napari_invprior.numerics.low_rank_mixture import LowRankMixture
from napari_invprior.numerics.subspaces import Subspaces

Statistics = tuple[Tensor, Tensor, Tensor]
"""Patches (K,), mean (K, d) and covariance (K, d, d) of each component."""

K_MEANS_STEPS = 10
K_MEANS_PATCHES = 50_000
"""More patches than this are not needed to place the first components."""
EXPLAINED = 0.99
"""Share of the variance within components that the automatic rank explains."""
NEIGHBOUR_RIDGE = 1e-4


def k_means_start(patches: Tensor, components: int, generator: torch.Generator) -> Statistics:
    """Clusters of patches alike but for their brightness (columns in random order)."""
    some = patches[:, :K_MEANS_PATCHES]
    labels = k_means(some - some.mean(0), components, K_MEANS_STEPS, generator)
    return cluster_statistics(some, labels)


def neighbour_start(patches: Tensor, components: int, generator: torch.Generator) -> Statistics:
    """The paper's start: random patches and their nearest neighbours, and one full step.

    Mean and uncentred second moment (plus 1e-4) of the max(40, 2 d) nearest neighbours of each.
    """
    d, n = patches.shape
    count = min(n, max(40, 2 * d))
    centres = torch.randperm(n, generator=generator)[:components].tolist()
    means, moments = [], []
    for centre in centres:
        distance = (patches - patches[:, centre, None]).square_().sum(0)
        near = patches[:, distance.topk(count, largest=False).indices].double()
        means.append(near.mean(1))
        moments.append(near @ near.T / count)
    ridge = NEIGHBOUR_RIDGE * torch.eye(d, dtype=torch.float64, device=patches.device)
    start = Subspaces("full", d).mixture(
        patches.new_ones(len(centres), dtype=torch.float64),
        torch.stack(means),
        torch.stack(moments) + ridge,
    )
    step = Moments(start, patches.dtype)
    for _ in step.add(patches):
        pass
    return covariances_of(step)


def covariances_of(moments: Moments) -> Statistics:
    """The weighted statistics of an expectation step."""
    mass, means, scatter = moments.statistics()
    return mass, means, scatter / mass[:, None, None]


def enough(statistics: Statistics, fewest: float) -> tuple[Statistics, Tensor]:
    """Statistics of the components of at least so many patches, and which these are.

    The largest component always stays.
    """
    mass = statistics[0]
    kept = mass >= min(fewest, float(mass.max()))
    weights, means, covariances = (part[kept] for part in statistics)
    return (weights, means, covariances), kept


def shrunk(statistics: Statistics, count: float) -> Statistics:
    """Covariances mixed with the mean one of all components, which counts as so many patches."""
    weights, means, covariances = statistics
    if count == 0:
        return statistics
    mass = weights[:, None, None]
    pooled = (mass * covariances).sum(0) / mass.sum()
    return weights, means, (mass * covariances + count * pooled) / (mass + count)


def rank_for(statistics: Statistics, share: float = EXPLAINED) -> int:
    """Directions per component that explain a share of the variance within components.

    Examples
    --------
    >>> spread = torch.diag(torch.tensor([90.0, 9.5, 0.5])).double()[None]
    >>> rank_for((torch.ones(1), torch.zeros(1, 3), spread))
    2
    """
    weights, _, covariances = statistics
    values = torch.linalg.eigvalsh(covariances).clamp_min(0).flip(1)
    spectrum = ((weights / weights.sum())[:, None] * values).sum(0)
    explained = spectrum.cumsum(0) / spectrum.sum().clamp_min(1e-300)
    return min(len(spectrum), 1 + int((explained < share - 1e-12).sum()))


def maximised(
    moments: Moments, subspaces: Subspaces, before: LowRankMixture, shrinkage: float = 0.0
) -> LowRankMixture:
    """The maximisation step; components of too few patches for their directions are dropped."""
    statistics, kept = enough(covariances_of(moments), 2 * subspaces.rank)
    start = before.vectors[kept] if subspaces.by_descent else None
    return subspaces.mixture(*shrunk(statistics, shrinkage), start)
