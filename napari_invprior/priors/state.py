"""Checks of the numbers that a saved prior holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from napari_invprior.errors import InvalidInput

LARGEST_EDGE = 64


def check_entry(
    state: Mapping[str, Tensor], name: str, shape: tuple[int, ...], where: str
) -> None:
    """Refuse an entry of a state that is missing, of the wrong shape or type, or not finite."""
    if name not in state:
        raise InvalidInput(f"{where}: {name!r} is missing (given: {', '.join(state) or 'nothing'})")
    entry = state[name]
    if tuple(entry.shape) != shape or 0 in shape:
        raise InvalidInput(f"{where}: {name!r} has shape {tuple(entry.shape)}, expected {shape}")
    if not entry.dtype.is_floating_point:
        raise InvalidInput(f"{where}: {name!r} has type {entry.dtype}, expected a float type")
    if not bool(torch.isfinite(entry).all()):
        raise InvalidInput(f"{where}: {name!r} holds NaN or infinite values")


def check_network(
    state: Mapping[str, Tensor], prefix: str, make: Callable[[], nn.Module], where: str
) -> None:
    """Refuse weights that do not fit the network that the parameters describe.

    Parameters of a few bytes can describe a network of gigabytes: it is made without memory here,
    and only once all weights fit it, it is really made.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        described = make()
    for name, held in described.state_dict().items():
        check_entry(state, f"{prefix}{name}", tuple(held.shape), where)


def check_positive(state: Mapping[str, Tensor], names: Sequence[str], where: str) -> None:
    """Refuse entries that hold values of 0 or less."""
    for name in names:
        if float(state[name].min()) <= 0:
            raise InvalidInput(f"{where}: {name!r} holds values of 0 or less")


def check_orthonormal(state: Mapping[str, Tensor], name: str, where: str) -> None:
    """Refuse matrices whose columns are not orthonormal."""
    if state[name].shape[-1] > state[name].shape[-2]:
        raise InvalidInput(
            f"{where}: {name!r} has shape {tuple(state[name].shape)}; no more columns than rows "
            "can be orthonormal"
        )
    vectors = state[name].double()
    eye = torch.eye(vectors.shape[-1], dtype=torch.float64, device=vectors.device)
    if float((vectors.mT @ vectors - eye).abs().max()) > 1e-4:
        raise InvalidInput(f"{where}: {name!r} are not orthonormal")


def geometry_of(
    state: Mapping[str, Tensor], ndim: int, asked: tuple[int, ...] | None, where: str
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Patch edges and magnification (None for none) in the entry ``geometry``, (2, ndim).

    Parameters
    ----------
    asked : tuple of int or None
        Patch edges that the parameters fix.
    """
    if "geometry" not in state:
        raise InvalidInput(f"{where}: 'geometry' is missing")
    entry = state["geometry"]
    if tuple(entry.shape) != (2, ndim) or entry.dtype.is_floating_point:
        raise InvalidInput(
            f"{where}: 'geometry' has shape {tuple(entry.shape)} and type {entry.dtype}, expected "
            f"whole numbers of shape {(2, ndim)}"
        )
    patch, factor = (tuple(row) for row in entry.tolist())
    alone = not any(factor)
    fits = min(patch) >= 1 and max(patch) <= LARGEST_EDGE and (
        alone or (min(factor) > 0 and not any(p % f for p, f in zip(patch, factor, strict=True)))
    )
    if not fits:
        raise InvalidInput(f"{where}: 'geometry' {entry.tolist()} is no patch and magnification")
    if asked is not None and patch != asked:
        raise InvalidInput(
            f"{where}: 'geometry' has patches of {patch} px, the parameters {asked}"
        )
    return patch, None if alone else factor
