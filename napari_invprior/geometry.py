"""Where an image lies in the world: the value that every result inherits from its source.

Like napari's layers, sample ``i`` along an axis lies at world coordinate
``translate + scale * i`` (before rotation, shear and the affine matrix).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """Placement of an image with ``d`` space axes.

    Attributes
    ----------
    scale, translate : tuple of float
        Per axis, in ``units``.
    units, axis_labels : tuple of str or None
        As napari's layers hold them.
    rotate, shear, affine : array or None
        Passed through unchanged, except that ``translate`` moves along the rotated axes.
    """

    scale: tuple[float, ...]
    translate: tuple[float, ...]
    units: tuple[str, ...] | None = None
    axis_labels: tuple[str, ...] | None = None
    rotate: np.ndarray | None = None
    shear: np.ndarray | None = None
    affine: np.ndarray | None = None

    @classmethod
    def identity(cls, ndim: int) -> Geometry:
        """Unit spacing, origin at zero."""
        return cls((1.0,) * ndim, (0.0,) * ndim)

    def resampled(self, factor: tuple[int, ...], offset: tuple[float, ...]) -> Geometry:
        """Geometry of a grid that is finer by ``factor``.

        Parameters
        ----------
        factor : tuple of int
            Fine samples per coarse sample, per axis.
        offset : tuple of float
            Position of coarse sample 0 on the fine grid, in fine samples; ``(f - 1) / 2`` for
            a centred grid (the half-pixel shift).
        """
        scale = tuple(s / f for s, f in zip(self.scale, factor, strict=True))
        return self.moved(scale, [-s * o for s, o in zip(scale, offset, strict=True)])

    def sampled(self, factor: tuple[int, ...], offset: tuple[float, ...]) -> Geometry:
        """Geometry of a grid that is coarser by ``factor``; the inverse of `resampled`.

        Examples
        --------
        >>> fine = Geometry((1.0, 2.0), (5.0, 0.0))
        >>> fine.sampled((2, 4), (0.5, 1.5)).resampled((2, 4), (0.5, 1.5)) == fine
        True
        """
        scale = tuple(s * f for s, f in zip(self.scale, factor, strict=True))
        return self.moved(scale, [s * o for s, o in zip(self.scale, offset, strict=True)])

    def moved(self, scale: tuple[float, ...], shift: Sequence[float]) -> Geometry:
        """New spacing, and the origin moved along the rotated and sheared axes."""
        ndim = len(scale)
        linear = np.eye(ndim) if self.rotate is None else np.asarray(self.rotate, float)
        if self.shear is not None:
            linear = linear @ shear_matrix(self.shear, ndim)
        translate = np.asarray(self.translate, float) + linear @ np.asarray(shift)
        return replace(self, scale=scale, translate=tuple(float(t) for t in translate))


def shear_matrix(shear: np.ndarray, ndim: int) -> np.ndarray:
    """Unit upper triangular matrix from napari's shear vector (or the matrix itself)."""
    values = np.asarray(shear, float)
    if values.ndim == 2:
        return values
    matrix = np.eye(ndim)
    matrix[np.triu_indices(ndim, 1)] = values
    return matrix
