"""WPPNet: a network that reconstructs in one pass, trained without good images of one place."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from napari_invprior.jobs import Job, Result, ShouldStop, Stage, never
from napari_invprior.networks.upscaling import AsymmetricUpscaler, ResidualUpscaler
from napari_invprior.parameters import parameter
from napari_invprior.priors.data_networks.base import DataNetworkParameters, DataNetworkPrior
from napari_invprior.priors.data_networks.tiles import Tiles, as_single, first_image
from napari_invprior.registry import register

SIZES = {"small": (48, 6), "large": (64, 8)}
"""Feature maps and layers."""


class WPPNetParameters(DataNetworkParameters):
    """Patches, network and training."""

    network: Literal["small", "large", "paper"] = parameter(
        "small", "A small network (a minute), a larger one (take 2000 steps and 8 tiles), or the "
        "paper's (hours on a CPU).",
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
class WPPNet(DataNetworkPrior):
    """A Wasserstein patch prior with a network that minimises it for any data of one operator.

    Over the network ``G``: the mean of ``|A G(y_i) - y_i|^2 / (2 sigma^2)`` plus ``weight n`` times
    ``W_2^2`` between the patches of all ``G(y_i)`` together and those of the references. Use it
    through the solver ``direct``, or as a start for ``variational``.
    """

    Parameters = WPPNetParameters
    parameters: WPPNetParameters
    paper_rate = 1e-4

    def _network(self, factor: tuple[int, ...]) -> nn.Module:
        if self.parameters.network == "paper":
            return AsymmetricUpscaler(factor)
        width, depth = SIZES[self.parameters.network]
        return ResidualUpscaler(factor, width=width, depth=depth)

    def _batch(
        self, net: nn.Module, tiles: Tiles, generator: torch.Generator
    ) -> tuple[Tensor, None, Tensor]:
        y, first = tiles.draw(self.parameters.tiles, generator, self.joint_channels)
        return net(y, first), None, y

    @torch.no_grad()
    def estimate(self, y: Tensor, *, seed: int = 0, should_stop: ShouldStop = never) -> Job:
        net, stage = self.net, Stage("reconstruct", y.shape[0])
        images = []
        for k, frame in enumerate(y.split(1)):
            single = self._border.continued(as_single(frame))
            image = net(single, first_image(single, self._factor))
            images.append(self._border.inside(image, y.shape[2:], self._factor))
            yield stage.progress(k + 1)
        yield Result(torch.cat(images).view(*y.shape[:2], *images[0].shape[2:]))
