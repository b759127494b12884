"""Gaussian pyramids: an image at several scales, and the adjoint of their making."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from napari_invprior.cutout import Cutout
from napari_invprior.numerics.separable import SeparableOperator, gaussian_kernel, sampling_matrix

TAPS, SIGMA = 4, 1.0
"""Kernel between two scales; only whole windows count, so each scale loses its rim."""


def coarser_shape(space: Sequence[int]) -> tuple[int, ...]:
    """Shape of the next coarser scale; 0 or less where the image is too small for one."""
    return tuple((n - TAPS) // 2 + 1 for n in space)


class Pyramid:
    """An image of one shape at ``scales`` scales, each half as fine as the one before.

    Parameters
    ----------
    space : sequence of int
        Shape of the finest scale (2 or 3 axes).
    scales : int
        Scales wanted, at least 1.
    like : Tensor
        Gives type and device.

    Examples
    --------
    >>> import torch
    >>> pyramid = Pyramid((12, 9), 2, torch.ones(1))
    >>> [tuple(level.shape) for level in pyramid.levels(torch.ones(1, 1, 12, 9))]
    [(1, 1, 12, 9), (1, 1, 5, 3)]
    """

    def __init__(self, space: Sequence[int], scales: int, like: Tensor) -> None:
        kernel = gaussian_kernel(TAPS, SIGMA).to(like)
        self._steps: list[SeparableOperator] = []
        for _ in range(scales - 1):
            self._steps.append(
                SeparableOperator(
                    [sampling_matrix(n, kernel, 2, 0, "valid").to(like) for n in space]
                )
            )
            space = coarser_shape(space)

    def levels(self, x: Tensor) -> list[Tensor]:
        """``x`` (B, C, *space) at every scale, the finest first."""
        found = [x]
        for step in self._steps:
            found.append(step.forward(found[-1]))
        return found

    def adjoint(self, levels: Sequence[Tensor]) -> Tensor:
        """Adjoint of `levels`: one tensor per scale to one of the finest shape."""
        total = levels[-1]
        for step, finer in zip(reversed(self._steps), reversed(levels[:-1]), strict=True):
            total = finer + step.adjoint(total)
        return total


def coarser_cutout(cutout: Cutout) -> Cutout:
    """The place of the next coarser scale; the image must begin at an even sample of the whole."""
    return Cutout(tuple(a // 2 for a in cutout.start), coarser_shape(cutout.whole))


def valid_at_scale(valid: Tensor, scale: int) -> Tensor:
    """Samples of a coarser scale that come from valid samples alone, boolean.

    Examples
    --------
    >>> import torch
    >>> valid_at_scale(torch.tensor([[True] * 6] * 6), 1).shape
    torch.Size([2, 2])
    """
    for _ in range(scale):
        for axis in range(valid.ndim):
            valid = valid.unfold(axis, TAPS, 2).all(-1)
    return valid


def scales_that_fit(space: Sequence[int], patch: Sequence[int], scales: int) -> int:
    """How many scales, at most ``scales``, still hold a whole patch."""
    fitting = 0
    while fitting < scales and all(n >= p for n, p in zip(space, patch, strict=True)):
        fitting += 1
        space = coarser_shape(space)
    return fitting
