"""Gaussian mixtures with full covariances: density, gradient, samples.

Patches are the columns of a ``(d, N)`` matrix. The density of all components is one matrix
product: ``log w_k N(x | mu_k, C_k)`` is linear in the products ``x_i x_j`` (``i <= j``, with a
constant 1 appended to ``x``), which needs half the arithmetic of whitening. Where all variances
are large, float32 products are accurate and the gradient is a second such product. Where
some are small, the products only pick for each patch the few components that matter; those
are evaluated again from centred differences, from which gradient and moments follow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from napari_invprior.numerics.pairs import Pairs, PairwiseDensity, drawn_by_component, log_sum

CHUNK_NUMBERS = 1_100_000
"""Numbers in one chunk of products, so that it stays in the second-level cache."""
WELL_CONDITIONED = 5e-4
"""Variance (grey values of [0, 1]) from which float32 products are accurate to 0.001 nat."""
DENSE_PAIRS = 3
"""Pairs per patch from which the gradient by one large product is the faster one."""
LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Mixture:
    """``sum_k w_k N(mu_k, V_k diag(l_k) V_k^T)`` in float64.

    Attributes
    ----------
    weights : Tensor
        (K,), positive, sum 1.
    means : Tensor
        (K, d).
    values, vectors : Tensor
        Eigenvalues (K, d) and eigenvectors as columns (K, d, d) of the covariances.

    Examples
    --------
    >>> mixture = Mixture.from_covariances(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    >>> mixture.sample(5, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 5])
    """

    weights: Tensor
    means: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def from_covariances(
        cls, weights: Tensor, means: Tensor, covariances: Tensor, floor: float = 0.0
    ) -> Mixture:
        """From (K, d, d) covariances; eigenvalues below ``floor`` are raised to it."""
        values, vectors = torch.linalg.eigh(covariances.double())
        weights = weights.double()
        return cls(weights / weights.sum(), means.double(), values.clamp_min(floor), vectors)

    @property
    def components(self) -> int:
        """Number of components K."""
        return self.weights.numel()

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.means.shape[1]

    def covariances(self) -> Tensor:
        """(K, d, d)."""
        return (self.vectors * self.values[:, None]) @ self.vectors.mT

    def density(
        self, variance: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> MixtureDensity:
        """The mixture convolved with white noise, at one precision."""
        return MixtureDensity(self, variance, dtype)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` draws, (d, n), float64 on the CPU."""

        def colour(k: int, z: Tensor) -> Tensor:
            return z @ (self.vectors[k] * self.values[k].sqrt()).cpu().T + self.means[k].cpu()

        return drawn_by_component(self.weights, self.dim, n, generator, colour)


