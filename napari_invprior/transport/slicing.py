"""Directions on the unit sphere, and what one-dimensional kernels have to do with radial ones.

A radial function of ``r = |x|`` in ``R^d`` is the mean over directions ``xi`` of a function of
``|<xi, x>|``; a problem in many dimensions becomes many problems on the line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

DirectionKind = Literal["auto", "iid", "orthogonal"]


def slice_constant(dim: int, exponent: float = 1.0) -> float:
    """``c`` with ``|x|^q = c * E |<xi, x>|^q`` for ``xi`` uniform on the sphere of ``R^dim``.

    ``c = sqrt(pi) Gamma((d + q) / 2) / (Gamma(d / 2) Gamma((q + 1) / 2))``.

    Examples
    --------
    >>> round(slice_constant(2), 6), slice_constant(3), slice_constant(1)
    (1.570796, 2.0, 1.0)
    """
    d, q = dim, exponent
    return math.exp(
        math.lgamma((d + q) / 2) - math.lgamma(d / 2) - math.lgamma((q + 1) / 2)
    ) * math.sqrt(math.pi)


def directions(
    count: int,
    dim: int,
    generator: torch.Generator,
    kind: DirectionKind = "auto",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Unit vectors as rows, each uniform on the sphere: (count, dim), on the CPU.

    On the line there is one direction, in the plane they are equidistant angles at a random
    start, whatever ``count`` or ``kind`` (but ``iid``) say.

    Parameters
    ----------
    count : int
        Number of directions.
    generator : torch.Generator
        Source of randomness (CPU).
    kind : str
        ``"iid"``: independent; ``"orthogonal"``: random orthonormal bases, one after the other;
        ``"auto"``: the best known for the dimension.

    Examples
    --------
    >>> xi = directions(6, 3, torch.Generator().manual_seed(0), "orthogonal", torch.float64)
    >>> torch.allclose(xi[:3] @ xi[:3].T, torch.eye(3, dtype=torch.float64))
    True
    """
    if dim == 1:
        return torch.ones((1, 1), dtype=dtype)
    if dim == 2 and kind != "iid":
        return _equidistant(count, generator).to(dtype)
    draw = _KINDS["orthogonal" if kind == "auto" else kind]
    return draw(count, dim, generator).to(dtype)


def _equidistant(count: int, generator: torch.Generator) -> Tensor:
    """Angles over half a turn: opposite directions see the same."""
    start = torch.rand(1, generator=generator, dtype=torch.float64)
    angles = (torch.arange(count, dtype=torch.float64) + start) * (math.pi / count)
    return torch.stack([angles.cos(), angles.sin()], 1)


def _iid(count: int, dim: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn((count, dim), generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(normal, dim=1)


def _orthogonal(count: int, dim: int, generator: torch.Generator) -> Tensor:
    blocks = -(-count // dim)
    normal = torch.randn((blocks, dim, dim), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]  # uniform over all rotations
    return q.mT.reshape(-1, dim)[:count]


_KINDS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "iid": _iid, "orthogonal": _orthogonal,
}
