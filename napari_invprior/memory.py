"""Asking for memory before it is taken: what does not fit is refused, not tried."""

from __future__ import annotations

import psutil

from napari_invprior.errors import OutOfMemory


def free_bytes() -> int:
    """Bytes that this machine can still hand out."""
    return int(psutil.virtual_memory().available)


def require(needed: float, what: str, advice: str, free: int | None = None) -> None:
    """Refuse work that needs more memory than there is.

    Parameters
    ----------
    needed : float
        Bytes that the work takes.
    what, advice : str
        What needs them, and what to change.
    free : int, optional
        Bytes that may be used; `free_bytes` by default.

    Raises
    ------
    OutOfMemory
        With both numbers and the advice.

    Examples
    --------
    >>> require(1e6, "a small image", "crop it", free=2_000_000)
    >>> require(3e9, "an image of 27000 x 27000 px", "crop it", free=2_000_000_000)
    Traceback (most recent call last):
    napari_invprior.errors.OutOfMemory: an image of 27000 x 27000 px needs 3 GB of memory; 2 GB \
are free: crop it
    """
    free = free_bytes() if free is None else free
    if needed > free:
        raise OutOfMemory(
            f"{what} needs {needed / 1e9:.3g} GB of memory; {free / 1e9:.3g} GB are free: {advice}"
        )
