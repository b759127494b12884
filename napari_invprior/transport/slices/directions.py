"""Directions on the unit sphere, and what one-dimensional kernels have to do with radial ones.

A radial function of ``r = |x|`` in ``R^d`` is the mean over directions ``xi`` of a function of
``|<xi, x>|``; a problem in many dimensions becomes many problems on the line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from napari_invprior.errors import InvalidInput, nearest
from napari_invprior.transport.slices.distance_optimal import MOST_AT_ONCE, distance_directions

DirectionKind = Literal["auto", "iid", "orthogonal", "sobol", "distance"]

DISTANCE_DIMENSIONS = 100
"""Above, well-spread directions gain little over orthogonal ones."""


def slice_constant(dim: int, exponent: float = 1.0) -> float:
    """``c`` with ``|x|^q = c * E |<xi, x>|^q`` for ``xi`` uniform on the sphere of ``R^dim``.

    ``c = sqrt(pi) Gamma((d + q) / 2) / (Gamma(d / 2) Gamma((q + 1) / 2))``.

    Examples
    --------
    >>> round(slice_constant(2), 6), round(slice_constant(3), 6), slice_constant(1)
    (1.570796, 2.0, 1.0)
    """
    power = math.lgamma((dim + exponent) / 2) - math.lgamma((1 + exponent) / 2)
    return math.exp(power - (math.lgamma(dim / 2) - math.lgamma(0.5)))  # exactly 1 on the line


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
        ``"sobol"``: a scrambled low-discrepancy sequence; ``"distance"``: as far apart as can be,
        turned at random (found at first use, in a second or two); ``"auto"``: the best known for
        the dimension and the count.

    Raises
    ------
    InvalidInput
        For no directions, and for unknown kinds.

    Examples
    --------
    >>> xi = directions(6, 3, torch.Generator().manual_seed(0), "orthogonal", torch.float64)
    >>> torch.allclose(xi[:3] @ xi[:3].T, torch.eye(3, dtype=torch.float64))
    True
    """
    if count < 1 or dim < 1:
        raise InvalidInput(f"{count} directions in {dim} dimensions: both must be 1 or more")
    if kind == "auto":
        # up to one basis nothing is further apart than orthogonal directions
        kind = "distance" if count > dim and dim <= DISTANCE_DIMENSIONS else "orthogonal"
    if kind not in _KINDS:
        known = ("auto", *_KINDS)
        raise InvalidInput(
            f"no directions {kind!r}{nearest(kind, known)}; choose one of {', '.join(known)}"
        )
    if dim == 1:
        return torch.ones((1, 1), dtype=dtype)
    if dim == 2 and kind != "iid":
        return _equidistant(count, generator).to(dtype)
    return _KINDS[kind](count, dim, generator).to(dtype)


def _equidistant(count: int, generator: torch.Generator) -> Tensor:
    """Angles over half a turn: opposite directions see the same."""
    start = torch.rand(1, generator=generator, dtype=torch.float64)
    angles = (torch.arange(count, dtype=torch.float64) + start) * (math.pi / count)
    return torch.stack([angles.cos(), angles.sin()], 1)


def _iid(count: int, dim: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn((count, dim), generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(normal, dim=1)


def _orthogonal(count: int, dim: int, generator: torch.Generator) -> Tensor:
    return _rotations(-(-count // dim), dim, generator).mT.reshape(-1, dim)[:count]


def _sobol(count: int, dim: int, generator: torch.Generator) -> Tensor:
    from scipy.stats import qmc  # takes half a second to import

    seed = int(torch.randint(2**31, (1,), generator=generator))
    sequence = qmc.Sobol(dim, seed=np.random.default_rng(seed))
    uniform = sequence.random_base2(math.ceil(math.log2(count)))[:count]
    normal = torch.from_numpy(ndtri(uniform.clip(1e-9, 1 - 1e-9)))
    return torch.nn.functional.normalize(normal, dim=1)


def _distance(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Sets of at most `MOST_AT_ONCE`, each turned on its own."""
    sizes = [len(part) for part in torch.arange(count).split(MOST_AT_ONCE)]
    turns = _rotations(len(sizes), dim, generator)
    return torch.cat(
        [distance_directions(n, dim) @ turn for n, turn in zip(sizes, turns, strict=True)]
    )


def _rotations(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Orthogonal matrices (count, dim, dim), uniform over all of them."""
    normal = torch.randn((count, dim, dim), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    return q * r.diagonal(dim1=1, dim2=2).sign()[:, None]


_KINDS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "iid": _iid, "orthogonal": _orthogonal, "sobol": _sobol, "distance": _distance,
}
