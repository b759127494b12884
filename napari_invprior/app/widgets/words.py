"""Times and figures as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from napari_invprior.jobs import Progress


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours when needed.

    Examples
    --------
    >>> duration(75), duration(3700)
    ('1:15', '1:01:40')
    """
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def clock(event: Progress) -> str:
    """Time used and time left of a stage."""
    used = duration(event.seconds)
    return used if event.eta is None else f"{used}, about {duration(event.eta)} left"


def figures(metrics: Mapping[str, Any]) -> str:
    """The line below Reconstruct: what the result reached.

    Examples
    --------
    >>> figures({"residual_ratio": 1.02, "weight": 0.0021, "psnr": 29.71})
    'misfit / noise 1.02 · weight 0.0021 · 29.7 dB against the truth'
    """
    parts = []
    if metrics.get("residual_ratio") is not None:
        parts.append(f"misfit / noise {metrics['residual_ratio']:.2f}")
    if metrics.get("weight") is not None:
        parts.append(f"weight {metrics['weight']:.3g}")
    if metrics.get("psnr") is not None:
        parts.append(f"{metrics['psnr']:.1f} dB against the truth")
    baselines = metrics.get("baselines") or {}
    listed = ", ".join(
        f"{name} {value:.1f}" for name, value in baselines.items() if isinstance(value, int | float)
    )
    return " · ".join(parts) + (f" ({listed})" if listed else "")
