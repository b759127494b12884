"""Super-resolution: the image is blurred and sampled on a coarser grid."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from napari_invprior.numerics.separable import gaussian_kernel
from napari_invprior.parameters import parameter, per_axis
from napari_invprior.physics.calibration import Calibrated
from napari_invprior.physics.convolution import SampledConvolution, gaussian_taps
from napari_invprior.registry import register
from napari_invprior.sources import Source

Factor = Annotated[int, Field(ge=1, le=16)]
Sigma = Annotated[float, Field(ge=0, le=64)]
Taps = Annotated[int, Field(ge=1, le=512)]


class SuperResolutionParameters(Calibrated):
    """How the coarse samples came about."""

    factor: Factor | tuple[Factor, ...] = parameter(
        4, "Fine samples per coarse sample, one number or one per axis."
    )
    blur_sigma: Sigma | tuple[Sigma, ...] | None = parameter(
        None, "Standard deviation of the Gaussian blur, per axis or one; empty: half the factor.",
        unit="fine px",
    )
    kernel_size: Taps | tuple[Taps, ...] | None = parameter(
        None, "Taps of the Gaussian; empty: three standard deviations.", unit="fine px",
        advanced=True,
    )
    pixel_average: bool = parameter(
        False, "Average over the coarse pixel after the blur (a detector pixel).", advanced=True
    )
    psf: Source | None = parameter(None, "Measured kernel instead of a Gaussian.", advanced=True)
    boundary: Literal["reflect", "circular", "valid"] = parameter(
        "reflect", "What lies beyond the image: its mirror image, its copy, or nothing is assumed.",
        advanced=True,
    )
    anchor: Literal["auto", "corner", "centre"] = parameter(
        "auto",
        "Where the kernel window of coarse sample j starts: at fine sample j * factor (corner) or "
        "centred on the coarse sample. Automatic: corner for a circular boundary, as in the "
        "papers, unless pixels are averaged; else centre.",
        advanced=True,
    )

    @model_validator(mode="after")
    def _lengths(self) -> SuperResolutionParameters:
        lengths = {
            len(v)
            for v in (self.factor, self.blur_sigma, self.kernel_size)
            if isinstance(v, tuple)
        }
        if lengths - {2, 3} or len(lengths) > 1:
            raise ValueError("give factor, blur_sigma and kernel_size for 2 or for 3 axes alike")
        return self


@register(
    kind="physics",
    name="superresolution",
    title="Super-resolution",
    papers=("2205.12021", "2109.12880"),
    inputs=("observation",),
    outputs=("reconstruction",),
    default_for=(2, 3),
)
class SuperResolution(SampledConvolution):
    """Blur with a Gaussian or a given PSF, then keep one sample in ``factor``.

    ``y_j = sum_k h_k x[j * factor + k - before]``.

    Examples
    --------
    >>> physics = SuperResolution(SuperResolutionParameters(factor=2), ndim=2)
    >>> physics.A(torch.ones(1, 1, 12, 16)).shape
    torch.Size([1, 1, 6, 8])
    >>> physics.in_shape((6, 8))
    (12, 16)
    """

    Parameters = SuperResolutionParameters
    array_inputs = ("psf",)
    parameters: SuperResolutionParameters

    def __init__(
        self, parameters: SuperResolutionParameters, ndim: int, psf: Tensor | None = None
    ) -> None:
        super().__init__(parameters, ndim)
        self.factor = per_axis(parameters.factor, ndim, "factor")
        self.boundary = parameters.boundary
        corner = parameters.anchor == "corner" or (
            parameters.anchor == "auto"
            and parameters.boundary == "circular"
            and not parameters.pixel_average
        )
        if psf is not None:
            self._set_psf(psf, corner)
            return
        default = tuple(f / 2 if f > 1 else 0.0 for f in self.factor)
        given = parameters.blur_sigma
        sigmas = default if given is None else per_axis(given, ndim, "blur_sigma")
        sizes = parameters.kernel_size
        taps = (
            tuple(
                gaussian_taps(s, 1 if parameters.pixel_average else f)
                for s, f in zip(sigmas, self.factor, strict=True)
            )
            if sizes is None
            else per_axis(sizes, ndim, "kernel_size")
        )
        kernels = [gaussian_kernel(k, s) for k, s in zip(taps, sigmas, strict=True)]
        if parameters.pixel_average:
            kernels = [_average(h, f) for h, f in zip(kernels, self.factor, strict=True)]
        self._set_kernels(kernels, corner)


def _average(kernel: Tensor, factor: int) -> Tensor:
    """The kernel followed by a mean over ``factor`` samples."""
    taps = len(kernel)
    result = torch.zeros(taps + factor - 1, dtype=kernel.dtype)
    for shift in range(factor):
        result[shift : shift + taps] += kernel / factor
    return result
