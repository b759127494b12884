"""Which device a run uses."""

from __future__ import annotations

import contextlib

import torch

from napari_invprior.jobs import Message


def choose_device(wanted: str) -> tuple[torch.device, Message | None]:
    """The device to use, with a message where the wanted one is not there."""
    usable = {"cpu": True, "cuda": _works("cuda"), "mps": _works("mps")}
    if wanted == "auto":
        return torch.device("cuda" if usable["cuda"] else "cpu"), None
    if usable[wanted]:
        return torch.device(wanted), None
    text = f"device {wanted!r} is not usable; using the CPU"
    return torch.device("cpu"), Message(text, "warning")


def _works(device: str) -> bool:
    """Whether a small computation succeeds there (a driver may be present but broken)."""
    backend = getattr(torch, device, None) if device == "cuda" else torch.backends.mps
    if backend is None or not backend.is_available():
        return False
    with contextlib.suppress(RuntimeError):
        return bool((torch.ones(2, device=device) + 1).sum().item() == 4)
    return False
