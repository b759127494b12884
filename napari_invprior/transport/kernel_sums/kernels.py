"""Radial kernels ``K(x, y) = F(|x - y|)`` and their counterparts on the line.

A kernel knows three things, all in units of its scale: its values and its slope as functions of
the squared distance, and the samples of ``f``, whose mean over directions is the kernel:
``F(|x|) = E f(<xi, x>)``. Where ``f`` has no usable closed form it comes from its Fourier
transform, computed through logarithms.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy import special
from torch import Tensor

from napari_invprior.errors import InvalidInput, nearest
from napari_invprior.transport.slices.directions import slice_constant

FOLDS = 8
"""Aliases of a transform that are added up; beyond them is only what `f(0)` lacks."""
LARGEST_PERIOD = 2**23
"""Samples of one period of ``f``; more are needed only where the scale is far too small."""


class TooNarrow(InvalidInput):
    """The scale is too small for sums on a grid over all points."""


@dataclass(frozen=True)
class Kernel(ABC):
    """A radial kernel of unit scale."""

    name: ClassVar[str]
    has_scale: ClassVar[bool] = True
    """Whether a scale changes more than a factor or a constant."""

    @abstractmethod
    def value(self, squared: Tensor) -> Tensor:
        """``F(r)`` of squared distances ``r^2``, finite at 0; may overwrite its argument."""

    @abstractmethod
    def slope(self, squared: Tensor) -> Tensor:
        """``F'(r) / r``, where that is not finite at 0 zero; may overwrite its argument.

        The gradient of ``K(x, y)`` in ``y`` is this times ``y - x``, which is 0 at ``y = x``.
        """

    @abstractmethod
    def samples(self, dim: int, spacing: float, count: int) -> Tensor:
        """``f(0), f(h), f(2h), ...`` with ``F(|x|) = E f(<xi, x>)`` in ``R^dim``; float64."""


@dataclass(frozen=True)
class SpectralKernel(Kernel):
    """A kernel whose ``f`` is known by its Fourier transform; ``F(0) = 1``."""

    @abstractmethod
    def log_transform(self, frequency: Tensor, dim: int) -> Tensor:
        """``log fhat``, ``f(t) = int fhat(k) exp(2 pi i k t) dk``; -inf where it vanishes."""

    def samples(self, dim: int, spacing: float, count: int) -> Tensor:
        # In even dimensions f falls only like t^-dim: its copies must stay that far away.
        tail = 40 + (2 * 10 ** (5 / dim) if dim > 1 else 0)
        size = 2 ** math.ceil(math.log2(2 * count + tail / spacing))
        if size > LARGEST_PERIOD:
            raise TooNarrow(
                f"the scale is {count * spacing:.0f} times smaller than the extent of the points, "
                "too small for slicing; choose method='dense' or a larger scale"
            )
        k = torch.arange(size // 2 + 1, dtype=torch.float64)
        folded = torch.zeros_like(k)
        for fold in range(FOLDS):
            for alias in (k + fold * size, (fold + 1) * size - k):
                share = self.log_transform(alias / (size * spacing), dim).exp()
                folded += share
            if float(share.sum()) <= 1e-12 * float(folded.sum()):
                break
        f = torch.fft.irfft(folded, n=size)[:count] / spacing
        f[0] = 1.0
        return f


@dataclass(frozen=True)
class Gauss(SpectralKernel):
    """``exp(-r^2 / 2)``."""

    name: ClassVar[str] = "gauss"

    def value(self, squared: Tensor) -> Tensor:
        return _falling_exp_(squared.mul_(0.5))

    def slope(self, squared: Tensor) -> Tensor:
        return self.value(squared).neg_()

    def log_transform(self, frequency: Tensor, dim: int) -> Tensor:
        a = 2 * (math.pi * frequency) ** 2
        constant = math.log(dim * math.pi / math.sqrt(2)) - math.lgamma((dim + 2) / 2)
        return torch.xlogy(torch.full_like(a, (dim - 1) / 2), a) - a + constant


@dataclass(frozen=True)
class Matern(SpectralKernel):
    """``2^(1 - nu) / Gamma(nu) z^nu K_nu(z)``, ``z = sqrt(2 nu) r``.

    Attributes
    ----------
    nu : float
        Smoothness, 0.1 to 50; 0.5, 1.5 and 2.5 are computed fast.

    Examples
    --------
    >>> round(float(Matern(1.5).value(torch.tensor([1.0]))), 4)
    0.4834
    """

    nu: float = 1.5
    name: ClassVar[str] = "matern"

    def __post_init__(self) -> None:
        _within("nu", self.nu, 0.1, 50.0)

    def value(self, squared: Tensor) -> Tensor:
        z = squared.mul_(2 * self.nu).sqrt_()
        if self.nu == 0.5:
            return _falling_exp_(z)
        if self.nu == 1.5:
            return (1 + z).mul_(_falling_exp_(z))
        if self.nu == 2.5:
            return (1 + z + z.square() / 3).mul_(_falling_exp_(z))
        constant = 2 ** (1 - self.nu) / math.gamma(self.nu)
        return constant * _bessel(self.nu, self.nu, z)

    def slope(self, squared: Tensor) -> Tensor:
        z = squared.mul_(2 * self.nu).sqrt_()
        if self.nu == 0.5:
            return torch.where(z > 0, -_falling_exp_(z.clone()) / z, 0)
        if self.nu == 1.5:
            return _falling_exp_(z).mul_(-3)
        if self.nu == 2.5:
            return (1 + z).mul_(_falling_exp_(z)).mul_(-5 / 3)
        constant = 2 * self.nu * 2 ** (1 - self.nu) / math.gamma(self.nu)
        return -constant * _bessel(self.nu - 1, self.nu - 1, z)

    def log_transform(self, frequency: Tensor, dim: int) -> Tensor:
        nu, half = self.nu, dim / 2
        constant = (
            math.lgamma(nu + half) - math.lgamma(half) - math.lgamma(nu)
            + dim * math.log(math.pi) + half * math.log(2 / nu)
        )
        decay = torch.log1p(2 * (math.pi * frequency) ** 2 / nu)
        power = torch.xlogy(torch.full_like(frequency, dim - 1), frequency)
        return constant + power - (nu + half) * decay


@dataclass(frozen=True)
class Laplace(Matern):
    """``exp(-r)``."""

    nu: float = 0.5
    name: ClassVar[str] = "laplace"


@dataclass(frozen=True)
class Riesz(Kernel):
    """``-r^q``.

    Attributes
    ----------
    exponent : float
        ``q``, above 0 and below 2.
    """

    exponent: float = 1.0
    name: ClassVar[str] = "riesz"
    has_scale: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _within("exponent", self.exponent, 0.01, 1.99)

    def value(self, squared: Tensor) -> Tensor:
        return squared.pow_(self.exponent / 2).neg_()

    def slope(self, squared: Tensor) -> Tensor:
        q = self.exponent
        return torch.where(squared > 0, -q * squared.pow(q / 2 - 1), 0)

    def samples(self, dim: int, spacing: float, count: int) -> Tensor:
        t = torch.arange(count, dtype=torch.float64) * spacing
        return -slice_constant(dim, self.exponent) * t**self.exponent


@dataclass(frozen=True)
class Energy(Riesz):
    """``-r``; exact on the line by sorting."""

    name: ClassVar[str] = "energy"

    def value(self, squared: Tensor) -> Tensor:
        return squared.sqrt_().neg_()

    def slope(self, squared: Tensor) -> Tensor:
        return torch.where(squared > 0, squared.rsqrt().neg_(), 0)


@dataclass(frozen=True)
class ThinPlate(Kernel):
    """``r^2 log r``."""

    name: ClassVar[str] = "thin_plate"
    has_scale: ClassVar[bool] = False

    def value(self, squared: Tensor) -> Tensor:
        return torch.xlogy(squared, squared).mul_(0.5)

    def slope(self, squared: Tensor) -> Tensor:
        return torch.where(squared > 0, squared.log() + 1, 0)

    def samples(self, dim: int, spacing: float, count: int) -> Tensor:
        square = (torch.arange(count, dtype=torch.float64) * spacing) ** 2
        # E xi^2 log |xi| of one coordinate, whose square is Beta(1/2, (dim - 1)/2) distributed
        shift = 0.5 * float(special.digamma(1.5) - special.digamma(dim / 2 + 1))
        return dim * (torch.xlogy(square, square) / 2 - shift * square)


@dataclass(frozen=True)
class Logarithmic(Kernel):
    """``log r``, constant below ``floor``.

    On the line the logarithm near 0 is its mean over one cell of the grid, so that sums over
    coinciding points differ from the dense ones. Slopes of slices have no finite variance: take
    the dense sum for accurate gradients.

    Attributes
    ----------
    floor : float
        Distance below which points count as that far apart, 1e-12 to 1.
    """

    floor: float = 1e-4
    name: ClassVar[str] = "logarithmic"
    has_scale: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _within("floor", self.floor, 1e-12, 1.0)

    def value(self, squared: Tensor) -> Tensor:
        return squared.clamp_min_(self.floor**2).log_().mul_(0.5)

    def slope(self, squared: Tensor) -> Tensor:
        return torch.where(squared > self.floor**2, 1 / squared, 0)

    def samples(self, dim: int, spacing: float, count: int) -> Tensor:
        t = torch.arange(count, dtype=torch.float64) * spacing
        t[0] = spacing / (2 * math.e)
        return t.log() - 0.5 * float(special.digamma(0.5) - special.digamma(dim / 2))


KERNELS: dict[str, type[Kernel]] = {
    kind.name: kind
    for kind in (Gauss, Laplace, Matern, Energy, Riesz, ThinPlate, Logarithmic)
}
"""All kernels by name."""


def as_kernel(kernel: str | Kernel) -> Kernel:
    """A kernel, or the one of that name with its default parameters.

    Raises
    ------
    InvalidInput
        For unknown names.

    Examples
    --------
    >>> as_kernel("gauss")
    Gauss()
    """
    if isinstance(kernel, Kernel):
        return kernel
    if kernel not in KERNELS:
        raise InvalidInput(
            f"no kernel {kernel!r}{nearest(str(kernel), KERNELS)}; choose one of "
            f"{', '.join(KERNELS)}"
        )
    return KERNELS[kernel]()


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidInput(f"{name} = {value!r} is not within {low:g} to {high:g}; choose such one")


def _falling_exp_(z: Tensor) -> Tensor:
    """``exp(-z)`` in place: powers of two are faster, and denormal numbers many times slower."""
    return z.mul_(-1 / math.log(2)).clamp_min_(-100).exp2_()


def _bessel(power: float, order: float, z: Tensor) -> Tensor:
    """``z^power K_order(z)``; at 0 its limit, or 0 where there is none."""
    at = z.double().cpu().numpy()
    limit = 2 ** (order - 1) * math.gamma(order) if power == order > 0 else 0.0
    with np.errstate(all="ignore"):
        found = np.where(at > 0, at**power * special.kv(order, at), limit)
    return torch.from_numpy(np.nan_to_num(found, posinf=0.0)).to(z)
