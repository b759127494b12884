"""Mean and variance of states that are never kept: one running sum per chain."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Running mean and variance of each of several chains, and of all together.

    Parameters
    ----------
    like : Tensor
        States of the chains, (K, ...); only shape, type and device matter.

    Examples
    --------
    >>> moments = Moments(torch.zeros(2, 1))
    >>> for value in (1.0, 2.0, 3.0):
    ...     moments.add(torch.tensor([[value], [value]]))
    >>> moments.mean.item(), round(moments.std.item(), 4)
    (2.0, 0.8944)
    """

    def __init__(self, like: Tensor) -> None:
        self.count = 0
        self._mean, self._squares = torch.zeros_like(like), torch.zeros_like(like)

    def add(self, states: Tensor) -> None:
        """Take the next state of every chain in (Welford's update)."""
        self.count += 1
        change = states - self._mean
        self._mean.add_(change, alpha=1 / self.count)
        self._squares.addcmul_(change, states - self._mean)

    @property
    def states(self) -> int:
        """States of all chains together."""
        return self.count * len(self._mean)

    @property
    def mean(self) -> Tensor:
        """Mean over all states of all chains: (1, ...)."""
        return self._mean.mean(0, keepdim=True)

    @property
    def std(self) -> Tensor:
        """Standard deviation of all states of all chains: (1, ...); zero for one state."""
        between = (self._mean - self.mean).square().sum(0, keepdim=True) * self.count
        total = self._squares.sum(0, keepdim=True) + between
        return (total / max(self.states - 1, 1)).sqrt()

    @property
    def rhat(self) -> Tensor | None:
        """Gelman and Rubin's potential scale reduction of each sample: (1, ...).

        ``sqrt((n - 1) / n + B / W)`` with the variance ``B`` of the chains' means and the mean
        ``W`` of their variances; None for one chain or fewer than two states.
        """
        if self.count < 2 or len(self._mean) < 2:
            return None
        within = self._squares.mean(0, keepdim=True) / (self.count - 1)
        between = self._mean.var(0, keepdim=True)
        tiny = torch.finfo(within.dtype).tiny
        ratio = between / within.clamp_min(tiny)
        stuck = within <= tiny  # a sample that never moved agrees with itself
        ratio = torch.where(stuck & (between <= tiny), torch.zeros_like(ratio), ratio)
        return ((self.count - 1) / self.count + ratio).sqrt()
