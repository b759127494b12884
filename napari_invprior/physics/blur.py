"""Deblurring: the image is convolved with a kernel on its own grid."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from napari_invprior.numerics.separable import gaussian_kernel
from napari_invprior.parameters import parameter, per_axis
from napari_invprior.physics.calibration import Calibrated
from napari_invprior.physics.convolution import SampledConvolution, gaussian_taps
from napari_invprior.physics.superresolution import Sigma, Taps
from napari_invprior.registry import register
from napari_invprior.sources import Source


class BlurParameters(Calibrated):
    """The kernel and the boundary rule."""

    blur_sigma: Sigma | tuple[Sigma, ...] = parameter(
        1.5, "Standard deviation of the Gaussian blur, per axis or one.", unit="px"
    )
    kernel_size: Taps | tuple[Taps, ...] | None = parameter(
        None, "Taps of the Gaussian; empty: three standard deviations.", unit="px", advanced=True
    )
    psf: Source | None = parameter(None, "Measured kernel instead of a Gaussian.", advanced=True)
    boundary: Literal["reflect", "circular", "valid"] = parameter(
        "reflect", "What lies beyond the image: its mirror image, its copy, or nothing is assumed.",
        advanced=True,
    )


@register(
    kind="physics",
    name="blur",
    title="Deblurring",
    papers=("2205.12021",),
    inputs=("observation",),
    outputs=("reconstruction",),
)
class Blur(SampledConvolution):
    """Convolve with a Gaussian or a given PSF.

    The tap at index ``(k - 1) // 2`` meets the sample itself; an even kernel therefore shifts the
    image by half a sample, which the result's placement takes into account.

    Examples
    --------
    >>> import torch
    >>> physics = Blur(BlurParameters(blur_sigma=1.0), ndim=2)
    >>> bool(torch.allclose(physics.A(torch.ones(1, 1, 12, 16)), torch.ones(1, 1, 12, 16)))
    True
    """

    Parameters = BlurParameters
    array_inputs = ("psf",)
    parameters: BlurParameters

    def __init__(self, parameters: BlurParameters, ndim: int, psf: Tensor | None = None) -> None:
        super().__init__(parameters, ndim)
        self.factor = (1,) * ndim
        self.boundary = parameters.boundary
        if psf is not None:
            self._set_psf(psf, corner=False)
            return
        sigmas = per_axis(parameters.blur_sigma, ndim, "blur_sigma")
        sizes = parameters.kernel_size
        taps = (
            tuple(gaussian_taps(s, 1) for s in sigmas)
            if sizes is None
            else per_axis(sizes, ndim, "kernel_size")
        )
        self._set_kernels(
            [gaussian_kernel(k, s) for k, s in zip(taps, sigmas, strict=True)], corner=False
        )