class MixtureDensity(PairwiseDensity):
    """A mixture convolved with white Gaussian noise, at one precision.

    Parameters
    ----------
    mixture : Mixture
        The mixture; its eigen-decompositions are reused, so that a new variance is cheap.
    variance : float
        Noise variance added to every covariance.
    dtype : torch.dtype
        Precision of patches and results.

    Examples
    --------
    >>> mixture = Mixture.from_covariances(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    >>> density = MixtureDensity(mixture, dtype=torch.float64)
    >>> value, gradient = density.potential_and_grad(torch.tensor([[3.0], [4.0]]).double())
    >>> round(value.item(), 6), gradient.flatten().tolist()
    (12.5, [3.0, 4.0])
    """

    def __init__(
        self, mixture: Mixture, variance: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> None:
        self.dim, self.components, self.dtype = mixture.dim, mixture.components, dtype
        inverse = 1 / (mixture.values + variance)
        constant = mixture.weights.log() + 0.5 * inverse.log().sum(1)
        centre = mixture.weights @ mixture.means
        self._centre = centre.to(dtype)[:, None]
        self._table = _product_table(mixture, inverse, constant, centre).to(dtype)
        self._means = mixture.means.to(dtype)
        self._vectors = mixture.vectors.to(dtype)
        self._scales = inverse.sqrt().to(dtype)
        self._constants = constant.to(dtype)
        smallest = float(mixture.values.min()) + variance
        self._accurate = dtype == torch.float64 or smallest >= WELL_CONDITIONED
        rows = self._table.shape[1]
        self._chunk = max(64, CHUNK_NUMBERS // rows // 64 * 64)
        self._products = self._table.new_empty(rows * self._chunk)

    def potential(self, patches: Tensor) -> Tensor:
        """``-log p`` without the constant ``d/2 log 2 pi``, (N,)."""
        values = patches.new_empty(patches.shape[1], dtype=self.dtype)
        for here, block, scores in self._blocks(patches):
            if self._accurate:
                values[here] = log_sum(scores)[0]
            else:
                for part, pairs in self._split(block, scores, self._chosen(scores)):
                    values[here][part] = pairs.values
        return values.neg_()

    def potential_and_grad(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """`potential` (N,) and its gradient (d, N), ``sum_k r_k C_k^-1 (x - mu_k)``."""
        values = patches.new_empty(patches.shape[1], dtype=self.dtype)
        gradient = torch.empty_like(patches, dtype=self.dtype)
        for here, block, scores in self._blocks(patches):
            chosen = self._chosen(scores)
            if self._accurate and int(chosen.sum()) > DENSE_PAIRS * block.shape[1]:
                values[here], shares = log_sum(scores)
                gradient[:, here] = self._dense_gradient(block, shares)
            else:
                for part, pairs in self._split(block, scores, chosen):
                    values[here][part] = pairs.values
                    gradient[:, here][:, part] = self._pair_gradient(pairs).T
        return values.neg_(), gradient

    def _scores(self, block: Tensor) -> Tensor:
        scores = block.new_empty((self.components, block.shape[1]))
        for here, x in self._chunks(block):
            products = self._products_like(x)
            row = 0
            for i in range(self.dim + 1):
                stop = row + self.dim + 1 - i
                torch.mul(x[i:], x[i], out=products[row:stop])
                row = stop
            scores[:, here] = self._table @ products
        return scores

    def _chunks(self, block: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Columns and ``(x - centre, 1)``, (d + 1, n), of cache-sized chunks."""
        for start in range(0, block.shape[1], self._chunk):
            part = block[:, start : start + self._chunk]
            x = block.new_ones((self.dim + 1, part.shape[1]))
            torch.sub(part, self._centre, out=x[: self.dim])
            yield slice(start, start + part.shape[1]), x

    def _products_like(self, x: Tensor) -> Tensor:
        """The buffer for all products of the rows of ``x`` (d + 1, n): (F, n)."""
        return self._products[: self._table.shape[1] * x.shape[1]].view(-1, x.shape[1])

    def _dense_gradient(self, block: Tensor, shares: Tensor) -> Tensor:
        """Gradient (d, n) of ``-sum_k r_k (table_k . products)`` at fixed ``r``, (K, n)."""
        gradient = torch.empty_like(block)
        for here, x in self._chunks(block):
            coefficients = torch.mm(self._table.T, shares[:, here], out=self._products_like(x))
            slope, buffer = torch.zeros_like(x), torch.empty_like(x)
            row = 0
            for i in range(self.dim):
                part = coefficients[row : row + self.dim + 1 - i]
                slope[i:].addcmul_(part, x[i], value=-1)
                slope[i].sub_(torch.mul(part, x[i:], out=buffer[i:]).sum(0))
                row += self.dim + 1 - i
            gradient[:, here] = slope[: self.dim]
        return gradient

    def _whiten(self, differences: Tensor, starts: list[int], components: Tensor) -> Tensor:
        whitened = torch.empty_like(differences)
        for k, (a, b) in enumerate(itertools.pairwise(starts)):
            if b > a:
                torch.mm(differences[a:b], self._vectors[k], out=whitened[a:b])
        return whitened.mul_(self._scales[components])

    def _unwhiten(self, pairs: Pairs) -> Tensor:
        scaled = pairs.whitened.mul_(self._scales[pairs.components]).mul_(pairs.shares[:, None])
        single = torch.empty_like(scaled)
        for k, here in pairs.by_component():
            torch.mm(scaled[here], self._vectors[k].T, out=single[here])
        return single


def _product_table(
    mixture: Mixture, inverse: Tensor, constant: Tensor, centre: Tensor
) -> Tensor:
    """Coefficients of ``log w_k N(x)`` in the products of ``(x - centre, 1)``, (K, F)."""
    precision = (mixture.vectors * inverse[:, None]) @ mixture.vectors.mT
    shifted = mixture.means - centre
    slope = (precision @ shifted[:, :, None]).squeeze(2)
    d = mixture.dim
    matrix = precision.new_empty((mixture.components, d + 1, d + 1))
    matrix[:, :d, :d] = -0.5 * precision
    matrix[:, :d, d] = matrix[:, d, :d] = 0.5 * slope
    matrix[:, d, d] = constant - 0.5 * (shifted * slope).sum(1)
    rows, columns = torch.triu_indices(d + 1, d + 1, device=matrix.device)
    table = matrix.flatten(1).index_select(1, rows * (d + 1) + columns)
    return table.mul_(2 - (rows == columns).to(table.dtype))
