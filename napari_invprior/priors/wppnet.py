"""WPPNet: a network that reconstructs in one pass, trained without good images of the same place.

It learns from data alone: its images must explain the data through the operator, and all their
patches together must be distributed like those of an unrelated reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_invprior.errors import InvalidInput, JobError
from napari_invprior.jobs import (
    Event,
    Job,
    Message,
    Preview,
    Result,
    ShouldStop,
    Stage,
    forward,
    never,
    run,
)
from napari_invprior.networks.upscaling import AsymmetricUpscaler, ResidualUpscaler
from napari_invprior.parameters import parameter
from napari_invprior.physics.base import Physics
from napari_invprior.physics.blocks import block_factor, from_blocks
from napari_invprior.priors.base import Measurement, Reference
from napari_invprior.priors.data_tiles import (
    SMALLEST_TILE,
    Tiles,
    as_single,
    cut_tiles,
    first_image,
)
from napari_invprior.priors.state import check_entry
from napari_invprior.priors.wasserstein import WassersteinParameters, WassersteinPatchPrior
from napari_invprior.registry import register

WEIGHT_GAIN = 0.05
"""How fast the automatic weight follows the residual."""
FIRST_WEIGHT = 3.0
EXPLODED = 1e3


class WPPNetParameters(WassersteinParameters):
    """Patches, network and training."""

    reference_patches: Annotated[int, Field(ge=100, le=1_000_000)] = parameter(
        2000, "Patches drawn from the references at each scale; cost grows with them."
    )
    scales: Annotated[int, Field(ge=1, le=6)] = parameter(
        1, "Scales that are compared, each half as fine as the one before."
    )
    network: Literal["small", "paper"] = parameter(
        "small", "A small residual network (minutes), or the paper's (hours on a CPU)."
    )
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = parameter(400, "Training steps.")
    tiles: Annotated[int, Field(ge=1, le=4096)] = parameter(
        4, "Tiles of the data per step.", advanced=True
    )
    tile: Annotated[int, Field(ge=SMALLEST_TILE, le=1024)] = parameter(
        25, "Edge of a tile.", unit="data px"
    )
    patches_per_step: Annotated[int, Field(ge=100, le=1_000_000)] = parameter(
        4000, "Patches of the tiles' images that are compared in one step.", advanced=True
    )
    learning_rate: Annotated[float, Field(ge=1e-8, le=0.1)] = parameter(
        1e-3, "First step of Adam; it falls to zero.", advanced=True
    )
    weight: Annotated[float, Field(ge=1e-9, le=1e6)] | Literal["auto"] = parameter(
        "auto",
        "How much the patches count against the data; 'auto': so that the residual is the noise.",
    )


@register(
    kind="prior",
    name="wppnet",
    title="WPPNet",
    papers=("2201.08157",),
    inputs=("references", "observation"),
    outputs=("prior", "maps"),
    needs_references=True,
)
class WPPNet(WassersteinPatchPrior):
    """A Wasserstein patch prior with a network that minimises it for any data of one operator.

    Over the network ``G``: the mean of ``|A G(y_i) - y_i|^2 / (2 sigma^2)`` plus ``weight n`` times
    ``W_2^2`` between the patches of all ``G(y_i)`` together and those of the references. Use it
    through the solver ``direct``, or as a start for ``variational``.
    """

    Parameters = WPPNetParameters
    parameters: WPPNetParameters
    needs_measurement = True
    balanced = False

    def __init__(
        self, parameters: WPPNetParameters, *, ndim: int, channels: int = 1, device: str = "cpu"
    ) -> None:
        super().__init__(parameters, ndim=ndim, channels=channels, device=device)
        self._net: nn.Module | None = None
        self._factor: tuple[int, ...] = ()

    # --- use --------------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return super().is_fitted and self._net is not None

    @torch.no_grad()
    def estimate(self, y: Tensor, *, seed: int = 0, should_stop: ShouldStop = never) -> Job:
        """The network's image of data (B, C, *space), on the block grid."""
        if self._net is None:
            raise InvalidInput("the network is not trained yet; call fit with a measurement")
        stage = Stage("reconstruct", y.shape[0])
        images = []
        for k, frame in enumerate(y.split(1)):
            single = as_single(frame)
            images.append(self._net(single, first_image(single, self._factor)))
            yield stage.progress(k + 1)
        yield Result(torch.cat(images).view(*y.shape[:2], *images[0].shape[2:]))

    def start(self, y: Tensor, physics: Physics) -> Tensor:
        """The network's image: few variational steps are then enough."""
        return from_blocks(run(self.estimate(y)), physics, tuple(y.shape[2:]))

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
                "a WPPNet learns from the data themselves: give an observation (many images or a "
                "large one of the material)"
            )
        tiles = cut_tiles(measurement.y, measurement.physics, self.parameters.tile)
        factor = block_factor(measurement.physics)
        yield from forward(super().fit(references, seed=seed, should_stop=should_stop))
        net = self._fresh(factor, seed)
        if self._net is not None and factor == self._factor:
            net.load_state_dict(self._net.state_dict())
        variance = measurement.noise.variance_level(measurement.y)
        yield from self._train(net, tiles, variance, seed, should_stop)
        net.requires_grad_(False)
        self._net, self._factor = net, factor
        yield Result(self)

    def _fresh(self, factor: tuple[int, ...], seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            kind = ResidualUpscaler if self.parameters.network == "small" else AsymmetricUpscaler
            return kind(factor).to(self.device)

    def _train(
        self, net: nn.Module, tiles: Tiles, variance: float, seed: int, should_stop: ShouldStop
    ) -> Iterator[Event]:
        chosen = self.parameters
        stage = Stage("train", chosen.steps)
        generator = torch.Generator().manual_seed(seed)
        working = self.for_run()
        optimiser = torch.optim.Adam(net.parameters(), lr=chosen.learning_rate)
        automatic = chosen.weight == "auto"
        weight = FIRST_WEIGHT if chosen.weight == "auto" else float(chosen.weight)
        losses: dict[str, float] = {}
        shown = 0.0
        for step in range(chosen.steps):
            for group in optimiser.param_groups:
                decay = 0.5 * (1 + math.cos(math.pi * step / chosen.steps))
                group["lr"] = chosen.learning_rate * decay
            drawn = torch.randint(len(tiles.data), (chosen.tiles,), generator=generator)
            drawn = drawn.to(tiles.data.device)
            y = tiles.data[drawn]
            images = net(y, tiles.first[drawn])
            ratio, value, gradient = self._gradient(
                images.detach(), y, tiles, variance, weight, working, generator
            )
            if not math.isfinite(ratio + value) or ratio > EXPLODED:
                raise JobError(
                    f"the network diverged (residual ratio {ratio:.3g}); lower learning_rate from "
                    f"{chosen.learning_rate:g}"
                )
            optimiser.zero_grad()
            images.backward(gradient)
            optimiser.step()
            if automatic:
                weight *= math.exp(-WEIGHT_GAIN * max(-1.0, min(1.0, math.log(ratio))))
            losses = {"residual": ratio, "transport": value, "weight": weight}
            if stage.due():
                yield stage.progress(step + 1, **losses)
                if stage.seconds > shown + 1:
                    shown = stage.seconds
                    yield Preview("patches", images[:8].numpy(force=True), "train")
            if should_stop():
                break
        yield stage.progress(step + 1, **losses)
        if not 0.5 <= losses["residual"] <= 2:
            yield Message(
                f"the network's images explain the data to {losses['residual']:.2g} times the "
                "noise variance (0.5 to 2 is good): train longer, or check the noise level",
                "warning",
            )

    def _gradient(
        self,
        images: Tensor,
        y: Tensor,
        tiles: Tiles,
        variance: float,
        weight: float,
        working: Any,
        generator: torch.Generator,
    ) -> tuple[float, float, Tensor]:
        """Residual ratio, transport cost, and the gradient of the loss per image sample."""
        count = max(1, self.parameters.patches_per_step // len(images))
        values, slope = working.drawn_value_and_grad(images, count, generator)
        inner = images[tiles.image_window]
        residual = tiles.physics.A(inner) - y[tiles.data_window]
        gradient = (weight / len(images)) * slope
        back = tiles.physics.A_adjoint(residual)
        gradient[tiles.image_window] += back / (variance * inner.numel())
        return float(residual.square().mean()) / variance, float(values[0]), gradient

    # --- keeping ----------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        if self._net is None:
            raise InvalidInput("the network is not trained yet; call fit with a measurement")
        found = super().state() | {"factor": torch.tensor(self._factor, dtype=torch.float64)}
        return found | {f"net.{k}": v.cpu().clone() for k, v in self._net.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        check_entry(state, "factor", (self.ndim,), self.name)
        factor = tuple(int(f) for f in state["factor"].tolist())
        if not all(1 <= f <= 16 for f in factor):
            raise InvalidInput(f"{self.name}: 'factor' = {factor}; 1 to 16 per axis is possible")
        net = self._fresh(factor, 0)
        weights = {}
        for name, held in net.state_dict().items():
            check_entry(state, f"net.{name}", tuple(held.shape), self.name)
            weights[name] = state[f"net.{name}"]
        super().load_state(state)
        net.load_state_dict(weights)
        self._net, self._factor = net.requires_grad_(False), factor
