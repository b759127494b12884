"""How typical each neighbourhood of an image is for references: a kernel density of patches.

At every pixel stands the logarithm of the mean kernel between the patch around it and patches of
the references. It is near 0 where many references look just so, and falls where none does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Event, Result, ShouldStop, Stage, check_stop, never
from napari_invprior.networks.draws import draw_patches
from napari_invprior.numerics.patches import PatchGrid, edges
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.priors.base import Reference
from napari_invprior.transport.kernel_sums.kernel_sum import kernel_sum_with_error, median_scale

USUAL_EDGE = {2: 6, 3: 4}
FEWEST = 20
CHUNK_NUMBERS = 2**20
"""Numbers of the patches that are compared at a time."""
HELD_OUT = 2000

Edge = Annotated[int, Field(ge=2, le=32)]


class TypicalityParameters(Parameters):
    """Patches and kernel of the comparison."""

    patch_size: Edge | tuple[Edge, ...] | None = parameter(
        None, "Patch edge, one number or one per axis; empty is 6 in planes, 4 in volumes.",
        unit="px",
    )
    kernel: Literal["gauss", "laplace"] = parameter(
        "gauss", "How likeness falls with the distance of two patches.", advanced=True
    )
    scale: Annotated[float, Field(gt=0, le=1e6)] | None = parameter(
        None, "Root mean square difference at which patches are half alike, of the grey scale 0-1; "
        "empty is the median between patches of the references.",
    )
    reference_patches: int = parameter(
        2000, "Patches of the references, at most.", ge=FEWEST, le=100_000
    )
    slices: Annotated[int, Field(ge=1, le=100_000)] | None = parameter(
        None, "Lines that patches are compared on; empty compares all pairs where that is cheaper.",
        advanced=True,
    )


@dataclass(frozen=True)
class Typicality:
    """The map and what is known of it.

    Attributes
    ----------
    values : Tensor
        (*space), float32; NaN where the patch holds samples that are not finite.
    error : float
        Largest estimated relative error of the sums; 0 where all pairs were summed.
    scale : float
        Root mean square difference that counts as half alike.
    patches : int
        Reference patches that were compared with.
    usual : float
        Mean of the map for held-out patches of the references, NaN where there are none.
    """

    values: Tensor
    error: float
    scale: float
    patches: int
    usual: float


def typicality(
    image: Tensor,
    references: Sequence[Reference],
    parameters: TypicalityParameters,
    *,
    seed: int = 0,
    should_stop: ShouldStop = never,
) -> Iterator[Event]:
    """Compare the patch around each pixel with those of the references, a job.

    Parameters
    ----------
    image : Tensor
        (C, *space), on the scale of the references.

    Yields
    ------
    Event
        Progress, and the `Result`, a `Typicality`.

    Raises
    ------
    InvalidInput
        For references of other axes or with too few patches.
    """
    ndim = image.ndim - 1
    patch = edges(parameters.patch_size or USUAL_EDGE[ndim], ndim)
    _check(image, references, patch)
    generator = torch.Generator().manual_seed(seed)
    draws = draw_patches(
        [(r.image.float(), r.mask) for r in references], patch, generator,
        parameters.reference_patches,
    )
    if len(draws.train) < FEWEST:
        raise InvalidInput(
            f"{len(draws.train)} patches of {patch} px in the references; at least {FEWEST} are "
            "needed: pick a larger region or choose a smaller patch_size"
        )
    likeness = _Likeness(draws.train.T.contiguous(), parameters)
    usual = math.nan
    if len(draws.held_out):
        usual = float(likeness(draws.held_out[:HELD_OUT].T.contiguous()).mean())
    values = torch.empty(image.shape[1:])
    stage = Stage("typicality", len(values))
    for rows, columns in _bands(image.float(), patch):
        check_stop(should_stop)
        values[rows] = likeness(columns).reshape(values[rows].shape)
        if stage.due():
            yield stage.progress(rows.stop)
    yield stage.progress(len(values))
    dim = likeness.patches.shape[0]
    yield Result(Typicality(
        values, likeness.error, likeness.scale / dim**0.5, likeness.patches.shape[1], usual
    ))


class _Likeness:
    """The log density of patches; remembers the largest error."""

    def __init__(self, patches: Tensor, parameters: TypicalityParameters) -> None:
        self.patches, self.parameters, self.error = patches, parameters, 0.0
        self.scale = median_scale(patches, patches)
        if parameters.scale is not None:
            self.scale = parameters.scale * patches.shape[0] ** 0.5

    def __call__(self, columns: Tensor) -> Tensor:
        """Values (M,) for patches (d, M); NaN for those that are not finite."""
        known = columns.isfinite().all(0)
        values = columns.new_full((columns.shape[1],), math.nan)
        if not bool(known.any()):
            return values
        found = kernel_sum_with_error(
            self.patches, columns[:, known], self.patches.new_ones(self.patches.shape[1]),
            self.parameters.kernel, scale=self.scale, slices=self.parameters.slices,
        )
        mean = found.value / self.patches.shape[1]
        # sums by slices may be wrong by their error, and below zero
        floor = max(found.error * float(mean.abs().mean()), torch.finfo(mean.dtype).tiny)
        self.error = max(self.error, found.error)
        values[known] = mean.clamp_min(floor).log()
        return values


def _bands(image: Tensor, patch: Sequence[int]) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the image and the patches around their pixels, a band at a time."""
    before = [(p - 1) // 2 for p in patch]
    after = [p - 1 - b for p, b in zip(patch, before, strict=True)]
    sides = [s for pair in zip(before[::-1], after[::-1], strict=True) for s in pair]
    padded = F.pad(image[None], sides, mode="reflect")
    per_row = image.shape[0] * math.prod(patch) * math.prod(image.shape[2:])
    step = max(1, CHUNK_NUMBERS // per_row)
    for start in range(0, image.shape[1], step):
        rows = slice(start, min(start + step, image.shape[1]))
        band = padded[:, :, start : rows.stop + patch[0] - 1].contiguous()
        yield rows, PatchGrid(tuple(band.shape[2:]), patch).extract(band)


def _check(image: Tensor, references: Sequence[Reference], patch: Sequence[int]) -> None:
    """Refuse references of another kind, and images smaller than a patch."""
    for reference in references:
        if reference.image.ndim != image.ndim or reference.image.shape[0] != image.shape[0]:
            raise InvalidInput(
                f"the reference has shape {tuple(reference.image.shape)} (channels, space), the "
                f"image {tuple(image.shape)}: both need the same axes and channels"
            )
    if any(n < p for n, p in zip(image.shape[1:], patch, strict=True)):
        raise InvalidInput(
            f"the image of {tuple(image.shape[1:])} px is smaller than a patch of {tuple(patch)} "
            "px; choose a smaller patch_size"
        )
