"""Inverse problems with learned priors, in napari, in Python and on the command line."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["run", "parse"]


def __getattr__(name: str) -> Any:
    """Import the engine only when it is used: torch is large."""
    if name in __all__:
        from napari_invprior import recipes

        return getattr(recipes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
