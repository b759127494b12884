"""Limited-memory BFGS as a generator of iterates, for smooth functions of one tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

ValueAndGrad = Callable[[Tensor], tuple[float, Tensor]]

SUFFICIENT_DECREASE = 1e-4
MAX_BACKTRACKS = 25


def minimise(
    function: ValueAndGrad, x: Tensor, *, memory: int = 10, first_step: float = 1e-2
) -> Iterator[Tensor]:
    """Iterates of L-BFGS with a backtracking line search; ends where no step decreases.

    Pairs without positive curvature are left out, so that every direction descends also where
    the function is not convex.

    Parameters
    ----------
    function
        Gives value and gradient.
    memory : int
        Pairs kept.
    first_step : float
        Largest change of an entry of ``x`` in the first step.

    Examples
    --------
    >>> scale = torch.tensor([1.0, 100.0])
    >>> *_, x = minimise(lambda v: (float((scale * v**2).sum()), 2 * scale * v), torch.ones(2))
    >>> bool(x.abs().max() < 1e-4)
    True
    """
    value, gradient = function(x)
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=memory)
    while True:
        direction = -_inverse_hessian(gradient, pairs)
        slope = float((direction * gradient).sum())
        if not slope < 0:
            return
        step = 1.0 if pairs else first_step / float(direction.abs().max())
        for _ in range(MAX_BACKTRACKS):
            candidate = x + step * direction
            new_value, new_gradient = function(candidate)
            if new_value <= value + SUFFICIENT_DECREASE * step * slope:
                break
            step /= 2
        else:
            return
        s, t = candidate - x, new_gradient - gradient
        curvature = float((s * t).sum())
        if curvature > torch.finfo(x.dtype).eps * float(s.norm() * t.norm()):
            pairs.append((s, t, curvature))
        x, value, gradient = candidate, new_value, new_gradient
        yield x


def _inverse_hessian(gradient: Tensor, pairs: deque[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Two-loop recursion: the approximate inverse Hessian times the gradient."""
    q = gradient.clone()
    shares = []
    for s, t, curvature in reversed(pairs):
        share = float((s * q).sum()) / curvature
        shares.append(share)
        q -= share * t
    if pairs:
        _, t, curvature = pairs[-1]
        q *= curvature / float((t * t).sum())
    for (s, t, curvature), share in zip(pairs, reversed(shares), strict=True):
        q += (share - float((t * q).sum()) / curvature) * s
    return q
