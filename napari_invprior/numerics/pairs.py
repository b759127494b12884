"""What all Gaussian mixture densities share: only the components that matter are worked out.

For each patch a fast product gives the scores of all components; the few components within a
margin of the best are then evaluated exactly, from centred differences. Density, gradient, moments
and regressions follow from these pairs of a component and a patch.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 8192
"""Patches per block; one small matrix product per component and block."""
PAIR_NUMBERS = 16_000_000
"""Numbers in the differences of one block, which bounds the memory."""
LOG_NEGLIGIBLE = -36.0
"""Log of the smallest posterior probability; the next smaller ones change nothing in float64."""



def drawn_by_component(
    weights: Tensor,
    dim: int,
    n: int,
    generator: torch.Generator,
    colour: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """``n`` draws of a mixture, (dim, n), float64 on the CPU.

    ``colour(k, z)`` turns standard normal rows (m, dim) into draws of component k.
    """
    which = torch.multinomial(weights.cpu(), n, replacement=True, generator=generator)
    draws = torch.randn((n, dim), generator=generator, dtype=torch.float64)
    for k in which.unique().tolist():
        here = which == k
        draws[here] = colour(k, draws[here])
    return draws.T.contiguous()


@dataclass(frozen=True)
class Pairs:
    """The (component, patch) pairs that matter, sorted by component.

    Attributes
    ----------
    columns, components : Tensor
        Patch and component of each pair, (P,).
    starts : list of int
        Pairs of component k are ``starts[k]`` to ``starts[k + 1]``.
    differences : Tensor
        ``x - mu_k``, (P, d).
    whitened : Tensor
        Coordinates of the differences whose squares sum to the Mahalanobis distance, (P, any).
    shares : Tensor
        Posterior probability of the component given the patch, (P,).
    values : Tensor
        ``log p`` of each patch without the constant ``-d/2 log 2 pi``, (n,).
    """

    columns: Tensor
    components: Tensor
    starts: list[int]
    differences: Tensor
    whitened: Tensor
    shares: Tensor
    values: Tensor

    def by_component(self) -> Iterator[tuple[int, slice]]:
        """Each component that has pairs, with their place."""
        for k, (a, b) in enumerate(itertools.pairwise(self.starts)):
            if b > a:
                yield k, slice(a, b)

    def best(self) -> Tensor:
        """The pair of the largest share for each patch (of equal ones the first), (n,)."""
        n = self.values.numel()
        largest = self.shares.new_zeros(n)
        largest.scatter_reduce_(0, self.columns, self.shares, "amax")
        ties = (self.shares == largest[self.columns]).nonzero()[:, 0]
        first = self.columns.new_full((n,), len(self.shares))
        return first.scatter_reduce_(0, self.columns[ties], ties, "amin")


class PairwiseDensity(ABC):
    """A Gaussian mixture of which pairs are evaluated exactly.

    Subclasses fill in the attributes and give `_scores`, `_whiten` and `_unwhiten`.
    """

    dim: int
    components: int
    dtype: torch.dtype
    _means: Tensor
    _constants: Tensor
    """``log w_k - 1/2 log det C_k``, (K,)."""

    @abstractmethod
    def _scores(self, block: Tensor) -> Tensor:
        """``log w_k N(x | mu_k, C_k)`` of patches (d, n), about: (K, n)."""

    @abstractmethod
    def _whiten(self, differences: Tensor, starts: list[int], components: Tensor) -> Tensor:
        """See `Pairs.whitened`."""

    @abstractmethod
    def _unwhiten(self, pairs: Pairs) -> Tensor:
        """``r C_k^-1 (x - mu_k)`` of each pair with its share ``r``, (P, d)."""

    @property
    def _margin(self) -> float:
        """Components exp(-margin) less likely than the best have no part in gradients."""
        return 8.0 if self.dtype == torch.float32 else 36.0

    def pairs(self, patches: Tensor) -> Iterator[tuple[slice, Pairs]]:
        """Columns and `Pairs` of one block of patches after the other."""
        for here, block, scores in self._blocks(patches):
            for part, pairs in self._split(block, scores, self._chosen(scores)):
                yield slice(here.start + part.start, here.start + part.stop), pairs

    def potential(self, patches: Tensor) -> Tensor:
        """``-log p`` without the constant ``d/2 log 2 pi``, (N,)."""
        values = patches.new_empty(patches.shape[1], dtype=self.dtype)
        for here, pairs in self.pairs(patches):
            values[here] = pairs.values
        return values.neg_()

    def potential_and_grad(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """`potential` (N,) and its gradient (d, N), ``sum_k r_k C_k^-1 (x - mu_k)``."""
        values = patches.new_empty(patches.shape[1], dtype=self.dtype)
        gradient = torch.empty_like(patches, dtype=self.dtype)
        for here, pairs in self.pairs(patches):
            values[here] = pairs.values
            gradient[:, here] = self._pair_gradient(pairs).T
        return values.neg_(), gradient

    def _blocks(self, patches: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Columns, patches (d, n) and scores (K, n), block after block."""
        for start in range(0, patches.shape[1], BLOCK):
            block = patches[:, start : start + BLOCK].to(self.dtype)
            yield slice(start, start + block.shape[1]), block, self._scores(block)

    def _chosen(self, scores: Tensor) -> Tensor:
        """Which components take part in the gradient, (K, n) of bool."""
        return scores > scores.amax(0) - self._margin

    def _split(
        self, block: Tensor, scores: Tensor, chosen: Tensor
    ) -> Iterator[tuple[slice, Pairs]]:
        """`Pairs` of a block, in as many pieces as the memory limit asks for."""
        n = block.shape[1]
        pieces = max(1, -(-int(chosen.sum()) * self.dim // PAIR_NUMBERS))
        size = -(-n // pieces)
        for left in range(0, n, size):
            part = slice(left, min(left + size, n))
            yield part, self._pairs(block[:, part], scores[:, part], chosen[:, part])

    def _pairs(self, block: Tensor, scores: Tensor, chosen: Tensor) -> Pairs:
        """Exact log-densities and posterior probabilities of the chosen pairs."""
        components, columns = chosen.nonzero(as_tuple=True)
        starts = [0, *chosen.sum(1).cumsum(0).tolist()]
        differences = block.T.contiguous()[columns].sub_(self._means[components])
        whitened = self._whiten(differences, starts, components)
        logs = self._constants[components] - 0.5 * torch.linalg.vecdot(whitened, whitened)
        scores[components, columns] = logs
        values, _ = log_sum(scores)
        shares = (logs - values[columns]).exp_()
        total = torch.zeros_like(values).index_add_(0, columns, shares)
        shares.div_(total[columns])
        return Pairs(columns, components, starts, differences, whitened, shares, values)

    def _pair_gradient(self, pairs: Pairs) -> Tensor:
        """Sum over the pairs of each patch, (n, d)."""
        single = self._unwhiten(pairs)
        total = single.new_zeros((pairs.values.numel(), self.dim))
        return total.index_add_(0, pairs.columns, single)


def log_sum(scores: Tensor) -> tuple[Tensor, Tensor]:
    """``log sum_k exp`` of scores (K, n), which are overwritten with the shares of the sum.

    Shares below exp(`LOG_NEGLIGIBLE`) are rounded up to it: denormal numbers would make this and
    the products that follow many times slower.
    """
    peak = scores.amax(0)
    shares = scores.sub_(peak).clamp_min_(LOG_NEGLIGIBLE).exp_()
    total = shares.sum(0)
    return peak + total.log(), shares.div_(total)
