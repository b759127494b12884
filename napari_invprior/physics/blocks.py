"""The block grid: an image grid on which data sample j lies at the centre of its own block.

Operators may place sample j of the data elsewhere than at the centre of the image samples
``j * factor`` to ``(j + 1) * factor - 1``: a circular operator of the papers begins its kernel
there, a valid one has a rim. What learns how a poor image and a good one belong together needs
them in register.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.physics.base import Physics


def magnification(fine: Sequence[int], coarse: Sequence[int]) -> tuple[int, ...]:
    """Fine samples per coarse sample along each axis.

    Raises
    ------
    InvalidInput
        If a fine length is no multiple of the coarse one.

    Examples
    --------
    >>> magnification((12, 8), (6, 2))
    (2, 4)
    """
    if len(fine) != len(coarse) or any(f % c for f, c in zip(fine, coarse, strict=True)):
        raise InvalidInput(
            f"images of {tuple(fine)} and {tuple(coarse)} px do not belong together: each axis of "
            "the fine one must be a whole multiple of the coarse one; crop them"
        )
    return tuple(f // c for f, c in zip(fine, coarse, strict=True))


def block_factor(physics: Physics) -> tuple[int, ...]:
    """Image samples per data sample along each axis.

    Raises
    ------
    InvalidInput
        If the data are not a coarser (or equal) sampling of the image.
    """
    one = Geometry.identity(physics.ndim)
    scale = physics.grid(one).scale
    factor = tuple(round(1 / s) for s in scale)
    if any(abs(f * s - 1) > 1e-6 for f, s in zip(factor, scale, strict=True)):
        raise InvalidInput(
            f"the operator's image grid has {tuple(1 / s for s in scale)} samples per data sample; "
            "a whole number per axis is needed"
        )
    return factor


def to_blocks(x: Tensor, physics: Physics, data_space: Sequence[int]) -> Tensor:
    """The image (..., *space) on the block grid of data of space ``data_space``.

    Samples beyond the border repeat those at the border, or come from the opposite one where the
    operator is circular.
    """
    size = [f * n for f, n in zip(block_factor(physics), data_space, strict=True)]
    return _moved(x, physics, size, +1)


def from_blocks(blocks: Tensor, physics: Physics, data_space: Sequence[int]) -> Tensor:
    """The image (..., *space) on the operator's own grid; the inverse of `to_blocks`."""
    return _moved(blocks, physics, physics.in_shape(data_space), -1)


def block_shift(physics: Physics) -> tuple[int, ...]:
    """Samples of the block grid that lie before sample 0 of the operator's own grid."""
    factor = block_factor(physics)
    place = physics.grid(Geometry.identity(physics.ndim)).translate
    # data sample 0 lies at -t * f on the image grid, the centre of block 0 at (f - 1) / 2
    return tuple(
        -math.floor(-t * f - (f - 1) / 2 + 0.5) for f, t in zip(factor, place, strict=True)
    )


def _moved(x: Tensor, physics: Physics, shape: Sequence[int], sign: int) -> Tensor:
    """An image of space ``shape`` whose samples are those of ``x`` moved by the block shift."""
    circular = physics.boundary == "circular"
    for axis, (n, s) in enumerate(zip(shape, block_shift(physics), strict=True)):
        shift = -sign * s
        dim = x.ndim - physics.ndim + axis
        size = x.shape[dim]
        if shift or n != size:
            index = torch.arange(n) + shift
            index = index % size if circular else index.clamp(0, size - 1)
            x = x.index_select(dim, index.to(x.device))
    return x
