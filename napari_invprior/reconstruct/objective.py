"""Negative log-posterior of images: ``-log p(y | A x) + weight * n * g(x)``, and its gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from napari_invprior.cutout import Cutout
from napari_invprior.numerics.patches import PatchGrid, edges
from napari_invprior.numerics.reflect import pad_reflect, pad_reflect_adjoint
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise
from napari_invprior.priors.base import Prior
from napari_invprior.priors.patchwise import PatchPrior


class Objective:
    """The objective divided by the number ``n`` of samples of an image, for a batch of images.

    Parameters
    ----------
    y : Tensor
        Data (1 or B, C, *space); one set of data may belong to all images.
    prior : Prior
        Patch priors are looked at through a mirrored rim and a grid of patches, the others whole.
    weight : float
        Of the prior, per image sample.
    stride : int, optional
        Step of the patch grid, px; half the patch edge in 2D, the patch edge in 3D by default.
    rim : int, optional
        Mirrored rim that the prior also sees, px; patch edge minus one by default.
    patch_count : int, optional
        Draw so many patches of each plane instead of a grid.
    seed : int
        Of the grids' random offsets.
    cutout : Cutout, optional
        Where the images lie in a whole: the gradient is then that of the whole's objective.

    Attributes
    ----------
    residual, value, total : float
        Of the last gradient: misfit over noise, mean potential, objective summed over the batch.
    energies : Tensor
        ``n`` times the objective of each image: (B,).
    """

    def __init__(
        self,
        y: Tensor,
        physics: Physics,
        noise: Noise,
        prior: Prior,
        weight: float,
        *,
        stride: int | None = None,
        rim: int | None = None,
        patch_count: int | None = None,
        seed: int = 0,
        cutout: Cutout | None = None,
    ) -> None:
        self.y, self.physics, self.noise, self.prior = y, physics, noise, prior
        self.weight, self._count = weight, patch_count
        self.generator = torch.Generator().manual_seed(seed)
        self.cutout = cutout
        if isinstance(prior, PatchPrior):
            self.margins = [(p - 1 if rim is None else rim,) * 2 for p in prior.patch]
            usual = [p if prior.ndim == 3 else max(1, p // 2) for p in prior.patch]
            self.stride = stride or tuple(usual)
        self.value = self.residual = self.total = math.nan
        self.energies = torch.full((1,), math.nan)
        self._first: float | None = None
        self._grid: PatchGrid | None = None

    @property
    def exploded(self) -> bool:
        """Whether the residual has grown more than a thousandfold over its first value (or 1)."""
        return self._first is not None and self.residual > 1e3 * max(self._first, 1.0)

    def freeze(self, x: Tensor) -> None:
        """Be one function from now on: a fixed grid of patches, a potential that stays."""
        self.prior.hold(True)
        if isinstance(self.prior, PatchPrior):
            padded = pad_reflect(x, self.margins).shape[2:]
            steps = edges(self.stride, self.prior.ndim, "stride")
            first = (0,) * len(steps)
            if self.cutout is not None:
                first = self.cutout.aligned(first, steps)
            self._grid = PatchGrid(padded, self.prior.patch, steps, first)

    def release(self) -> None:
        """Draw grids and follow the image again."""
        self.prior.hold(False)
        self._grid = None

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient at each image of ``x`` (B, C, *space); the attributes are set as well."""
        z = self.physics.A(x)
        y = self.y.expand(len(x), *self.y.shape[1:])
        self.residual = self.noise.residual_ratio(
            self.physics.observed(z), self.physics.observed(y)
        )
        if self._first is None:
            self._first = self.residual
        per_image = self._samples(x)
        data = self.physics.A_adjoint(self.noise.nll_grad(z, y)) / per_image
        values, slope = self._prior(x)
        self.value = float(values.mean())
        likelihoods = self.noise.nll(z, y)
        self.energies = likelihoods + self.weight * per_image * values
        self.total = float(likelihoods.sum()) / per_image + self.weight * float(values.sum())
        return data.add_(slope, alpha=self.weight)

    def _samples(self, x: Tensor) -> int:
        """Samples of one image, or of the whole that it is a part of."""
        space = x.shape[2:] if self.cutout is None else self.cutout.whole
        return x.shape[1] * math.prod(space)

    def _prior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value of each image and gradient of their sum, estimated or exact."""
        if not isinstance(self.prior, PatchPrior):
            share = x[0].numel() / self._samples(x)
            return self.prior.g(x) * share, self.prior.grad(x) * share
        padded = pad_reflect(x, self.margins)
        cutout = None if self.cutout is None else self.cutout.padded(self.margins)
        if self._count is not None and self._grid is None:
            values, slope = self.prior.drawn_value_and_grad(padded, self._count, self.generator)
        else:
            values, slope = self.prior.subset_value_and_grad(
                padded, self.generator, stride=self.stride, grid=self._grid, cutout=cutout
            )
        return values, pad_reflect_adjoint(slope, self.margins)
