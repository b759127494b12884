"""Noise that resembles a cloud: the start of a flow that is to end there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseLike:
    """Uniform noise, stretched and turned: ``mean + root u``, ``u`` of variance one.

    Attributes
    ----------
    mean : Tensor
        (d,).
    root : Tensor
        (d, d), or (d, 1) for one factor per number.

    Examples
    --------
    >>> x = torch.randn((2, 4000), generator=torch.Generator().manual_seed(0)).cumsum(0)
    >>> noise = NoiseLike.of(x, full=True).draw(4000, torch.Generator().manual_seed(1))
    >>> bool(torch.allclose(torch.cov(noise), torch.cov(x), atol=0.1))
    True
    """

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, targets: Tensor, *, full: bool = False) -> NoiseLike:
        """Noise with mean and variance of all numbers of (d, M), or with their full covariance."""
        exact = targets.double()
        if full:
            centred = exact - exact.mean(1, keepdim=True)
            values, vectors = torch.linalg.eigh(centred @ centred.T / targets.shape[1])
            root = vectors * values.clamp_min(0).sqrt() @ vectors.T
            return cls(exact.mean(1).to(targets), root.to(targets))
        mean, deviation = float(exact.mean()), float(exact.std(correction=0))
        return cls(
            targets.new_full((len(targets),), mean), targets.new_full((len(targets), 1), deviation)
        )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """New noise (d, count)."""
        u = torch.rand((len(self.mean), count), generator=generator, dtype=self.mean.dtype)
        u = u.sub_(0.5).mul_(math.sqrt(12)).to(self.root)
        full = self.root.shape[1] == len(self.mean) > 1
        return (self.root @ u if full else self.root * u) + self.mean[:, None]
