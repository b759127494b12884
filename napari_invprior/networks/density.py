"""A patch density: whitening, then a coupling flow, evaluated in blocks that stay in cache."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.networks.coupling import CouplingFlow
from napari_invprior.networks.kernels import FlowKernel
from napari_invprior.networks.whitening import Whitening

_COLUMNS, _BLOCK_NUMBERS = 2000, 2**20
"""Most columns of one block on a CPU, and most numbers in one hidden layer of it (4 MB)."""
_LONE_COLUMNS, _WIDE = 144, 256
"""Most columns where one thread works on a net this wide: all of a block stays in the L2 cache."""
_LINE = 16
"""Numbers in a cache line; rows that begin on one are read faster."""
_ACCELERATOR_COLUMNS = 2**15

Sigma = float | Tensor | None


class PatchDensity:
    """Density of patch columns: ``p(v) = N(z; 0, I) |det dz/dv|`` with ``z = T^-1(W(v))``.

    Parameters
    ----------
    flow : CouplingFlow
        The flow ``T``; one condition row if ``noise_range`` is given.
    whitening : Whitening, optional
        The front layer ``W``; none for the paper's plain flow.
    noise_range : tuple of float, optional
        Smallest and largest noise level of a noise-conditional density, grey. The sub-nets see
        ``log sigma`` scaled to [-1, 1].

    Examples
    --------
    >>> density = PatchDensity(CouplingFlow(4, hidden=8, blocks=2))
    >>> value, gradient = density.potential_and_grad(torch.rand(4, 6))
    >>> value.shape, gradient.shape
    (torch.Size([6]), torch.Size([4, 6]))
    """

    def __init__(
        self,
        flow: CouplingFlow,
        whitening: Whitening | None = None,
        noise_range: tuple[float, float] | None = None,
    ) -> None:
        self.flow, self.whitening, self.noise_range = flow, whitening, noise_range
        self._kernels: dict[tuple[object, ...], FlowKernel] = {}

    def potential(self, patches: Tensor, sigma: Sigma = None) -> Tensor:
        """``-log p`` of each column of (d, N) without ``d/2 log(2 pi)``: (N,)."""
        return self._evaluate(patches, sigma, None, None)

    def potential_and_grad(
        self, patches: Tensor, sigma: Sigma = None, low: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """`potential` (N,) and its gradient (d, N), for frozen weights.

        Parameters
        ----------
        patches : Tensor
            (d, N), grey.
        sigma : float or Tensor, optional
            Noise level, one or (N,), of a noise-conditional density.
        low : torch.dtype, optional
            See `FlowKernel`.
        """
        gradient = torch.empty_like(patches)
        return self._evaluate(patches, sigma, gradient, low), gradient

    def _evaluate(
        self, patches: Tensor, sigma: Sigma, gradient: Tensor | None, low: torch.dtype | None
    ) -> Tensor:
        """The potential, block by block; ``gradient`` is filled where it is given."""
        levels = self._levels(patches, sigma)
        values = patches.new_empty(patches.shape[1])
        with torch.inference_mode():
            for part in self._parts(patches.shape[1]):
                chosen = None if levels is None else levels[part]
                w, log_det = self._white(patches[:, part], chosen)
                kernel = self._kernel(w.shape[1], gradient is not None, low)
                values[part] = kernel.potential(w, self.condition(chosen)).sub_(log_det)
                if gradient is not None:
                    g = kernel.backward()
                    if self.whitening is not None:
                        g = self.whitening.pull_back(g, chosen)
                    gradient[:, part] = g
        return values

    def sample(self, n: int, generator: torch.Generator, sigma: Sigma = None) -> Tensor:
        """Draw ``n`` patches: (d, n)."""
        levels = self._levels(self.flow.weights.new_empty(self.flow.dim, n), sigma)
        w = self.flow.sample(n, generator, self.condition(levels))
        return w if self.whitening is None else self.whitening.forward(w, levels)[0]

    def latent(self, patches: Tensor, sigma: Sigma = None) -> Tensor:
        """Latents of data patches, standard normal where the fit is perfect: (d, N)."""
        levels = self._levels(patches, sigma)
        w, _ = self._white(patches, levels)
        return self.flow.inverse(w, self.condition(levels))[0]

    def twin(self) -> PatchDensity:
        """The same density with weights of its own."""
        flow = copy.copy(self.flow)
        flow.weights = self.flow.weights.clone()
        return PatchDensity(flow, self.whitening, self.noise_range)

    def tensors(self) -> dict[str, Tensor]:
        """All numbers of the density by name."""
        named = {"weights": self.flow.weights, "permutations": self.flow.permutations}
        if self.whitening is not None:
            white = self.whitening
            named |= {"mean": white.mean, "vectors": white.vectors, "values": white.values}
        return named

    def load(self, given: Mapping[str, Tensor]) -> None:
        """Take over all tensors of a density of the same make.

        Raises
        ------
        InvalidInput
            Names the tensor that is missing, unknown, of the wrong shape or type, not finite or
            not meaningful; nothing is taken over then.
        """
        expected = self.tensors()
        if set(given) != set(expected):
            raise InvalidInput(
                f"the flow's state holds {sorted(given)}; expected {sorted(expected)} (a state "
                "belongs to one choice of parameters)"
            )
        for name, value in expected.items():
            _check(name, given[name], value)
        rows = torch.arange(self.flow.dim).expand_as(given["permutations"])
        if not torch.equal(given["permutations"].cpu().sort(1).values, rows):
            raise InvalidInput("tensor 'permutations' holds no permutations")
        if self.whitening is not None and not bool((given["values"] > 0).all()):
            raise InvalidInput("tensor 'values' holds variances, which must be positive")
        moved = {k: given[k].detach().to(v.device, copy=True) for k, v in expected.items()}
        self.flow.weights, self.flow.permutations = moved["weights"], moved["permutations"]
        if self.whitening is not None:
            self.whitening = Whitening(moved["mean"], moved["vectors"], moved["values"])
        self._kernels = {}

    def condition(self, levels: Tensor | None) -> Tensor | None:
        """The condition row (1, N) for noise levels (N,)."""
        if levels is None or self.noise_range is None:
            return None
        low, high = (math.log(s) for s in self.noise_range)
        return ((levels.log() - (low + high) / 2) / ((high - low) / 2))[None]

    def _white(self, patches: Tensor, levels: Tensor | None) -> tuple[Tensor, Tensor | float]:
        if self.whitening is None:
            return patches, 0.0
        return self.whitening.inverse(patches, levels)

    def _levels(self, patches: Tensor, sigma: Sigma) -> Tensor | None:
        if self.noise_range is None:
            if sigma is not None:
                raise InvalidInput("sigma given, but this prior was not trained with noise levels")
            return None
        low, high = self.noise_range
        levels = torch.as_tensor(low if sigma is None else sigma, dtype=patches.dtype)
        levels = levels.to(patches.device).expand(patches.shape[1])
        if not bool(((levels >= 0.999 * low) & (levels <= 1.001 * high)).all()):
            raise InvalidInput(f"sigma = {sigma}: trained for noise levels from {low} to {high}")
        return levels

    def _parts(self, count: int) -> Iterator[slice]:
        """Equal parts of at most one block; the last may overlap so that all have one size."""
        if count == 0:
            return
        size = -(-count // -(-count // self._most_columns()))
        size += -size % _LINE
        if size % 256 == 0:
            size += _LINE  # rows a power of two apart would fall on the same lines of the cache
        size = min(size, count)
        for start in range(0, count, size):
            start = min(start, count - size)
            yield slice(start, start + size)

    def _most_columns(self) -> int:
        """Columns of one block at most, by what the processor keeps at hand."""
        hidden = self.flow.hidden
        if self.flow.weights.device.type != "cpu":
            return _ACCELERATOR_COLUMNS
        if hidden >= _WIDE and torch.get_num_threads() == 1:
            return _LONE_COLUMNS
        return min(_COLUMNS, max(128, _BLOCK_NUMBERS // hidden))

    def _kernel(self, columns: int, keep: bool, low: torch.dtype | None) -> FlowKernel:
        key = (columns, keep, low)
        if key not in self._kernels:
            # A new size replaces the old one: buffers of many sizes would only fill the memory.
            self._kernels = {k: v for k, v in self._kernels.items() if k[1] != keep}
            self._kernels[key] = FlowKernel(self.flow, columns, keep=keep, low=low)
        return self._kernels[key]


def _check(name: str, given: Tensor, expected: Tensor) -> None:
    if tuple(given.shape) != tuple(expected.shape) or given.dtype != expected.dtype:
        raise InvalidInput(
            f"tensor {name!r} is {tuple(given.shape)} {given.dtype}; expected "
            f"{tuple(expected.shape)} {expected.dtype}"
        )
    if given.is_floating_point() and not bool(torch.isfinite(given).all()):
        raise InvalidInput(f"tensor {name!r} holds NaN or infinity")
