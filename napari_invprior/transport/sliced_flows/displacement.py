"""Fitting a network to where particles went."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from napari_invprior.errors import JobError

EXPLODED = 1e3
_HALVINGS = 3


@dataclass(frozen=True)
class Fitting:
    """How a network is trained on displacements.

    Attributes
    ----------
    steps, batch : int
        Adam steps; points per step.
    learning_rate : float
        First step of Adam; it falls to zero along a cosine.
    loss : str
        ``"squared"`` or ``"absolute"`` error.
    clip : float or None
        Longer gradients are shortened to this norm.
    """

    steps: int = 2000
    batch: int = 100
    learning_rate: float = 1e-3
    loss: Literal["squared", "absolute"] = "squared"
    clip: float | None = None


def fit_displacement(
    net: nn.Module, rows: Tensor, wanted: Tensor, fitting: Fitting, seed: int
) -> Iterator[int]:
    """Train ``net`` so that it takes ``rows`` to ``wanted``; yields the steps done.

    Parameters
    ----------
    net : nn.Module
        Its weights are where training starts.
    rows, wanted : Tensor
        (N, ...), inputs and outputs.

    Raises
    ------
    JobError
        If training diverges again and again.

    Examples
    --------
    >>> x = torch.rand((500, 1), generator=torch.Generator().manual_seed(0))
    >>> net = nn.Linear(1, 1)
    >>> _ = list(fit_displacement(net, x, 3 * x, Fitting(500, learning_rate=0.1), seed=0))
    >>> abs(net.weight.item() - 3) < 0.01
    True
    """
    generator = torch.Generator().manual_seed(seed)
    first: float | None = None
    start = copy.deepcopy(net.state_dict())
    rate, halvings, done = fitting.learning_rate, 0, 0
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    net.train()
    while done < fitting.steps:
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done / fitting.steps))
        loss = _step(net, optimiser, rows, wanted, fitting, generator)
        first = loss if first is None else first
        if not math.isfinite(loss) or loss > EXPLODED * max(first, 1.0):
            halvings += 1
            if halvings > _HALVINGS:
                raise JobError(
                    f"fitting a network diverged {halvings} times (loss {loss:.3g}) although the "
                    f"step was halved to {rate:.2g}; choose a smaller learning rate"
                )
            net.load_state_dict(start)
            rate, done = rate / 2, 0
            optimiser = torch.optim.Adam(net.parameters(), lr=rate)
            continue
        done += 1
        yield done
    net.eval()


def _step(
    net: nn.Module, optimiser: torch.optim.Optimizer, rows: Tensor, wanted: Tensor,
    fitting: Fitting, generator: torch.Generator,
) -> float:
    some = torch.randint(len(rows), (fitting.batch,), generator=generator).to(rows.device)
    error = net(rows[some]) - wanted[some]
    loss = error.square().mean() if fitting.loss == "squared" else error.abs().mean()
    optimiser.zero_grad()
    loss.backward()
    if fitting.clip is not None:
        torch.nn.utils.clip_grad_norm_(net.parameters(), fitting.clip)
    optimiser.step()
    return float(loss.detach())
