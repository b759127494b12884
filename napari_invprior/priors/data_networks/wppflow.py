"""WPPFlow: a flow that draws many images for the same data, all likely under the patch prior."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Event, Job, Result, Sample, ShouldStop, Stage, forward, never
from napari_invprior.networks.conditional_flow import PAPER, SMALL, Condition, ConditionalFlow
from napari_invprior.parameters import parameter
from napari_invprior.physics.base import Physics
from napari_invprior.physics.blocks import block_factor, from_blocks
from napari_invprior.physics.unobserved import complete_operator
from napari_invprior.priors.base import Map, Measurement
from napari_invprior.priors.data_networks.base import (
    USUAL,
    DataNetworkParameters,
    DataNetworkPrior,
    left_empty,
)
from napari_invprior.priors.data_networks.energy_training import PatchEnergy, train
from napari_invprior.priors.data_networks.tiles import Tiles, as_single, first_image
from napari_invprior.registry import register

CENTRE_WEIGHT = 3.0
"""Largest weight while the centre learns alone."""
LARGEST_GRADIENT = 100.0
"""Longer gradients of a training step are shortened to this norm."""
USUAL_FLOW = {
    2: replace(USUAL[2], steps=600, weight=8.0),
    3: replace(USUAL[3], steps=350, weight=2.4),
}


class WPPFlowParameters(DataNetworkParameters):
    """Patches, flow, training, and what is drawn afterwards."""

    network: Literal["small", "paper"] = parameter(
        "small", "A small flow (minutes), or the paper's (hours on a CPU)."
    )
    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = parameter(
        None, f"Training steps of the flow. {left_empty(USUAL_FLOW, 'steps')}"
    )
    centre_steps: Annotated[int, Field(ge=0, le=10_000_000)] = parameter(
        800, "Training steps of the middle of the samples, before the flow as a whole.",
        advanced=True,
    )
    weight: Annotated[float, Field(ge=1e-9, le=1e6)] | None = parameter(
        None,
        "How much the patches count against the data: larger gives sharper samples that differ "
        f"less. {left_empty(USUAL_FLOW, 'weight')}",
    )
    samples: Annotated[int, Field(ge=2, le=100_000)] = parameter(
        16, "Images drawn for the mean and the standard deviation."
    )
    shown: Annotated[int, Field(ge=0, le=1000)] = parameter(
        8, "Samples that come as a stack with the maps, at most.", advanced=True
    )


class Posterior(NamedTuple):
    """Moments and samples of one frame, on the block grid.

    Attributes
    ----------
    mean, std : Tensor
        (C, 1, *fine).
    samples : list of Tensor
        Likewise; as many as were asked for.
    """

    mean: Tensor
    std: Tensor
    samples: list[Tensor]


@register(
    kind="prior",
    name="wppflow",
    title="WPPFlow",
    papers=("2201.08157",),
    inputs=("references", "observation"),
    outputs=("prior", "maps"),
    needs_references=True,
)
class WPPFlow(DataNetworkPrior):
    """A Wasserstein patch prior with a flow that draws from its posterior, for one operator.

    Over the flow ``T``, with ``z`` white noise: the mean of ``|A T(z, y_i) - y_i|^2 / (2 sigma^2)
    + weight n W_2^2 - log|det dT/dz|``, ``W_2^2`` between the patches of all images together and
    those of the references. This is ``KL(T(., y) | p(. | y))`` for the prior ``exp(-weight n
    W_2^2)``; the paper's ``lambda`` is ``sigma^2 n weight``. Use it through the solver ``direct``:
    the image is the mean of ``samples`` images, the maps hold their standard deviation and some of
    them.

    References
    ----------
    Altekrueger, Hertrich, WPPNets and WPPFlows, SIAM J. Imaging Sci. 16(3), 2023, arXiv 2201.08157.

    Examples
    --------
    >>> from napari_invprior.jobs import run
    >>> from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
    >>> from napari_invprior.physics.superresolution import (
    ...     SuperResolution, SuperResolutionParameters)
    >>> from napari_invprior.priors.base import Reference
    >>> physics = SuperResolution(SuperResolutionParameters(factor=2), ndim=2)
    >>> noise = GaussianNoise(GaussianParameters(sigma=0.02))
    >>> image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> quick = WPPFlowParameters(reference_patches=100, steps=1, centre_steps=1, tile=8)
    >>> prior = WPPFlow(quick, ndim=2)
    >>> prior = run(prior.fit(
    ...     [Reference(image[0])], measurement=Measurement(physics.A(image), physics, noise)))
    >>> run(prior.draw(physics.A(image), 3)).shape
    torch.Size([3, 1, 1, 32, 32])
    """

    Parameters = WPPFlowParameters
    parameters: WPPFlowParameters
    usual = USUAL_FLOW
    paper_rate = 2e-4

    def _network(self, factor: tuple[int, ...]) -> ConditionalFlow:
        return ConditionalFlow(factor, size=SMALL if self.parameters.network == "small" else PAPER)

    def _batch(
        self, net: nn.Module, tiles: Tiles, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(net, ConditionalFlow)
        half = -(-self.parameters.tiles // 2)
        condition = Condition(*tiles.draw(half, generator, self.joint_channels))
        # each tile with opposite noise: what is odd in it does not disturb the gradient of the mean
        z = net.latent(condition, generator)
        both = Condition(*(torch.cat((part, part)) for part in condition))
        return *net(torch.cat((z, -z)), both), both.y

    def _train(
        self, net: nn.Module, tiles: Tiles, energy: PatchEnergy, generator: torch.Generator,
        should_stop: ShouldStop,
    ) -> Iterator[Event]:
        """The centre alone, as a WPPNet, which takes a fraction of the time; then the flow.

        The centre learns with a small weight: a large one holds an untrained network at the
        reference patches that its blurred images happen to be close to.
        """
        assert isinstance(net, ConditionalFlow)
        training, tiles_per_step = self.training, self.parameters.tiles
        centre, first_steps = net.centre, self.parameters.centre_steps
        if centre is None or self._net is not None:
            first_steps = 0
        stage = Stage("train", first_steps + training.steps)
        if centre is not None and first_steps:

            def images(generator: torch.Generator) -> tuple[Tensor, None, Tensor]:
                y, first = tiles.draw(tiles_per_step, generator, self.joint_channels)
                return centre(y, first), None, y

            energy.weight = min(training.weight, CENTRE_WEIGHT)
            yield from train(
                centre, images, energy, steps=first_steps, learning_rate=self.learning_rate,
                generator=generator, stage=stage, should_stop=should_stop,
            )
        energy.weight = training.weight  # the same energy, whose potential has found its place
        if not should_stop():
            yield from train(
                net, partial(self._batch, net, tiles), energy, steps=training.steps,
                learning_rate=self.learning_rate, largest_gradient=LARGEST_GRADIENT,
                generator=generator, stage=stage, begun=first_steps, should_stop=should_stop,
            )

    # --- use --------------------------------------------------------------------------------

    def estimate(self, y: Tensor, *, seed: int = 0, should_stop: ShouldStop = never) -> Job:
        """The mean of ``samples`` images of data (B, C, *space), on the block grid."""
        stage = Stage("reconstruct", len(y) * self.parameters.samples)
        means: list[Tensor] = []
        for frame in y.split(1):
            found = yield from forward(
                self._posterior(frame, stage, len(means), 0, seed, should_stop)
            )
            means.append(found.mean.movedim(1, 0))
        yield Result(torch.cat(means))

    def draw(
        self, y: Tensor, count: int, *, seed: int = 0, should_stop: ShouldStop = never
    ) -> Job:
        """Samples for data (B, C, *space), on the block grid; the `Result` is (S, B, C, *fine).

        They come in pairs of opposite noise, and the same seed gives each frame the same noise.
        """
        stage = Stage("draw", len(y) * count)
        stacks: list[Tensor] = []
        for frame in y.split(1):
            found = yield from forward(
                self._posterior(frame, stage, len(stacks), count, seed, should_stop, count)
            )
            stacks.append(torch.stack(found.samples).movedim(2, 1))
        least = min(len(stack) for stack in stacks)
        yield Result(torch.cat([stack[:least] for stack in stacks], 1))

    def draws(
        self, y: Tensor, physics: Physics, count: int, *, seed: int = 0,
        should_stop: ShouldStop = never,
    ) -> Job:
        """See `drawn.DrawsImages`: no pairs here, each image has noise of its own."""
        operator, space = complete_operator(physics), tuple(y.shape[2:])
        _ = self.net
        if operator.mask is not None or block_factor(operator) != self._factor:
            raise InvalidInput(
                f"the flow learnt for an operator of factor {self._factor} without a mask; train "
                "it for this operator"
            )
        stage, drawn = Stage("sample", count), 0
        for event in self._images(y, count, seed, stage, 0, paired=False):
            if not isinstance(event, Sample):
                yield event
                continue
            image = from_blocks(event.image, operator, space).movedim(1, 0)[0]
            drawn = event.slot + 1
            yield Sample(event.slot, image)
            if should_stop():
                break
        yield stage.progress(drawn)
        yield Result(drawn)

    def maps(
        self, x: Tensor, measurement: Measurement | None = None, *, seed: int = 0
    ) -> Job:
        """``std``: standard deviation of the samples, over the channels' mean square; ``samples``.

        Both of the images that `estimate` averages; empty without data.
        """
        if measurement is None or measurement.y is None:
            yield Result([])
            return
        y, operator = measurement.y, complete_operator(measurement.physics)
        space = tuple(y.shape[2:])
        drawn = self.parameters.samples
        kept = min(self.parameters.shown, drawn)
        stage = Stage("maps", len(y) * drawn)
        stds: list[Tensor] = []
        stacks: list[list[Tensor]] = []
        for frame in y.split(1):
            found = yield from forward(self._posterior(frame, stage, len(stds), kept, seed, never))
            std = found.std.square().mean(0, keepdim=True).sqrt()
            stds.append(from_blocks(std, operator, space).cpu())
            stack = [from_blocks(s, operator, space).movedim(1, 0).cpu() for s in found.samples]
            stacks.append(stack)
        maps = [Map("std", torch.cat(stds), unit="difference")]
        if kept:
            frames = [torch.cat(frame) for frame in zip(*stacks, strict=True)]
            maps.append(Map("samples", torch.stack(frames), unit="image"))
        yield Result(maps)

    def _posterior(
        self, y: Tensor, stage: Stage, frame: int, kept: int, seed: int, should_stop: ShouldStop,
        count: int | None = None,
    ) -> Iterator[Event]:
        """Running moments of samples of one frame (1, C, *space); the `Result` is a `Posterior`."""
        count = self.parameters.samples if count is None else count
        samples: list[Tensor] = []
        number, mean, squares = 0, torch.zeros(()), torch.zeros(())
        for event in self._images(y, count, seed, stage, frame * count, paired=True):
            if not isinstance(event, Sample):
                yield event
                continue
            x, number = event.image, event.slot
            change = x - mean.to(x)
            mean = mean.to(x) + change / (number + 1)
            squares = squares.to(x) + change * (x - mean)
            if number < kept:
                samples.append(x)
            if should_stop():
                break
        yield stage.progress(frame * count + number + 1)
        yield Result(Posterior(mean, (squares / max(1, number)).sqrt(), samples))

    @torch.no_grad()
    def _images(
        self, y: Tensor, count: int, seed: int, stage: Stage, done: int, *, paired: bool
    ) -> Iterator[Event]:
        """Progress, and a `Sample` (C, 1, *fine) on the block grid for each image of one frame.

        The second of a pair has the opposite noise: their mean is that of many more samples.
        """
        net = self.net
        assert isinstance(net, ConditionalFlow)
        single = self._border.continued(as_single(y).to(self.device), net.data_multiple)
        condition = Condition(single, first_image(single, self._factor))
        generator = torch.Generator().manual_seed(seed)
        z = torch.zeros_like(condition.first)
        for slot in range(count):
            z = -z if paired and slot % 2 else net.latent(condition, generator)
            for x, _log_det in net.stepwise(z, condition):  # noqa: B007
                if stage.due():
                    yield stage.progress(done + slot)
            yield Sample(slot, self._border.inside(x, tuple(y.shape[2:]), self._factor))
