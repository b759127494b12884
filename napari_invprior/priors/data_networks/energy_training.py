"""Training of networks whose images have to be likely, instead of like given images.

A network that makes one image per datum minimises the mean energy ``E(x, y) = -log p(x | y)`` of
its images. A flow, which makes many, minimises the reverse Kullback-Leibler divergence
``KL(q | p) = mean E(T(z, y), y) - log|det dT/dz|`` up to a constant: the determinant keeps its
images apart. Both are one loop; an energy gives its gradient in the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from napari_invprior.errors import JobError
from napari_invprior.jobs import Event, Preview, ShouldStop, Stage, never
from napari_invprior.priors.data_networks.tiles import Tiles

EXPLODED = 1e3
RISE = 0.1
"""Share of the steps during which the learning rate rises."""

Draw = Callable[[torch.Generator], tuple[Tensor, Tensor | None, Tensor]]
"""Draws a batch: images (B, C, *space), their ``log|det|`` (B,) or None, and their data."""

Energy = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, dict[str, float]]]
"""Gradient, in the images, of the energy per image sample of a batch; and figures to plot."""


def train(
    net: nn.Module,
    draw: Draw,
    energy: Energy,
    *,
    steps: int,
    learning_rate: float,
    generator: torch.Generator,
    largest_gradient: float = math.inf,
    stage: Stage | None = None,
    begun: int = 0,
    should_stop: ShouldStop = never,
) -> Iterator[Event]:
    """Adam on the mean energy, less the entropy where ``draw`` knows it; a job without a result.

    Parameters
    ----------
    learning_rate : float
        Largest step of Adam; it rises shortly, then falls to zero along half a cosine.
    largest_gradient : float
        Longer gradients in the weights are shortened to this norm.
    stage, begun : Stage, int
        What the progress counts for, where this is a part of it: after so many steps.

    Raises
    ------
    JobError
        If the network diverges.
    """
    stage = stage or Stage("train", steps)
    optimiser = torch.optim.Adam(net.parameters(), lr=learning_rate)
    figures: dict[str, float] = {}
    shown = stage.seconds
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * _share(step, steps)
        images, log_det, y = draw(generator)
        gradient, figures = energy(images.detach(), y, generator)
        if log_det is not None:
            figures["entropy"] = float(log_det.detach().mean()) * len(images) / images.numel()
        if not all(math.isfinite(value) for value in figures.values()):
            raise JobError(
                f"the network diverged in step {step}; lower learning_rate from {learning_rate:g}"
            )
        optimiser.zero_grad()
        if log_det is None:
            images.backward(gradient)
        else:
            entropy = torch.full_like(log_det, -1 / images.numel())
            torch.autograd.backward((images, log_det), (gradient, entropy))
        if math.isfinite(largest_gradient):
            nn.utils.clip_grad_norm_(net.parameters(), largest_gradient)
        optimiser.step()
        if stage.due():
            yield stage.progress(begun + step + 1, **figures)
            if stage.seconds > shown + 1:
                shown = stage.seconds
                yield Preview("patches", images[:8].numpy(force=True), "train")
        if should_stop():
            break
    yield stage.progress(begun + step + 1, **figures)


def graph_bytes(net: nn.Module, draw: Draw, generator: torch.Generator) -> int:
    """Bytes that the graph of one batch keeps for its backward pass, the weights not counted."""
    weights = {p.data_ptr() for p in net.parameters()}
    kept = 0

    def pack(value: Tensor) -> Tensor:
        nonlocal kept
        kept += value.numel() * value.element_size() * (value.data_ptr() not in weights)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        draw(generator)
    return kept


def _share(step: int, steps: int) -> float:
    """Share of the learning rate: a short rise, then half a cosine.

    Adam's first steps move all weights by the same amount; at full rate they would undo what an
    earlier stage has learnt.
    """
    rise = min(1.0, (step + 1) / max(1.0, RISE * steps))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


class PatchEnergy:
    """Energy of tiles: misfit to their data, and transport of all their patches together.

    ``|A x - y|^2 / (2 sigma^2) + weight n W_2^2``, the misfit in the inner part of each tile.

    Parameters
    ----------
    prior : PatchDiscrepancy
        The transport to the reference patches; its potential follows the training.
    tiles : Tiles
        The data and the operator of their inner part.
    variance : float
        Variance of the noise.
    patches : int
        Patches per step.
    weight : float
        How much the transport counts against the misfit.

    Attributes
    ----------
    residual : float
        Squared residual of the last batch over the noise variance.
    """

    def __init__(
        self, prior: Any, tiles: Tiles, variance: float, *, patches: int, weight: float
    ) -> None:
        self.prior, self.tiles, self.variance = prior.for_run(), tiles, variance
        self.patches, self.weight = patches, weight
        self.residual = math.nan
        self._first: float | None = None

    def __call__(
        self, images: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Gradient per image sample and the figures ``residual``, ``transport``, ``weight``."""
        tiles, weight = self.tiles, self.weight
        count = max(1, self.patches // len(images))
        values, slope = self.prior.drawn_value_and_grad(images, count, generator)
        inner = images[tiles.image_window]
        residual = tiles.physics.A(inner) - y[tiles.data_window]
        gradient = (weight / len(images)) * slope
        back = tiles.physics.A_adjoint(residual)
        gradient[tiles.image_window] += back / (self.variance * inner.numel())
        self.residual = float(residual.square().mean()) / self.variance
        self._first = self.residual if self._first is None else self._first
        if not self.residual <= EXPLODED * max(1.0, self._first):
            raise JobError(
                f"the network diverged (residual ratio {self.residual:.3g}); lower learning_rate"
            )
        figures = {"residual": self.residual, "transport": float(values[0]), "weight": weight}
        return gradient, figures

