"""What a joint mixture says of the coordinates that were not seen: posterior mean and variance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from napari_invprior.numerics.low_rank_mixture import LowRankMixture


@dataclass(frozen=True)
class Prediction:
    """What is known of the unseen coordinates of each column.

    Attributes
    ----------
    mean : Tensor
        (u, N).
    variance : Tensor
        (u, N), that between the components included; empty where it was not asked for.
    labels : Tensor
        The most probable component, (N,).
    """

    mean: Tensor
    variance: Tensor
    labels: Tensor


class Regression:
    """Posterior of the first coordinates of a mixture given the last ones.

    Each component regresses linearly, ``mu_u + C_us (C_ss + v I)^-1 (z - mu_s)``; the inverse is
    that of a marginal of low rank, so that nothing larger than rank x rank is ever decomposed.

    Parameters
    ----------
    mixture : LowRankMixture
        Joint mixture; the first ``unseen`` coordinates are predicted.
    unseen : int
        Coordinates that are not seen.
    variance : float
        White noise in the seen coordinates beyond that which the mixture has learnt.
    best : bool
        Let the most probable component decide alone, instead of the mean over all of them.
    dtype : torch.dtype
        Precision of the products.

    Examples
    --------
    >>> eye, one = torch.eye(2).double()[None], torch.ones(1).double()
    >>> turned = torch.tensor([[[0.6, -0.8], [0.8, 0.6]]]).double()
    >>> mixture = LowRankMixture(one, torch.zeros(1, 2).double(),
    ...     torch.tensor([[1.0, 2.0]]).double(), turned, 2 * one)
    >>> result = Regression(mixture, 1, dtype=torch.float64)(torch.ones(1, 1).double(), True)
    >>> round(result.mean.item(), 4), round(result.variance.item(), 4)
    (-0.3529, 1.4706)
    """

    def __init__(
        self,
        mixture: LowRankMixture,
        unseen: int,
        variance: float = 0.0,
        best: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        seen = mixture.marginal(slice(unseen, None))
        self._density = seen.density(variance, dtype)
        self._unseen, self._best, self._dtype = unseen, best, dtype
        high = mixture.vectors[:, :unseen] * mixture.excess[:, None]
        across = high @ mixture.vectors[:, unseen:].mT
        noises = (seen.noises + variance)[:, None]
        gains = 1 / (seen.values + variance) - 1 / noises
        inner = (across @ seen.vectors) * gains[:, None]
        regressor = inner @ seen.vectors.mT + across / noises[:, None]
        self._gains = regressor.to(dtype)
        self._means = mixture.means[:, :unseen].to(dtype)
        own = mixture.noises[:, None] + (high * mixture.vectors[:, :unseen]).sum(2)
        self._variances = (own - (regressor * across).sum(2)).clamp_min(0).to(dtype)

    def __call__(self, seen: Tensor, variance: bool = False) -> Prediction:
        """Predict from columns (d - unseen, N)."""
        n = seen.shape[1]
        mean = seen.new_empty((n, self._unseen), dtype=self._dtype)
        spread = seen.new_empty((n if variance else 0, self._unseen), dtype=self._dtype)
        labels = seen.new_empty(n, dtype=torch.long)
        for here, pairs in self._density.pairs(seen):
            best = pairs.best()
            labels[here] = pairs.components[best]
            shares = pairs.shares
            if self._best:
                shares = torch.zeros_like(shares).index_fill_(0, best, 1.0)
            single = self._means[pairs.components]
            for k, part in pairs.by_component():
                single[part].addmm_(pairs.differences[part], self._gains[k].T)
            total = single.new_zeros((pairs.values.numel(), self._unseen))
            mean[here] = total.index_add(0, pairs.columns, single * shares[:, None])
            if variance:
                off = single.sub_(mean[here][pairs.columns]).square_()
                off += self._variances[pairs.components]
                spread[here] = total.index_add_(0, pairs.columns, off.mul_(shares[:, None]))
        return Prediction(mean.T, spread.T, labels)

