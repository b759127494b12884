"""What the neural schemes share: a network that moves points at random, and its parameters.

A point may have to split, which no map can do. A Markov kernel ``x -> T(x, z)`` with Gaussian
``z`` can: one point goes to a cloud.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from napari_invprior.jobs import Message
from napari_invprior.networks.perceptron import Perceptron
from napari_invprior.parameters import overlaid, parameter
from napari_invprior.transport.riesz_flows.base import PRESETS, Flow, FlowParameters, Plan


@dataclass(frozen=True)
class Networks:
    """Size of the network and length of its training."""

    hidden_layers: int
    width: int
    iterations: int
    batch: int


JUDGE_EVERY = 25
"""Training steps between two judgements."""
DIVERGED = Message("training diverged: back to the last good weights, half the step", "warning")

CLOCKS = PRESETS | {"fast": Plan(0.5, 20.0, 2000)}
"""A step costs a training here: the fast preset takes longer ones."""

NETWORKS: dict[str, Networks] = {
    "fast": Networks(1, 64, 2000, 128),
    "interaction": Networks(1, 64, 5000, 100),
    "two_diracs": Networks(4, 128, 4000, 2000),
    "smiley": Networks(4, 128, 4000, 2000),
    "max_und_moritz": Networks(4, 128, 20_000, 6000),
}


class NeuralParameters(FlowParameters):
    """Parameters of the neural schemes; empty fields follow the preset."""

    iterations: int | None = parameter(
        None, "Most training steps for each step of the flow; empty is 2000 for preset fast.",
        ge=1, le=1_000_000,
    )
    plateau: float = parameter(
        0.003,
        "Train no longer when 25 steps gain less than this share of all gained; 0 for never.",
        ge=0, lt=1, advanced=True,
    )
    hidden_layers: int | None = parameter(
        None, "Layers besides the first and the last.", ge=0, le=16, advanced=True
    )
    width: int | None = parameter(None, "Width of the layers.", ge=2, le=8192, advanced=True)
    batch: int | None = parameter(
        None, "Particles in each training step.", ge=2, le=100_000, advanced=True
    )
    learning_rate: float = parameter(1e-3, "Step of Adam.", gt=0, le=0.1, advanced=True)

    def clock(self) -> Plan:
        return overlaid(CLOCKS[self.preset], self)

    def networks(self) -> Networks:
        """The preset with every field that is given."""
        return overlaid(NETWORKS[self.preset], self)


@dataclass(frozen=True)
class Kernel:
    """Moves points at random.

    Attributes
    ----------
    net : Perceptron
        Takes a point and a latent vector of the same dimension.
    centre, spread : Tensor, float
        Points are centred and scaled with these first.
    scale : float
        Length of the moves.
    residual : bool
        ``x + scale * h(x, z)``; else the network gives the new place itself.
    """

    net: Perceptron
    centre: Tensor
    spread: float
    scale: float = 1.0
    residual: bool = True

    def at(self, x: Tensor) -> Kernel:
        """The kernel with the centre and spread of these points."""
        centre = x.mean(1, keepdim=True)
        spread = float((x - centre).square().sum(0).mean()) ** 0.5
        return dataclasses.replace(self, centre=centre, spread=spread or 1.0)

    def output(self, x: Tensor, z: Tensor) -> Tensor:
        """What the network says on points (d, N) with latent vectors (d, N)."""
        seen = ((x - self.centre) / self.spread).float()
        answer: Tensor = self.net(torch.cat([seen, z]))
        return answer

    def moved(self, x: Tensor, output: Tensor) -> Tensor:
        """New places (d, N) of points, in double precision."""
        output = output.double()
        return x + self.scale * output if self.residual else self.centre + self.spread * output

    @torch.no_grad()
    def push(self, x: Tensor, z: Tensor) -> Tensor:
        """Move points (d, N)."""
        return self.moved(x, self.output(x, z))


def latent(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal vectors, one for each point (d, N)."""
    return torch.randn(x.shape, generator=generator)


@dataclass(frozen=True)
class PushedLaw:
    """Draws new points of a frame: particles of the frame before, moved by the kernel."""

    source: Tensor
    kernel: Kernel

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        some = torch.randint(self.source.shape[1], (count,), generator=generator)
        source = self.source[:, some].double()
        return self.kernel.push(source, latent(source, generator)).float()


class NeuralFlow(Flow):
    """A flow whose steps are learnt."""

    parameters: NeuralParameters

    def __init__(self, parameters: NeuralParameters) -> None:
        super().__init__(parameters)
        self.networks = parameters.networks()

    def fresh_kernel(self, x: Tensor, generator: torch.Generator, residual: bool = True) -> Kernel:
        """An untrained kernel for points (d, N)."""
        size, dim = self.networks, len(x)
        net = Perceptron(2 * dim, dim, size.hidden_layers, size.width, generator)
        return Kernel(net, x.mean(1, keepdim=True), 1.0, residual=residual).at(x)

    @staticmethod
    def law(source: Tensor, kernel: Kernel) -> PushedLaw:
        """A copy of the kernel that training goes on without."""
        net = copy.deepcopy(kernel.net).requires_grad_(False)
        return PushedLaw(source.float(), dataclasses.replace(kernel, net=net))
