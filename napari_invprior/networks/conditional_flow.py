"""A conditional normalizing flow for whole images, fully convolutional, as in WPPFlow (2201.08157).

Built like SRFlow: white noise of the image's size is squeezed to the data grid, where most of the
work is done, and un-squeezed level by level; the data condition every step. It flows around a given
first image, so that an untrained flow already draws plausible images.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_invprior.errors import InvalidInput
from napari_invprior.networks.invertible import (
    ActNorm,
    Coupling,
    Injector,
    Invertible,
    Mapped,
    Permutation,
    Squeeze,
    per_image,
)
from napari_invprior.networks.upscaling import (
    ResidualUpscaler,
    convolution_of,
    pixel_shuffle,
    pixel_unshuffle,
    prime_stages,
)

OUTER_CLAMP, STEP_CLAMP = 1.5, 1.2
"""Largest log-scales of the paper's couplings: while squeezing, and of the conditional steps."""


@dataclass(frozen=True)
class FlowSize:
    """How large a flow is.

    Attributes
    ----------
    steps : tuple of int
        Conditional steps per level, from the data grid up; the last number holds for the rest.
    hidden : tuple of int
        Channels inside the sub-nets per level, likewise.
    mixing : int
        Couplings after each squeeze.
    features : int
        Channels of the network that prepares the data as a condition; 0 gives the data and the
        first image as they are, as in the paper.
    depth : int
        Convolutions of that network.
    centre : tuple of int, optional
        Width and depth of a `ResidualUpscaler` that moves the first image; None, as in the paper,
        leaves that to the conditional affine alone.
    """

    steps: tuple[int, ...]
    hidden: tuple[int, ...]
    mixing: int
    features: int = 0
    depth: int = 3
    centre: tuple[int, int] | None = None


SMALL = FlowSize(steps=(4, 2), hidden=(32, 16), mixing=1, features=32, centre=(48, 6))
PAPER = FlowSize(steps=(16,), hidden=(128,), mixing=2)


class Condition(NamedTuple):
    """What a flow is told.

    Attributes
    ----------
    y : Tensor
        Data (B, 1, *coarse).
    first : Tensor
        First image (B, 1, *fine), in register with the data.
    """

    y: Tensor
    first: Tensor


