"""A UNet for images of 2 and 3 axes and of any size.

It starts at zero: an untrained network changes nothing where its output is added to something.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_invprior.networks.upscaling import convolution_of

GROUPS = 8
"""Groups of channels that are normalised together, at most."""


@dataclass(frozen=True)
class UNetSize:
    """Widths and depths of a `UNet`.

    Attributes
    ----------
    base : int
        Channels of the finest level.
    multipliers : tuple of int
        Channels of each level, in units of ``base``; each level is half as fine as the last.
    blocks : int
        Residual blocks per level.
    normalised : bool
        Whether features are normalised over the whole image. Without it, what a network does at
        one place depends on what lies around it alone, and small images teach it about large ones.
    """

    base: int
    multipliers: tuple[int, ...]
    blocks: int
    normalised: bool = True


PAPER = UNetSize(32, (1, 2, 4), 2)
SMALL = UNetSize(16, (1, 2), 1)


class UNet(nn.Module):
    """Residual blocks at several scales with connections between equal ones.

    Group norm (if any) and SiLU, the last convolution starts at zero. An image whose edges are no
    multiple of the coarsest scale is continued by its border, and the result is cropped.

    Parameters
    ----------
    ndim : int
        Space axes, 2 or 3.
    inputs, outputs : int
        Channels; more inputs than outputs where a condition comes along.
    size : UNetSize
        `PAPER`, `SMALL` or another.

    Examples
    --------
    >>> net = UNet(2, inputs=2, outputs=1, size=UNetSize(8, (1, 2), 1))
    >>> bool((net(torch.rand(3, 2, 5, 7)) == torch.zeros(3, 1, 5, 7)).all())
    True
    """

    def __init__(self, ndim: int, inputs: int, outputs: int, size: UNetSize = PAPER) -> None:
        super().__init__()
        conv, self.ndim = convolution_of(ndim), ndim
        norm = _norm if size.normalised else nn.Identity
        widths = [size.base * m for m in size.multipliers]
        self.multiple = 2 ** (len(widths) - 1)
        self.first = conv(inputs, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept, now = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            for _ in range(size.blocks):
                self.down.append(_Residual(ndim, now, width, norm))
                now = width
                kept.append(now)
            if level < len(widths) - 1:
                self.down.append(conv(now, now, 3, stride=2, padding=1))
                kept.append(now)
        self.middle = nn.Sequential(
            _Residual(ndim, now, now, norm), _Residual(ndim, now, now, norm)
        )
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(size.blocks + 1):
                self.up.append(_Residual(ndim, now + kept.pop(), width, norm))
                now = width
            if level > 0:
                finer = nn.Sequential(nn.Upsample(scale_factor=2), conv(now, now, 3, padding=1))
                self.up.append(finer)
        self.last = nn.Sequential(norm(now), nn.SiLU(), conv(now, outputs, 3, padding=1))
        for parameter in self.last[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, outputs, *space) of images (B, inputs, *space)."""
        space = x.shape[2:]
        missing = [-n % self.multiple for n in space]
        if any(missing):
            x = F.pad(x, [e for m in reversed(missing) for e in (0, m)], mode="replicate")
        x = self.first(x)
        kept = [x]
        for layer in self.down:
            x = layer(x)
            kept.append(x)
        x = self.middle(x)
        for layer in self.up:
            x = layer(torch.cat([x, kept.pop()], 1) if isinstance(layer, _Residual) else x)
        return self.last(x)[(..., *(slice(n) for n in space))]  # type: ignore[no-any-return]


class _Residual(nn.Module):
    """Two convolutions, normalised or not, and the input added."""

    def __init__(
        self, ndim: int, inputs: int, outputs: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        conv = convolution_of(ndim)
        self.inner = nn.Sequential(
            norm(inputs), nn.SiLU(), conv(inputs, outputs, 3, padding=1),
            norm(outputs), nn.SiLU(), conv(outputs, outputs, 3, padding=1),
        )
        self.around = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.around(x) + self.inner(x)  # type: ignore[no-any-return]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
