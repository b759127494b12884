"""PCA-GMM: one mixture of good and poor patches together, with few directions per component."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Job, Message, Result, ShouldStop, forward, never
from napari_invprior.numerics.low_rank_mixture import LowRankDensity, LowRankMixture
from napari_invprior.numerics.regression import Regression
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.priors.base import Map, Measurement, Reference
from napari_invprior.priors.mixtures.joint_fit import JointFit
from napari_invprior.priors.mixtures.joint_patches import (
    JointDraws,
    alignment_warnings,
    draw_joint,
    factor_of,
    joint_planes,
    usable_measurement,
)
from napari_invprior.priors.patch_estimate import PatchEstimate, label_and_likelihood
from napari_invprior.priors.patchwise import (
    FEWEST_PATCHES,
    PREVIEW_PATCHES,
    PatchPotential,
    refuse_constant,
    too_few,
)
from napari_invprior.priors.state import (
    check_entry,
    check_orthonormal,
    check_positive,
    geometry_of,
)
from napari_invprior.registry import register

WHERE = "PCA-GMM state"
Edge = Annotated[int, Field(ge=1, le=64)]

ESTIMATES = 64
"""Standard deviations of so many estimates are kept for `PcaMixture.maps`."""


class PcaMixtureParameters(Parameters):
    """Patch, mixture, and how patches are put together."""

    patch_size: Edge | tuple[Edge, ...] | None = parameter(
        None,
        "Patch edge in the good image, a multiple of the magnification q; empty: 4 q in 2D, 3 q in "
        "3D (8 and 6 for x2).",
        unit="px",
    )
    channels: Literal["separate", "joint"] = parameter(
        "separate", "One mixture for every channel, or patches that hold all channels.",
        advanced=True,
    )
    components: Annotated[int, Field(ge=1, le=1000)] | None = parameter(
        None, "Gaussians in the mixture; empty: 20 or 1, by held-out patches."
    )
    mode: Literal["auto", "fixed", "learnt", "hddc", "full"] = parameter(
        "auto",
        "Directions per component: fixed (noise given), learnt, hddc (the largest), full (all of "
        "them); automatic: full or hddc by held-out patches.",
    )
    rank: Annotated[int, Field(ge=1, le=4096)] | None = parameter(
        None, "Principal directions per component; empty: 99 % of the variance within components."
    )
    sigma: Annotated[float, Field(ge=1e-5, le=10)] = parameter(
        0.02, "Noise across the principal directions in mode fixed.", unit="grey, 0-1",
        advanced=True,
    )
    gamma: Annotated[float, Field(ge=0, le=10)] = parameter(
        0.12, "How fast the weight of a patch falls with the distance from its centre.",
        unit="1/px squared", advanced=True,
    )
    shrinkage: Annotated[float, Field(ge=0, le=1e6)] | None = parameter(
        None,
        "Weight of the mean covariance in that of each component; empty: 300 in mode auto, else 0.",
        unit="patches", advanced=True,
    )
    combine: Literal["mean", "best"] = parameter(
        "mean", "A patch is the posterior mean over all components, or that of the best one.",
        advanced=True,
    )
    steps: Annotated[int, Field(ge=1, le=1000)] = parameter(
        20, "At most so many steps of expectation-maximisation."
    )
    tolerance: Annotated[float, Field(ge=0, le=10)] = parameter(
        1e-5, "Stop when a step gains less log-likelihood.", unit="nats per patch", advanced=True
    )
    start: Literal["k-means", "neighbours"] = parameter(
        "k-means", "First components: clusters, or neighbours of random patches (the paper's).",
        advanced=True,
    )
    optimiser: Literal["exact", "palm"] = parameter(
        "exact",
        "Directions in closed form, or by inertial PALM as in the paper (slower, may stop short).",
        advanced=True,
    )
    max_patches: Annotated[int, Field(ge=100, le=5_000_000)] = parameter(
        100_000, "At most so many patches are used.", advanced=True
    )


@register(
    kind="prior",
    name="pca_gmm",
    title="PCA-GMM (joint)",
    papers=("2009.07520",),
    inputs=("references", "pair", "observation"),
    outputs=("prior", "reconstruction"),
    needs_references=True,
    uncertainty=True,
)
class PcaMixture(PatchPotential):
    """Mixture of good patches joined with the poor patches of the same place.

    From a registered pair (or a reference and the operator) it learns how good patches look and
    how they follow from poor ones, without being told the operator. `estimate` predicts the good
    image in closed form; the marginal of the good patches is a patch prior like any other. Without
    pair and operator only that marginal is learnt.

    Examples
    --------
    >>> from napari_invprior.jobs import run
    >>> fine = torch.rand(1, 48, 48, generator=torch.Generator().manual_seed(0))
    >>> coarse = torch.nn.functional.avg_pool2d(fine, 2)
    >>> prior = PcaMixture(PcaMixtureParameters(patch_size=4, components=1), ndim=2)
    >>> prior = run(prior.fit([Reference(fine, pair=coarse)]))
    >>> run(prior.estimate(coarse[None])).shape, prior.g(fine[None]).shape
    (torch.Size([1, 1, 48, 48]), torch.Size([1]))
    """

    Parameters = PcaMixtureParameters
    parameters: PcaMixtureParameters
    needs_measurement = True

    def __init__(
        self,
        parameters: PcaMixtureParameters,
        *,
        ndim: int,
        channels: int = 1,
        device: str = "cpu",
    ) -> None:
        super().__init__(parameters, ndim=ndim, channels=channels, device=device)
        self.factor: tuple[int, ...] | None = None
        self._mixture: LowRankMixture | None = None
        self._range = (0.0, 1.0)
        self._noise = math.nan
        self._extra = 0.0
        self._densities: dict[tuple[float, torch.dtype], LowRankDensity] = {}
        self._estimates: list[tuple[tuple[int, ...], Tensor]] = []

    def usual_edge(self) -> int:
        return 8 if self.ndim == 2 else 6

    # --- geometry ---------------------------------------------------------------------------

    def _set_factor(self, factor: tuple[int, ...] | None) -> None:
        """Take a magnification over; a patch edge that was left open follows it."""
        size = self.parameters.patch_size
        if size is None and factor is not None:
            coarse = 4 if self.ndim == 2 else 3
            plain = self.usual_edge() - 2
            self.patch = tuple(f * coarse if f > 1 else plain for f in factor)
        elif factor is not None and any(p % f for p, f in zip(self.patch, factor, strict=True)):
            near = tuple(-(-p // f) * f for p, f in zip(self.patch, factor, strict=True))
            raise InvalidInput(
                f"patch_size = {self.patch}: the edge must be a multiple of the magnification "
                f"{factor}; choose {near}"
            )
        self.factor = factor

    @property
    def small_patch(self) -> tuple[int, ...]:
        """Edges of the poor patch; refuses where only good patches are known."""
        if self.factor is None:
            raise InvalidInput(
                "this PCA-GMM was trained without a low-resolution image; train it with an "
                "observation or a registered pair"
            )
        return tuple(p // f for p, f in zip(self.patch, self.factor, strict=True))

    def _joint_dim(self) -> int:
        small = 0 if self.factor is None else self.joint_channels * math.prod(self.small_patch)
        return self.dim + small

    # --- use as a prior ---------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self._mixture is not None

    @property
    def mixture(self) -> LowRankMixture:
        """The fitted mixture of joint patches (float64), the good patch first."""
        if self._mixture is None:
            raise InvalidInput("the PCA-GMM is not fitted yet; call fit with references")
        return self._mixture

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest value of the good patches."""
        return self._range

    def potential(self, patches: Tensor) -> Tensor:
        return self.density(0.0, patches.dtype).potential(patches)

    def potential_and_grad(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        return self.density(0.0, patches.dtype).potential_and_grad(patches)

    def denoise_patches(self, patches: Tensor, sigma: float) -> Tensor:
        """Posterior mean of good patches (d, N) seen through white Gaussian noise of ``sigma``."""
        _, gradient = self.density(sigma**2, patches.dtype).potential_and_grad(patches)
        return torch.add(patches, gradient, alpha=-(sigma**2), out=gradient)

    def sample_patches(self, n: int, seed: int = 0) -> Tensor:
        """``n`` good patches drawn from the mixture, (d, n), float32."""
        draws = self.mixture.sample(n, torch.Generator().manual_seed(seed))
        return draws[: self.dim].float().to(self.device)

    def density(self, variance: float, dtype: torch.dtype) -> LowRankDensity:
        """The good patches' density widened by white noise."""
        key = (variance, dtype)
        if key not in self._densities:
            kept = {k: v for k, v in self._densities.items() if k[0] == 0.0}
            good = self.mixture.marginal(slice(0, self.dim))
            self._densities = kept | {key: good.density(variance, dtype)}
        return self._densities[key]

    def _adopt(self, mixture: LowRankMixture) -> None:
        self._mixture, self._densities, self._estimates = mixture, {}, []

    # --- use as an estimator ----------------------------------------------------------------

    def at_noise(self, variance: float) -> PcaMixture:
        """The prior for data whose noise has this variance; more than in training is allowed for.

        Where the training noise is not known (a measured pair) nothing changes.
        """
        extra = max(0.0, variance - self._noise) if math.isfinite(self._noise) else 0.0
        if extra == self._extra:
            return self
        other = copy.copy(self)
        other._extra = extra
        return other

    def estimate(self, y: Tensor, *, seed: int = 0, should_stop: ShouldStop = never) -> Job:
        """Posterior mean of the good image given poor data (B, C, *space), patch by patch.

        The image (B, C, *(q space)) lies on the block grid of the data.
        """
        small = self.small_patch
        regression = Regression(
            self.mixture, self.dim, self._extra, self.parameters.combine == "best"
        )
        assert self.factor is not None
        work = PatchEstimate(regression, self.patch, small, self.factor, self.parameters.gamma)
        for event in work.image(self.as_planes(y), should_stop):
            if isinstance(event, Result):
                image, variance = (x.view(*y.shape[:2], *x.shape[2:]) for x in event.value)
                self._estimates.append((tuple(image.shape[1:]), variance.sqrt()))
                del self._estimates[:-ESTIMATES]
                event = Result(image)
            yield event

    def maps(
        self, x: Tensor, measurement: Measurement | None = None, *, seed: int = 0
    ) -> Job:
        """Most probable component, mean log-likelihood and, after `estimate`, posterior std.

        Components count from 1: label 0 is transparent.
        """
        found = []
        for plane in self.as_planes(x):
            work = label_and_likelihood(self.density(0.0, x.dtype), self.patch, plane[None])
            found.append((yield from forward(work)))
        labels, likelihoods = (
            torch.cat(part).view(len(x), -1, *x.shape[2:]) for part in zip(*found, strict=True)
        )
        maps = [
            Map("component", labels[:, :1] + 1, "labels"),
            Map("log_likelihood", likelihoods.mean(1, keepdim=True)),
        ]
        known = [std for shape, std in self._estimates if shape == tuple(x.shape[1:])][-len(x) :]
        if len(known) == len(x):
            stds = torch.cat(known)
            std = stds.mean(1, keepdim=True)
            maps.append(Map("posterior_std", std, unit="difference"))
        yield Result(maps)

    # --- learning ---------------------------------------------------------------------------

    def fit(
        self,
        references: Sequence[Reference],
        *,
        seed: int = 0,
        should_stop: ShouldStop = never,
        measurement: Measurement | None = None,
    ) -> Job:
        generator = torch.Generator().manual_seed(seed)
        usable = usable_measurement(measurement)
        if measurement is not None and usable is None:
            yield _mask_message()
        yield from alignment_warnings(references)
        before = self.factor, self.patch
        factor = factor_of(references, usable)
        if self.is_fitted and factor != self.factor:
            raise InvalidInput(
                f"this PCA-GMM was trained for magnification {self.factor}, now it is {factor}; "
                "train a new one"
            )
        try:
            self._set_factor(factor)
            draws = self._patches(references, usable, generator)
        except InvalidInput:
            self.factor, self.patch = before
            raise
        known = usable is not None and all(r.pair is None for r in references)
        if known and not self.is_fitted:
            self._noise = self._level(usable, references)
        good = draws.patches[: self.dim]
        low, high = float(good.min()), float(good.max())
        if self.is_fitted:
            low, high = min(low, self._range[0]), max(high, self._range[1])
        self._range = (low, high)
        start = self._mixture
        fit = JointFit(self.parameters, self.dim, draws, generator)
        yield from fit.run(start, self._adopt, should_stop)
        yield self.preview(self.sample_patches(PREVIEW_PATCHES))
        yield Result(self)

    @staticmethod
    def _level(measurement: Measurement | None, references: Sequence[Reference]) -> float:
        """Noise variance in simulated poor images."""
        assert measurement is not None
        y = measurement.y if measurement.y is not None else references[0].image[None]
        return measurement.noise.variance_level(torch.nan_to_num(y))

    def _patches(
        self,
        references: Sequence[Reference],
        measurement: Measurement | None,
        generator: torch.Generator,
    ) -> JointDraws:
        """Joint patches to train on and held out."""
        planes = joint_planes(references, measurement, self.factor, self.as_planes, generator)
        draws = draw_joint(planes, self.patch, generator, self.parameters.max_patches)
        count = draws.patches.shape[1]
        if count < FEWEST_PATCHES:
            raise too_few(count, self.patch)
        refuse_constant(draws.patches[: self.dim])
        return draws.to(self.device)

    # --- keeping ----------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        mixture = self.mixture
        factor = self.factor or (0,) * self.ndim
        return {
            "weights": mixture.weights.cpu(),
            "means": mixture.means.cpu(),
            "values": mixture.values.cpu(),
            "vectors": mixture.vectors.cpu(),
            "noises": mixture.noises.cpu(),
            "range": torch.tensor(self._range, dtype=torch.float64),
            # -1: not known
            "noise": torch.tensor([self._noise if math.isfinite(self._noise) else -1.0]),
            "geometry": torch.tensor([self.patch, factor]),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        asked = self.patch if self.parameters.patch_size is not None else None
        patch, factor = geometry_of(state, self.ndim, asked, WHERE)
        small = [p // f for p, f in zip(patch, factor, strict=True)] if factor else []
        dim = self.joint_channels * (math.prod(patch) + (math.prod(small) if small else 0))
        k = int(state["weights"].numel()) if "weights" in state else 0
        rank = int(state["values"].shape[-1]) if "values" in state else 0
        shapes = {
            "weights": (k,), "means": (k, dim), "values": (k, rank), "vectors": (k, dim, rank),
            "noises": (k,), "range": (2,), "noise": (1,),
        }
        for name, shape in shapes.items():
            check_entry(state, name, shape, WHERE)
        check_positive(state, ("weights", "values", "noises"), WHERE)
        check_orthonormal(state, "vectors", WHERE)
        exact = {name: state[name].double().to(self.device) for name in shapes}
        self.patch, self.factor = patch, factor
        self._range = (float(exact["range"][0]), float(exact["range"][1]))
        noise = float(exact["noise"])
        self._noise = noise if noise >= 0 else math.nan
        weights = exact["weights"] / exact["weights"].sum()
        self._adopt(
            LowRankMixture(
                weights, exact["means"], exact["values"], exact["vectors"], exact["noises"]
            )
        )


def _mask_message() -> Message:
    return Message(
        "the operator is a mask, which differs from place to place: only good patches are learnt; "
        "reconstruct with the variational or half-quadratic solver",
        "warning",
    )