class Features(nn.Module):
    """Conditions per level, coarse to fine, learnt from data and first image.

    Convolutions at the data grid, then one convolution and a pixel shuffle per level. The features
    of a level have a fraction of the channels of the one before; the finest have at least 4.
    """

    def __init__(self, inputs: int, stages: Sequence[tuple[int, ...]], size: FlowSize) -> None:
        super().__init__()
        layer = convolution_of(len(stages[0]))
        self.stages = stages
        self.sizes = [size.features]
        for _ in stages:
            self.sizes.append(max(4, self.sizes[-1] // 4))
        self.coarse = nn.ModuleList(
            layer(a, size.features, 3, padding=1, padding_mode="replicate")
            for a in [inputs] + [size.features] * (size.depth - 1)
        )
        self.finer = nn.ModuleList(
            layer(a, b * math.prod(stage), 3, padding=1, padding_mode="replicate")
            for a, b, stage in zip(self.sizes[:-1], self.sizes[1:], stages, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of every level from (B, inputs, *coarse)."""
        for layer in self.coarse:
            x = F.relu(layer(x))
        found = [x]
        for layer, stage in zip(self.finer, self.stages, strict=True):
            found.append(F.relu(pixel_shuffle(layer(found[-1]), stage)))
        return found


class ConditionalFlow(nn.Module):
    """Invertible map from white noise ``z`` to an image ``x``, given data ``y``: ``x = T(z, y)``.

    From latent to data: squeezes down to the data grid, each followed by 3 x 3 couplings; then per
    level conditional steps (3 x 3 coupling, permutation, injector, 1 x 1 coupling, ActNorm), a
    transition (1 x 1 coupling, ActNorm) and an un-squeeze; last, at full size, a conditional affine
    ``x = centre(y) + spread (t + exp(s) v)``, where the centre is the first image or a network
    that adds to it. All last layers start at zero: an untrained flow gives the first image plus
    white noise of standard deviation ``spread``. Squeezes follow the prime factors of ``factor``,
    per axis; for factor 1 there is one squeeze by 2.

    Parameters
    ----------
    factor : sequence of int
        Fine samples per data sample, one per axis.
    size : FlowSize
        `SMALL`, `PAPER` or your own.
    spread : float
        Standard deviation of the untrained flow's images.

    Attributes
    ----------
    data_multiple : tuple of int
        The data must have a whole multiple of these samples per axis.
    centre : nn.Module or None
        The network that moves the first image, where there is one.

    References
    ----------
    Altekrueger, Hertrich, WPPNets and WPPFlows, SIAM J. Imaging Sci. 16(3), 2023, arXiv 2201.08157.

    Examples
    --------
    >>> flow = ConditionalFlow((2, 2), size=FlowSize((1,), (4,), 1))
    >>> condition = Condition(torch.rand(1, 1, 4, 5), torch.rand(1, 1, 8, 10))
    >>> z = torch.randn(1, 1, 8, 10)
    >>> x, log_det = flow(z, condition)
    >>> back, inverse_log_det = flow.inverse(x, condition)
    >>> bool(torch.allclose(back, z, atol=1e-4)), bool(torch.allclose(log_det, -inverse_log_det))
    (True, True)
    """

    def __init__(
        self, factor: Sequence[int], *, size: FlowSize = SMALL, spread: float = 0.03
    ) -> None:
        super().__init__()
        self.factor, self.spread = tuple(factor), spread
        ndim = len(self.factor)
        self.stages = prime_stages(self.factor) or [(2,) * ndim]
        self.coarsest = tuple(math.prod(axis) for axis in zip(*self.stages, strict=True))
        self.data_multiple = tuple(
            c // f for c, f in zip(self.coarsest, self.factor, strict=True)
        )
        self.layers = nn.ModuleList()
        self._levels: list[int | None] = []
        self.features: Features | None = None
        self.centre: nn.Module | None = None
        if size.centre is not None:
            width, depth = size.centre
            self.centre = ResidualUpscaler(self.factor, width=width, depth=depth)
        first, data = math.prod(self.coarsest), math.prod(self.data_multiple)
        if size.features:
            self.features = Features(first + data, self.stages, size)
            conditions = self.features.sizes
        else:
            channels = [math.prod(self._stages_from(k)) for k in range(len(self.stages) + 1)]
            conditions = [data, *channels[1:]]
        self._build(ndim, size, conditions)

    def _stages_from(self, level: int) -> tuple[int, ...]:
        """Fine samples per sample of a level, per axis."""
        left = [(1,) * len(self.factor), *self.stages[level:]]
        return tuple(math.prod(axis) for axis in zip(*left, strict=True))

    def _build(self, ndim: int, size: FlowSize, conditions: Sequence[int]) -> None:
        def add(layer: Invertible, level: int | None = None) -> None:
            self.layers.append(layer)
            self._levels.append(level)

        channels, deepest = 1, len(self.stages) - 1
        for down, stage in enumerate(reversed(self.stages)):
            hidden = size.hidden[min(deepest - down, len(size.hidden) - 1)]
            add(Squeeze(stage))
            channels *= math.prod(stage)
            for _ in range(size.mixing):
                add(Coupling(ndim, channels, 0, hidden, 3, OUTER_CLAMP))
                add(ActNorm(ndim, channels))
        for level, stage in enumerate(self.stages):
            hidden = size.hidden[min(level, len(size.hidden) - 1)]
            known = conditions[level]
            for _ in range(size.steps[min(level, len(size.steps) - 1)]):
                add(Coupling(ndim, channels, known, hidden, 3, STEP_CLAMP), level)
                add(Permutation(channels, len(self.layers)))
                add(Injector(ndim, channels, known, hidden, 3, STEP_CLAMP), level)
                add(Coupling(ndim, channels, 0, hidden, 1, STEP_CLAMP))
                add(ActNorm(ndim, channels))
            add(Coupling(ndim, channels, 0, hidden, 1, STEP_CLAMP))
            add(ActNorm(ndim, channels))
            add(Squeeze(stage, undo=True))
            channels //= math.prod(stage)
        level = len(self.stages)
        hidden = size.hidden[min(level, len(size.hidden) - 1)]
        add(Injector(ndim, 1, conditions[level], hidden, 3, STEP_CLAMP), level)

    # --- the map ----------------------------------------------------------------------------

    def stepwise(self, z: Tensor, condition: Condition) -> Iterator[Mapped]:
        """`forward` layer by layer: what there is after each; the last is the result."""
        conditions = self._conditions(condition)
        x, log_det = z, z.new_zeros(z.shape[0])
        for layer, level in zip(self.layers, self._levels, strict=True):
            x, change = layer(x, None if level is None else conditions[level])
            log_det = log_det + change
            yield x, log_det
        yield self._middle(condition) + self.spread * x, log_det + self._last_log_det(x)

    def forward(self, z: Tensor, condition: Condition) -> Mapped:
        """Latent to data: ``x`` (B, 1, *fine) and ``log|det dx/dz|`` (B,).

        Raises
        ------
        InvalidInput
            If latent, data and first image do not fit, or the size is no multiple of the squeezes.
        """
        return deque(self.stepwise(z, condition), maxlen=1)[0]

    def inverse(self, x: Tensor, condition: Condition) -> Mapped:
        """Data to latent: ``z`` (B, 1, *fine) and ``log|det dz/dx|`` (B,)."""
        conditions = self._conditions(condition)
        x = (x - self._middle(condition)) / self.spread
        log_det = -self._last_log_det(x)
        pairs: list[Any] = list(zip(self.layers, self._levels, strict=True))
        for layer, level in reversed(pairs):
            x, change = layer.inverse(x, None if level is None else conditions[level])
            log_det = log_det + change
        return x, log_det

    def log_prob(self, x: Tensor, condition: Condition) -> Tensor:
        """``log p(x | y) = -|z|^2/2 + log|det dz/dx| - n/2 log(2 pi)``, (B,)."""
        z, log_det = self.inverse(x, condition)
        constant = 0.5 * z[0].numel() * math.log(2 * math.pi)
        return log_det - 0.5 * per_image(z.square()) - constant

    def latent(self, condition: Condition, generator: torch.Generator) -> Tensor:
        """White noise shaped like the first image, the same numbers on every device."""
        first = condition.first
        z = torch.randn(first.shape, generator=generator, dtype=first.dtype)
        return z.to(first.device)

    def sample(self, condition: Condition, generator: torch.Generator) -> Tensor:
        """One image per item of the condition: (B, 1, *fine)."""
        return self.forward(self.latent(condition, generator), condition)[0]

    def _middle(self, condition: Condition) -> Tensor:
        return condition.first if self.centre is None else self.centre(*condition)

    def _last_log_det(self, x: Tensor) -> Tensor:
        return x.new_full((x.shape[0],), math.log(self.spread) * x[0].numel())

    def _conditions(self, condition: Condition) -> list[Tensor]:
        """What each level is told, from the data grid to full size."""
        y, first = condition
        space = tuple(first.shape[2:])
        expected = tuple(n * f for n, f in zip(y.shape[2:], self.factor, strict=True))
        if space != expected or any(n % c for n, c in zip(space, self.coarsest, strict=True)):
            raise InvalidInput(
                f"a first image of {space} px for data of {tuple(y.shape[2:])}: the flow needs "
                f"{expected}, a multiple of {self.coarsest} px; pad or cut the data"
            )
        y = pixel_unshuffle(y, self.data_multiple)
        if self.features is not None:
            return self.features(torch.cat((y, pixel_unshuffle(first, self.coarsest)), 1))
        finer = range(1, len(self.stages) + 1)
        return [y, *(pixel_unshuffle(first, self._stages_from(k)) for k in finer)]
