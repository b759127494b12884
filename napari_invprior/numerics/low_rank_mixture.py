"""Gaussian mixtures whose components have a few principal directions and white noise beside them.

Component k has the covariance ``U diag(l) U^T + t (I - U U^T)`` with a (d, s) matrix ``U`` of
orthonormal columns. The density of a patch then needs ``s`` projections per component instead of
``d``; all components take part in one matrix product. Marginals are of the same kind.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from napari_invprior.numerics.pairs import Pairs, PairwiseDensity, drawn_by_component

CHUNK_NUMBERS = 2_000_000
"""Projections worked on at a time, so that they stay in the cache."""
SMALLEST_NOISE = 5e-6
"""Below this variance (grey values of [0, 1]) float32 products no longer tell components apart."""


@dataclass(frozen=True)
class LowRankMixture:
    """``sum_k w_k N(mu_k, U_k diag(l_k) U_k^T + t_k (I - U_k U_k^T))`` in float64.

    Attributes
    ----------
    weights : Tensor
        (K,), positive, sum 1.
    means : Tensor
        (K, d).
    values, vectors : Tensor
        Variances (K, s) along the principal directions, the columns of (K, d, s).
    noises : Tensor
        Variances (K,) across them; they may exceed some of ``values``.

    Examples
    --------
    >>> line = torch.tensor([[[1.0], [0.0]]]).double()
    >>> one, quarter = torch.ones(1).double(), torch.full((1,), 0.25).double()
    >>> mixture = LowRankMixture(one, torch.zeros(1, 2).double(), 4 * one[None], line, quarter)
    >>> mixture.covariances().tolist()
    [[[4.0, 0.0], [0.0, 0.25]]]
    >>> mixture.marginal(slice(1, 2)).covariances().tolist()
    [[[0.25]]]
    """

    weights: Tensor
    means: Tensor
    values: Tensor
    vectors: Tensor
    noises: Tensor

    @property
    def components(self) -> int:
        """Number of components K."""
        return self.weights.numel()

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.means.shape[1]

    @property
    def rank(self) -> int:
        """Principal directions s per component."""
        return self.values.shape[1]

    @property
    def excess(self) -> Tensor:
        """Variance along the principal directions beyond that across them, (K, s)."""
        return self.values - self.noises[:, None]

    def covariances(self) -> Tensor:
        """(K, d, d); for tests and small d."""
        eye = torch.eye(self.dim, dtype=self.means.dtype, device=self.means.device)
        return (self.vectors * self.excess[:, None]) @ self.vectors.mT + (
            self.noises[:, None, None] * eye
        )

    def marginal(self, part: slice) -> LowRankMixture:
        """The mixture of some of the coordinates: again of low rank beside white noise."""
        basis, factor = torch.linalg.qr(self.vectors[:, part])
        values, turned = torch.linalg.eigh((factor * self.excess[:, None]) @ factor.mT)
        # rounding must not push a variance below zero where noise and value nearly cancel
        values = (values + self.noises[:, None]).clamp_min(1e-12 * self.noises[:, None])
        return LowRankMixture(
            self.weights, self.means[:, part], values, basis @ turned, self.noises
        )

    def density(
        self, variance: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> LowRankDensity:
        """The mixture convolved with white noise of ``variance``, at one precision."""
        return LowRankDensity(self, variance, dtype)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` draws, (d, n), float64 on the CPU."""

        def colour(k: int, z: Tensor) -> Tensor:
            basis, noise = self.vectors[k].cpu(), self.noises[k].sqrt().cpu()
            along = (z @ basis) * (self.values[k].sqrt().cpu() - noise)
            return self.means[k].cpu() + noise * z + along @ basis.T

        return drawn_by_component(self.weights, self.dim, n, generator, colour)


class LowRankDensity(PairwiseDensity):
    """A `LowRankMixture` convolved with white Gaussian noise, at one precision.

    Parameters
    ----------
    mixture : LowRankMixture
        The mixture.
    variance : float
        Noise variance added to every covariance.
    dtype : torch.dtype
        Precision of patches and results.
    """

    def __init__(
        self, mixture: LowRankMixture, variance: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> None:
        self.dim, self.components = mixture.dim, mixture.components
        values, noises = mixture.values + variance, mixture.noises + variance
        self.dtype = dtype
        self._work = torch.float64 if float(noises.min()) < SMALLEST_NOISE else dtype
        rest = self.dim - mixture.rank
        constants = mixture.weights.log() - 0.5 * (values.log().sum(1) + rest * noises.log())
        centre = mixture.weights @ mixture.means
        shifted = mixture.means - centre
        self._means, self._constants = mixture.means.to(dtype), constants.to(dtype)
        self._vectors = mixture.vectors.to(dtype)
        self._scales = values.rsqrt().to(dtype)
        self._noise_scales = noises.rsqrt().to(dtype)
        # log w_k N(x) = a_k . (x, 1) - |x|^2 / (2 t_k) + 1/2 sum_i (1/t_k - 1/l_ki) z_ki^2
        self._centre = centre.to(self._work)[:, None]
        energy = (shifted**2).sum(1) / noises
        linear = torch.cat([shifted / noises[:, None], (constants - 0.5 * energy)[:, None]], 1)
        self._linear, self._halves = linear.to(self._work), (0.5 / noises).to(self._work)[:, None]
        gains = 0.5 * (1 / noises[:, None] - 1 / values)
        basis = mixture.vectors.mT * gains.abs().sqrt()[:, :, None]
        offset = -(basis @ shifted[:, :, None])
        self._basis = torch.cat([basis, offset], 2).flatten(0, 1).to(self._work)
        self._signs = gains.sign()[:, None].to(self._work)
        self._chunk = max(64, CHUNK_NUMBERS // len(self._basis))

    def _scores(self, block: Tensor) -> Tensor:
        scores = block.new_empty((self.components, block.shape[1]))
        for start in range(0, block.shape[1], self._chunk):
            part = block[:, start : start + self._chunk]
            x = self._centre.new_ones((self.dim + 1, part.shape[1]))
            torch.sub(part, self._centre, out=x[:-1])
            squares = torch.mm(self._basis, x).square_().view(self.components, -1, x.shape[1])
            found = torch.addcmul(
                self._linear @ x, self._halves, x[:-1].square().sum(0), value=-1
            )
            found += torch.bmm(self._signs, squares)[:, 0]
            scores[:, start : start + self._chunk] = found
        return scores

    def _whiten(self, differences: Tensor, starts: list[int], components: Tensor) -> Tensor:
        """Coordinates along the principal directions, then the residual, each over its spread."""
        rank = self._scales.shape[1]
        whitened = differences.new_empty((len(differences), rank + self.dim))
        along, across = whitened[:, :rank], whitened[:, rank:]
        for k, (a, b) in enumerate(itertools.pairwise(starts)):
            if b > a:
                along[a:b] = differences[a:b] @ self._vectors[k]
                across[a:b] = torch.addmm(
                    differences[a:b], along[a:b], self._vectors[k].T, alpha=-1
                )
        along.mul_(self._scales[components])
        across.mul_(self._noise_scales[components][:, None])
        return whitened

    def _unwhiten(self, pairs: Pairs) -> Tensor:
        rank = self._scales.shape[1]
        along = pairs.whitened[:, :rank] * (self._scales[pairs.components] * pairs.shares[:, None])
        scale = self._noise_scales[pairs.components] * pairs.shares
        single = pairs.whitened[:, rank:] * scale[:, None]
        for k, here in pairs.by_component():
            single[here].addmm_(along[here], self._vectors[k].T)
        return single
