"""Samples of any observation that must not count (NaN, infinite or saturated)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from napari_invprior.geometry import Geometry
from napari_invprior.physics.base import Physics


def complete_operator(physics: Physics) -> Physics:
    """The operator of the complete data, whether samples are missing or not."""
    return physics.physics if isinstance(physics, Masked) else physics


class Masked(Physics):
    """``y = m (A x)``: another operator whose data are ignored where the mask is zero.

    Parameters
    ----------
    physics : Physics
        The operator of the complete data.
    mask : Tensor
        Data-shaped (space axes only), true where a sample counts.
    """

    mask: Tensor

    def __init__(self, physics: Physics, mask: Tensor) -> None:
        super().__init__(physics.parameters, physics.ndim)
        self.physics, self.mask = physics, mask
        self.start_title = physics.start_title
        self.same_units, self.start_name = physics.same_units, physics.start_name
        self.prox_tolerance = physics.prox_tolerance

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        y = self.physics.A(x)
        return y * self.mask.to(y)

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return self.physics.A_adjoint(y * self.mask.to(y))

    def out_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.physics.out_shape(shape)

    def in_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.physics.in_shape(shape)

    def preconditioner(
        self, shape: Sequence[int], mu: float
    ) -> Callable[[Tensor], Tensor] | None:
        """That of the complete data: few samples are missing."""
        return self.physics.preconditioner(shape, mu)

    def grid(self, geometry: Geometry) -> Geometry:
        return self.physics.grid(geometry)

    def data_grid(self, geometry: Geometry) -> Geometry:
        return self.physics.data_grid(geometry)

    def divisible(self) -> tuple[bool, ...]:
        return self.physics.divisible()

    def restricted(self, window: tuple[slice, ...]) -> tuple[Physics, tuple[int, ...]]:
        part, start = self.physics.restricted(window)
        return Masked(part, self.mask[window]), start

    def reach(self) -> tuple[int, ...]:
        return self.physics.reach()

    def start(self, y: Tensor) -> Tensor:
        return self.physics.start(y)
