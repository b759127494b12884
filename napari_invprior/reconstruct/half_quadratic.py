"""Half-quadratic splitting: denoise all patches, fit the data exactly, lower the noise level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.cutout import Cutout
from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Event, Job, Preview, Result, ShouldStop, Stage, never
from napari_invprior.numerics.patches import PatchGrid, edges
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise
from napari_invprior.priors.base import Prior
from napari_invprior.priors.patchwise import PatchPrior
from napari_invprior.reconstruct.base import Solver
from napari_invprior.reconstruct.weight import Weight, WeightRule
from napari_invprior.registry import register

SLAB_PATCHES = 16_384
"""Patches that are denoised in one go; bounds memory and the time between two events."""
PREVIEW_INTERVAL = 0.5
EARLY_TRUST = 0.3
"""The weight is (sigma / last sigma) to this power larger at first: a measured gain of 0.1 dB."""

Sigma = Annotated[float, Field(ge=1e-5, le=10)]


@runtime_checkable
class PatchDenoiser(Protocol):
    """A prior that can denoise patches."""

    def denoise_patches(self, patches: Tensor, sigma: float) -> Tensor:
        """Posterior mean of patches (d, N) under white Gaussian noise of ``sigma``."""


class HalfQuadraticParameters(Parameters):
    """Weight, noise schedule and patch grid."""

    weight: Weight = parameter(
        "auto",
        "How much the denoised image counts against the data (0.25 is a good start); 'auto' "
        "chooses it without the truth.",
    )
    weight_rule: WeightRule = parameter(
        "sure",
        "Automatic weight: Monte-Carlo SURE, discrepancy principle, or matched reference crops.",
        advanced=True,
    )
    steps: Annotated[int, Field(ge=1, le=10_000)] = parameter(
        80, "Steps from the first to the last noise level."
    )
    sigma_start: Sigma = parameter(
        0.15, "Noise level that the first denoising assumes.", unit="grey, 0-1", advanced=True
    )
    sigma_end: Sigma = parameter(
        0.01, "Noise level that the last denoising assumes.", unit="grey, 0-1", advanced=True
    )
    stride: Annotated[int, Field(ge=1, le=64)] | tuple[int, ...] | None = parameter(
        None,
        "Step of the patch grid, one number or one per axis; empty: patch edge minus 1 in 3D, half "
        "of it in 2D.",
        unit="px",
        advanced=True,
    )
    box: bool = parameter(
        True, "Clip what is denoised to the references' range of values.", advanced=True
    )


@register(
    kind="solver",
    name="half_quadratic",
    title="Half-quadratic splitting",
    papers=("2312.16611",),
    inputs=("observation", "prior"),
    outputs=("reconstruction",),
    default_for=(3,),
)
class HalfQuadratic(Solver):
    """Alternate patch denoising and the exact data step while the noise level sinks.

    For ``sigma`` falling geometrically: ``z`` = average of the denoised patches of ``x``, then
    ``x = argmin |A x - y|^2 + c (sigma_y / sigma)^2 |x - z|^2`` with ``c = weight (sigma / last
    sigma)^0.3``. The patches lie on a grid with a new random offset in each step. ``weight`` has no
    unit; weight ``c`` here corresponds to the variational weight ``c / patch size``.

    Works with every patch prior that has ``denoise_patches`` and with every physics.
    """

    Parameters = HalfQuadraticParameters
    parameters: HalfQuadraticParameters
    automatic_weights = (0.4, 0.2, 0.1)

    def objective_weight(self, weight: float, prior: Prior) -> float:
        return weight / prior.dim if isinstance(prior, PatchPrior) else weight

    def solve(
        self,
        y: Tensor,
        physics: Physics,
        noise: Noise,
        prior: Prior | None,
        *,
        weight: float,
        start: Tensor | None = None,
        value_range: tuple[float, float] | None = None,
        seed: int = 0,
        should_stop: ShouldStop = never,
        time_budget_s: float | None = None,
        cutout: Cutout | None = None,
    ) -> Job:
        if not (isinstance(prior, PatchPrior) and isinstance(prior, PatchDenoiser)):
            raise InvalidInput(
                "half-quadratic splitting needs a prior that can denoise patches; choose the "
                "Gaussian mixture or a transport prior"
            )
        x = physics.start(y) if start is None else start
        variance = noise.variance_level(y)
        box = value_range if self.parameters.box else None
        working: Any = prior.for_run()
        denoiser = PatchAverage(
            working, self._stride(prior), physics.boundary == "circular", box, seed, cutout
        )
        return self._events(
            x, y, physics, variance, weight, denoiser, should_stop, time_budget_s
        )

    def _stride(self, prior: PatchPrior) -> tuple[int, ...]:
        if self.parameters.stride is not None:
            return edges(self.parameters.stride, prior.ndim, "stride")
        return tuple(max(1, p // 2 if prior.ndim == 2 else p - 1) for p in prior.patch)

    def _events(
        self,
        x: Tensor,
        y: Tensor,
        physics: Physics,
        variance: float,
        weight: float,
        denoiser: PatchAverage,
        should_stop: ShouldStop,
        time_budget_s: float | None,
    ) -> Iterator[Event]:
        stage = Stage("reconstruct", self.parameters.steps)
        schedule = _Schedule(self.parameters, time_budget_s)
        losses: dict[str, float] = {}
        last_preview = 0.0
        for sigma in schedule.levels(stage):
            for _ in denoiser.slabs(x, sigma):
                if stage.due():
                    yield stage.progress(schedule.step, **losses)
                if should_stop():
                    yield Result(x)
                    return
            trust = weight * (sigma / self.parameters.sigma_end) ** EARLY_TRUST
            updated = physics.prox(denoiser.average(), y, trust * variance / sigma**2)
            change = float((updated - x).norm() / x.norm().clamp_min(1e-30))
            x = updated
            if stage.due() or sigma == self.parameters.sigma_end:
                misfit = float(((physics.A(x) - y) ** 2).mean())
                losses = {"residual": misfit / variance, "change": change}
                yield stage.progress(schedule.step, **losses)
            if stage.seconds - last_preview >= PREVIEW_INTERVAL:
                last_preview = stage.seconds
                yield Preview("image", x.numpy(force=True).copy(), stage="reconstruct")
        yield Result(x)


class _Schedule:
    """Geometric noise levels, thinned out when the time budget would not last."""

    def __init__(self, parameters: HalfQuadraticParameters, time_budget_s: float | None) -> None:
        self._parameters, self._budget = parameters, time_budget_s
        self.step = 0

    def levels(self, stage: Stage) -> Iterator[float]:
        """Noise levels; `step` is the place on the full schedule, 1 to ``steps``."""
        first, last = self._parameters.sigma_start, self._parameters.sigma_end
        total = self._parameters.steps
        place, done = 0.0, 0
        while True:
            self.step = round(place) + 1
            at_end = place >= total - 1
            yield last if at_end else first * (last / first) ** (place / (total - 1))
            done += 1
            if at_end:
                return
            stride = 1.0
            if self._budget is not None:
                affordable = (self._budget - stage.seconds) / (stage.seconds / done)
                stride = max(1.0, (total - 1 - place) / max(affordable, 1.0))
            place = min(place + stride, total - 1)


class PatchAverage:
    """Average of the denoised patches of an image, on grids with random offsets.

    Parameters
    ----------
    prior : PatchPrior
        With ``denoise_patches``.
    stride : sequence of int
        Step of the grid, at most the patch edge; every sample is covered.
    periodic : bool
        Let patches continue at the opposite border; otherwise the last patch of an axis lies at
        the border.
    box : tuple of float or None
        Values are clipped to this range before they are denoised.
    seed : int
        Seed of the offsets.
    cutout : Cutout, optional
        Where the image lies in a whole, whose grids are used.
    """

    def __init__(
        self,
        prior: PatchPrior,
        stride: Sequence[int],
        periodic: bool,
        box: tuple[float, float] | None,
        seed: int,
        cutout: Cutout | None = None,
    ) -> None:
        self._prior, self._periodic, self._box = prior, periodic, box
        self._cutout = cutout
        self._stride = tuple(min(s, p) for s, p in zip(stride, prior.patch, strict=True))
        self._generator = torch.Generator().manual_seed(seed)
        self._total, self._weight = torch.empty(0), torch.empty(0)

    def slabs(self, x: Tensor, sigma: float) -> Iterator[None]:
        """Denoise the patches of ``x`` (B, C, *space), slab by slab; then call `average`."""
        planes = self._prior.as_planes(x)
        if self._box is not None:
            planes = planes.clamp(*self._box)
        places = self._places(tuple(planes.shape[2:]))
        self._shape = x.shape
        self._total = torch.zeros_like(planes)
        self._weight = planes.new_ones(())
        for axis, place in enumerate(places):
            window = self._window(place, axis, planes)
            covers = torch.bincount(window, minlength=planes.shape[axis + 2]).to(planes)
            self._weight = self._weight[..., None] * covers
        column = math.prod(len(p) for p in places[1:]) * planes.shape[0]
        for first in places[0].split(max(1, SLAB_PATCHES // column)):
            self._denoise_slab(planes, (first, *places[1:]), sigma)
            yield

    def average(self) -> Tensor:
        """The average of the patches denoised by `slabs`, (B, C, *space)."""
        return (self._total / self._weight).view(self._shape)

    def _places(self, space: tuple[int, ...]) -> list[Tensor]:
        """First sample of the patches per axis."""
        places = []
        cutout = self._cutout or Cutout((0,) * len(space), space)
        for n, p, s, begin, whole in zip(
            space, self._prior.patch, self._stride, cutout.start, cutout.whole, strict=True
        ):
            if n < p:
                raise InvalidInput(
                    f"the image of {space} px is smaller than the patch of {self._prior.patch} px; "
                    "choose a smaller patch"
                )
            offset = int(torch.randint(s, (), generator=self._generator))
            if self._periodic:
                places.append(torch.arange(offset, offset + n, s))
            else:
                inner = torch.arange(min(offset, whole - p), whole - p + 1, s) - begin
                inner = inner[(inner >= 0) & (inner <= n - p)]
                places.append(torch.cat([torch.tensor([0, n - p]), inner]).unique())
        return places

    def _window(self, place: Tensor, axis: int, planes: Tensor) -> Tensor:
        """Samples along one axis that the patches at ``place`` meet, patch after patch."""
        inner = torch.arange(self._prior.patch[axis])
        return ((place[:, None] + inner) % planes.shape[axis + 2]).flatten().to(planes.device)

    def _denoise_slab(self, planes: Tensor, places: Sequence[Tensor], sigma: float) -> None:
        """Add the denoised patches at the product of ``places`` to the sum."""
        windows = [self._window(place, axis, planes) for axis, place in enumerate(places)]
        # Side by side without overlap, the windows are an image with one patch per tile.
        tiled = planes
        for axis, window in enumerate(windows, 2):
            tiled = tiled.index_select(axis, window)
        grid = PatchGrid(tiled.shape[2:], self._prior.patch, self._prior.patch)
        patches = self._prior.denoise_patches(grid.extract(tiled), sigma)  # type: ignore[attr-defined]
        result = grid.adjoint(patches)
        for axis in range(planes.ndim - 1, 2, -1):
            shape = list(result.shape)
            shape[axis] = planes.shape[axis]
            result = result.new_zeros(shape).index_add_(axis, windows[axis - 2], result)
        self._total.index_add_(2, windows[0], result)
