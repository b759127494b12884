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
    tolerance: float = 1e-6,
    max_iterations: int = 200,
) -> Tensor:
    """Solve ``operator(x) = rhs`` for each element of the batch (first axis).

    Stops when the largest residual norm, relative to the right-hand side, is below ``tolerance``.

    Examples
    --------
    >>> bool(torch.allclose(conjugate_gradient(lambda x: 2 * x, torch.ones(1, 3)),
    ...                     torch.full((1, 3), 0.5)))
    True
    """
    axes = tuple(range(1, rhs.ndim))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(axes, keepdim=True)

    x = torch.zeros_like(rhs) if start is None else start.clone()
    residual = rhs - operator(x) if start is not None else rhs.clone()
    direction = residual.clone()
    energy = dot(residual, residual)
    limit = (tolerance**2 * dot(rhs, rhs)).clamp_min(torch.finfo(rhs.dtype).tiny)
    for _ in range(max_iterations):
        if bool((energy <= limit).all()):
            break
        image = operator(direction)
        curvature = dot(direction, image)
        step = torch.where(energy > limit, energy / curvature.clamp_min(1e-30), 0 * energy)
        x = x + step * direction
        residual = residual - step * image
        updated = dot(residual, residual)
        ratio = torch.where(energy > limit, updated / energy.clamp_min(1e-30), 0 * energy)
        direction = residual + ratio * direction
        energy = updated
    return x


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
