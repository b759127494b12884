"""Invertible layers for images in 2D and 3D: couplings, injectors, scales, permutations, squeezes.

Every layer maps latent to data by ``forward(x, condition)`` and back by ``inverse(x, condition)``;
both give the image (B, C, *space) and ``log|det|`` of their own Jacobian, (B,).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_invprior.networks.coupling import SLOPE
from napari_invprior.networks.upscaling import convolution_of, pixel_shuffle, pixel_unshuffle

Mapped = tuple[Tensor, Tensor]


def per_image(x: Tensor) -> Tensor:
    """Sum over all but the first axis."""
    return x.flatten(1).sum(1)


class Invertible(nn.Module):
    """A layer that can be undone, with the logarithm of its determinant."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Latent to data."""
        raise NotImplementedError

    def inverse(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Data to latent."""
        raise NotImplementedError


class SubNet(nn.Module):
    """Convolution, ReLU, convolution; the last layer starts at zero.

    Parameters
    ----------
    ndim : int
        Space axes.
    inputs, hidden, outputs : int
        Channels.
    kernel : int
        Edge of both kernels, odd.
    """

    def __init__(self, ndim: int, inputs: int, hidden: int, outputs: int, kernel: int) -> None:
        super().__init__()
        options = {"padding": kernel // 2, "padding_mode": "replicate"} if kernel > 1 else {}
        layer = convolution_of(ndim)
        self.first = layer(inputs, hidden, kernel, **options)
        self.last = layer(hidden, outputs, kernel, **options)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *space) to (B, outputs, *space)."""
        return self.last(F.relu(self.first(x)))  # type: ignore[no-any-return]


def scale_and_shift(net: nn.Module, read: Tensor, clamp: float) -> tuple[Tensor, Tensor]:
    """Log-scale, softly held within ``+-clamp``, and shift that a sub-net asks for."""
    raw, shift = net(read).chunk(2, dim=1)
    return clamp * SLOPE * torch.atan(raw / clamp), shift


class Coupling(Invertible):
    """GLOW coupling: each half of the channels is scaled and shifted by what the other says.

    Latent to data: ``y1 = exp(s2(x2)) x1 + t2(x2); y2 = exp(s1(y1)) x2 + t1(y1)``. An odd number of
    channels splits unevenly.

    Parameters
    ----------
    ndim, channels, condition : int
        Space axes; channels of the image, at least 2, and of the condition (0 for none).
    hidden, kernel : int
        Width and kernel edge of the sub-nets.
    clamp : float
        Largest log-scale.
    """

    def __init__(
        self, ndim: int, channels: int, condition: int, hidden: int, kernel: int, clamp: float
    ) -> None:
        super().__init__()
        self.sizes, self.clamp = (channels // 2, channels - channels // 2), clamp
        low, high = self.sizes
        self.net1 = SubNet(ndim, high + condition, hidden, 2 * low, kernel)
        self.net2 = SubNet(ndim, low + condition, hidden, 2 * high, kernel)

    def _affine(self, net: nn.Module, read: Tensor, condition: Tensor | None) -> Mapped:
        read = read if condition is None else torch.cat((read, condition), 1)
        return scale_and_shift(net, read, self.clamp)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        x1, x2 = x.split(self.sizes, 1)
        s2, t2 = self._affine(self.net1, x2, condition)
        y1 = s2.exp() * x1 + t2
        s1, t1 = self._affine(self.net2, y1, condition)
        return torch.cat((y1, s1.exp() * x2 + t1), 1), per_image(s2) + per_image(s1)

    def inverse(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        y1, y2 = x.split(self.sizes, 1)
        s1, t1 = self._affine(self.net2, y1, condition)
        x2 = (y2 - t1) * (-s1).exp()
        s2, t2 = self._affine(self.net1, x2, condition)
        return torch.cat(((y1 - t2) * (-s2).exp(), x2), 1), -per_image(s2) - per_image(s1)


class Injector(Invertible):
    """Conditional affine: scale and shift of all channels that depend on the condition alone.

    Parameters
    ----------
    ndim, channels, condition, hidden, kernel, clamp
        As for `Coupling`.
    """

    def __init__(
        self, ndim: int, channels: int, condition: int, hidden: int, kernel: int, clamp: float
    ) -> None:
        super().__init__()
        self.clamp = clamp
        self.net = SubNet(ndim, condition, hidden, 2 * channels, kernel)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        assert condition is not None
        s, t = scale_and_shift(self.net, condition, self.clamp)
        return s.exp() * x + t, per_image(s)

    def inverse(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        assert condition is not None
        s, t = scale_and_shift(self.net, condition, self.clamp)
        return (x - t) * (-s).exp(), -per_image(s)


class ActNorm(Invertible):
    """A learnt scale and shift per channel, the identity at first.

    Data-dependent initialisation would normalise the first batch; a flow of zero-initialised layers
    hands the standard normal latent through, which is normalised already.
    """

    def __init__(self, ndim: int, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(1, channels, *(1,) * ndim))
        self.shift = nn.Parameter(torch.zeros(1, channels, *(1,) * ndim))

    def _log_det(self, x: Tensor) -> Tensor:
        return (self.log_scale.sum() * x[0, 0].numel()).expand(x.shape[0])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        return self.log_scale.exp() * x + self.shift, self._log_det(x)

    def inverse(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        return (x - self.shift) * (-self.log_scale).exp(), -self._log_det(x)


class Permutation(Invertible):
    """A fixed order of the channels, random but the same for every ``seed`` and so no state."""

    order: Tensor

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        # RandomState is frozen by NumPy's policy: saved flows keep their permutations
        order = np.random.RandomState(seed).permutation(channels)
        self.register_buffer("order", torch.from_numpy(order), persistent=False)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        return x[:, self.order], x.new_zeros(x.shape[0])

    def inverse(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        return x[:, self.order.argsort()], x.new_zeros(x.shape[0])


class Squeeze(Invertible):
    """Neighbouring samples become channels (or, ``undo``, the other way round)."""

    def __init__(self, factor: Sequence[int], *, undo: bool = False) -> None:
        super().__init__()
        self.factor, self.undo = tuple(factor), undo

    def _move(self, x: Tensor, undo: bool) -> Mapped:
        work: Any = pixel_shuffle if undo else pixel_unshuffle
        return work(x, self.factor), x.new_zeros(x.shape[0])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        return self._move(x, self.undo)

    def inverse(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        return self._move(x, not self.undo)
