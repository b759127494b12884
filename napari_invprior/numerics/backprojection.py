"""Filtered back-projection of parallel and fan-beam sinograms."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from napari_invprior.numerics.rays import Scan

Filter = Literal["hann", "shepp-logan", "ram-lak"]

GAP = 2.0
"""An angle counts for at most so many median steps: a missing wedge is not filled by its rim."""


def ramp_filter(size: int, spacing: float, kind: Filter, cutoff: float) -> Tensor:
    """Transfer function of the ramp for real FFTs of ``size`` samples.

    The band-limited ramp is sampled in space, so that its mean is right, then damped.

    Examples
    --------
    >>> ramp = ramp_filter(64, 1.0, "ram-lak", 1.0)
    >>> 0 < float(ramp[0]) < 0.02, round(float(ramp[32]), 2)
    (True, 0.5)
    """
    lag = torch.arange(size, dtype=torch.float64)
    lag = torch.minimum(lag, size - lag)
    kernel = torch.zeros(size, dtype=torch.float64)
    kernel[0] = 1 / (4 * spacing**2)
    odd = lag % 2 == 1
    kernel[odd] = -1 / (math.pi * lag[odd] * spacing) ** 2
    ramp = torch.fft.rfft(kernel).real * spacing
    share = torch.linspace(0, 1, len(ramp), dtype=torch.float64) / cutoff
    if kind == "hann":
        ramp *= 0.5 + 0.5 * torch.cos(math.pi * share)
    elif kind == "shepp-logan":
        ramp *= torch.sinc(share / 2)
    return ramp * (share <= 1)


def filtered(y: Tensor, spacing: float, kind: Filter, cutoff: float, beyond: int) -> Tensor:
    """The rows of (n, angles, bins) through the ramp, with ``beyond`` samples on both sides.

    Beyond the detector a row fades out from its last value: where the object is wider than the
    detector, zeros would make a bright rim.
    """
    fade = 0.5 + 0.5 * torch.cos(math.pi * torch.linspace(0, 1, beyond, dtype=y.dtype))
    fade = fade.to(y.device)
    padded = torch.cat([y[..., :1] * fade.flip(0), y, y[..., -1:] * fade], -1)
    length = padded.shape[-1]
    size = 2 ** math.ceil(math.log2(2 * length))
    ramp = ramp_filter(size, spacing, kind, cutoff).to(y)
    return torch.fft.irfft(torch.fft.rfft(padded, n=size) * ramp, n=size)[..., :length]


def angular_weights(angles: tuple[float, ...], period: float) -> np.ndarray:
    """Share of the circle of length ``period`` that each angle stands for, in radians.

    Examples
    --------
    >>> (angular_weights((0.0, math.pi / 2), math.pi) / math.pi).tolist()
    [0.5, 0.5]
    """
    if len(angles) == 1:
        return np.array([period])
    turn = np.mod(np.asarray(angles, float), period)
    order = np.argsort(turn, kind="stable")
    steps = np.diff(np.append(turn[order], turn[order[0]] + period))
    steps = np.minimum(steps, GAP * np.median(steps[steps > 1e-9]))
    weights = np.empty(len(angles))
    weights[order] = (steps + np.roll(steps, 1)) / 2
    return weights


def redundancy(scan: Scan) -> np.ndarray:
    """Weight of each ray (angles, bins) of a fan: lines that are measured twice count half.

    Parker's weights, with Silver's wider transition, for more than half a turn; below that every
    line is measured about once.
    """
    assert scan.source is not None
    angles = np.asarray(scan.angles, float)
    covered = float(np.ptp(angles)) * len(angles) / max(len(angles) - 1, 1)
    gamma = np.arctan(scan.coordinates() / scan.source)
    shape = (len(angles), scan.bins)
    if covered >= 2 * math.pi - 1e-3:
        return np.full(shape, 0.5)
    spread = (covered - math.pi) / 2
    if spread < scan.fan_angle():
        return np.ones(shape)
    # Ray (b, g) is met again at (b + pi + 2 g, -g).
    beta = angles[:, None] - angles.min()
    rise, fall = 2 * (spread - gamma)[None], 2 * (spread + gamma)[None]
    up = np.sin(math.pi / 2 * np.clip(beta / np.maximum(rise, 1e-9), 0, 1)) ** 2
    down = np.sin(math.pi / 2 * np.clip((covered - beta) / np.maximum(fall, 1e-9), 0, 1)) ** 2
    return up * down


def back_projection(
    y: Tensor,
    scan: Scan,
    shape: tuple[int, int],
    kind: Filter = "hann",
    cutoff: float = 1.0,
) -> Tensor:
    """Images (n, H, W) of data (n, angles, bins) that are line integrals in pixels.

    Parameters
    ----------
    kind : {"hann", "shepp-logan", "ram-lak"}
        How the ramp is damped.
    cutoff : float
        Share of the detector's band that passes.

    Examples
    --------
    >>> scan = Scan(tuple(np.arange(90) * math.pi / 90), bins=41)
    >>> y = torch.from_numpy(2 * np.sqrt(np.clip(10.0**2 - scan.coordinates() ** 2, 0, None)))
    >>> disc = back_projection(y.expand(1, 90, 41), scan, (41, 41))
    >>> round(float(disc[0, 20, 20]), 1)
    1.0
    """
    weights = angular_weights(scan.angles, 2 * math.pi if scan.is_fan else math.pi)
    if scan.source is not None:
        u = torch.from_numpy(scan.coordinates()).to(y)
        rays = torch.from_numpy(redundancy(scan)).to(y)
        y = y * rays * scan.source / torch.hypot(u, torch.full_like(u, scan.source))
    else:
        weights *= math.pi / weights.sum()  # limited angles are scaled, not completed
    beyond = scan.bins // 4 + 2  # the corners of a square that the detector just covers
    rows = filtered(y, scan.axis_spacing, kind, cutoff, beyond)
    height, width = shape
    down = (torch.arange(height, device=y.device, dtype=y.dtype) - (height - 1) / 2)[:, None]
    across = (torch.arange(width, device=y.device, dtype=y.dtype) - (width - 1) / 2)[None]
    image = y.new_zeros((len(y), height * width))
    middle = (scan.bins - 1) / 2 + scan.centre + beyond
    last = rows.shape[-1] - 1
    for number, (angle, weight) in enumerate(zip(scan.angles, weights, strict=True)):
        sine, cosine = math.sin(angle), math.cos(angle)
        position = across * cosine - down * sine
        if scan.source is not None:
            nearness = scan.source / (scan.source + across * sine + down * cosine)
            position = position * nearness
            weight = weight * nearness**2
        place = (position / scan.axis_spacing + middle).clamp(0, last).flatten()
        low = place.long().clamp_max(last - 1)
        line = rows[:, number]
        value = torch.lerp(line[:, low], line[:, low + 1], place - low)
        image += value * (weight.flatten() if isinstance(weight, Tensor) else float(weight))
    return image.view(-1, height, width)
