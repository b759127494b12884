"""A network for chains whose samples are vectors; the app itself has chains of images alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class VectorNet(nn.Module):
    """Fully connected layers with SiLU between them that start at zero, for vectors in rows."""

    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        sizes = [inputs, *hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors (B, outputs) of vectors (B, inputs)."""
        for layer in self.layers[:-1]:
            x = F.silu(layer(x))
        return self.layers[-1](x)  # type: ignore[no-any-return]
