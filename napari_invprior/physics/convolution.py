"""Convolution followed by sampling: the mathematics shared by blur and super-resolution."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.numerics.reflect import pad_reflect, pad_reflect_adjoint
from napari_invprior.numerics.resample import spline_resample
from napari_invprior.numerics.separable import SeparableOperator, sampling_matrix
from napari_invprior.parameters import Parameters
from napari_invprior.physics.base import Physics

LEAST_SUM = 0.1
"""Sum of a kernel over that of its magnitudes; below, it differentiates rather than averages."""


class SampledConvolution(Physics):
    """``y_j = sum_k h_k x[j * factor + k - before]`` with a boundary rule.

    Subclasses call `_set_kernels` (separable) or `_set_psf` (any kernel). Sample 0 of the data
    lies at `offset` on the image grid, in image samples: the kernel's centre of mass minus the
    samples that lie before it.
    """

    factor: tuple[int, ...]
    before: tuple[int, ...]
    taps: tuple[int, ...]
    offset: tuple[float, ...]
    start_title = "Spline (shift-corrected)"
    start_name = "bicubic"

    def __init__(self, parameters: Parameters, ndim: int, **arrays: Tensor) -> None:
        super().__init__(parameters, ndim, **arrays)
        self._kernels: list[Tensor] | None = None
        self._psf: Tensor | None = None
        self._operator = lru_cache(maxsize=4)(self._build_operator)
        self._transfer = lru_cache(maxsize=4)(self._build_transfer)

    # --- the kernel -------------------------------------------------------------------------

    def _set_kernels(self, kernels: list[Tensor], corner: bool) -> None:
        """Separable kernel, one line of taps per axis."""
        self._kernels = kernels
        self.taps = tuple(len(k) for k in kernels)
        self._set_anchor(corner, [_centre(k) for k in kernels])

    def _set_psf(self, psf: Tensor, corner: bool) -> None:
        """Any kernel with ``ndim`` axes, normalised here; see `checked_psf`."""
        psf = checked_psf(psf, self.ndim)
        self._psf = psf
        self.taps = tuple(psf.shape)
        lines = [
            psf.sum([a for a in range(self.ndim) if a != axis]) for axis in range(self.ndim)
        ]
        self._set_anchor(corner, [_centre(line) for line in lines])

    def _set_anchor(self, corner: bool, centres: list[float]) -> None:
        """Samples before the anchor: none, or so many that the window is centred."""
        valid = self.boundary == "valid"
        self.before = (
            (0,) * self.ndim if corner or valid else samples_before(self.taps, self.factor)
        )
        self.offset = tuple(c - b for c, b in zip(centres, self.before, strict=True))

    def kernel(self) -> Tensor:
        """All taps, (*taps) float64, of sum one."""
        if self._psf is not None:
            return self._psf
        assert self._kernels is not None
        kernel = self._kernels[0].double()
        for line in self._kernels[1:]:
            kernel = kernel[..., None] * line.double()
        return kernel / kernel.sum()

    # --- shapes -----------------------------------------------------------------------------

    def out_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        fitting = self.fitting_shape(shape)
        if fitting != tuple(shape):
            raise InvalidInput(
                f"image of {tuple(shape)} px does not fit factor {self.factor} with a kernel of "
                f"{self.taps} px; crop it to {fitting}"
            )
        if self.boundary == "valid":
            return tuple(
                (n - k) // f + 1 for n, k, f in zip(shape, self.taps, self.factor, strict=True)
            )
        return tuple(n // f for n, f in zip(shape, self.factor, strict=True))

    def in_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if self.boundary == "valid":
            return tuple(
                (m - 1) * f + k for m, k, f in zip(shape, self.taps, self.factor, strict=True)
            )
        return tuple(m * f for m, f in zip(shape, self.factor, strict=True))

    def fitting_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if self.boundary == "valid":
            fitting = tuple(
                (n - k) // f * f + k
                for n, k, f in zip(shape, self.taps, self.factor, strict=True)
            )
        else:
            fitting = tuple(n // f * f for n, f in zip(shape, self.factor, strict=True))
        if min(f - k for f, k in zip(fitting, self.taps, strict=True)) < 0:
            raise InvalidInput(
                f"the kernel has {self.taps} px but the image only {tuple(shape)}; use a smaller "
                "kernel or a larger image"
            )
        return fitting

    # --- the operator -----------------------------------------------------------------------

    def _build_operator(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> SeparableOperator:
        self.out_shape(shape)
        assert self._kernels is not None
        return SeparableOperator(
            [
                sampling_matrix(n, kernel, f, b, self.boundary).to(dtype=dtype, device=device)
                for n, kernel, f, b in zip(
                    shape, self._kernels, self.factor, self.before, strict=True
                )
            ]
        )

    def _build_transfer(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Conjugate spectrum of the kernel on a periodic grid (correlation, not convolution)."""
        assert self._psf is not None
        line = torch.zeros(shape, dtype=torch.float64)
        index = torch.meshgrid(
            *(
                (torch.arange(k) - b) % n
                for k, b, n in zip(self.taps, self.before, shape, strict=True)
            ),
            indexing="ij",
        )
        line.index_put_(index, self._psf.double(), accumulate=True)
        spectrum = torch.fft.rfftn(line).conj()
        complex_type = torch.complex64 if dtype == torch.float32 else torch.complex128
        return spectrum.to(dtype=complex_type, device=device)

    def _filter(self, x: Tensor, adjoint: bool) -> Tensor:
        space = tuple(x.shape[2:])
        transfer = self._transfer(space, x.dtype, x.device)
        axes = tuple(range(2, x.ndim))
        spectrum = torch.fft.rfftn(x, dim=axes)
        return torch.fft.irfftn(
            spectrum * (transfer.conj() if adjoint else transfer), s=space, dim=axes
        )

    def _margins(self) -> list[tuple[int, int]]:
        """Samples added on both sides of each axis before the periodic filter."""
        if self.boundary == "reflect":
            return [
                (b, k - f - b if k > f + b else 0)
                for b, k, f in zip(self.before, self.taps, self.factor, strict=True)
            ]
        return [(0, 0)] * self.ndim

    def _sampling(self) -> tuple[slice, ...]:
        """Samples of the filtered, padded image that are data."""
        slices = []
        for (left, right), k, f in zip(self._margins(), self.taps, self.factor, strict=True):
            if self.boundary == "valid":
                slices.append(slice(0, 1 - k if k > 1 else None, f))
            else:
                slices.append(slice(left, -right if right else None, f))
        return (slice(None), slice(None), *slices)

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        if self._kernels is not None:
            return self._operator(tuple(x.shape[2:]), x.dtype, x.device).forward(x)
        self.out_shape(x.shape[2:])
        return self._filter(pad_reflect(x, self._margins()), adjoint=False)[self._sampling()]

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        space = self.in_shape(y.shape[2:])
        if self._kernels is not None:
            return self._operator(space, y.dtype, y.device).adjoint(y)
        margins = self._margins()
        padded = [n + sum(m) for n, m in zip(space, margins, strict=True)]
        x = y.new_zeros((*y.shape[:2], *padded))
        x[self._sampling()] = y
        return pad_reflect_adjoint(self._filter(x, adjoint=True), margins)

    def norm(self, shape: Sequence[int]) -> float:
        if self._kernels is not None:
            return self._operator(tuple(shape), torch.float64, torch.device("cpu")).norm
        return super().norm(shape)

    def prox(self, z: Tensor, y: Tensor, mu: float) -> Tensor:
        residual = y - self.A(z)
        if self._kernels is not None:
            operator = self._operator(tuple(z.shape[2:]), z.dtype, z.device)
            return z + operator.adjoint(operator.solve_normal(residual, mu))
        if self.boundary == "circular":
            return z + self.A_adjoint(self._solve_circulant(residual, mu, tuple(z.shape[2:])))
        return super().prox(z, y, mu)

    def A_dagger(self, y: Tensor) -> Tensor:  # noqa: N802
        if self._kernels is not None:
            operator = self._operator(self.in_shape(y.shape[2:]), y.dtype, y.device)
            return operator.adjoint(operator.solve_normal(y, 0.0))
        return super().A_dagger(y)

    def _solve_circulant(self, y: Tensor, mu: float, space: tuple[int, ...]) -> Tensor:
        """``(A A^T + mu)^-1 y``: ``A A^T`` is circulant on the data grid."""
        transfer = self._transfer(space, y.dtype, y.device)
        correlation = torch.fft.irfftn(transfer.abs() ** 2, s=space)
        sampled = correlation[tuple(slice(None, None, f) for f in self.factor)]
        axes = tuple(range(2, y.ndim))
        eigenvalues = torch.fft.rfftn(sampled).real.clamp_min(0)
        spectrum = torch.fft.rfftn(y, dim=axes) / (eigenvalues + mu)
        return torch.fft.irfftn(spectrum, s=tuple(y.shape[2:]), dim=axes)

    # --- placement --------------------------------------------------------------------------

    def grid(self, geometry: Geometry) -> Geometry:
        return geometry.resampled(self.factor, self.offset)

    def data_grid(self, geometry: Geometry) -> Geometry:
        return geometry.sampled(self.factor, self.offset)

    def restricted(self, window: tuple[slice, ...]) -> tuple[Physics, tuple[int, ...]]:
        """The same kernel, with nothing assumed beyond the samples that the data look at."""
        part = copy.copy(self)
        part.boundary = "valid"
        part.before = (0,) * self.ndim
        part.offset = tuple(o + b for o, b in zip(self.offset, self.before, strict=True))
        part._operator = lru_cache(maxsize=4)(part._build_operator)
        part._transfer = lru_cache(maxsize=4)(part._build_transfer)
        before = (0,) * self.ndim if self.boundary == "valid" else self.before
        start = tuple(w.start * f - b for w, f, b in zip(window, self.factor, before, strict=True))
        return part, start

    def reach(self) -> tuple[int, ...]:
        return self.taps

    def start(self, y: Tensor) -> Tensor:
        """Cubic spline at the true positions: the shift of the kernel is taken into account."""
        mode = "grid-wrap" if self.boundary == "circular" else "nearest"
        return spline_resample(y, self.in_shape(y.shape[2:]), self.factor, self.offset, mode)


