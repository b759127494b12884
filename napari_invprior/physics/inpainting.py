"""Inpainting (a mask of observed samples) and denoising (everything observed)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from scipy import ndimage
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.physics.base import Physics
from napari_invprior.registry import register
from napari_invprior.sources import Source


class DenoisingParameters(Parameters):
    """Nothing to choose."""


@register(
    kind="physics",
    name="denoising",
    title="Denoising",
    inputs=("observation",),
    outputs=("reconstruction",),
)
class Denoising(Physics):
    """The image itself is observed: ``y = x + noise``.

    Examples
    --------
    >>> x = torch.rand(1, 1, 4, 5)
    >>> bool((Denoising(DenoisingParameters(), 2).A(x) == x).all())
    True
    """

    Parameters = DenoisingParameters
    start_title = "Observation"

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return x

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return y

    def A_dagger(self, y: Tensor) -> Tensor:  # noqa: N802
        return y

    def out_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape)

    def in_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape)

    def norm(self, shape: Sequence[int]) -> float:
        return 1.0

    def prox(self, z: Tensor, y: Tensor, mu: float) -> Tensor:
        return (y + mu * z) / (1 + mu)


class InpaintingParameters(Parameters):
    """Which samples were observed."""

    mask: Source | None = parameter(
        None, "Image of the observation's shape, positive where a sample was observed."
    )
    missing: float = parameter(
        0.5, "Share of samples that a simulation hides at random, when no mask is given.",
        ge=0, lt=1,
    )


@register(
    kind="physics",
    name="inpainting",
    title="Inpainting",
    papers=("2312.16611",),
    inputs=("observation", "mask"),
    outputs=("reconstruction",),
)
class Inpainting(Physics):
    """Keep the observed samples, zero the rest: ``y = m x``.

    Examples
    --------
    >>> mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> Inpainting(InpaintingParameters(), 2, mask=mask).A(torch.ones(1, 1, 2, 2)).tolist()
    [[[[1.0, 0.0], [1.0, 1.0]]]]
    """

    Parameters = InpaintingParameters
    array_inputs = data_shaped = ("mask",)
    parameters: InpaintingParameters
    mask: Tensor
    start_title = "Nearest observed sample"

    def __init__(
        self, parameters: InpaintingParameters, ndim: int, mask: Tensor | None = None
    ) -> None:
        super().__init__(parameters, ndim)
        if mask is None:
            raise InvalidInput(
                "inpainting needs a mask of the observed samples; draw one in a Labels layer or "
                "give physics.mask"
            )
        if mask.ndim != ndim:
            raise InvalidInput(f"the mask has {mask.ndim} axes; the data has {ndim}")
        observed = mask > 0
        if not bool(observed.any()):
            raise InvalidInput(
                "the mask hides every sample; it must be positive where a sample was observed "
                "(is it inverted?)"
            )
        self.mask = observed

    def _weights(self, x: Tensor) -> Tensor:
        return self.mask.to(dtype=x.dtype, device=x.device)

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        return x * self._weights(x)

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        return y * self._weights(y)

    def A_dagger(self, y: Tensor) -> Tensor:  # noqa: N802
        return self.A_adjoint(y)

    def out_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if tuple(shape) != tuple(self.mask.shape):
            raise InvalidInput(
                f"the mask has shape {tuple(self.mask.shape)} but the image {tuple(shape)}; they "
                "must agree"
            )
        return tuple(shape)

    def in_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.out_shape(shape)

    def norm(self, shape: Sequence[int]) -> float:
        return 1.0

    def prox(self, z: Tensor, y: Tensor, mu: float) -> Tensor:
        weights = self._weights(z)
        return (weights * y + mu * z) / (weights + mu)

    def restricted(self, window: tuple[slice, ...]) -> tuple[Physics, tuple[int, ...]]:
        part = copy.copy(self)
        part.mask = self.mask[window]
        return part, tuple(w.start for w in window)

    def start(self, y: Tensor) -> Tensor:
        """Missing samples take the value of the nearest observed one."""
        nearest = ndimage.distance_transform_edt(
            ~self.mask.cpu().numpy(), return_distances=False, return_indices=True
        )
        index = tuple(torch.from_numpy(i).to(y.device) for i in nearest)
        return y[(slice(None), slice(None), *index)]  # type: ignore[index]
