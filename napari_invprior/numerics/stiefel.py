"""Inertial PALM on the Stiefel manifold (Hertrich and Steidl, 2005.02204), one block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

POLAR_STEPS = 4


def polar(y: Tensor, steps: int = POLAR_STEPS) -> Tensor:
    """The nearest matrix with orthonormal columns, by ``Y <- 2 Y (I + Y^T Y)^-1``.

    Converges quadratically from matrices that are nearly orthonormal, as after a short step.

    Examples
    --------
    >>> y = polar(torch.tensor([[1.1, 0.0], [0.0, 0.9], [0.1, 0.0]]).double())
    >>> bool(torch.allclose(y.T @ y, torch.eye(2).double(), atol=1e-9))
    True
    """
    eye = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
    for _ in range(steps):
        y = 2 * torch.linalg.solve(eye + y.mT @ y, y.mT).mT
    return y


def descend(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int = 200,
    tolerance: float = 1e-9,
) -> Tensor:
    """Minimise a function of matrices with orthonormal columns, one problem per batch entry.

    The step is one over the curvature along the gradient, the extrapolation ``(k - 1) / (k + 2)``,
    as in the authors' code; the best matrix met is given back.

    Parameters
    ----------
    loss : callable
        Values (K,) of matrices (K, d, s); twice differentiable.
    start : Tensor
        (K, d, s) with orthonormal columns.
    steps : int
        At most so many.
    tolerance : float
        Stop when no loss changes by more than this share of its size.
    """
    before = now = best = start
    lowest = last = loss(start)
    for k in range(1, steps + 1):
        ahead = now + (k - 1) / (k + 2) * (now - before)
        gradient, curvature = _gradient_and_curvature(loss, ahead)
        before, now = now, polar(ahead - gradient / curvature[:, None, None])
        value = loss(now)
        better = value < lowest
        lowest = torch.where(better, value, lowest)
        best = torch.where(better[:, None, None], now, best)
        if bool(((value - last).abs() <= tolerance * value.abs().clamp_min(1)).all()):
            break
        last = value
    return best


def _gradient_and_curvature(
    loss: Callable[[Tensor], Tensor], place: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient (K, d, s) and ``|H g| / |g|`` (K,)."""
    with torch.enable_grad():
        place = place.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(place).sum(), place, create_graph=True)
        (product,) = torch.autograd.grad(0.5 * (gradient**2).sum(), place)
    size = gradient.detach().flatten(1).norm(dim=1).clamp_min(1e-30)
    return gradient.detach(), (product.flatten(1).norm(dim=1) / size).clamp_min(1e-12)
