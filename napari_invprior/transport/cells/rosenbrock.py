"""The linearly implicit method RODAS3, of order 3, for fields that contract fast.

Where neighbouring paths run together at a rate ``k``, explicit steps must stay below about
``3 / k`` however smooth the path is. Here each stage solves with ``I / (h / 2) - J``.

Source: Sandu et al., "Benchmarking stiff ODE solvers for atmospheric chemistry problems II:
Rosenbrock solvers" (1997).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from napari_invprior.transport.cells.adaptive import Attempt, relative

ORDER = 3

Field = Callable[[Tensor, Tensor], Tensor]
"""Slope (d, N) at points (d, N) and times (N,)."""
Derivatives = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Slope (d, N), its derivatives in the points (N, d, d) and in the time (d, N)."""


def attempt(
    field: Field, derivatives: Derivatives, z: Tensor, s: Tensor, step: Tensor, allowed: Tensor
) -> Attempt:
    """Try a step from points ``z`` (d, N) at times ``s`` (N,) with errors up to ``allowed`` (d, N).

    Examples
    --------
    >>> pulled = lambda z, s: -1e4 * (z - torch.cos(s))
    >>> def derivatives(z, s):
    ...     return pulled(z, s), z.new_full((1, 1, 1), -1e4), -1e4 * torch.sin(s)[None]
    >>> z, s = torch.ones((1, 1)).double(), torch.zeros(1).double()
    >>> tried = attempt(pulled, derivatives, z, s, s + 0.1, 1e-3 * z)
    >>> bool((tried.end[0] - torch.tensor(0.1).cos()).abs() < 1e-3)
    True
    """
    slope, jacobian, in_time = derivatives(z, s)
    eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
    inverse = torch.linalg.inv(2 / step[:, None, None] * eye - jacobian)

    def solve(right: Tensor) -> Tensor:
        return torch.einsum("nij,jn->in", inverse, right)

    first = solve(slope + 0.5 * step * in_time)
    second = solve(slope + 4 * first / step + 1.5 * step * in_time)
    later = s + step
    third = solve(field(z + 2 * first, later) + (first - second) / step)
    near = z + 2 * first + third
    error = solve(field(near, later) + (first - second - 8 / 3 * third) / step)
    end = near + error
    return Attempt(end, slope, relative(error, allowed))
