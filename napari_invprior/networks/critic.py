"""A convolutional critic: one number per patch, trained to tell good patches from degraded ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
"""Of the leaky rectifiers."""


class PatchCritic(nn.Module):
    """Three convolutions without biases; patches of 6 x 6 px give the papers' network.

    ``3^n conv (1) - leaky ReLU - 3^n conv (stride 2) - leaky ReLU - conv over what is left``.

    Parameters
    ----------
    channels : int
        Of a patch.
    patch : sequence of int
        Edges, 2 or 3 axes.
    widths : (int, int)
        Feature maps of the two hidden layers.
    generator : torch.Generator
        Draws the first weights.

    Examples
    --------
    >>> critic = PatchCritic(1, (6, 6), (8, 16), torch.Generator().manual_seed(0))
    >>> critic(torch.rand(36, 5)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        channels: int,
        patch: Sequence[int],
        widths: tuple[int, int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.shape = channels, *patch
        ndim = len(patch)
        self.layers = nn.ParameterList()
        for shape in self.shapes(channels, patch, widths):
            fan_in = torch.Size(shape[1:]).numel()
            weight = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
            self.layers.append(nn.Parameter(weight))
        self._convolve = F.conv2d if ndim == 2 else F.conv3d

    @staticmethod
    def shapes(
        channels: int, patch: Sequence[int], widths: tuple[int, int]
    ) -> tuple[tuple[int, ...], ...]:
        """Shapes of the weights of its layers."""
        ndim = len(patch)
        left = [(p - 1) // 2 + 1 for p in patch]
        return (
            (widths[0], channels, *(3,) * ndim),
            (widths[1], widths[0], *(3,) * ndim),
            (1, widths[1], *left),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """One value per column of (d, N): (N,)."""
        x = patches.T.reshape(-1, *self.shape)
        first, second, last = self.layers
        x = F.leaky_relu(self._convolve(x, first, padding=1), SLOPE)
        x = F.leaky_relu(self._convolve(x, second, stride=2, padding=1), SLOPE)
        return self._convolve(x, last).flatten()

    def value_and_grad(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Values (N,) and their gradients in the patches (d, N)."""
        with torch.enable_grad():
            leaf = patches.detach().requires_grad_()
            values = self(leaf)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), gradient


def critic_loss(
    critic: PatchCritic, real: Tensor, fake: Tensor, penalty: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Loss of a Wasserstein critic with gradient penalty, and the gap ``E D(real) - E D(fake)``.

    ``-E D(real) + E D(fake) + penalty E (|grad D(between)| - 1)^2`` with ``between`` uniform on the
    segments that join real and fake patches.
    """
    gap = critic(real).mean() - critic(fake).mean()
    share = torch.rand(real.shape[1], generator=generator).to(real)
    between = torch.lerp(fake, real, share).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    excess = (slope.square().sum(0) + 1e-12).sqrt() - 1
    return -gap + penalty * excess.square().mean(), gap.detach()
