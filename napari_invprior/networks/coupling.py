"""GLOW coupling flow on patch columns, as in patchNR (arXiv 2205.12021).

The flow maps a standard normal latent ``z`` to a data column ``x`` by blocks of an affine coupling
on both halves and a fixed random permutation of the rows. All numbers that are learned lie in one
flat vector, so that an optimiser, an average or a copy is one operation. The methods here are
written plainly and can be differentiated by autograd; `kernels.FlowKernel` computes the same by
hand, several times faster.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput

CLAMP = 1.6
"""Soft clamp of the log-scales: ``s = CLAMP * SLOPE * atan(raw / CLAMP)``, so that |s| < 1.6."""
SLOPE = 0.636


class SubNet(NamedTuple):
    """Views of one sub-net ``n_in -> h -> h -> 2 n_out`` in a flat vector.

    Each matrix carries its bias as last column (inputs end with a row of ones): one matrix product
    per layer and no separate bias pass.

    Attributes
    ----------
    first : Tensor
        (h, n_in + condition + 1).
    second : Tensor
        (h, h + 1).
    third : Tensor
        (2 n_out, h + 1); the rows are raw log-scales, then shifts.
    """

    first: Tensor
    second: Tensor
    third: Tensor


def subnet_shapes(dim: int, hidden: int, condition: int, half: int) -> list[tuple[int, int]]:
    """Matrix shapes of the sub-net that changes half ``half`` (0 first, 1 second)."""
    sizes = (dim // 2, dim - dim // 2)
    n_out, n_in = sizes[half], sizes[1 - half]
    return [(hidden, n_in + condition + 1), (hidden, hidden + 1), (2 * n_out, hidden + 1)]


def weight_count(dim: int, hidden: int, blocks: int, condition: int) -> int:
    """How many weights a flow has.

    Examples
    --------
    >>> weight_count(5, 8, 2, 0) == CouplingFlow(5, hidden=8, blocks=2).weights.numel()
    True
    """
    pair = [shape for half in (0, 1) for shape in subnet_shapes(dim, hidden, condition, half)]
    return blocks * sum(math.prod(shape) for shape in pair)


class CouplingFlow:
    """A stack of GLOW coupling blocks, each followed by a fixed permutation.

    One block with halves ``(x1, x2)`` maps latent to data by
    ``y1 = exp(s2(x2)) x1 + t2(x2); y2 = exp(s1(y1)) x2 + t1(y1)``; ``(s, t)`` is a sub-net with two
    hidden ReLU layers. Odd ``dim`` splits unevenly.

    Parameters
    ----------
    dim : int
        Rows of a column, at least 2.
    hidden : int
        Width of the sub-nets (512 in the paper).
    blocks : int
        Number of blocks (5 in the paper).
    condition : int
        Extra rows that every sub-net sees, 0 for an unconditional flow.
    seed : int
        Seed of the permutations and of the first weights.
    zero_last : bool
        Start as the identity (up to permutations): last layers of the sub-nets are zero.

    Attributes
    ----------
    weights : Tensor
        All learned numbers, one flat vector.
    permutations : Tensor
        (blocks, dim), int64; row ``i`` of the data of a block is row ``permutations[k, i]`` of its
        coupling's result.

    References
    ----------
    Altekrueger et al., PatchNR, Inverse Problems 39(6), 2023, arXiv 2205.12021.

    Examples
    --------
    >>> flow = CouplingFlow(5, hidden=8, blocks=2, dtype=torch.float64)
    >>> z = torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3)
    >>> x, log_det = flow.forward(z)
    >>> back, inverse_log_det = flow.inverse(x)
    >>> bool(torch.allclose(back, z)), bool(torch.allclose(log_det, -inverse_log_det))
    (True, True)
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 64,
        blocks: int = 5,
        condition: int = 0,
        *,
        seed: int = 0,
        zero_last: bool = False,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        if dim < 2:
            raise InvalidInput(f"dim = {dim}: a coupling flow needs at least 2 numbers per patch")
        self.dim, self.hidden, self.blocks, self.condition = dim, hidden, blocks, condition
        self.first_half = dim // 2
        generator = torch.Generator().manual_seed(seed)
        order = [torch.randperm(dim, generator=generator) for _ in range(blocks)]
        self.permutations = torch.stack(order).to(device)
        count = weight_count(dim, hidden, blocks, condition)
        self.weights = torch.zeros(count, dtype=dtype, device=device)
        self._initialise(generator, zero_last)

    def _shapes(self, half: int) -> list[tuple[int, int]]:
        return subnet_shapes(self.dim, self.hidden, self.condition, half)

    def nets(self, flat: Tensor) -> list[tuple[SubNet, SubNet]]:
        """Per block the sub-nets for the first and the second half, as views of ``flat``."""
        found: list[tuple[SubNet, SubNet]] = []
        start = 0
        for _ in range(self.blocks):
            pair = []
            for half in (0, 1):
                views = []
                for shape in self._shapes(half):
                    views.append(flat[start : start + math.prod(shape)].view(shape))
                    start += math.prod(shape)
                pair.append(SubNet(*views))
            found.append((pair[0], pair[1]))
        return found

    def _initialise(self, generator: torch.Generator, zero_last: bool) -> None:
        """Uniform in ``+-1/sqrt(inputs)``, weights and biases (torch's usual linear layer)."""
        for net in (net for pair in self.nets(self.weights) for net in pair):
            for matrix in net[:2] if zero_last else net:
                bound = 1 / math.sqrt(matrix.shape[1] - 1)
                draw = torch.rand(matrix.shape, generator=generator, dtype=torch.float64)
                matrix.copy_((2 * draw - 1) * bound)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent to data: ``x`` (dim, N) and ``log|det dx/dz|`` (N,)."""
        log_det = z.new_zeros(z.shape[1])
        for order, (net1, net2) in zip(self.permutations, self.nets(self.weights), strict=True):
            x1, x2 = z[: self.first_half], z[self.first_half :]
            s, t = self._affine(net1, x2, condition)
            y1, log_det = s.exp() * x1 + t, log_det + s.sum(0)
            s, t = self._affine(net2, y1, condition)
            y2, log_det = s.exp() * x2 + t, log_det + s.sum(0)
            z = torch.cat((y1, y2))[order]
        return z, log_det

    def inverse(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to latent: ``z`` (dim, N) and ``log|det dz/dx|`` (N,)."""
        log_det = x.new_zeros(x.shape[1])
        blocks = list(zip(self.permutations, self.nets(self.weights), strict=True))
        for order, (net1, net2) in reversed(blocks):
            x = x[torch.argsort(order)]
            y1, y2 = x[: self.first_half], x[self.first_half :]
            s, t = self._affine(net2, y1, condition)
            x2, log_det = (y2 - t) * (-s).exp(), log_det - s.sum(0)
            s, t = self._affine(net1, x2, condition)
            x1, log_det = (y1 - t) * (-s).exp(), log_det - s.sum(0)
            x = torch.cat((x1, x2))
        return x, log_det

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Log-density of each column: ``-|z|^2/2 + log|det dz/dx| - dim/2 log(2 pi)``, (N,)."""
        z, log_det = self.inverse(x, condition)
        return log_det - 0.5 * z.square().sum(0) - 0.5 * self.dim * math.log(2 * math.pi)

    def sample(self, n: int, generator: torch.Generator, condition: Tensor | None = None) -> Tensor:
        """Draw ``n`` columns: (dim, n)."""
        z = torch.randn(
            (self.dim, n), generator=generator, dtype=self.weights.dtype, device=generator.device
        )
        return self.forward(z.to(self.weights.device), condition)[0]

    def _affine(self, net: SubNet, read: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if (condition is None) != (self.condition == 0):
            raise InvalidInput(
                f"the flow has {self.condition} condition rows, "
                f"{'none' if condition is None else condition.shape[0]} given"
            )
        ones = read.new_ones(1, read.shape[1])
        rows = (read, ones) if condition is None else (read, condition, ones)
        h = torch.relu(net.first @ torch.cat(rows))
        h = torch.relu(net.second @ torch.cat((h, ones)))
        raw, shift = (net.third @ torch.cat((h, ones))).chunk(2)
        return CLAMP * SLOPE * torch.atan(raw / CLAMP), shift
