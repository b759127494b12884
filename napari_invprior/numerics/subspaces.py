"""The principal directions that fit a covariance best, in closed form.

The likelihood of a component with ``s`` principal directions and white noise beside them depends
on its covariance ``S`` through a function on the Stiefel manifold. All stationary points are
spanned by eigenvectors of ``S``, so that the best one is found by choosing eigenvalues:

- noise ``t`` given: the ``s`` eigenvalues with the largest ``l / t - log(l / t)``. These may be
  smaller than ``t``: directions in which the data vary less than the noise are worth describing.
- noise learnt: the discarded eigenvalues are neighbours in the spectrum; ``s + 1`` windows.
- HDDC: always the largest eigenvalues, the noise is the mean of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from napari_invprior.numerics.low_rank_mixture import LowRankMixture
from napari_invprior.numerics.stiefel import descend

Mode = Literal["fixed", "learnt", "hddc", "full"]
_BATCH = 16
"""Components decomposed at a time, which bounds the memory."""
RELATIVE_FLOOR = 1e-6
"""Smallest variance as a share of the mean variance per number of a patch."""


def kept_for_noise(values: Tensor, rank: int, noise: float) -> Tensor:
    """Indices (K, s) of the eigenvalues (K, d) to keep beside noise of a given variance.

    Examples
    --------
    >>> kept_for_noise(torch.tensor([[0.01, 0.6, 2.0]]), 2, 0.5).tolist()
    [[0, 2]]
    """
    ratio = values / noise
    return (ratio - ratio.log()).topk(rank, 1).indices.sort(1).values


def kept_beside_window(values: Tensor, rank: int) -> Tensor:
    """Indices (K, s) of the ascending eigenvalues (K, d) to keep where the noise is learnt."""
    discarded = values.shape[1] - rank
    logs = values.log()
    sums = values.unfold(1, discarded, 1).sum(2)
    gone = logs.unfold(1, discarded, 1).sum(2)
    first = (discarded * sums.log() - gone).argmin(1)
    places = torch.arange(rank, device=values.device).expand(len(values), rank)
    return places + discarded * (places >= first[:, None])


def loss_for_noise(spread: Tensor, noise: float) -> Tensor:
    """``-tr(P) / t + log det P`` of projected covariances ``P = U^T S U``, (K, s, s)."""
    return torch.logdet(spread) - spread.diagonal(dim1=1, dim2=2).sum(1) / noise


def loss_with_noise(spread: Tensor, total: Tensor, discarded: int) -> Tensor:
    """``n log((tr S - tr P) / n) + log det P``, ``n = d - s``, with the traces ``total`` (K,)."""
    rest = total - spread.diagonal(dim1=1, dim2=2).sum(1)
    return discarded * (rest / discarded).log() + torch.logdet(spread)


@dataclass(frozen=True)
class Subspaces:
    """The maximisation step for principal directions.

    Attributes
    ----------
    mode : str
        ``"fixed"`` (noise given), ``"learnt"``, ``"hddc"`` or ``"full"`` (all directions).
    rank : int
        Directions per component.
    noise : float
        The variance across them in mode ``"fixed"``.
    floor : float
        Eigenvalues below are raised to it.
    by_descent : bool
        Descend on the Stiefel manifold as the paper does, instead of choosing eigenvalues.
        Modes ``"fixed"`` and ``"learnt"`` only.

    Examples
    --------
    >>> covariance = torch.diag(torch.tensor([0.1, 0.1, 2.0])).double()[None]
    >>> one = torch.ones(1).double()
    >>> mixture = Subspaces("hddc", 1).mixture(one, torch.zeros(1, 3).double(), covariance)
    >>> round(mixture.values.item(), 6), round(mixture.noises.item(), 6)
    (2.0, 0.1)
    """

    mode: Mode
    rank: int
    noise: float = 4e-4
    floor: float = 0.0
    by_descent: bool = False

    def mixture(
        self,
        weights: Tensor,
        means: Tensor,
        covariances: Tensor,
        start: Tensor | None = None,
    ) -> LowRankMixture:
        """The mixture of most likely components with these moments.

        Parameters
        ----------
        weights, means, covariances : Tensor
            (K,), (K, d) and (K, d, d).
        start : Tensor, optional
            Directions (K, d, s) at which a descent begins; the principal ones by default.
        """
        starts = [None] * len(means) if start is None else start.split(_BATCH)
        parts = [
            self._components(c, s)
            for c, s in zip(covariances.split(_BATCH), starts, strict=False)
        ]
        values, vectors, noises = (torch.cat(part) for part in zip(*parts, strict=True))
        return LowRankMixture(weights / weights.sum(), means, values, vectors, noises)

    def _components(
        self, covariances: Tensor, start: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(covariances.double())
        values = values.clamp_min(self.floor)
        d = values.shape[1]
        if self.mode == "full" or self.rank >= d:
            return values, vectors, values[:, -1]
        if self.by_descent and self.mode != "hddc":
            start = vectors[:, :, -self.rank :] if start is None else start
            return self._descended(values, vectors, vectors.mT @ start)
        kept = self._kept(values)
        chosen = values.gather(1, kept)
        basis = vectors.gather(2, kept[:, None].expand(-1, d, -1))
        if self.mode == "fixed":
            return chosen, basis, torch.full_like(chosen[:, 0], self.noise)
        left = torch.ones_like(values).scatter_(1, kept, 0.0)
        return chosen, basis, (values * left).sum(1) / (d - self.rank)

    def _kept(self, values: Tensor) -> Tensor:
        if self.mode == "fixed":
            return kept_for_noise(values, self.rank, self.noise)
        if self.mode == "learnt":
            return kept_beside_window(values, self.rank)
        top = torch.arange(values.shape[1] - self.rank, values.shape[1], device=values.device)
        return top.expand(len(values), -1)

    def _descended(
        self, values: Tensor, vectors: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Downhill from ``start``, in the basis of the eigenvectors."""
        d = values.shape[1]
        total = values.sum(1)

        def loss(basis: Tensor) -> Tensor:
            spread = basis.mT @ (values[:, :, None] * basis)
            if self.mode == "fixed":
                return loss_for_noise(spread, self.noise)
            return loss_with_noise(spread, total, d - self.rank)

        basis = descend(loss, start)
        chosen, turned = torch.linalg.eigh(basis.mT @ (values[:, :, None] * basis))
        noise = (total - chosen.sum(1)) / (d - self.rank)
        if self.mode == "fixed":
            noise = torch.full_like(noise, self.noise)
        return chosen.clamp_min(self.floor), vectors @ basis @ turned, noise
