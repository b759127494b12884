"""What a forward operator must offer. Shapes are batch first: (B, C, *space)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from napari_invprior.geometry import Geometry
from napari_invprior.jobs import Message
from napari_invprior.numerics.krylov import conjugate_gradient, operator_norm
from napari_invprior.parameters import Parameters as Declaration


@dataclass(frozen=True)
class Inspection:
    """What an operator finds odd about observed data.

    Attributes
    ----------
    messages : tuple of Message
        For the user.
    observed : Tensor or None
        Data-shaped (space axes only), false where a sample should not count; None for none.
    """

    messages: tuple[Message, ...] = ()
    observed: Tensor | None = None


class Physics(ABC):
    """A linear forward operator ``y = A x``.

    The operator is not tied to one image size: shapes follow from the argument. Subclasses give
    `A`, `A_adjoint`, `out_shape` and `in_shape`, and override what they can do exactly.

    Parameters
    ----------
    parameters : Parameters
        Validated declaration, an instance of ``cls.Parameters``.
    ndim : int
        Space dimensions, 2 or 3.
    **arrays : Tensor
        Arrays for the fields named in ``array_inputs`` (a mask, a PSF), without batch axes.
    """

    Parameters: ClassVar[type[Declaration]]
    array_inputs: ClassVar[tuple[str, ...]] = ()
    """Fields of the parameters that name an array; the engine loads them."""
    boundary: str = "valid"
    """How the image goes on where the operator looks beyond it: ``reflect`` or ``circular``;
    ``valid`` where it never does."""
    informative: bool = True
    """Whether the data say anything; a weight can then be chosen by them."""
    data_shaped: ClassVar[tuple[str, ...]] = ()
    """Those of the ``array_inputs`` that have a sample for every one of the data."""
    list_inputs: ClassVar[tuple[str, ...]] = ()
    """Fields that name a list of numbers; the engine loads them too."""
    same_units: bool = True
    """Whether data and image are intensities of one scale; line integrals are not."""
    start_name: str = "start"
    """What the first image is called beside other baselines."""
    prox_tolerance: float = 1e-5
    """Residual at which `prox` stops, as a share of the first, where no exact formula exists."""
    mask: Tensor | None = None
    """Data-shaped (space axes only), true where a sample was observed; None for all."""

    start_title: str = "Fast first image"
    """What `start` is, for people."""

    def __init__(self, parameters: Declaration, ndim: int, **arrays: Tensor) -> None:
        self.parameters = parameters
        self.ndim = ndim

    @abstractmethod
    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        """Noise-free data of the image ``x``."""

    @abstractmethod
    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        """``A^T y``: ``<A x, y> = <x, A_adjoint(y)>``."""

    @abstractmethod
    def out_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Space shape of the data for an image of space ``shape``; refuses what does not fit."""

    @abstractmethod
    def in_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Space shape of the image that belongs to data of space ``shape``."""

    def fitting_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Largest image shape, at most ``shape``, that `out_shape` accepts."""
        return tuple(shape)

    def bound_to(self, shape: Sequence[int]) -> Physics:
        """The operator of observed data of space ``shape``; refuses data that do not fit."""
        self.in_shape(shape)
        return self

    def inspect(self, y: Tensor) -> Inspection:
        """Check observed data (B, C, *space), in the user's own numbers, for known faults."""
        return Inspection()

    def A_dagger(self, y: Tensor) -> Tensor:  # noqa: N802
        """Minimum-norm least-squares image, by conjugate gradients unless overridden."""
        z = conjugate_gradient(lambda v: self.A(self.A_adjoint(v)), y, tolerance=1e-6)
        return self.A_adjoint(z)

    def norm(self, shape: Sequence[int]) -> float:
        """Largest singular value on images of space ``shape``."""
        generator = torch.Generator().manual_seed(0)
        start = torch.rand((1, 1, *shape), generator=generator, dtype=torch.float64)
        return operator_norm(self.A, self.A_adjoint, start)

    def prox(self, z: Tensor, y: Tensor, mu: float) -> Tensor:
        """Data step ``argmin_x |A x - y|^2 + mu |x - z|^2`` (``mu`` > 0).

        By conjugate gradients on ``(A A^T + mu) v = y - A z``, ``x = z + A^T v``, or with a
        `preconditioner` on ``(A^T A + mu) (x - z) = A^T (y - A z)``, unless overridden by an
        exact formula.
        """
        invert = self.preconditioner(z.shape[2:], mu)
        if invert is not None:
            return z + conjugate_gradient(
                lambda u: self.A_adjoint(self.A(u)) + mu * u,
                self.A_adjoint(y - self.A(z)),
                preconditioner=invert,
                tolerance=self.prox_tolerance,
            )
        v = conjugate_gradient(
            lambda u: self.A(self.A_adjoint(u)) + mu * u,
            y - self.A(z),
            tolerance=self.prox_tolerance,
        )
        return z + self.A_adjoint(v)

    def preconditioner(
        self, shape: Sequence[int], mu: float
    ) -> Callable[[Tensor], Tensor] | None:
        """A quick approximate inverse of ``A^T A + mu`` on images of space ``shape``, if any."""
        return None

    def grid(self, geometry: Geometry) -> Geometry:
        """Geometry of the image that belongs to data lying at ``geometry``."""
        return geometry

    def data_grid(self, geometry: Geometry) -> Geometry:
        """Geometry of the data of an image lying at ``geometry``; the inverse of `grid`."""
        return geometry

    def divisible(self) -> tuple[bool, ...]:
        """Per data axis, whether a part of the data along it belongs to a part of the image."""
        return (True,) * self.ndim

    def restricted(self, window: tuple[slice, ...]) -> tuple[Physics, tuple[int, ...]]:
        """Operator of the data in ``window`` alone, and where its image begins in the whole.

        The default suits operators that act sample by sample and hold no arrays.
        """
        return self, tuple(w.start for w in window)

    def reach(self) -> tuple[int, ...]:
        """Image samples per axis that one data sample looks at."""
        return (1,) * self.ndim

    def observed(self, y: Tensor) -> Tensor:
        """The samples of data-shaped ``y`` that were observed, as one vector."""
        return y.flatten() if self.mask is None else y[..., self.mask.to(y.device)].flatten()

    def start(self, y: Tensor) -> Tensor:
        """A fast first image, aligned with the solution."""
        return self.A_adjoint(y)
