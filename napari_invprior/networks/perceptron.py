"""A plain multilayer perceptron for points that are columns."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class Perceptron(nn.Module):
    """Affine layers with rectifiers in between.

    Parameters
    ----------
    inputs, outputs : int
        Rows of a point before and after.
    hidden_layers : int
        Layers from width to width; there is one into them and one out of them besides.
    width : int
        Rows in between.
    generator : torch.Generator
        Draws the first weights.

    Examples
    --------
    >>> net = Perceptron(4, 2, 1, 16, torch.Generator().manual_seed(0))
    >>> net(torch.rand(4, 5)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self, inputs: int, outputs: int, hidden_layers: int, width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        sizes = [inputs, *[width] * (hidden_layers + 1), outputs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in itertools.pairwise(sizes):
            bound = before**-0.5
            for kind, shape in ((self.weights, (after, before)), (self.biases, (after, 1))):
                drawn = torch.rand(shape, generator=generator)
                kind.append(nn.Parameter(bound * (2 * drawn - 1)))

    def forward(self, points: Tensor) -> Tensor:
        """Map points (inputs, N) to (outputs, N)."""
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            points = torch.addmm(bias, weight, points)
            if layer < last:
                points = points.relu()
        return points

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Multiply the answers."""
        self.weights[-1].mul_(factor)
        self.biases[-1].mul_(factor)