def checked_psf(psf: Tensor, ndim: int) -> Tensor:
    """A float64 copy of the kernel with sum one, or a refusal that says what is wrong.

    Negative lobes are admitted (sharpened or resampled images have them) while they do not
    cancel the rest.
    """
    psf = psf.detach().double().clone()
    if psf.ndim != ndim:
        raise InvalidInput(f"the PSF has {psf.ndim} axes; expected {ndim}, one per space axis")
    if not bool(torch.isfinite(psf).all()):
        raise InvalidInput("the PSF holds NaN or infinite values; clean it first")
    total, size = float(psf.sum()), float(psf.abs().sum())
    if size == 0:
        raise InvalidInput("the PSF is zero everywhere; give a kernel with positive sum")
    if total < LEAST_SUM * size:
        raise InvalidInput(
            f"the PSF is too negative: its values sum to {total:.3g}, their magnitudes to "
            f"{size:.3g}; negative lobes are fine while the sum is at least {LEAST_SUM:g} of the "
            "magnitudes: clip it at 0, or subtract its background"
        )
    return psf / total


def samples_before(taps: Sequence[int], factor: Sequence[int]) -> tuple[int, ...]:
    """Samples of a centred window that lie before fine sample ``j * factor``.

    Examples
    --------
    >>> samples_before((8, 15), (2, 1))
    (3, 7)
    """
    return tuple(max(0, (k - f) // 2) for k, f in zip(taps, factor, strict=True))


def _centre(line: Tensor) -> float:
    """Centre of mass in samples."""
    position = torch.arange(len(line), dtype=torch.float64)
    return float((position * line).sum() / line.sum())


def gaussian_taps(sigma: float, factor: int) -> int:
    """Taps that hold a Gaussian to three standard deviations and centre on a data sample."""
    return factor + 2 * math.ceil(3 * sigma)

