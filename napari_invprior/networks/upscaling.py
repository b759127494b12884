"""Networks that turn data into a finer image, in 2D and 3D, with any whole factor per axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pixel_shuffle(x: Tensor, factor: Sequence[int]) -> Tensor:
    """Spread channels over finer samples: (B, C prod(factor), *n) to (B, C, *(n factor)).

    Examples
    --------
    >>> pixel_shuffle(torch.arange(4.0).view(1, 4, 1, 1), (2, 2)).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    ndim = len(factor)
    space = x.shape[2:]
    x = x.reshape(x.shape[0], -1, *factor, *space)
    order = [0, 1]
    for axis in range(ndim):
        order += [2 + ndim + axis, 2 + axis]
    sizes = [n * f for n, f in zip(space, factor, strict=True)]
    return x.permute(order).reshape(x.shape[0], -1, *sizes)


def pixel_unshuffle(x: Tensor, factor: Sequence[int]) -> Tensor:
    """The inverse of `pixel_shuffle`: (B, C, *(n factor)) to (B, C prod(factor), *n).

    Examples
    --------
    >>> x = torch.arange(8.0).view(1, 1, 2, 4)
    >>> bool((pixel_shuffle(pixel_unshuffle(x, (2, 2)), (2, 2)) == x).all())
    True
    """
    ndim = len(factor)
    space = [n // f for n, f in zip(x.shape[2:], factor, strict=True)]
    split = [size for pair in zip(space, factor, strict=True) for size in pair]
    x = x.reshape(*x.shape[:2], *split)
    order = [0, 1, *(3 + 2 * axis for axis in range(ndim)), *(2 + 2 * axis for axis in range(ndim))]
    return x.permute(order).reshape(x.shape[0], -1, *space)


def prime_stages(factor: Sequence[int]) -> list[tuple[int, ...]]:
    """A factor as small steps: the largest prime of each axis first.

    Examples
    --------
    >>> prime_stages((6, 6)), prime_stages((1, 4, 4))
    ([(3, 3), (2, 2)], [(1, 2, 2), (1, 2, 2)])
    """
    left = [_primes(f) for f in factor]
    count = max((len(p) for p in left), default=0)
    return [tuple(p[k] if k < len(p) else 1 for p in left) for k in range(count)]


def _primes(number: int) -> list[int]:
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found[::-1]


def convolution_of(ndim: int) -> Any:
    """The convolution layer for images of 2 or 3 axes."""
    return nn.Conv2d if ndim == 2 else nn.Conv3d


class ResidualUpscaler(nn.Module):
    """Convolutions on the data grid, one pixel shuffle, and a given first image added.

    The last layer starts at zero, so that an untrained network returns the first image.

    Parameters
    ----------
    factor : sequence of int
        Fine samples per coarse sample, one per axis.
    width, depth : int
        Feature maps and layers.

    Examples
    --------
    >>> net = ResidualUpscaler((4, 4), width=8, depth=4)
    >>> first = torch.rand(1, 1, 20, 24)
    >>> bool((net(torch.rand(1, 1, 5, 6), first) == first).all())
    True
    """

    def __init__(self, factor: Sequence[int], *, width: int = 48, depth: int = 6) -> None:
        super().__init__()
        self.factor = tuple(factor)
        convolution = convolution_of(len(factor))
        sizes = [1] + [width] * (depth - 1) + [math.prod(factor)]
        self.layers = nn.ModuleList(
            convolution(a, b, 3, padding=1, padding_mode="replicate")
            for a, b in itertools.pairwise(sizes)
        )
        last: Any = self.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, y: Tensor, first: Tensor) -> Tensor:
        """The image (B, 1, *fine) of data (B, 1, *coarse) and a first image."""
        x = y
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return first + pixel_shuffle(self.layers[-1](x), self.factor)


class AsymmetricUpscaler(nn.Module):
    """The papers' network: asymmetric blocks, their sum, and two shared up-sampling branches.

    Block: 1 x 3, 3 x 1 and 3 x 3 convolutions (in 3D one line per axis and a cube) summed, ReLU.
    The sum of all blocks and the first block alone pass the same up-sampler and two convolutions
    each; their sum passes three more. There is no first image to add to.

    Parameters
    ----------
    factor : sequence of int
        Fine samples per coarse sample, one per axis.
    width, blocks : int
        Feature maps and asymmetric blocks.

    Examples
    --------
    >>> net = AsymmetricUpscaler((2, 2), width=4, blocks=2)
    >>> net(torch.rand(1, 1, 5, 6), torch.rand(1, 1, 10, 12)).shape
    torch.Size([1, 1, 10, 12])
    """

    def __init__(self, factor: Sequence[int], *, width: int = 64, blocks: int = 10) -> None:
        super().__init__()
        ndim = len(factor)
        convolution = convolution_of(ndim)

        def plain(inputs: int, outputs: int) -> nn.Module:
            return convolution(inputs, outputs, 3, padding=1)  # type: ignore[no-any-return]

        shapes = [tuple(3 if a == b else 1 for b in range(ndim)) for a in range(ndim)]
        shapes.append((3,) * ndim)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                convolution(
                    1 if k == 0 else width, width, shape,
                    padding=tuple(s // 2 for s in shape), bias=False,
                )
                for shape in shapes
            )
            for k in range(blocks)
        )
        self.stages = prime_stages(factor)
        self.expand = nn.ModuleList(
            plain(width, width * math.prod(stage)) for stage in self.stages
        )
        self.main = nn.ModuleList([plain(width, width), plain(width, width)])
        self.side = nn.ModuleList([plain(width, width), plain(width, width)])
        self.tail = nn.ModuleList([plain(width, width), plain(width, width), plain(width, 1)])

    def forward(self, y: Tensor, first: Tensor) -> Tensor:
        """The image (B, 1, *fine) of data (B, 1, *coarse); ``first`` is not used."""
        x, outputs = y, []
        for block in self.blocks:
            parts: Any = block
            x = F.relu(sum(line(x) for line in parts))
            outputs.append(x)
        main = self._branch(F.relu(torch.stack(outputs).sum(0)), self.main)
        x = main + self._branch(outputs[0], self.side)
        for layer in self.tail[:-1]:
            x = F.relu(layer(x))
        return self.tail[-1](x)  # type: ignore[no-any-return]

    def _branch(self, x: Tensor, layers: nn.ModuleList) -> Tensor:
        for layer, stage in zip(self.expand, self.stages, strict=True):
            x = pixel_shuffle(layer(x), stage)
        x = F.relu(x)
        return layers[1](F.relu(layers[0](x)))  # type: ignore[no-any-return]
