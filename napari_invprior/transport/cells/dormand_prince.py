"""Dormand and Prince's explicit pair of orders 5 and 4."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from napari_invprior.transport.cells.adaptive import Attempt, allowance, relative

ORDER = 5
NODES = (0.2, 0.3, 0.8, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""Weights of the slopes; the last row is the step of order 5, whose slope begins the next step."""
DIFFERENCE = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""Weights of the step of order 5 less those of order 4."""

Field = Callable[[Tensor, Tensor], tuple[Tensor, Any]]
"""Slope (d, N) at points (d, N) and times (N,), and whatever else was found there."""


def attempt(
    field: Field, z: Tensor, s: Tensor, step: Tensor, slope: Tensor, rtol: float, atol: float
) -> Attempt:
    """Try a step from points ``z`` (d, N) at times ``s`` (N,) with slopes known there.

    Examples
    --------
    >>> turn = lambda z, s: (torch.stack([-z[1], z[0]]), None)
    >>> z, s = torch.tensor([[1.0], [0.0]]).double(), torch.zeros(1).double()
    >>> tried = attempt(turn, z, s, s + 0.2, turn(z, s)[0], 1e-6, 1e-8)
    >>> bool((tried.end[0] - torch.tensor(0.2).cos()).abs() < 1e-6), bool(tried.error < 1)
    (True, True)
    """
    d, n = z.shape
    slopes = z.new_empty((7, d, n))
    slopes[0] = slope
    flat = slopes.view(7, -1).T
    rows, difference = _weights(z.device)
    end, found = z, None
    for number, (node, row) in enumerate(zip(NODES, rows, strict=True), 1):
        end = torch.addcmul(z, torch.mv(flat[:, :number], row).view(d, n), step)
        slopes[number], found = field(end, torch.add(s, step, alpha=node))
    error = torch.mv(flat, difference).view(d, n).mul_(step)
    return Attempt(end, slopes[6], relative(error, allowance(z, end, rtol, atol)), found)


@cache
def _weights(device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
    """The table as tensors."""
    rows = [torch.tensor(row, dtype=torch.float64, device=device) for row in STAGES]
    return tuple(rows), torch.tensor(DIFFERENCE, dtype=torch.float64, device=device)
