"""Gaussian mixture prior of patches (EPLL), fitted by expectation-maximisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Event, Job, Message, Result, ShouldStop, Stage, never
from napari_invprior.networks.draws import draw_patches
from napari_invprior.numerics.expectation import (
    Moments,
    Regularisation,
    asymmetry,
    covariance,
    from_labels,
    k_means,
    require_mixture,
)
from napari_invprior.numerics.mixture import LOG_2PI, Mixture, MixtureDensity
from napari_invprior.numerics.patches import symmetries
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.priors.base import Reference
from napari_invprior.priors.patchwise import (
    FEWEST_PATCHES,
    PREVIEW_PATCHES,
    PatchPotential,
    masked_planes,
    refuse_constant,
    too_few,
)
from napari_invprior.priors.state import check_entry, check_orthonormal, check_positive
from napari_invprior.registry import register

WHERE = "Gaussian mixture state"
Edge = Annotated[int, Field(ge=1, le=32)]

PATCHES_PER_COMPONENT = 10
"""A component needs so many patches."""
PATCHES_EARLY = 200
"""The coarse steps at the beginning use a quarter of the patches, but so many per component."""
K_MEANS_STEPS = 5
SHRINKAGE_TARGET = 0.05
"""Small components are pulled towards this share of the covariance of all patches."""
FEW_PATCHES, MANY_PATCHES = 600, 1000
"""Patches per component below which symmetries pay, and how many are then made."""
FEWEST_COMPONENTS = 50
"""Small mixtures lose by symmetries: they have no Gaussians to spare for all orientations."""
ISOTROPIC, CHANCE = 0.15, 3.5
"""Largest `asymmetry` of a material without direction: the first number, or what few patches
show by chance, the second times sqrt(patch numbers / patches)."""
HELD_OUT_LIMIT = 10_000
FEWEST_HELD_OUT = 20
GAP_PER_NUMBER = 0.8
"""Warn when held-out patches cost more than so many nats per patch number above training ones."""


class GaussianMixtureParameters(Parameters):
    """Patch, size of the mixture and how it is fitted."""

    patch_size: Edge | tuple[Edge, ...] | None = parameter(
        None, "Patch edge, one number or one per axis; empty: 6 in 2D, 4 in 3D.", unit="px"
    )
    channels: Literal["separate", "joint"] = parameter(
        "separate", "One mixture for every channel, or patches that hold all channels.",
        advanced=True,
    )
    components: Annotated[int, Field(ge=1, le=1000)] | None = parameter(
        None, "Gaussians in the mixture; empty: by the number of patches."
    )
    steps: Annotated[int, Field(ge=1, le=1000)] = parameter(
        12, "At most so many steps of expectation-maximisation."
    )
    tolerance: Annotated[float, Field(ge=0, le=10)] = parameter(
        0.05, "Stop when a step gains less log-likelihood.", unit="nats per patch", advanced=True
    )
    symmetries: Literal["auto", "off", "on"] = parameter(
        "auto",
        "Train on flipped and turned patches too; automatic: where patches are few for the "
        "components and the material has no direction.",
        advanced=True,
    )
    max_patches: Annotated[int, Field(ge=100, le=5_000_000)] = parameter(
        100_000, "At most so many patches are used.", advanced=True
    )
    floor: Annotated[float, Field(ge=1e-8, le=1)] = parameter(
        1e-5, "Smallest variance in any direction.", unit="grey squared", advanced=True
    )
    shrinkage: Annotated[float, Field(ge=0, le=1e6)] = parameter(
        5.0, "Weight of the covariance of all patches in each component.", unit="patches",
        advanced=True,
    )


@register(
    kind="prior",
    name="gmm",
    title="Gaussian mixture",
    papers=("2312.16611", "2205.12021"),
    inputs=("references",),
    outputs=("prior",),
    needs_references=True,
    default_for=(3,),
)
class GaussianMixture(PatchPotential):
    """Mixture of Gaussians with full covariances; its potential is ``-log p`` of a patch.

    ``p(x) = sum_k w_k N(x | mu_k, C_k)``, fitted by expectation-maximisation from a k-means start.
    Log-likelihoods leave out the constant ``d/2 log 2 pi``, except in `log_prob`.

    Examples
    --------
    >>> from napari_invprior.jobs import run
    >>> image = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0))
    >>> prior = GaussianMixture(GaussianMixtureParameters(patch_size=3, components=2), ndim=2)
    >>> prior = run(prior.fit([Reference(image)]))
    >>> prior.g(image[None]).shape, prior.denoise_patches(torch.rand(9, 5), 0.1).shape
    (torch.Size([1]), torch.Size([9, 5]))
    """

    Parameters = GaussianMixtureParameters
    parameters: GaussianMixtureParameters

    def __init__(
        self,
        parameters: GaussianMixtureParameters,
        *,
        ndim: int,
        channels: int = 1,
        device: str = "cpu",
    ) -> None:
        super().__init__(parameters, ndim=ndim, channels=channels, device=device)
        self._mixture: Mixture | None = None
        self._range = (0.0, 1.0)
        self._densities: dict[tuple[float, torch.dtype], MixtureDensity] = {}

    # --- use --------------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self._mixture is not None

    @property
    def mixture(self) -> Mixture:
        """The fitted mixture (float64)."""
        if self._mixture is None:
            raise InvalidInput("the Gaussian mixture is not fitted yet; call fit with references")
        return self._mixture

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest value of the reference patches."""
        return self._range

    def potential(self, patches: Tensor) -> Tensor:
        return self._density(0.0, patches).potential(patches)

    def potential_and_grad(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        return self._density(0.0, patches).potential_and_grad(patches)

    def log_prob(self, patches: Tensor) -> Tensor:
        """``log p`` of each column of (d, N), with its constant: (N,)."""
        return -self.potential(patches) - 0.5 * self.dim * LOG_2PI

    def denoise_patches(self, patches: Tensor, sigma: float) -> Tensor:
        """Posterior mean of patches (d, N) seen through white Gaussian noise of ``sigma``.

        ``x + sigma^2 grad log p_sigma(x)`` with the mixture of covariances ``C_k + sigma^2 I``:
        the average of the components' Wiener filters, weighted by their posterior probability.
        """
        _, gradient = self._density(sigma**2, patches).potential_and_grad(patches)
        return torch.add(patches, gradient, alpha=-(sigma**2), out=gradient)

    def sample_patches(self, n: int, seed: int = 0) -> Tensor:
        """``n`` draws from the mixture, (d, n), float32."""
        draws = self.mixture.sample(n, torch.Generator().manual_seed(seed))
        return draws.float().to(self.device)

    def _density(self, variance: float, patches: Tensor) -> MixtureDensity:
        """The mixture widened by ``variance`` at the precision of ``patches``."""
        key = (variance, patches.dtype)
        if key not in self._densities:
            # The noise-free density serves gradient descent, the last one repeated calls.
            kept = {k: v for k, v in self._densities.items() if k[0] == 0.0}
            self._densities = kept | {key: MixtureDensity(self.mixture, variance, patches.dtype)}
        return self._densities[key]

    def _adopt(self, mixture: Mixture) -> None:
        self._mixture, self._densities = mixture, {}

    # --- learning ---------------------------------------------------------------------------

    def fit(
        self, references: Sequence[Reference], *, seed: int = 0, should_stop: ShouldStop = never
    ) -> Job:
        generator = torch.Generator().manual_seed(seed)
        train, held_out, components = self._patches(references, generator)
        require_mixture(components, self.dim)
        if components < (self.parameters.components or 1) and not self.is_fitted:
            yield _reduced_warning(self.parameters.components or 1, components)
        low, high = float(train.min()), float(train.max())
        if self.is_fitted:
            low, high = min(low, self._range[0]), max(high, self._range[1])
        self._range = (low, high)
        yield from self._expectation_maximisation(
            train, held_out, components, generator, should_stop
        )
        yield self.preview(self.sample_patches(PREVIEW_PATCHES))
        yield Result(self)

    def _patches(
        self, references: Sequence[Reference], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, int]:
        """Training and held-out patches as columns, and how many components they can feed."""
        planes = masked_planes(references, self)
        most = self.parameters.max_patches
        draws = draw_patches(planes, self.patch, generator, most)
        train, held_out = draws.train.T, draws.held_out.T
        if train.shape[1] < FEWEST_PATCHES:
            raise too_few(train.shape[1], self.patch)
        refuse_constant(train)
        components = self._component_count(train.shape[1])
        if self._symmetric(train, components):
            train = self._turned(train, min(most, MANY_PATCHES * components), generator)
        # Any first part of the patches is then a random choice.
        train = train[:, torch.randperm(train.shape[1], generator=generator)]
        if held_out.shape[1] < FEWEST_HELD_OUT:
            held_out = train
        held_out = held_out[:, torch.randperm(held_out.shape[1], generator=generator)]
        held_out = held_out[:, :HELD_OUT_LIMIT].contiguous()
        return train.to(self.device), held_out.to(self.device), components

    def _symmetric(self, train: Tensor, components: int) -> bool:
        """Whether to train on turned patches too."""
        if self.parameters.symmetries != "auto":
            return self.parameters.symmetries == "on"
        if components < FEWEST_COMPONENTS or train.shape[1] >= FEW_PATCHES * components:
            return False
        group = symmetries(self.patch, self.joint_channels)
        _, spread = covariance(train)
        chance = CHANCE * (self.dim / train.shape[1]) ** 0.5
        return asymmetry(spread, group, self.parameters.floor) < max(ISOTROPIC, chance)

    def _turned(self, patches: Tensor, most: int, generator: torch.Generator) -> Tensor:
        """Up to ``most`` patches, each with a random symmetry of the patch applied."""
        group = symmetries(self.patch, self.joint_channels)
        n = patches.shape[1]
        count = max(n, min(most, n * len(group)))
        source = torch.arange(count) % n
        element = torch.randint(len(group), (count,), generator=generator)
        turned = patches.new_empty((patches.shape[0], count))
        for k, rows in enumerate(group):
            here = (element == k).nonzero().flatten()
            turned[:, here] = patches[rows][:, source[here]]
        return turned

    def _component_count(self, patches: int) -> int:
        """Number of components asked for, at most as many as so many patches can feed."""
        wanted = self.parameters.components
        if wanted is None and self.ndim == 2:
            wanted = 20 if patches < 20_000 else 50
        elif wanted is None:
            wanted = 50 if patches < 30_000 else 100
        return min(wanted, max(1, patches // PATCHES_PER_COMPONENT))

    def _start(self, train: Tensor, components: int, generator: torch.Generator) -> None:
        """Set the first mixture by k-means."""
        some = train[:, : self._few(train, components)]
        labels = k_means(some, components, K_MEANS_STEPS, generator)
        self._adopt(from_labels(some, labels, self._regularisation(train)))

    def _few(self, train: Tensor, components: int) -> int:
        """So many patches do for the first, coarse steps."""
        return min(train.shape[1], max(train.shape[1] // 4, PATCHES_EARLY * components))

    def _regularisation(self, train: Tensor) -> Regularisation:
        _, spread = covariance(train)
        return Regularisation(
            SHRINKAGE_TARGET * spread, self.parameters.shrinkage, self.parameters.floor
        )

    def _expectation_maximisation(
        self,
        train: Tensor,
        held_out: Tensor,
        components: int,
        generator: torch.Generator,
        should_stop: ShouldStop,
    ) -> Iterator[Event]:
        """Steps on a part of the patches, then on all; the best held-out figure decides."""
        stage = Stage("train", self.parameters.steps)
        yield stage.progress(0)
        regularisation = self._regularisation(train)
        losses = {"gaussian": _mean_nll(_single(train, self.parameters.floor), held_out)}
        if not self.is_fitted:
            self._start(train, components, generator)
        mixture = self.mixture
        best = losses["held_out"] = _mean_nll(mixture, held_out)
        size, switch = self._few(train, mixture.components), 2 * stage.total // 3
        gap = 0.0
        for step in range(1, stage.total + 1):
            if step > switch:
                size = train.shape[1]
            moments = Moments(mixture)
            for _ in moments.add(train[:, :size]):
                if should_stop():
                    return
                if stage.due():
                    yield stage.progress(step - 1, **losses)
            gained = losses.get("train", float("inf")) - moments.mean_nll
            mixture = moments.update(regularisation)
            losses |= {"train": moments.mean_nll, "held_out": _mean_nll(mixture, held_out)}
            if losses["held_out"] < best:
                best, gap = losses["held_out"], losses["held_out"] - losses["train"]
                self._adopt(mixture)
            yield stage.progress(step, **losses)
            if gained < self.parameters.tolerance:
                if size == train.shape[1]:
                    break
                switch = step
        if gap > GAP_PER_NUMBER * self.dim:
            yield _overfit_warning(gap)

    # --- keeping ----------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        mixture = self.mixture
        return {
            "weights": mixture.weights.cpu(),
            "means": mixture.means.cpu(),
            "values": mixture.values.cpu(),
            "vectors": mixture.vectors.cpu(),
            "range": torch.tensor(self._range, dtype=torch.float64),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        k = int(state["weights"].numel()) if "weights" in state else 0
        shapes = {
            "weights": (k,),
            "means": (k, self.dim),
            "values": (k, self.dim),
            "vectors": (k, self.dim, self.dim),
            "range": (2,),
        }
        for name, shape in shapes.items():
            check_entry(state, name, shape, WHERE)
        check_positive(state, ("weights", "values"), WHERE)
        check_orthonormal(state, "vectors", WHERE)
        exact = {name: state[name].double().to(self.device) for name in shapes}
        self._range = (float(exact["range"][0]), float(exact["range"][1]))
        weights = exact["weights"] / exact["weights"].sum()
        self._adopt(Mixture(weights, exact["means"], exact["values"], exact["vectors"]))


def _mean_nll(mixture: Mixture, patches: Tensor) -> float:
    """Mean ``-log p`` without ``d/2 log 2 pi``."""
    return float(MixtureDensity(mixture, dtype=patches.dtype).potential(patches).double().mean())


def _single(train: Tensor, floor: float) -> Mixture:
    """One Gaussian: the level that a mixture must beat."""
    mean, spread = covariance(train)
    return Mixture.from_covariances(torch.ones_like(mean[:1]), mean[None], spread[None], floor)


def _overfit_warning(gap: float) -> Message:
    return Message(
        f"held-out patches are {gap:.0f} nats less likely than training patches: the mixture has "
        "learned the references by heart; use more references, fewer components or a smaller patch",
        "warning",
    )


def _reduced_warning(wanted: int, components: int) -> Message:
    return Message(
        f"{wanted} components need {wanted * PATCHES_PER_COMPONENT} patches but the references "
        f"hold fewer; the number used is {components}",
        "warning",
    )
