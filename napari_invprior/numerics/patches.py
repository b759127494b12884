"""Patch extraction and its exact adjoint, in 2D and 3D, into reused buffers.

Patches are the columns of a ``(d, N)`` matrix: row order is C order over (channel, patch axes),
column order is C order over (batch, grid axes). In this layout one row is one shifted copy of the
image, so that both directions are ``d`` strided block copies, several times faster than
``unfold``/``fold``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from napari_invprior.cutout import Cutout
from napari_invprior.errors import InvalidInput
from napari_invprior.parameters import per_axis


def edges(patch_size: int | Sequence[int], ndim: int, name: str = "patch_size") -> tuple[int, ...]:
    """Edge (or stride) per axis from one number or one per axis; each at least 1 px."""
    sizes = per_axis(patch_size, ndim, name)
    if min(sizes) < 1:
        raise InvalidInput(f"{name} = {patch_size!r}: give at least 1 px on each axis")
    return sizes


class PatchGrid:
    """All patches of one edge length on a regular grid: extraction and adjoint.

    Parameters
    ----------
    space : sequence of int
        Image shape without batch and channel axes (2 or 3 axes).
    patch_size : int or sequence of int
        Edge per axis, px.
    stride : int or sequence of int
        Step between neighbouring patches, px.
    offset : sequence of int, optional
        Position of the first patch per axis; 0 by default. See `random_offset`.

    Attributes
    ----------
    counts : tuple of int
        Patches per axis.

    Examples
    --------
    >>> grid = PatchGrid((5, 6), 2)
    >>> x = torch.arange(30.0).reshape(1, 1, 5, 6)
    >>> patches = grid.extract(x)
    >>> patches.shape
    torch.Size([4, 20])
    >>> patches[:, 0].tolist()
    [0.0, 1.0, 6.0, 7.0]
    >>> bool((grid.adjoint(patches) == x * grid.multiplicity()).all())
    True
    """

    def __init__(
        self,
        space: Sequence[int],
        patch_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        offset: Sequence[int] | None = None,
    ) -> None:
        self.space = tuple(space)
        self.patch = edges(patch_size, len(self.space))
        self.stride = edges(stride, len(self.space), "stride")
        self.offset = tuple(offset) if offset is not None else (0,) * len(self.space)
        room = [n - p - o for n, p, o in zip(self.space, self.patch, self.offset, strict=True)]
        if min(room) < 0 or min(self.offset) < 0:
            raise InvalidInput(
                f"patch_size = {self.patch} at offset {self.offset} does not fit in an image of "
                f"{self.space} px; the largest patch that fits is {self.space}"
            )
        self.counts = tuple(r // s + 1 for r, s in zip(room, self.stride, strict=True))
        self._buffer: Tensor | None = None

    @property
    def count(self) -> int:
        """Patches per image."""
        return math.prod(self.counts)

    def _window(self, axis: int, inner: int) -> slice:
        """The samples of an axis that position ``inner`` of the patches meets."""
        start, stride = self.offset[axis] + inner, self.stride[axis]
        return slice(start, start + (self.counts[axis] - 1) * stride + 1, stride)

    def _windows(self) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Every position on the patch's leading axes, with the samples it meets."""
        for inner in itertools.product(*map(range, self.patch[:-1])):
            yield inner, tuple(self._window(axis, i) for axis, i in enumerate(inner))

    def extract(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Patches of ``x`` (B, C, *space) as the columns of a (C * prod(patch), B * count) matrix.

        Parameters
        ----------
        x : Tensor
            Image batch; any strides.
        out : Tensor, optional
            Contiguous buffer of the right shape to write into.
        """
        batch, channels = self._check(x)
        shape = (channels * math.prod(self.patch), batch * self.count)
        if out is None:
            out = x.new_empty(shape)
        # NumPy's block copies are faster than torch's (its additions are not: see `adjoint`).
        plain = all(_is_plain(t) for t in (x, out))
        view: Any = out.view(channels, *self.patch, batch, *self.counts)
        source: Any = x.transpose(0, 1)
        if plain:
            view, source = view.numpy(), source.numpy()
        for last in range(self.patch[-1]):
            lines = source[..., self._window(-1, last)]
            if self.stride[-1] == 1:  # shifted once, so that whole planes can be copied below
                lines = lines.copy() if plain else lines.clone()
            for inner, window in self._windows():
                view[(slice(None), *inner, last)] = lines[(slice(None), slice(None), *window)]
        return out

    def buffer(self, x: Tensor) -> Tensor:
        """A matrix of the right shape for `extract`, kept and given again on the next call."""
        batch, channels = self._check(x)
        shape = (channels * math.prod(self.patch), batch * self.count)
        held = self._buffer
        if held is None or held.shape != shape or held.dtype != x.dtype or held.device != x.device:
            self._buffer = held = x.new_empty(shape)
        return held

    def adjoint(self, patches: Tensor, out: Tensor | None = None) -> Tensor:
        """Overlap-add of (d, B * count) patches into an image (B, C, *space).

        ``<extract(x), p> = <x, adjoint(p)>`` exactly up to rounding.
        """
        channels, rest = divmod(patches.shape[0], math.prod(self.patch))
        batch, left = divmod(patches.shape[1], self.count)
        if rest or left or not channels or not batch:
            raise InvalidInput(
                f"patch matrix of shape {tuple(patches.shape)} does not belong to a grid with "
                f"{math.prod(self.patch)} rows per channel and {self.count} patches per image"
            )
        if out is None:
            out = patches.new_zeros((batch, channels, *self.space))
        else:
            out.zero_()
        target: Any = out.transpose(0, 1)
        view: Any = patches.reshape(channels, *self.patch, batch, *self.counts)
        for last in range(self.patch[-1]):
            lines = target[..., self._window(-1, last)]
            for inner, window in self._windows():
                lines[(slice(None), slice(None), *window)] += view[(slice(None), *inner, last)]
        return out

    def multiplicity(self, **options: Any) -> Tensor:
        """How many patches cover each sample, (1, 1, *space); zero outside the grid."""
        total = torch.ones((1, 1, *self.space), **options)
        for axis, (n, p, s, o, size) in enumerate(
            zip(self.counts, self.patch, self.stride, self.offset, self.space, strict=True)
        ):
            line = torch.zeros(size, **options)
            for inner in range(p):
                line[o + inner : o + inner + (n - 1) * s + 1 : s] += 1
            total *= line.view([-1 if a == axis + 2 else 1 for a in range(total.ndim)])
        return total

    def _check(self, x: Tensor) -> tuple[int, int]:
        if x.ndim != len(self.space) + 2 or tuple(x.shape[2:]) != self.space:
            raise InvalidInput(
                f"image of shape {tuple(x.shape)}: expected (batch, channel, "
                f"{', '.join(map(str, self.space))})"
            )
        return x.shape[0], x.shape[1]


def _is_plain(tensor: Tensor) -> bool:
    """Whether NumPy can look at the tensor's memory and no gradient is recorded."""
    on_host = tensor.device.type == "cpu" and tensor.dtype != torch.bfloat16
    return on_host and not tensor.requires_grad


def random_offset(
    space: Sequence[int],
    patch_size: Sequence[int],
    stride: Sequence[int],
    generator: torch.Generator,
) -> tuple[int, ...]:
    """Offset for a `PatchGrid`, uniform over one stride cell, that fits the image.

    Every patch position is hit with the same probability ``1 / prod(stride)`` (as long as the
    image has at least ``stride`` positions per axis), so that ``prod(stride)`` times the sum over
    the grid is an unbiased estimate of the sum over all patches.
    """
    limits = [min(s, n - p + 1) for n, p, s in zip(space, patch_size, stride, strict=True)]
    return tuple(
        int(torch.randint(limit, (), generator=generator, device=generator.device))
        for limit in limits
    )


def count_in_whole(grid: PatchGrid, cutout: Cutout | None) -> int:
    """Patches of the grid, or of that of the whole which it is a part of.

    Examples
    --------
    >>> count_in_whole(PatchGrid((6, 6), 2, 3, (1, 0)), Cutout((4, 0), (20, 6)))
    12
    """
    if cutout is None:
        return grid.count
    first = [
        (o + a) % s for o, a, s in zip(grid.offset, cutout.start, grid.stride, strict=True)
    ]
    return PatchGrid(cutout.whole, grid.patch, grid.stride, first).count


class _Extract(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: PatchGrid) -> Tensor:
        ctx.grid = grid
        return grid.extract(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Adjoint.apply(gradient.contiguous(), ctx.grid), None


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, patches: Tensor, grid: PatchGrid) -> Tensor:
        ctx.grid = grid
        return grid.adjoint(patches)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Extract.apply(gradient, ctx.grid), None


def extract_patches(x: Tensor, grid: PatchGrid) -> Tensor:
    """Differentiable `PatchGrid.extract`; its backward pass is the exact adjoint."""
    return _Extract.apply(x, grid)  # type: ignore[no-any-return]


def flat_index(grid: PatchGrid, channels: int, positions: Tensor) -> Tensor:
    """Indices into ``x[b].flatten()`` of the patches at ``positions`` (0..count-1): (d, n)."""
    device = positions.device
    strides = [math.prod(grid.space[a + 1 :]) for a in range(len(grid.space))]
    inner = torch.zeros((), dtype=torch.long, device=device)
    for p, s in zip(grid.patch, strides, strict=True):
        inner = inner.unsqueeze(-1) + torch.arange(p, device=device) * s
    planes = torch.arange(channels, device=device) * math.prod(grid.space)
    rows = (planes[:, None] + inner.flatten()).flatten()
    places = torch.unravel_index(positions, grid.counts)
    start = sum(
        (place * step + o) * s
        for place, step, o, s in zip(places, grid.stride, grid.offset, strides, strict=True)
    )
    return rows[:, None] + start


def gather_patches(x: Tensor, grid: PatchGrid, positions: Tensor) -> Tensor:
    """The patches of one image (C, *space) at chosen grid positions: (d, n)."""
    return x.reshape(-1)[flat_index(grid, x.shape[0], positions)]


class DrawnPatches:
    """Patches at chosen grid positions, the same ones of every image: extraction and adjoint.

    Slower than a `PatchGrid` (a gather instead of strided copies).

    Parameters
    ----------
    grid : PatchGrid
        All positions.
    channels : int
        Channels of the images.
    positions : Tensor
        Flat positions on the grid; one may occur several times.

    Examples
    --------
    >>> drawn = DrawnPatches(PatchGrid((3, 4), 2), 1, torch.tensor([0, 0]))
    >>> x = torch.ones(1, 1, 3, 4)
    >>> drawn.extract(x).shape, float(drawn.adjoint(drawn.extract(x)).sum())
    (torch.Size([4, 2]), 8.0)
    """

    def __init__(self, grid: PatchGrid, channels: int, positions: Tensor) -> None:
        self._shape = channels, *grid.space
        self._index = flat_index(grid, channels, positions)

    def extract(self, x: Tensor) -> Tensor:
        """Patches of ``x`` (B, C, *space) as columns (d, B * n)."""
        flat = x.reshape(x.shape[0], -1)
        return flat[:, self._index].transpose(0, 1).reshape(len(self._index), -1)

    def adjoint(self, patches: Tensor) -> Tensor:
        """Overlap-add of (d, B * n) patches into an image (B, C, *space)."""
        rows, count = self._index.shape
        columns = patches.view(rows, -1, count).transpose(0, 1)
        total = patches.new_zeros((len(columns), math.prod(self._shape)))
        total.index_add_(1, self._index.flatten(), columns.reshape(len(columns), -1))
        return total.view(-1, *self._shape)


def positions_inside(mask: Tensor, patch: Sequence[int]) -> Tensor:
    """Flat grid positions (stride 1) of the patches that lie wholly inside a boolean mask.

    Examples
    --------
    >>> positions_inside(torch.tensor([[True, True, False], [True, True, True]]), (2, 2)).tolist()
    [0]
    """
    inside = mask.to(torch.int32)
    for axis, p in enumerate(patch):
        if mask.shape[axis] < p:
            return torch.empty(0, dtype=torch.long)
        total = inside.cumsum(axis, dtype=torch.int32)
        start = torch.zeros_like(total.narrow(axis, 0, 1))
        total = torch.cat([start, total], axis)
        count = total.shape[axis] - p
        inside = total.narrow(axis, p, count) - total.narrow(axis, 0, count)
    return (inside == math.prod(patch)).flatten().nonzero().flatten()


def symmetries(patch: Sequence[int], channels: int = 1) -> Tensor:
    """Row permutations of the patch's symmetry group: (8 in 2D or 48 in 3D, d) for equal edges.

    Axes of unequal length are never exchanged (anisotropic patches keep their flips). Use as
    ``patches[symmetries((6, 6))[k]]``.
    """
    ndim = len(patch)
    index = torch.arange(channels * math.prod(patch)).view(channels, *patch)
    found = []
    for order in itertools.permutations(range(ndim)):
        if any(patch[a] != patch[b] for a, b in zip(order, range(ndim), strict=True)):
            continue
        turned = index.permute(0, *(a + 1 for a in order))
        for flips in itertools.product((False, True), repeat=ndim):
            axes = [a + 1 for a, flip in enumerate(flips) if flip]
            found.append(turned.flip(axes).flatten() if axes else turned.flatten())
    return torch.stack(found)
