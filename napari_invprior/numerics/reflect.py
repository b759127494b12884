"""Mirror padding (edges not repeated, any margin) and its exact adjoint; periodic padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Margins = Sequence[tuple[int, int]]


def mirrored_index(size: int, margin: tuple[int, int]) -> Tensor:
    """Samples met by a line of ``size`` samples continued by its mirror image at both ends.

    Examples
    --------
    >>> mirrored_index(3, (2, 2)).tolist()
    [2, 1, 0, 1, 2, 1, 0]
    """
    period = max(2 * (size - 1), 1)
    index = torch.arange(-margin[0], size + margin[1]) % period
    return torch.where(index >= size, period - index, index)


def pad_reflect(x: Tensor, margins: Margins) -> Tensor:
    """Continue the last ``len(margins)`` axes by their mirror images."""
    for axis, margin in enumerate(margins, x.ndim - len(margins)):
        if any(margin):
            x = x.index_select(axis, mirrored_index(x.shape[axis], margin).to(x.device))
    return x


def pad_wrapped(x: Tensor, margins: Margins) -> Tensor:
    """Continue the last ``len(margins)`` axes by their opposite ends.

    Examples
    --------
    >>> pad_wrapped(torch.tensor([1, 2, 3]), [(1, 4)]).tolist()
    [3, 1, 2, 3, 1, 2, 3, 1]
    """
    for axis, (before, behind) in enumerate(margins, x.ndim - len(margins)):
        n = x.shape[axis]
        x = x.index_select(axis, (torch.arange(-before, n + behind) % n).to(x.device))
    return x


def pad_reflect_adjoint(x: Tensor, margins: Margins) -> Tensor:
    """Adjoint of `pad_reflect`: the margins are folded back and added."""
    for axis, margin in enumerate(margins, x.ndim - len(margins)):
        if any(margin):
            shape = list(x.shape)
            shape[axis] -= sum(margin)
            index = mirrored_index(shape[axis], margin).to(x.device)
            x = x.new_zeros(shape).index_add_(axis, index, x)
    return x
