"""Where a result comes from: versions, machine, hashes of what went in.

Examples
--------
>>> sorted(versions())
['napari-invprior', 'numpy', 'python', 'torch']
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import napari_invprior
from napari_invprior.image import Image


def versions() -> dict[str, str]:
    """Versions of Python, this package and what it computes with."""
    found = {"python": platform.python_version(), "napari-invprior": napari_invprior.__version__}
    return found | {package: _version(package) for package in ("numpy", "torch")}


@cache
def _version(package: str) -> str:
    """Of an installed package; it takes a search through all that are installed."""
    try:
        return version(package)
    except PackageNotFoundError:  # a bundled application without package metadata
        return str(getattr(sys.modules.get(package), "__version__", "unknown"))


def machine() -> dict[str, Any]:
    """What it ran on; no names of people, computers or folders."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }


def describe(image: Image) -> dict[str, Any]:
    """Name, shape, type, value range and SHA-256 of an input."""
    return {
        "name": image.name,
        "shape": list(image.array.shape),
        "dtype": image.array.dtype.name,
        "value_range": list(image.value_range),
        "sha256": image.digest(),
    }


def provenance(inputs: Mapping[str, Image] | None = None, **facts: Any) -> dict[str, Any]:
    """All that a result should carry beside its recipe.

    Parameters
    ----------
    inputs : mapping of str to Image, optional
        The inputs by their part in the run (``"observation"``, ...).
    **facts
        More, for example ``seed`` and ``device``.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
        "inputs": {part: describe(image) for part, image in (inputs or {}).items()},
        **facts,
    }
