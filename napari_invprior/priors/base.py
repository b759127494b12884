"""What a prior must offer, and what all patch priors share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Job, Preview, ShouldStop, never
from napari_invprior.numerics.patches import (
    PatchGrid,
    edges,
    flat_index,
    gather_patches,
    positions_inside,
    random_offset,
)
from napari_invprior.parameters import Parameters as Declaration

PREVIEW_PATCHES = 64
"""Generated patches that the window shows beside the real ones."""


@dataclass(frozen=True)
class Reference:
    """One example image, normalised to about [0, 1].

    Attributes
    ----------
    image : Tensor
        (C, *space), finite where ``mask`` is true.
    mask : Tensor or None
        Boolean, (*space); only patches wholly inside are used. All of the image when None.
    """

    image: Tensor
    mask: Tensor | None = None


class Prior(ABC):
    """A function of images that is small for plausible ones.

    Parameters
    ----------
    parameters : Parameters
        An instance of ``cls.Parameters``.
    ndim, channels : int
        Space dimensions and channels of the images.
    device : str
        Where the parameters of the prior live.
    """

    Parameters: ClassVar[type[Declaration]]
    kind: ClassVar[str]
    name: ClassVar[str]

    def __init__(
        self, parameters: Declaration, *, ndim: int, channels: int = 1, device: str = "cpu"
    ) -> None:
        self.parameters, self.ndim, self.channels = parameters, ndim, channels
        self.device = torch.device(device)

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether the prior can be used."""

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Smallest and largest value that the prior learnt from, where it remembers them."""
        return None

    @abstractmethod
    def fit(
        self, references: Sequence[Reference], *, seed: int = 0, should_stop: ShouldStop = never
    ) -> Job:
        """Learn from references; a prior that is fitted already continues from where it is.

        The state changes only when something better is known: closing the job keeps the best
        state so far. The `Result` is the prior itself.
        """

    @abstractmethod
    def g(self, x: Tensor) -> Tensor:
        """The potential of each image of the batch: (B,)."""

    @abstractmethod
    def grad(self, x: Tensor) -> Tensor:
        """Gradient of ``g`` summed over the batch, shaped like ``x``."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All numbers that `load_state` needs (CPU tensors)."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take a state over; refuses wrong shapes, wrong types and NaN by name."""


class PatchPrior(Prior):
    """A prior that is the mean of a potential over all patches of the image.

    ``g(x) = 1/N sum_i potential(P_i x)``; a patch is a column of a (d, N) matrix in C order over
    (channel, patch axes). With ``parameters.channels == "separate"`` the channels are images of
    their own, with ``"joint"`` one patch holds all of them.
    """

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

    @abstractmethod
    def potential(self, patches: Tensor) -> Tensor:
        """``-log p`` of each column of (d, N), up to a constant: (N,)."""

    @abstractmethod
    def potential_and_grad(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """`potential` (N,) and its gradient (d, N), in one pass."""

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

    def g(self, x: Tensor) -> Tensor:
        planes = self.as_planes(x)
        grid = self.patch_grid(planes.shape[2:])
        return self.potential(grid.extract(planes)).view(x.shape[0], -1).mean(1)

    def grad(self, x: Tensor) -> Tensor:
        return self._value_and_grad(x, self.patch_grid(x.shape[2:]), 1.0)[1]

    def subset_value_and_grad(
        self,
        x: Tensor,
        generator: torch.Generator,
        stride: int | Sequence[int] | None = None,
        grid: PatchGrid | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Unbiased estimates of `g` and `grad` from a randomly shifted grid of patches.

        Parameters
        ----------
        stride : int or sequence of int, optional
            Step of the grid, px; the patch edge by default (each sample is met once).
        grid : PatchGrid, optional
            A grid to use instead of a random one (its patches count as drawn uniformly).
        """
        if grid is None:
            space = tuple(x.shape[2:])
            steps = self.patch if stride is None else edges(stride, self.ndim, "stride")
            steps = tuple(
                min(s, n - p + 1) for s, n, p in zip(steps, space, self.patch, strict=True)
            )
            grid = PatchGrid(
                space, self.patch, steps, random_offset(space, self.patch, steps, generator)
            )
        everywhere = math.prod(
            n - p + 1 for n, p in zip(grid.space, self.patch, strict=True)
        )
        return self._value_and_grad(x, grid, grid.count * math.prod(grid.stride) / everywhere)

    def drawn_value_and_grad(
        self, x: Tensor, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Unbiased estimates of `g` and `grad` from ``count`` patches per plane drawn uniformly.

        Slower than `subset_value_and_grad` (a gather instead of a strided copy); kept because the
        papers draw patches this way.
        """
        planes = self.as_planes(x)
        grid = self.patch_grid(planes.shape[2:])
        drawn = torch.randint(grid.count, (count,), generator=generator).to(x.device)
        index = flat_index(grid, self.joint_channels, drawn)
        flat = planes.reshape(planes.shape[0], -1)
        patches = flat[:, index].transpose(0, 1).reshape(self.dim, -1)
        values, gradient = self.potential_and_grad(patches)
        total = torch.zeros_like(flat)
        scattered = gradient.view(self.dim, planes.shape[0], count).transpose(0, 1)
        total.index_add_(1, index.flatten(), scattered.reshape(planes.shape[0], -1))
        per_image = values.numel() // x.shape[0]
        return values.view(x.shape[0], -1).mean(1), total.view_as(x) / per_image

    def _value_and_grad(self, x: Tensor, grid: PatchGrid, scale: float) -> tuple[Tensor, Tensor]:
        planes = self.as_planes(x)
        values, gradient = self.potential_and_grad(grid.extract(planes, grid.buffer(planes)))
        per_image = values.numel() // x.shape[0]
        value = scale * values.view(x.shape[0], -1).mean(1)
        return value, grid.adjoint(gradient).mul_(scale / per_image).view_as(x)


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
