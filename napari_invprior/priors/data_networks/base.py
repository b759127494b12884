"""What networks share that learn from data of one operator and an unrelated reference.

Their images must explain the data through the operator, and all their patches together must be
distributed like those of the reference; no good image of the same place is needed.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Event, Job, Message, Result, ShouldStop, forward, never, run
from napari_invprior.memory import require
from napari_invprior.parameters import overlaid, parameter
from napari_invprior.physics.base import Physics
from napari_invprior.physics.blocks import block_factor, from_blocks
from napari_invprior.priors.base import Measurement, Reference
from napari_invprior.priors.data_networks.energy_training import PatchEnergy, graph_bytes, train
from napari_invprior.priors.data_networks.tiles import SMALLEST_TILE, Border, Tiles, cut_tiles
from napari_invprior.priors.patchwise import PREVIEW_PATCHES
from napari_invprior.priors.state import check_entry, check_network
from napari_invprior.priors.wasserstein.wasserstein import (
    WassersteinParameters,
    WassersteinPatchPrior,
)

LARGEST_FACTOR = 16
USUAL_RATE = 1e-3
BYTES_PER_PATCH_SAMPLE = 24
"""The patches, where each goes, and where in the images they lie."""


@dataclass(frozen=True)
class NetworkTraining:
    """The parameters of the same names, none of them empty."""

    steps: int
    tile: int
    weight: float


USUAL = {
    2: NetworkTraining(steps=800, tile=25, weight=5.0),
    3: NetworkTraining(steps=800, tile=10, weight=1.5),
}
"""By space axes. A tile of a volume has about as many samples as one of an image."""


def left_empty(usual: Mapping[int, NetworkTraining], name: str) -> str:
    """What a parameter's description says of the usual value.

    Examples
    --------
    >>> left_empty(USUAL, "steps"), left_empty(USUAL, "weight")
    ('Empty: 800.', 'Empty: 5, in volumes 1.5.')
    """
    image, volume = (f"{getattr(usual[ndim], name):g}" for ndim in (2, 3))
    return f"Empty: {image}." if image == volume else f"Empty: {image}, in volumes {volume}."


class DataNetworkParameters(WassersteinParameters):
    """Patches, network and training."""

    reference_patches: Annotated[int, Field(ge=100, le=1_000_000)] = parameter(
        2000, "Patches drawn from the references at each scale; cost grows with them.",
        advanced=True,
    )
    scales: Annotated[int, Field(ge=1, le=6)] = parameter(
        1, "Scales that are compared, each half as fine as the one before.", advanced=True
    )
    network: str = parameter("small", "One of the sizes of the network.")
    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = parameter(
        None, f"Training steps. {left_empty(USUAL, 'steps')}"
    )
    tiles: Annotated[int, Field(ge=1, le=4096)] = parameter(
        4, "Tiles of the data per step.", advanced=True
    )
    tile: Annotated[int, Field(ge=SMALLEST_TILE, le=1024)] | None = parameter(
        None, f"Edge of a tile. {left_empty(USUAL, 'tile')}", unit="data px", advanced=True
    )
    patches_per_step: Annotated[int, Field(ge=100, le=1_000_000)] = parameter(
        4000, "Patches of the tiles' images that are compared in one step.", advanced=True
    )
    learning_rate: Annotated[float, Field(ge=1e-8, le=0.1)] | None = parameter(
        None, "Largest step of Adam; it falls to zero. Empty: 1e-3, in the paper's network the "
        "paper's.", advanced=True,
    )
    weight: Annotated[float, Field(ge=1e-9, le=1e6)] | None = parameter(
        None, f"How much the patches count against the data. {left_empty(USUAL, 'weight')}"
    )


class DataNetworkPrior(WassersteinPatchPrior):
    """A Wasserstein patch prior with a network that serves it, for any data of one operator.

    Subclasses make the network (`_network`) and its images of a batch (`_batch`).

    Attributes
    ----------
    training : NetworkTraining
        What was chosen, and the usual for what was left empty.
    """

    Parameters: ClassVar[type[DataNetworkParameters]]
    parameters: DataNetworkParameters
    usual: ClassVar[Mapping[int, NetworkTraining]] = USUAL
    """By space axes."""
    paper_rate: ClassVar[float]
    """Adam's step in the paper."""
    needs_measurement = True
    optimises = True
    previews = "patches of its images"
    balanced = False

    def __init__(
        self, parameters: DataNetworkParameters, *, ndim: int, channels: int = 1,
        device: str = "cpu",
    ) -> None:
        super().__init__(parameters, ndim=ndim, channels=channels, device=device)
        self.training = overlaid(self.usual[ndim], parameters)
        self._net: nn.Module | None = None
        self._factor: tuple[int, ...] = ()
        self._border = Border(0, circular=False)

    @abstractmethod
    def _network(self, factor: tuple[int, ...]) -> nn.Module:
        """A new network for this many image samples per data sample and axis."""

    @abstractmethod
    def _batch(
        self, net: nn.Module, tiles: Tiles, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Images of some tiles, the ``log|det|`` (B,) of a flow, and the tiles' data."""

    @abstractmethod
    def estimate(self, y: Tensor, *, seed: int = 0, should_stop: ShouldStop = never) -> Job:
        """The image of data (B, C, *space), on the block grid."""

    @property
    def is_fitted(self) -> bool:
        return super().is_fitted and self._net is not None

    @property
    def net(self) -> nn.Module:
        """The trained network.

        Raises
        ------
        InvalidInput
            Before `fit`.
        """
        if self._net is None:
            raise InvalidInput("the network is not trained yet; call fit with a measurement")
        return self._net

    def start(self, y: Tensor, physics: Physics) -> Tensor:
        """The network's image: few variational steps are then enough."""
        return from_blocks(run(self.estimate(y)), physics, tuple(y.shape[2:]))

    @property
    def learning_rate(self) -> float:
        """The rate that was chosen, or the usual one of the network."""
        given, paper = self.parameters.learning_rate, self.parameters.network == "paper"
        return given or (self.paper_rate if paper else USUAL_RATE)

    # --- learning ---------------------------------------------------------------------------

    def fit(
        self,
        references: Sequence[Reference],
        *,
        seed: int = 0,
        should_stop: ShouldStop = never,
        measurement: Measurement | None = None,
    ) -> Job:
        """Draw reference patches, then train on tiles of the measured data.

        Raises
        ------
        InvalidInput
            Without data, or for an operator that is not the same everywhere.
        """
        if measurement is None or measurement.y is None:
            raise InvalidInput(
                "the network learns from the data themselves: give an observation (many images or "
                "a large one of the material)"
            )
        factor = block_factor(measurement.physics)
        net = self._fresh(factor, seed)
        y = measurement.y.to(self.device)
        multiple = getattr(net, "data_multiple", None)
        tiles = cut_tiles(y, measurement.physics, self.training.tile, multiple)
        self._require_memory(net, tiles, multiple)
        yield from forward(super().fit(references, seed=seed, should_stop=should_stop))
        if self._net is not None and factor == self._factor:
            net.load_state_dict(self._net.state_dict())
        variance = measurement.noise.variance_level(y)
        energy = PatchEnergy(
            self, tiles, variance, patches=self.parameters.patches_per_step,
            weight=self.training.weight,
        )
        generator = torch.Generator().manual_seed(seed)
        yield from self._train(net, tiles, energy, generator, should_stop)
        if not 0.5 <= energy.residual <= 2:
            step = "raise" if energy.residual < 1 else "train longer, lower"
            yield Message(
                f"the network's images explain the data to {energy.residual:.2g} times the noise "
                f"variance (0.5 to 2 is good): {step} the weight, or check the noise level",
                "warning",
            )
        self._net, self._factor, self._border = net.requires_grad_(False), factor, tiles.border
        planes = self.as_planes(self._batch(net, tiles, generator)[0])
        count = -(-PREVIEW_PATCHES // len(planes))
        yield self.preview(self.drawn_patches(planes, count, generator).extract(planes))
        yield Result(self)

    def _require_memory(self, net: nn.Module, tiles: Tiles, multiple: Sequence[int] | None) -> None:
        """Refuse batches that cannot be held: their feature maps, judged by those of small tiles,
        and their patches.
        """
        probe = copy.copy(self)
        probe.parameters = self.parameters.model_copy(update={"tiles": 2})
        space = tiles.data.shape[2:]
        edges = [-(-SMALLEST_TILE // m) * m for m in multiple or (1,) * len(space)]
        small = tiles.cropped([min(e, n) for e, n in zip(edges, space, strict=True)])
        draw = partial(probe._batch, net, small)
        kept = graph_bytes(net, draw, torch.Generator().manual_seed(0)) / small.first[:2].numel()
        count = self.parameters.tiles
        grid = self.patch_grid(tiles.first.shape[2:])
        patches = self.dim * min(self.parameters.patches_per_step, count * grid.count)
        require(
            kept * count * tiles.first[0].numel() + BYTES_PER_PATCH_SAMPLE * patches,
            f"a training step with {count} tiles of {tuple(space)} data samples",
            "lower tiles, tile or patches_per_step",
        )

    def _train(
        self, net: nn.Module, tiles: Tiles, energy: PatchEnergy, generator: torch.Generator,
        should_stop: ShouldStop,
    ) -> Iterator[Event]:
        yield from train(
            net, partial(self._batch, net, tiles), energy, steps=self.training.steps,
            learning_rate=self.learning_rate, generator=generator,
            should_stop=should_stop,
        )

    def _fresh(self, factor: tuple[int, ...], seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._network(factor).to(self.device)

    # --- keeping ----------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        weights = self.net.state_dict()
        found = super().state() | {
            "factor": torch.tensor(self._factor, dtype=torch.float64),
            "border": torch.tensor(self._border, dtype=torch.float64),
        }
        return found | {f"net.{k}": v.cpu().clone() for k, v in weights.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        check_entry(state, "factor", (self.ndim,), self.name)
        factor = tuple(int(f) for f in state["factor"].tolist())
        if not all(1 <= f <= LARGEST_FACTOR for f in factor):
            raise InvalidInput(
                f"{self.name}: 'factor' = {factor}; 1 to {LARGEST_FACTOR} per axis is possible"
            )
        check_entry(state, "border", (2,), self.name)
        margin, circular = (int(b) for b in state["border"].tolist())
        largest = self.training.tile // 2
        if not 0 <= margin <= largest:
            raise InvalidInput(
                f"{self.name}: 'border' = {margin}; 0 to {largest} data px are possible, half of "
                "a tile"
            )
        check_network(state, "net.", partial(self._network, factor), self.name)
        net = self._fresh(factor, 0)
        weights = {name: state[f"net.{name}"] for name in net.state_dict()}
        super().load_state(state)
        net.load_state_dict(weights)
        self._net, self._factor = net.requires_grad_(False), factor
        self._border = Border(margin, bool(circular))
