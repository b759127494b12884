"""Where an image lies in the world: the value that every result inherits from its source.

Like napari's layers, sample ``i`` along an axis lies at world coordinate
``translate + scale * i`` (before rotation, shear and the affine matrix).
"""

from __future__ import annotations

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
        shift = -np.array([s * o for s, o in zip(scale, offset, strict=True)])
        linear = np.eye(len(scale)) if self.rotate is None else np.asarray(self.rotate)
        if self.shear is not None:
            upper = np.eye(len(scale))
            upper[np.triu_indices(len(scale), 1)] = np.ravel(self.shear)[
                : len(scale) * (len(scale) - 1) // 2
            ]
            linear = linear @ upper
        translate = tuple(np.asarray(self.translate) + linear @ shift)
        return replace(self, scale=scale, translate=tuple(float(t) for t in translate))
