"""A linear Gaussian problem whose posterior is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_invprior.numerics.mixture import Mixture
from napari_invprior.physics.base import Physics
from napari_invprior.physics.inpainting import Inpainting, InpaintingParameters
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.posterior.evidence import evidence_weight
from napari_invprior.priors.mixtures.gmm import GaussianMixture, GaussianMixtureParameters
from napari_invprior.reconstruct.objective import Objective

MEAN = 0.5


def patch_covariance(edges: tuple[int, ...], sigma: float = 0.15, length: float = 1.5) -> Tensor:
    """Exponential correlation, with a little white noise so that it is well conditioned."""
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in edges), indexing="ij")
    place = torch.stack([a.flatten() for a in axes], 1).double()
    distance = torch.cdist(place, place)
    eye = torch.eye(len(place), dtype=torch.float64)
    return sigma**2 * torch.exp(-distance / length) + 0.05**2 * eye


def gaussian_prior(ndim: int = 2, edge: int = 3) -> GaussianMixture:
    """A mixture of one Gaussian."""
    prior = GaussianMixture(
        GaussianMixtureParameters(patch_size=edge, components=1, floor=1e-8), ndim=ndim
    )
    covariance = patch_covariance((edge,) * ndim)
    mean = torch.full((1, len(covariance)), MEAN, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    prior._adopt(Mixture.from_covariances(one, mean, covariance[None], 1e-10))
    return prior


@dataclass(frozen=True)
class Truth:
    """A problem and its exact posterior (float64)."""

    y: Tensor
    physics: Physics
    noise: GaussianNoise
    prior: Any
    weight: float
    mean: Tensor
    covariance: Tensor
    x: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation of each sample of the image."""
        return self.covariance.diagonal().sqrt().view_as(self.mean)


def problem(space: tuple[int, ...] = (32, 32), sigma: float = 0.1, seed: int = 0) -> Truth:
    """Half of the samples of an image, which is drawn from the prior itself, with noise."""
    prior = gaussian_prior(len(space))
    weight = evidence_weight(prior, space, 1)
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(space, generator=generator) < 0.5).double()
    physics = Inpainting(InpaintingParameters(), len(space), mask=mask)
    noise = GaussianNoise(GaussianParameters(sigma=sigma))
    n = int(np.prod(space))
    nothing = torch.zeros((1, 1, *space), dtype=torch.float64)
    blind = Objective(nothing, physics, noise, prior, weight, stride=1, rim=1)
    precision, linear = affine(blind, space)
    precision -= torch.diag(mask.flatten()) / sigma**2  # of the prior alone
    factor = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve(linear[:, None], factor)
    white = torch.randn((n, 1), generator=generator, dtype=torch.float64)
    x = (mean + torch.linalg.solve_triangular(factor.T, white, upper=True)).view(1, 1, *space)
    y = noise.simulate(physics.A(x), generator) * mask
    seeing = Objective(y, physics, noise, prior, weight, stride=1, rim=1)
    precision, linear = affine(seeing, space)
    covariance = torch.linalg.inv(precision)
    return Truth(
        y.float(), physics, noise, prior, weight, (covariance @ linear).view(1, 1, *space),
        covariance, x,
    )


def affine(objective: Objective, space: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Precision and linear part of a Gaussian: its gradient is ``precision x - linear``."""
    n = int(np.prod(space))
    objective.freeze(torch.zeros((1, 1, *space)))
    zero = objective.gradient(torch.zeros((1, 1, *space), dtype=torch.float64)) * n
    columns = []
    for part in torch.eye(n, dtype=torch.float64).split(128):
        images = part.view(-1, 1, *space)
        columns.append((objective.gradient(images) * n - zero).flatten(1))
    precision = torch.cat(columns)
    return (precision + precision.T) / 2, -zero.flatten()
