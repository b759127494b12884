"""Checks of the numbers that a saved prior holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput


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
