"""Priors that compare the distribution of an image's patches with that of the references.

``g(x) = sum_s T(mu_s(x), nu_s)``: at every scale of a Gaussian pyramid, a transport cost between
all patches of the image and a sample of reference patches. Written through its semi-dual
(`transport.semi_dual`), the cost is the mean of a potential over the patches, as for any patch
prior; but the potential, ``min_j |p - q_j|^2 - psi_j``, follows the image: each reconstruction
adapts ``psi``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.cutout import Cutout
from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Job, Message, Result, ShouldStop, Stage, never
from napari_invprior.numerics.patches import (
    DrawnPatches,
    PatchGrid,
    count_in_whole,
    edges,
)
from napari_invprior.numerics.pyramid import Pyramid, coarser_cutout, scales_that_fit
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.priors.base import Map, Measurement, Reference
from napari_invprior.priors.patchwise import PREVIEW_PATCHES, PatchPrior
from napari_invprior.priors.state import check_entry, check_positive
from napari_invprior.priors.wasserstein.reference_cloud import (
    ReferencePatches,
    draw_reference_patches,
)
from napari_invprior.transport.semi_discrete.interpolation import Interpolation
from napari_invprior.transport.semi_discrete.semi_dual import Plan, SemiDual

MAP_POINTS = 4000
"""Patches of an image for which the potential of a map is solved."""
EXACT, EXACT_ROUNDS = 1e-4, 20
"""Accuracy of `PatchDiscrepancy.g`."""
MEMORY = 0.9
"""Share of the running mass that is kept from one step to the next."""


class Pace(NamedTuple):
    """A step of the potential is repeated until so little mass is misplaced, at most so often."""

    enough: float
    most: int


CLOSE = Pace(0.2, 10)
"""For balanced transport of an image."""
LOOSE = Pace(0.5, 3)
"""Where masses are free they find their place by themselves, and more steps gain 0.03 dB. Where
other images come in each step, more steps would follow the few at hand instead of them all.
"""

Edge = Annotated[int, Field(ge=1, le=32)]


class DiscrepancyParameters(Parameters):
    """What all transport priors share."""

    patch_size: Edge | tuple[Edge, ...] | None = parameter(
        None, "Patch edge, one number or one per axis; empty is 6 in 2D and 4 in 3D.", unit="px"
    )
    scales: Annotated[int, Field(ge=1, le=6)] = parameter(
        2, "Scales that are compared, each half as fine as the one before."
    )
    reference_patches: Annotated[int, Field(ge=100, le=1_000_000)] = parameter(
        4000,
        "Patches drawn from the references at each scale; cost grows with them (the paper: 10000).",
    )
    centred: bool = parameter(
        False,
        "Compare patches without their mean, so that brightness comes from the data alone; for "
        "images whose grey levels the references do not show.",
        advanced=True,
    )
    symmetries: bool = parameter(
        False, "Also use turned and mirrored reference patches, for materials without direction.",
        advanced=True,
    )
    channels: Literal["separate", "joint"] = parameter(
        "separate", "Colours as images of their own, or together in one patch.", advanced=True
    )


class PatchDiscrepancy(PatchPrior):
    """Transport cost between the patches of an image and those of the references.

    Subclasses choose the form of transport by `_dual`.
    """

    Parameters: ClassVar[type[DiscrepancyParameters]]
    parameters: DiscrepancyParameters
    weight_scale = 350.0
    optimises = False
    previews = "patches it compares with"
    balanced: ClassVar[bool] = False
    """Whether one image must use every reference patch as often as the references have it."""
    descends = True

    def __init__(
        self, parameters: Any, *, ndim: int, channels: int = 1, device: str = "cpu"
    ) -> None:
        super().__init__(parameters, ndim=ndim, channels=channels, device=device)
        self._scales: list[ReferencePatches] = []
        self._range = (0.0, 1.0)
        self._running: list[_Running] = []
        self._settled: list[Tensor] = []
        self._pyramid: tuple[tuple[int, ...], Pyramid] | None = None

    def _dual(self, reference: ReferencePatches) -> SemiDual:
        """The transport problem to these reference patches."""
        raise NotImplementedError

    # --- use --------------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return bool(self._scales)

    @property
    def scales(self) -> list[ReferencePatches]:
        """Reference patches, the finest scale first."""
        if not self._scales:
            raise InvalidInput(f"the prior {self.name!r} has no reference patches yet; call fit")
        return self._scales

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest value of the reference patches."""
        return self._range

    @property
    def running_imbalance(self) -> float:
        """Largest share of the mass at the wrong reference patches, over the scales."""
        return max((run.imbalance for run in self._running), default=1.0)

    def for_run(self) -> PatchDiscrepancy:
        working = copy.copy(self)
        pace = CLOSE if self.balanced else LOOSE
        working._running = [_Running(self._dual(reference), pace) for reference in self.scales]
        for run, psi in zip(working._running, self._settled, strict=False):
            run.dual.psi, run.held = psi.clone(), True
        return working

    def settled_on(self, x: Tensor) -> PatchDiscrepancy:
        settled = copy.copy(self)
        settled._settled = []
        for level, reference in zip(self._levels(x[:1]), self.scales, strict=False):
            planes = self.as_planes(level)
            patches = self._compared(self.patch_grid(planes.shape[2:]).extract(planes))
            dual = self._dual(reference)
            for _ in dual.solve(patches):
                pass
            settled._settled.append(dual.psi)
        settled._running = []
        return settled

    @property
    def adapts(self) -> bool:  # type: ignore[override]
        return not self._settled

    @property
    def period(self) -> int:
        return int(2 ** (len(self.scales) - 1))

    def hold(self, held: bool) -> None:
        for run in self._running:
            run.held = held or bool(self._settled)

    def advice(self, space: Sequence[int]) -> str:
        count = math.prod(max(0, n - p + 1) for n, p in zip(space, self.patch, strict=True))
        if not self.balanced or count >= 100_000:
            return ""
        return (
            "choose the semi-unbalanced form: the image holds "
            f"{count} patches, too few to have the same statistics as the references, and "
            "balanced transport then forces structure into it that is not there"
        )

    def g(self, x: Tensor) -> Tensor:
        return self._exact(x)[0]

    def grad(self, x: Tensor) -> Tensor:
        return self._exact(x)[1]

    def _exact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient with the potential solved for all patches of each image."""
        values, gradients = [], []
        for image in x.split(1):
            levels, slopes, total = self._levels(image), [], torch.zeros(1, dtype=torch.float64)
            for level, reference in zip(levels, self.scales, strict=False):
                planes = self.as_planes(level)
                grid = self.patch_grid(planes.shape[2:])
                patches = self._compared(grid.extract(planes))
                dual = self._dual(reference)
                for _ in dual.solve(patches, EXACT, EXACT_ROUNDS):
                    pass
                total += dual.value(dual.plan(patches)).cpu()
                divided = dual.plan(patches, max(dual.epsilon, dual.last_level))
                slopes.append(grid.adjoint(_pull(patches, divided)).view_as(level))
            values.append(total.to(x))
            gradients.append(self._gathered(image, slopes))
        return torch.cat(values), torch.cat(gradients)

    def subset_value_and_grad(
        self,
        x: Tensor,
        generator: torch.Generator,
        stride: int | Sequence[int] | None = None,
        grid: PatchGrid | None = None,
        cutout: Cutout | None = None,
    ) -> tuple[Tensor, Tensor]:
        def places(planes: Tensor, scale: int, cutout: Cutout | None) -> PatchGrid:
            if grid is not None and scale == 0:
                return grid
            steps = self.patch if stride is None else edges(stride, self.ndim, "stride")
            finer = [max(1, step // 2**scale) for step in steps]
            return self.shifted_grid(planes.shape[2:], generator, finer, cutout)

        return self._adapted(x, places, cutout)

    def drawn_value_and_grad(
        self, x: Tensor, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return self._adapted(x, lambda planes, *_: self.drawn_patches(planes, count, generator))

    def _adapted(
        self,
        x: Tensor,
        places: Callable[[Tensor, int, Cutout | None], PatchGrid | DrawnPatches],
        cutout: Cutout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Value and gradient from some patches, after a step of the running potentials."""
        if not self._running:
            self._running = self.for_run()._running
        slopes, total = [], torch.zeros((), dtype=torch.float64, device=x.device)
        for scale, (level, run) in enumerate(zip(self._levels(x), self._running, strict=False)):
            planes = self.as_planes(level)
            here = places(planes, scale, cutout)
            patches = self._compared(here.extract(planes))
            plan, value = run.follow(patches)
            total += value
            slope = here.adjoint(_pull(patches, plan)).view_as(level)
            if cutout is not None and isinstance(here, PatchGrid):
                slope *= here.count / count_in_whole(here, cutout)
                cutout = coarser_cutout(cutout)
            slopes.append(slope)
        # The images of a batch are one cloud; each counts as if it had the cost of all.
        return total.to(x).expand(x.shape[0]), self._gathered(x, slopes) * x.shape[0]

    def denoise_patches(self, patches: Tensor, sigma: float) -> Tensor:
        """Patches (d, N) of the finest scale, between the reference patches they go to.

        The plan is smoothed by the prior's own blur and by the noise: less and less as the noise
        sinks, while the potential follows the image.
        """
        if not self._running:
            self._running = self.for_run()._running
        if not self.parameters.centred:
            return self._running[0].denoise(patches, sigma**2)
        mean = patches.mean(0)
        return self._running[0].denoise(patches - mean, sigma**2).add_(mean)

    def _compared(self, patches: Tensor) -> Tensor:
        """What of the patches (d, N) is compared; changes them in place.

        Means that are taken off both sides leave the gradient as it is: its mean is zero.
        """
        return patches.sub_(patches.mean(0)) if self.parameters.centred else patches

    def _levels(self, x: Tensor) -> list[Tensor]:
        """The image at every scale at which it holds a patch and there are reference patches."""
        space = tuple(x.shape[2:])
        if self._pyramid is None or self._pyramid[0] != space:
            count = scales_that_fit(space, self.patch, len(self.scales))
            if count == 0:
                raise InvalidInput(
                    f"an image of {space} px is smaller than the patch of {self.patch} px; choose "
                    "a smaller patch"
                )
            self._pyramid = space, Pyramid(space, count, x)
        return self._pyramid[1].levels(x)

    def _gathered(self, x: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        assert self._pyramid is not None
        return self._pyramid[1].adjoint(slopes)

    # --- maps -------------------------------------------------------------------------------

    def maps(
        self, x: Tensor, measurement: Measurement | None = None, *, seed: int = 0
    ) -> Job:
        """Which reference patch explains each place of the finest scale, and how well.

        ``transport_cost`` is the mean squared distance ``|p - q|^2`` of the patches that cover a
        sample; ``nearest_reference`` is 1 + the number of the reference patch of the patch whose
        centre the sample is.
        """
        stage = Stage("maps", x.shape[0])
        costs: list[Tensor] = []
        indices: list[Tensor] = []
        generator = torch.Generator().manual_seed(0)
        for image in x.split(1):
            planes = self.as_planes(image)
            grid = self.patch_grid(planes.shape[2:])
            patches = self._compared(grid.extract(planes))
            dual = self._dual(self.scales[0])
            some = torch.randperm(patches.shape[1], generator=generator)[:MAP_POINTS]
            for _ in dual.solve(patches[:, some.to(patches.device)].contiguous()):
                yield stage.progress(len(costs))
            index = dual.sites.nearest(patches, dual.psi)[1]
            cost = (patches - self.scales[0].patches[:, index]).square_().sum(0)
            weight = grid.multiplicity(dtype=x.dtype, device=x.device)
            heat = grid.adjoint(cost.expand(math.prod(self.patch), -1).contiguous()) / weight
            costs.append(heat.mean(0, keepdim=True))
            places = index.view(len(planes), *grid.counts)[:1]
            indices.append(_at_centres(places, self.patch, tuple(planes.shape[2:])) + 1)
            yield stage.progress(len(costs))
        yield Result(
            [
                Map("transport_cost", torch.cat(costs)),
                Map("nearest_reference", torch.cat(indices)[:, None], "labels"),
            ]
        )

    # --- learning ---------------------------------------------------------------------------

    def fit(
        self, references: Sequence[Reference], *, seed: int = 0, should_stop: ShouldStop = never
    ) -> Job:
        stage = Stage("train", self.parameters.scales)
        generator = torch.Generator().manual_seed(seed)
        found: list[ReferencePatches] = []
        for scale in range(self.parameters.scales):
            drawn = draw_reference_patches(
                references, self, scale, self.parameters.reference_patches, generator,
                turned=self.parameters.symmetries,
            )
            if drawn is None:
                yield Message(
                    f"the picked regions are too small for {self.parameters.scales} scales; "
                    f"{scale} are used (pick a larger region for more)", "warning",
                )
                break
            found.append(drawn)
            yield stage.progress(scale + 1, patches=drawn.patches.shape[1])
            if should_stop():
                break
        finest = found[0].patches
        self._range = float(finest.min()), float(finest.max())
        shown = torch.randperm(finest.shape[1], generator=generator)[:PREVIEW_PATCHES]
        yield self.preview(finest[:, shown.to(finest.device)])
        found = [replace(drawn, patches=self._compared(drawn.patches)) for drawn in found]
        self._scales, self._running, self._settled = found, [], []
        yield Result(self)

    # --- keeping ----------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        found = {"range": torch.tensor(self._range, dtype=torch.float64)}
        for scale, reference in enumerate(self.scales):
            found[f"patches{scale}"] = reference.patches.cpu()
            found[f"weights{scale}"] = reference.weights.cpu()
        return found | {f"psi{scale}": psi.cpu() for scale, psi in enumerate(self._settled)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        count = max(1, sum(name.startswith("patches") for name in state))
        loaded = []
        for scale in range(count):
            patches, weights = f"patches{scale}", f"weights{scale}"
            size = state[patches].shape[-1] if patches in state else 0
            check_entry(state, patches, (self.dim, size), self.name)
            check_entry(state, weights, (size,), self.name)
            check_positive(state, [weights], self.name)
            mass = state[weights].float().to(self.device)
            loaded.append(
                ReferencePatches(state[patches].float().to(self.device), mass / mass.sum())
            )
        check_entry(state, "range", (2,), self.name)
        self._range = (float(state["range"][0]), float(state["range"][1]))
        settled = [name for name in state if name.startswith("psi")]
        for scale, name in enumerate(sorted(settled)):
            check_entry(state, name, (loaded[min(scale, count - 1)].patches.shape[1],), self.name)
        self._scales, self._running = loaded, []
        self._settled = [state[name].float().to(self.device) for name in sorted(settled)]


class _Running:
    """The potential of one scale as it follows a reconstruction."""

    def __init__(self, dual: SemiDual, pace: Pace) -> None:
        self.dual, self.pace = dual, pace
        self._interpolation: Interpolation | None = None
        self._mass: Tensor | None = None
        self.imbalance = 1.0
        self.held = False

    def follow(self, patches: Tensor) -> tuple[Plan, Tensor]:
        """Adapt the potential to these patches; more steps while the mass is badly placed."""
        for _ in range(self.pace.most):
            plan = self.dual.plan(patches)
            value = self.dual.value(plan)
            if self.held:
                break
            mass = plan.mass
            self._mass = mass if self._mass is None else self._mass.lerp(mass, 1 - MEMORY)
            self.imbalance = self.dual.imbalance(self._mass)
            self.dual.ascend(plan)
            if self.imbalance < self.pace.enough:
                break
        return plan, value

    def denoise(self, patches: Tensor, variance: float) -> Tensor:
        """Denoised patches, after which the potential takes a step."""
        if self._interpolation is None:
            self._interpolation = Interpolation(self.dual)
        plan = self._interpolation.plan(patches, self.dual.epsilon + 2 * variance, variance)
        if not self.held:
            self.dual.ascend(plan)
        return plan.targets


def _pull(patches: Tensor, plan: Plan) -> Tensor:
    """Gradient of the mean potential in each patch, ``2/n (p_i - t_i)``."""
    return torch.sub(patches, plan.targets).mul_(2 / patches.shape[1])


def _at_centres(values: Tensor, patch: Sequence[int], space: tuple[int, ...]) -> Tensor:
    """One value per patch (n, *counts) at the patches' centres; the rim repeats its neighbour."""
    for axis, (p, n) in enumerate(zip(patch, space, strict=True), 1):
        place = (torch.arange(n) - (p - 1) // 2).clamp(0, values.shape[axis] - 1)
        values = values.index_select(axis, place.to(values.device))
    return values
