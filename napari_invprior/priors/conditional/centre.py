"""Middle and spread of images given a first image, learnt from pairs.

``x = m(c) + s(c) u``: what is left to know of ``x`` given ``c`` is the distribution of ``u``, of
mean about zero and variance about one wherever the first image ``c`` is sharp or blurred.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from napari_invprior.errors import InvalidInput, JobError
from napari_invprior.jobs import Event, Result, ShouldStop, Stage, never
from napari_invprior.networks.unet import UNet, UNetSize
from napari_invprior.priors.conditional.simulated_pairs import Pairs

LARGEST_LOG = 4.0
"""Bound of the logarithm of the spread over its usual value."""
RISE = 0.05
"""Share of the steps during which the learning rate rises."""
CLIP = 1.0
ROWS, MULTIPLICATIONS = 256, 3e9
"""Windows that pass the network together, at most; fewer where that takes seconds."""


class Middle(NamedTuple):
    """What a centre knows of images.

    Attributes
    ----------
    middle, spread : Tensor
        (B, C, *space), in grey values.
    condition : Tensor
        (B, K, *space), of mean about zero and variance about one: what ``u`` depends on.
    """

    middle: Tensor
    spread: Tensor
    condition: Tensor


class Centre(nn.Module):
    """A network from first images to `Middle`; untrained, the first image and one spread for all.

    Parameters
    ----------
    ndim, channels : int
        Space axes and channels of an image.
    masked : bool
        Whether the mask of the observed samples comes along.

    Examples
    --------
    >>> centre = Centre(2, 1, masked=False, size=UNetSize(4, (1, 2), 1, normalised=False))
    >>> first = torch.rand(3, 1, 6, 7)
    >>> bool((centre(first, None).middle == first).all()), centre(first, None).condition.shape
    (True, torch.Size([3, 2, 6, 7]))
    """

    moments: Tensor

    def __init__(self, ndim: int, channels: int, *, masked: bool, size: UNetSize) -> None:
        super().__init__()
        self.masked = masked
        self.net = UNet(ndim, channels + masked, 2 * channels, size)
        self.register_buffer("moments", torch.tensor([0.0, 1.0, 1.0]))

    @property
    def conditions(self) -> int:
        """Channels of the condition."""
        out: int = self.net.last[2].out_channels  # type: ignore[assignment,union-attr]
        return out + self.masked

    def rows(self, pairs: Pairs) -> int:
        """How many of these windows pass the network together."""
        each = sum(p.numel() for p in self.parameters()) * pairs.first[0, 0].numel()
        return max(1, min(ROWS, int(MULTIPLICATIONS / each)))

    def measure(self, pairs: Pairs) -> None:
        """Take mean and deviation of the first images, and the usual error, from pairs.

        Raises
        ------
        InvalidInput
            If the first images are constant, or already the truth.
        """
        error = (pairs.truth - pairs.first).double()
        found = [pairs.first.double().mean(), pairs.first.double().std(), error.square().mean()]
        mean, deviation, square = (float(v) for v in found)
        if not (deviation > 1e-6 and square > 1e-12):
            raise InvalidInput(
                f"first images of deviation {deviation:.2g} with errors of {square**0.5:.2g} leave "
                "nothing to learn: check the operator and the noise level"
            )
        self.moments = torch.tensor([mean, deviation, square**0.5]).to(self.moments)

    def forward(self, first: Tensor, seen: Tensor | None) -> Middle:
        """`Middle` of first images (B, C, *space) and, where it is masked, (B, 1, *space)."""
        mean, deviation, error = self.moments
        known = [] if seen is None else [seen - 0.5]
        shift, log = self.net(torch.cat([(first - mean) / deviation, *known], 1)).chunk(2, 1)
        log = LARGEST_LOG * torch.tanh(log / LARGEST_LOG)
        middle = first + error * shift
        condition = torch.cat([(middle - mean) / deviation, log, *known], 1)
        return Middle(middle, error * log.exp(), condition)


def fit_centre(
    centre: Centre, pairs: Pairs, *, steps: int, batch: int, learning_rate: float,
    generator: torch.Generator, should_stop: ShouldStop = never,
) -> Iterator[Event]:
    """Adam: the middle by squared error, the spread by the likelihood of what is left.

    Separate losses: under one likelihood the middle would give up where the spread is large.

    Raises
    ------
    JobError
        If training diverges.
    """
    optimiser = torch.optim.Adam(centre.parameters(), lr=learning_rate)
    error = float(centre.moments[2])
    stage, mean = Stage("centre", steps), math.nan
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            rise = min(1.0, step / max(1.0, RISE * steps))
            group["lr"] = learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / steps))
        some = torch.randint(len(pairs.truth), (batch,), generator=generator)
        some = some.to(pairs.truth.device)
        found = centre(pairs.first[some], None if pairs.seen is None else pairs.seen[some])
        left = (pairs.truth[some] - found.middle) / error
        spread = found.spread / error
        squared = left.square().mean()
        likelihood = (left.detach() / spread).square().mean() / 2 + spread.log().mean()
        optimiser.zero_grad()
        (squared + likelihood).backward()
        torch.nn.utils.clip_grad_norm_(centre.parameters(), CLIP)
        optimiser.step()
        now = float(squared.detach())
        if not math.isfinite(now):
            raise JobError("training diverged; choose a smaller learning rate")
        mean = now if math.isnan(mean) else 0.95 * mean + 0.05 * now
        if stage.due() or step == steps:
            yield stage.progress(step, error=mean**0.5)
        if should_stop():
            break


@torch.no_grad()
def middles(centre: Centre, pairs: Pairs, should_stop: ShouldStop = never) -> Iterator[Event]:
    """Middle, spread and condition of all pairs, or of the first few, as the `Result`."""
    rows, stage = centre.rows(pairs), Stage("centre", len(pairs.first))
    firsts = pairs.first.split(rows)
    seen = (None,) * len(firsts) if pairs.seen is None else pairs.seen.split(rows)
    parts: list[Middle] = []
    for first, known in zip(firsts, seen, strict=True):
        parts.append(centre(first, known))
        if stage.due():
            yield stage.progress(min(len(parts) * rows, stage.total))
        if should_stop():
            break
    yield Result(Middle(*(torch.cat(part) for part in zip(*parts, strict=True))))
