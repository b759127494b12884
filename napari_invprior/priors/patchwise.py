"""What all patch priors share: geometry of patches, sums over them, patches of references."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from napari_invprior.cutout import Cutout
from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Job, Preview, Result, Stage
from napari_invprior.numerics.patches import (
    DrawnPatches,
    PatchGrid,
    edges,
    gather_patches,
    positions_inside,
    random_offset,
)
from napari_invprior.numerics.reflect import pad_reflect
from napari_invprior.priors.base import Map, Measurement, Prior, Reference

PREVIEW_PATCHES = 64
"""Generated patches that the window shows beside the real ones."""
MAP_BLOCK = 16_384
"""Patches of a map that are judged in one go; bounds the time between two events."""


class PatchPrior(Prior):
    """A prior that looks at an image patch by patch.

    A patch is a column of a (d, N) matrix in C order over (channel, patch axes). With
    ``parameters.channels == "separate"`` the channels are images of their own, with ``"joint"``
    one patch holds all of them.
    """

    descends: ClassVar[bool] = False
    """Whether gradient descent is its usual solver in 3D too, although it can denoise patches."""

    def __init__(
        self, parameters: Any, *, ndim: int, channels: int = 1, device: str = "cpu"
    ) -> None:
        super().__init__(parameters, ndim=ndim, channels=channels, device=device)
        size = parameters.patch_size
        self.patch = edges(self.usual_edge() if size is None else size, ndim)
        self.joint_channels = channels if parameters.channels == "joint" else 1

    def usual_edge(self) -> int:
        """Patch edge where none is given, px."""
        return 6 if self.ndim == 2 else 4

    @property
    def dim(self) -> int:
        """Numbers in one patch."""
        return self.joint_channels * math.prod(self.patch)

    def preview(self, generated: Tensor) -> Preview:
        """Generated patches (d, n) as pictures (n, C, *patch)."""
        pictures = generated.T.reshape(-1, self.joint_channels, *self.patch)
        return Preview("patches", pictures.numpy(force=True), "train")

    def as_planes(self, x: Tensor) -> Tensor:
        """The batch with channels moved into the batch when they are separate."""
        return x.reshape(-1, self.joint_channels, *x.shape[2:])

    def patch_grid(self, space: Sequence[int], stride: int | Sequence[int] = 1) -> PatchGrid:
        """Grid of this prior's patches on an image of space shape ``space``."""
        return PatchGrid(space, self.patch, stride)

    def shifted_grid(
        self,
        space: Sequence[int],
        generator: torch.Generator,
        stride: int | Sequence[int] | None = None,
        cutout: Cutout | None = None,
    ) -> PatchGrid:
        """A grid of every ``stride``-th patch (the patch edge by default) at a random offset.

        With a ``cutout`` it is the part of such a grid of the whole that lies in the image.
        """
        whole = space if cutout is None else cutout.whole
        steps = self.patch if stride is None else edges(stride, self.ndim, "stride")
        steps = tuple(min(s, n - p + 1) for s, n, p in zip(steps, whole, self.patch, strict=True))
        offset = random_offset(whole, self.patch, steps, generator)
        if cutout is not None:
            offset = cutout.aligned(offset, steps)
        return PatchGrid(space, self.patch, steps, offset)

    def drawn_patches(
        self, planes: Tensor, count: int, generator: torch.Generator
    ) -> DrawnPatches | PatchGrid:
        """``count`` patches of each plane, drawn uniformly; all, where it has no more."""
        grid = self.patch_grid(planes.shape[2:])
        if count >= grid.count:
            return grid
        drawn = torch.randint(grid.count, (count,), generator=generator).to(planes.device)
        return DrawnPatches(grid, planes.shape[1], drawn)

    @abstractmethod
    def subset_value_and_grad(
        self,
        x: Tensor,
        generator: torch.Generator,
        stride: int | Sequence[int] | None = None,
        grid: PatchGrid | None = None,
        cutout: Cutout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Estimates of `g` and `grad` from a randomly shifted grid of patches.

        Parameters
        ----------
        stride : int or sequence of int, optional
            Step of the grid, px; the patch edge by default (each sample is met once).
        grid : PatchGrid, optional
            A grid to use instead of a random one (its patches count as drawn uniformly).
        cutout : Cutout, optional
            Where ``x`` lies in a whole. The estimates are then its share of those of the whole.
        """

    @abstractmethod
    def drawn_value_and_grad(
        self, x: Tensor, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Estimates of `g` and `grad` from ``count`` patches per plane drawn uniformly.

        A plane with no more patches than that gives all of them.

        Slower than `subset_value_and_grad` (a gather instead of a strided copy); kept because the
        papers draw patches this way.
        """


FEWEST_PATCHES = 100
"""Fewer patches than this tell nothing about a texture."""


def masked_planes(
    references: Sequence[Reference], prior: PatchPrior
) -> list[tuple[Tensor, Tensor | None]]:
    """Planes (C, *space) of all references, each with the mask of its reference."""
    return [
        (plane, reference.mask)
        for reference in references
        for plane in prior.as_planes(reference.image[None])
    ]


def too_few(count: int, patch: Sequence[int], use: str = "learn from") -> InvalidInput:
    """The refusal of references that hold only so many patches."""
    return InvalidInput(
        f"the references hold {count} patches of {patch} px to {use}; at least {FEWEST_PATCHES} "
        "are needed: pick a larger region or a smaller patch"
    )


def refuse_constant(patches: Tensor) -> None:
    """Refuse reference patches that show nothing."""
    if float(patches.std()) < 1e-6:
        raise InvalidInput(
            f"the references are constant (value {float(patches.mean()):.4g}); pick a region that "
            "shows the material"
        )


class PatchPotential(PatchPrior):
    """A prior that is the mean of a potential over all patches: ``g(x) = mean_i potential(P_i x)``.

    Its estimates from some of the patches are unbiased.
    """

    is_density = True

    @abstractmethod
    def potential(self, patches: Tensor) -> Tensor:
        """``-log p`` of each column of (d, N), up to a constant: (N,)."""

    @abstractmethod
    def potential_and_grad(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """`potential` (N,) and its gradient (d, N), in one pass."""

    def g(self, x: Tensor) -> Tensor:
        planes = self.as_planes(x)
        grid = self.patch_grid(planes.shape[2:])
        return self.potential(grid.extract(planes)).view(x.shape[0], -1).mean(1)

    def grad(self, x: Tensor) -> Tensor:
        grid = self.patch_grid(x.shape[2:])
        return self._value_and_grad(x, grid, 1 / grid.count)[1]

    def maps(
        self, x: Tensor, measurement: Measurement | None = None, *, seed: int = 0
    ) -> Job:
        """``potential``: the mean potential of the patches that cover each sample.

        Large where the prior finds the image implausible. Every second patch of an axis counts.
        """
        stage = Stage("maps", x.shape[0])
        margins = [(p - 1, p - 1) for p in self.patch]
        found: list[Tensor] = []
        for image in x.split(1):
            planes = self.as_planes(pad_reflect(image, margins))
            grid = self.patch_grid(planes.shape[2:], [min(2, p) for p in self.patch])
            patches = grid.extract(planes)
            parts = []
            for part in patches.split(MAP_BLOCK, dim=1):
                parts.append(self.potential(part))
                if stage.due():
                    yield stage.progress(len(found))
            spread = torch.cat(parts).expand(math.prod(self.patch), -1).contiguous()
            weight = grid.multiplicity(dtype=x.dtype, device=x.device)
            mean = (grid.adjoint(spread) / weight).mean(0, keepdim=True)
            for axis, (low, high) in enumerate(margins, 2):
                mean = mean.narrow(axis, low, mean.shape[axis] - low - high)
            found.append(mean)
        yield Result([Map("potential", torch.cat(found))])

    def subset_value_and_grad(
        self,
        x: Tensor,
        generator: torch.Generator,
        stride: int | Sequence[int] | None = None,
        grid: PatchGrid | None = None,
        cutout: Cutout | None = None,
    ) -> tuple[Tensor, Tensor]:
        if grid is None:
            grid = self.shifted_grid(x.shape[2:], generator, stride, cutout)
        whole = grid.space if cutout is None else cutout.whole
        everywhere = math.prod(n - p + 1 for n, p in zip(whole, self.patch, strict=True))
        return self._value_and_grad(x, grid, math.prod(grid.stride) / everywhere)

    def drawn_value_and_grad(
        self, x: Tensor, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        planes = self.as_planes(x)
        drawn = self.drawn_patches(planes, count, generator)
        values, gradient = self.potential_and_grad(drawn.extract(planes))
        per_image = values.numel() // x.shape[0]
        total = drawn.adjoint(gradient).view_as(x)
        return values.view(x.shape[0], -1).mean(1), total / per_image

    def _value_and_grad(self, x: Tensor, grid: PatchGrid, each: float) -> tuple[Tensor, Tensor]:
        """Sum over the grid's patches, each of a plane with the weight ``each``."""
        planes = self.as_planes(x)
        values, gradient = self.potential_and_grad(grid.extract(planes, grid.buffer(planes)))
        each /= len(planes) // x.shape[0]
        value = each * values.view(x.shape[0], -1).sum(1)
        return value, grid.adjoint(gradient).mul_(each).view_as(x)


MAX_PATCHES = 1_000_000
"""More reference patches than this are thinned out at random; no prior gains from more."""


def usable_positions(reference: Reference, prior: PatchPrior) -> Tensor:
    """Grid positions of the reference's patches that lie inside its mask and hold no NaN."""
    inside = torch.isfinite(reference.image).all(0)
    if reference.mask is not None:
        inside &= reference.mask.to(inside.device)
    return positions_inside(inside, prior.patch)


def reference_patches(
    references: Sequence[Reference],
    prior: PatchPrior,
    *,
    limit: int = MAX_PATCHES,
    seed: int = 0,
) -> Tensor:
    """Patches of the references that lie wholly inside their masks and hold no NaN: (d, N).

    Parameters
    ----------
    limit : int
        Draw at most so many, uniformly.

    Raises
    ------
    InvalidInput
        If no patch is left; the message names the sizes of the references.
    """
    places = [usable_positions(reference, prior) for reference in references]
    total = sum(len(place) for place in places)
    if total == 0:
        sizes = [tuple(r.image.shape[1:]) for r in references]
        raise InvalidInput(
            f"no patch of {prior.patch} px fits in the picked regions of the references {sizes}; "
            "pick a larger region or choose a smaller patch"
        )
    generator = torch.Generator().manual_seed(seed)
    found = []
    for reference, place in zip(references, places, strict=True):
        if total > limit:
            share = torch.rand(len(place), generator=generator)
            place = place[share < limit / total]
        planes = prior.as_planes(reference.image[None])
        grid = prior.patch_grid(planes.shape[2:])
        if len(place) == grid.count:
            found.append(grid.extract(planes))
        else:
            found += [gather_patches(plane, grid, place) for plane in planes]
    return torch.cat(found, 1).to(prior.device)
