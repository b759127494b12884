"""Conjugate gradients for symmetric positive definite systems, batched and stopped by residual."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(
    operator: Callable[[Tensor], Tensor],
    rhs: Tensor,
    start: Tensor | None = None,
    *,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 200,
) -> Tensor:
    """Solve ``operator(x) = rhs`` for each element of the batch (first axis).

    Stops when the largest residual norm, relative to the right-hand side, is below ``tolerance``.
    The ``preconditioner`` is symmetric, positive definite and close to the operator's inverse.

    Examples
    --------
    >>> bool(torch.allclose(conjugate_gradient(lambda x: 2 * x, torch.ones(1, 3)),
    ...                     torch.full((1, 3), 0.5)))
    True
    """
    axes = tuple(range(1, rhs.ndim))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(axes, keepdim=True)

    def prepared(residual: Tensor) -> Tensor:
        return residual if preconditioner is None else preconditioner(residual)

    x = torch.zeros_like(rhs) if start is None else start.clone()
    residual = rhs - operator(x) if start is not None else rhs.clone()
    direction = prepared(residual).clone()
    size = dot(residual, residual)
    energy = size if preconditioner is None else dot(residual, direction)
    limit = (tolerance**2 * dot(rhs, rhs)).clamp_min(torch.finfo(rhs.dtype).tiny)
    for _ in range(max_iterations):
        if bool((size <= limit).all()):
            break
        image = operator(direction)
        curvature = dot(direction, image)
        step = torch.where(size > limit, energy / curvature.clamp_min(1e-30), 0 * energy)
        x = x + step * direction
        residual = residual - step * image
        better = prepared(residual)
        last, size = size, dot(residual, residual)
        updated = size if preconditioner is None else dot(residual, better)
        ratio = torch.where(last > limit, updated / energy.clamp_min(1e-30), 0 * energy)
        direction = better + ratio * direction
        energy = updated
    return x


def convolution_inverse(response: Tensor) -> Callable[[float], Callable[[Tensor], Tensor]]:
    """Approximate inverses of ``K + mu`` for ``K`` that is nearly a convolution of two axes.

    Parameters
    ----------
    response : Tensor
        What ``K`` makes of a spot at the middle sample ``n // 2`` of both axes.

    Returns
    -------
    callable
        ``inverse(mu)`` is a symmetric positive definite map of images of that size: they are
        padded by zeros to twice their size, divided by spectrum plus ``mu``, and cut out again.

    Examples
    --------
    >>> response = torch.zeros(4, 4)
    >>> response[2, 2] = 3.0
    >>> convolution_inverse(response)(1.0)(torch.ones(1, 1, 4, 4)).unique().tolist()
    [0.25]
    """
    height, width = response.shape
    padded = 2 * height, 2 * width
    kernel = torch.zeros(padded, dtype=torch.float64)
    kernel[:height, :width] = response
    kernel = torch.roll(kernel, (-(height // 2), -(width // 2)), (0, 1))
    spectrum = torch.fft.rfft2(kernel).real.clamp_min(0)

    def inverse(mu: float) -> Callable[[Tensor], Tensor]:
        factors = 1 / (spectrum + mu)

        def apply(x: Tensor) -> Tensor:
            found = torch.fft.rfft2(x, s=padded) * factors.to(x)
            return torch.fft.irfft2(found, s=padded)[..., :height, :width]

        return apply

    return inverse


def operator_norm(
    operator: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> float:
    """Largest singular value by power iteration on ``A^T A`` from ``start``."""
    x = start / start.norm()
    value = 0.0
    for _ in range(iterations):
        image = adjoint(operator(x))
        updated = float(image.norm())
        if updated == 0:
            return 0.0
        x = image / updated
        if abs(updated - value) <= tolerance * updated:
            break
        value = updated
    return updated**0.5
