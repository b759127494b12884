"""Synthetic patches and textures: particles that flow to the patches of references."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import (
    Event,
    Job,
    Message,
    Preview,
    Result,
    ShouldStop,
    forward,
    never,
)
from napari_invprior.networks.draws import draw_patches
from napari_invprior.networks.unet import PAPER, SMALL, UNet
from napari_invprior.numerics.patches import edges
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.priors.base import Reference
from napari_invprior.transport.sliced_flows.displacement import Fitting
from napari_invprior.transport.sliced_flows.energy_distance import Directions, SlicedTarget
from napari_invprior.transport.sliced_flows.flow_chain import ChainPlan, FlowChain
from napari_invprior.transport.sliced_flows.mosaic import mosaic
from napari_invprior.transport.sliced_flows.noise_like import NoiseLike
from napari_invprior.transport.sliced_flows.particle_flow import (
    FlowResult,
    ParticleFlow,
    Schedule,
    flow_particles,
)
from napari_invprior.transport.slices.directions import directions
from napari_invprior.transport.slices.draws import DirectionDraw, LocalDraw, SliceDraw
from napari_invprior.transport.slices.local import as_images

BLOCK, SIZES = 7, 2
"""Edge of the smallest windows, px, and how many sizes of them there are."""
MOST_TARGETS, FEWEST = 10_000, 100
LARGEST_COVARIANCE = 1024
"""Numbers of a patch up to which the start has their full covariance."""
SHOWN = 64
LINES = 256
"""Lines on which generated patches are compared with held-out ones."""

Edge = Annotated[int, Field(ge=2, le=64)]


class PatchFlowParameters(Parameters):
    """Patches, particles, steps, and whether networks learn the way."""

    patch_size: Edge | tuple[Edge, ...] = parameter(
        16, "Patch edge, one number or one per axis.", unit="px"
    )
    particles: int = parameter(
        2000, "Patches that flow together; networks learn from as many.", ge=2, le=1_000_000
    )
    slices: Annotated[int, Field(ge=1, le=100_000)] | None = parameter(
        None, "Lines per step that patches are compared on; empty: by the size of the patches."
    )
    momentum: float = parameter(
        0.7, "Share of a step that goes into the next one.", ge=0, le=0.95
    )
    steps: int = parameter(500, "Steps of the flow, at most.", ge=1, le=1_000_000)
    step: float = parameter(
        1.0, "Size of a step, in units of the spread of the patches.", gt=0, le=10, advanced=True
    )
    train_networks: bool = parameter(
        False, "Train networks that draw new patches at once (minutes to hours)."
    )
    network: Literal["small", "paper"] = parameter(
        "small", "Size of the networks.", advanced=True
    )
    networks: int = parameter(20, "Networks in a row, at most.", ge=1, le=200, advanced=True)
    network_steps: int = parameter(
        300, "Training steps of each network.", ge=1, le=1_000_000, advanced=True
    )


class PatchFlow:
    """Draws patches like those of references, by a flow of particles or by networks.

    Particles start as noise with the mean and covariance of the references' patches and flow down
    the gradient of their energy distance to them, by slices through windows of two sizes.

    Parameters
    ----------
    parameters : PatchFlowParameters
        What can be chosen.
    ndim, channels : int
        Space axes and channels of the images; a patch holds all channels.

    Attributes
    ----------
    patch : tuple of int
        Edges, px.
    chain : FlowChain
        The networks, where they are trained.

    References
    ----------
    Hertrich et al., Generative Sliced MMD Flows with Riesz Kernels, ICLR 2024, arXiv 2305.11463.

    Examples
    --------
    >>> from napari_invprior.jobs import run
    >>> image = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0))
    >>> quick = PatchFlowParameters(patch_size=4, particles=50, steps=5)
    >>> flow = run(PatchFlow(quick, ndim=2).fit([Reference(image)]))
    >>> run(flow.generate(50, seed=1)).shape
    torch.Size([50, 1, 4, 4])
    """

    Parameters = PatchFlowParameters

    def __init__(
        self, parameters: PatchFlowParameters, *, ndim: int, channels: int = 1
    ) -> None:
        self.parameters, self.channels = parameters, channels
        self.patch = edges(parameters.patch_size, ndim)
        size = SMALL if parameters.network == "small" else PAPER
        shape = (channels, *self.patch)
        self.chain = FlowChain(
            lambda: UNet(ndim, channels, channels, size), shape,
            coloured=math.prod(shape) <= LARGEST_COVARIANCE,
        )
        self._targets: Tensor | None = None
        self._held_out: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """The patches of the references, (d, M).

        Raises
        ------
        InvalidInput
            Before `fit`.
        """
        if self._targets is None:
            raise InvalidInput("this flow knows no patches yet: pick references and fit it")
        return self._targets

    def fit(
        self, references: Sequence[Reference], *, seed: int = 0, should_stop: ShouldStop = never
    ) -> Job:
        """Take the references' patches; with ``train_networks``, train or go on training.

        The `Result` is this object. Each network that is done stays, however the job ends.

        Raises
        ------
        InvalidInput
            For constant references or fewer than 100 patches.
        """
        images = [(reference.image.float(), reference.mask) for reference in references]
        generator = torch.Generator().manual_seed(seed)
        draws = draw_patches(images, self.patch, generator, MOST_TARGETS)
        if draws.distinct < FEWEST or len(draws.train) == 0:
            raise InvalidInput(
                f"{draws.distinct} patches of {self.patch} px in the picked regions: at least "
                f"{FEWEST} are needed; pick a larger region or choose a smaller patch_size"
            )
        if float((draws.train - draws.train[:1, :1]).abs().max()) < 1e-6:
            raise InvalidInput("the references are constant: pick a region with structure")
        self._targets, self._held_out = draws.train.T.contiguous(), draws.held_out.T.contiguous()
        if self.parameters.train_networks:
            chosen = self.parameters
            plan = ChainPlan(
                blocks=chosen.networks, growth=128, step=chosen.step, momentum=chosen.momentum,
                fitting=Fitting(chosen.network_steps, clip=1.0),
            )
            yield from forward(self.chain.train(
                self.targets, self._draw(), particles=chosen.particles, plan=plan, seed=seed,
                show=self._shown, should_stop=should_stop,
            ))
        yield Result(self)

    def generate(self, n: int, *, seed: int = 0, should_stop: ShouldStop = never) -> Job:
        """Draw ``n`` patches; the `Result` is (n, C, *patch)."""
        if n < 1:
            raise InvalidInput(f"{n} patches: ask for at least 1")
        found = yield from self._generated(n, seed, should_stop)
        yield self._shown(found)
        if self._held_out is not None and self._held_out.shape[1] > 1:
            yield Message(self._verdict(found))
        yield Result(as_images(found, self.patch))

    def texture(
        self, space: Sequence[int], *, seed: int = 0, should_stop: ShouldStop = never
    ) -> Job:
        """A periodic image (1, C, *space) with patches like the references'; it is the `Result`.

        Its own patches are the particles here. They flow to the references' patches, not to
        generated ones, whose edges are soft already.
        """
        yield from mosaic(self.targets, self.patch, space, seed=seed, should_stop=should_stop)

    def _generated(
        self, n: int, seed: int, should_stop: ShouldStop
    ) -> Generator[Event, None, Tensor]:
        """Generated patches (d, n), returned after the events."""
        if self.chain.networks:
            return self.chain.sample(n, seed)
        chosen = self.parameters
        full = len(self.targets) <= LARGEST_COVARIANCE
        start = NoiseLike.of(self.targets, full=full)
        x = start.draw(n, torch.Generator().manual_seed(seed))
        flow = ParticleFlow(x, self.targets, self._draw(), seed=seed)
        schedule = Schedule(
            steps=chosen.steps, step=chosen.step, momentum=chosen.momentum,
            final_steps=chosen.steps // 5,
        )
        result: FlowResult = yield from forward(
            flow_particles(flow, schedule, show=self._shown, should_stop=should_stop)
        )
        return result.particles

    def _draw(self) -> SliceDraw:
        count = self.parameters.slices
        if min(self.patch) <= BLOCK:
            return DirectionDraw(self.targets, count)
        return LocalDraw(self.targets, self.patch, patch=BLOCK, scales=SIZES, count=count)

    def _shown(self, patches: Tensor) -> Preview:
        pictures = as_images(patches[:, :SHOWN], self.patch)
        return Preview("patches", pictures.numpy(force=True), "flow")

    def _verdict(self, found: Tensor) -> str:
        """How far generated patches are from held-out ones, beside the references' own."""
        figures = self.held_out_distances(found)
        return (
            f"energy distance to held-out patches: generated {figures['distance_generated']:.3g}"
            f", real ones {figures['distance_real']:.3g}"
        )

    def held_out_distances(self, found: Tensor) -> dict[str, float]:
        """Energy distances of patches (d, n), and of real ones, to held-out patches.

        Empty where none could be held out.
        """
        if self._held_out is None or self._held_out.shape[1] < 2:
            return {}
        lines = directions(LINES, len(found), torch.Generator().manual_seed(0))
        held_out = SlicedTarget(self._held_out, Directions(lines), found.shape[1])
        order = torch.randperm(self.targets.shape[1], generator=torch.Generator().manual_seed(1))
        real = self.targets[:, order[: found.shape[1]]]  # in the order of the image otherwise
        return {
            "distance_generated": float(held_out.distance(found)),
            "distance_real": float(held_out.distance(real)),
        }

    def state(self) -> dict[str, Tensor]:
        """All numbers that `load_state` needs (CPU tensors)."""
        found = {"targets": self.targets.clone()}
        if self._held_out is not None:
            found["held_out"] = self._held_out.clone()
        if self.chain.networks:
            found |= {f"chain.{name}": value for name, value in self.chain.state().items()}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take a state over; refuses wrong shapes and NaN by name."""
        dim = self.channels * math.prod(self.patch)
        for name in ("targets", "held_out"):
            entry = state.get(name)
            if entry is None and name == "held_out":
                continue
            if entry is None or entry.ndim != 2 or len(entry) != dim:
                given = None if entry is None else tuple(entry.shape)
                raise InvalidInput(
                    f"patch flow: {name!r} has shape {given}, expected ({dim}, count)"
                )
            if not bool(torch.isfinite(entry).all()):
                raise InvalidInput(f"patch flow: {name!r} holds NaN or infinite values")
        chain = {k.removeprefix("chain."): v for k, v in state.items() if k.startswith("chain.")}
        if chain:
            self.chain.load_state(chain)
        self._targets, self._held_out = state["targets"], state.get("held_out")
