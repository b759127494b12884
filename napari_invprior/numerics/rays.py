"""The lines along which a scanner measures: parallel beams, and fans onto a flat detector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Lines = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Column and row of the unit normals, and offsets from the rotation axis: (angles, bins) each."""


@dataclass(frozen=True)
class Scan:
    """Where the rays of a scan run, in image pixels about the rotation axis.

    At angle ``t`` the detector's axis points along ``(column, row) = (cos t, -sin t)`` and the
    rays along ``(sin t, cos t)``, as in scikit-image; angles are in radians.

    Attributes
    ----------
    angles : tuple of float
        One per row of the sinogram.
    bins : int
        Detector bins.
    spacing : float
        Distance of the bins on the detector, px.
    centre : float
        Where the axis projects: so many bins from the detector's middle.
    source, detector : float or None
        Distance from the source to the axis and to the detector, px; None for parallel rays.

    Examples
    --------
    >>> across, down, offset = Scan((0.0,), bins=3, spacing=1.0).lines()
    >>> offset.tolist(), across.tolist()
    ([[-1.0, 0.0, 1.0]], [[1.0, 1.0, 1.0]])
    """

    angles: tuple[float, ...]
    bins: int
    spacing: float = 1.0
    centre: float = 0.0
    source: float | None = None
    detector: float | None = None

    @property
    def is_fan(self) -> bool:
        """Whether the rays leave one point."""
        return self.source is not None

    @property
    def axis_spacing(self) -> float:
        """Distance of the bins, seen at the rotation axis."""
        if self.source is None or self.detector is None:
            return self.spacing
        return self.spacing * self.source / self.detector

    def coordinates(self) -> np.ndarray:
        """Position of each bin, projected to the rotation axis, px."""
        return (np.arange(self.bins) - (self.bins - 1) / 2 - self.centre) * self.axis_spacing

    def lines(self) -> Lines:
        """Unit normals and signed distances from the axis of every ray."""
        angles = np.asarray(self.angles, float)[:, None]
        along, across = np.cos(angles), -np.sin(angles)
        u = self.coordinates()[None]
        if self.source is None:
            ones = np.ones_like(u)
            return along * ones, across * ones, u * np.ones_like(angles)
        # From the source at -R d through u n: the direction is R d + u n, its normal R n - u d.
        length = np.hypot(self.source, u)
        normal = self.source * along - u * -across, self.source * across - u * along
        return normal[0] / length, normal[1] / length, self.source * u / length + 0 * angles

    def fan_angle(self) -> float:
        """Half of the angle that the detector spans, seen from the source."""
        if self.source is None:
            return 0.0
        return math.atan(float(np.abs(self.coordinates()).max()) / self.source)
