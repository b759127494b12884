"""Integration of many points at once, each with a step of its own.

The error of a step is kept below ``atol + rtol |z|`` for each point; a point whose step fails tries
again with a shorter one while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from napari_invprior.errors import JobError

CAUTION, SHRINK, GROW = 0.9, 0.2, 5.0
FIRST_STEP = 0.15
MOST_STEPS = 20_000


class Attempt(NamedTuple):
    """One step of every point, good or not.

    Attributes
    ----------
    end, slope : Tensor
        (d, N), where it leads, and what the next step begins with: the slope there.
    error : Tensor
        (N,), in units of what is allowed; the step counts where it is at most 1.
    found : object
        What the field found at the end.
    """

    end: Tensor
    slope: Tensor
    error: Tensor
    found: Any = None


Method = Callable[[Tensor, Tensor, Tensor, Tensor], Attempt]
"""A step from points (d, N) at times (N,), of lengths (N,), with slopes (d, N) known there."""


def first_step(points: Tensor) -> Tensor:
    """A cautious first step for points (d, N) whose slope is of order one."""
    return FIRST_STEP / (1 + torch.linalg.vector_norm(points, dim=0))


def allowance(begin: Tensor, end: Tensor, rtol: float, atol: float) -> Tensor:
    """The error that a step from ``begin`` to ``end`` (d, N) may make."""
    return torch.maximum(begin.abs(), end.abs()).mul_(rtol).add_(atol)


def relative(error: Tensor, allowed: Tensor) -> Tensor:
    """Root mean square (N,) of an error over what is allowed; infinite for what is no number."""
    return error.div_(allowed).square_().mean(0).sqrt_().nan_to_num_(torch.inf)


def resized(step: Tensor, error: Tensor, order: int) -> Tensor:
    """The steps that the errors (N,) of the last ones, growing as step^order, ask for."""
    return step * (CAUTION * error.clamp_min(1e-12) ** (-1 / order)).clamp_(SHRINK, GROW)


def integrate(
    method: Method, order: int, z: Tensor, slope: Tensor, start: Tensor, stop: Tensor
) -> Tensor:
    """Carry points (d, N) from times ``start`` (N,) to ``stop`` (N,), all forward or all back.

    Parameters
    ----------
    order : int
        The error that the method estimates grows as this power of the step.
    slope : Tensor
        (d, N), at the start.

    Raises
    ------
    JobError
        If a point needs far too many steps.
    """
    result, place = z.clone(), torch.nonzero(start != stop)[:, 0]
    if len(place) == 0:
        return result
    z, slope, s, stop = z[:, place], slope[:, place], start[place].clone(), stop[place]
    way = float((stop - s)[0].sign())
    length = first_step(z)
    for _ in range(MOST_STEPS):
        left = (stop - s) * way
        step = way * torch.minimum(length, left)
        tried = method(z, s, step, slope)
        good = tried.error <= 1
        arrived = good & (length >= left)
        z, slope = torch.where(good, tried.end, z), torch.where(good, tried.slope, slope)
        s = torch.where(good, s + step, s)
        length = resized(step.abs(), tried.error, order)
        if bool(arrived.any()):
            result[:, place[arrived]] = z[:, arrived]
            on = torch.nonzero(~arrived)[:, 0]
            if len(on) == 0:
                return result
            z, slope, place = z[:, on], slope[:, on], place[on]
            s, stop, length = s[on], stop[on], length[on]
    raise JobError(
        f"{len(place)} points did not arrive after {MOST_STEPS} steps: atoms may be too close to "
        "each other; merge those that are nearly one"
    )
