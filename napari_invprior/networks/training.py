"""Maximum-likelihood training of a patch density, step by step, without autograd."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from napari_invprior.errors import JobError
from napari_invprior.networks.density import PatchDensity
from napari_invprior.networks.kernels import FlowKernel

WEIGHT_COPIES, BATCH_COPIES = 8, 3
"""Float32 copies of the weights (moments, average, last good ones) and of a batch's activations."""
EXPLODED = 1e3
_HALVINGS = 3
_WARM_UP, _FIRST_RATE, _LAST_RATE = 0.1, 0.1, 1e-3


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes
    ----------
    batch, steps : int
        Patches per step; steps.
    learning_rate : float
        Adam's step, the peak of it with ``one_cycle``.
    one_cycle : bool
        Cosine rise over the first tenth and cosine fall to a thousandth; constant otherwise.
    noise : float
        Standard deviation of Gaussian noise added to the patches (dequantisation), grey.
    average : float
        Decay per step of the exponential moving average of the weights; 0 for none.
    """

    batch: int
    steps: int
    learning_rate: float
    one_cycle: bool
    noise: float
    average: float


def training_bytes(dim: int, hidden: int, blocks: int, batch: int) -> int:
    """Memory of a training: weights with their moments, and what a batch leaves in all sub-nets.

    Examples
    --------
    >>> training_bytes(36, 64, 5, 512) < 50_000_000 < training_bytes(36, 4096, 5, 512)
    True
    """
    weights = 2 * blocks * hidden * (hidden + 2 * dim)
    activations = 2 * blocks * batch * (2 * hidden + 2 * dim)
    return 4 * (WEIGHT_COPIES * weights + BATCH_COPIES * activations)


class Trainer:
    """Draws batches and takes Adam steps on one flat weight vector.

    Parameters
    ----------
    density : PatchDensity
        Where the first weights come from; it is not changed.
    rows : Tensor
        (M, d) training patches.
    training : Training
        Batch, steps, rate and so on.
    symmetries : Tensor, optional
        (k, d) row permutations; each patch is turned by a random one.
    seed : int
        Seed of the draws.

    Attributes
    ----------
    taken, steps : int
        Steps taken, and steps in all.
    factor : float
        What divergence has left of the step size.

    Examples
    --------
    >>> from napari_invprior.networks.coupling import CouplingFlow
    >>> rows = torch.rand(500, 4, generator=torch.Generator().manual_seed(0))
    >>> plan = Training(64, 200, 1e-2, True, 0.0, 0.9)
    >>> trainer = Trainer(PatchDensity(CouplingFlow(4, hidden=16)), rows, plan)
    >>> losses = [trainer.step() for _ in range(200)]
    >>> losses[-1] < losses[0]
    True
    """

    def __init__(
        self,
        density: PatchDensity,
        rows: Tensor,
        training: Training,
        *,
        symmetries: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self.density, self.rows, self.training = density, rows, training
        self.symmetries = None if symmetries is None else symmetries.to(rows.device)
        self.taken, self.steps, self.factor, self._halvings = 0, training.steps, 1.0, 0
        self._settled = (0, 0.0)
        self._first: float | None = None
        self._random = torch.Generator(rows.device).manual_seed(seed)
        self._weights = torch.nn.Parameter(density.flow.weights.clone())
        self._weights.grad = torch.zeros_like(self._weights.data)
        self._optimiser = torch.optim.Adam([self._weights], lr=training.learning_rate, fused=True)
        self._average = self._weights.data.clone() if training.average else None
        self._kernel = FlowKernel(
            density.flow,
            training.batch,
            weights=self._weights.data,
            gradient=self._weights.grad,
        )
        self._good = self._snapshot()

    @property
    def weights(self) -> Tensor:
        """The averaged weights where there is an average, else the present ones."""
        return self._weights.data if self._average is None else self._average

    @torch.inference_mode()
    def step(self) -> float:
        """One step; the mean loss of its batch, ``E[|z|^2/2 - log|det dz/dv|]``."""
        loss = self._pass(*self._batch())
        self._first = loss if self._first is None else self._first
        if not math.isfinite(loss) or loss - self._first > EXPLODED * max(abs(self._first), 1.0):
            self._roll_back(loss)
            return loss
        for group in self._optimiser.param_groups:
            group["lr"] = self.rate(self.taken)
        self._optimiser.step()
        self.taken += 1
        if self._average is not None:
            # The first weights are forgotten quickly: a short run has no use for a long memory.
            decay = min(self.training.average, (1 + self.taken) / (10 + self.taken))
            self._average.lerp_(self._weights.data, 1 - decay)
        return loss

    def rate(self, step: int) -> float:
        """Adam's step size at ``step``."""
        peak = self.factor * self.training.learning_rate
        if not self.training.one_cycle:
            return peak
        share = self._share(step)
        if share < _WARM_UP:
            return peak * _cosine(_FIRST_RATE, 1.0, share / _WARM_UP)
        return peak * _cosine(1.0, _LAST_RATE, (share - _WARM_UP) / (1 - _WARM_UP))

    def settle(self, steps: int) -> bool:
        """End in ``steps`` steps: the rate falls from here to its last value in that time.

        A constant rate, and one that ends as soon anyway, stay as they are; false then.
        """
        if not self.training.one_cycle or self.taken + steps >= self.steps:
            return False
        self._settled = self.taken, max(self._share(self.taken), _WARM_UP)
        self.steps = self.taken + steps
        return True

    def _share(self, step: int) -> float:
        """Place of ``step`` on the one-cycle, 0 to 1."""
        since, share = self._settled
        return share + (1 - share) * min(1.0, (step - since) / max(1, self.steps - 1 - since))

    def mark_good(self) -> None:
        """Remember the present weights as the place to roll back to."""
        self._good = self._snapshot()

    def _batch(self) -> tuple[Tensor, Tensor | None]:
        """Random patches as columns, turned and with noise, and their noise levels."""
        size, device = self.training.batch, self.rows.device
        index = torch.randint(len(self.rows), (size,), generator=self._random, device=device)
        columns = self.rows[index].T.contiguous()
        if self.symmetries is not None:
            count = len(self.symmetries)
            kind = torch.randint(count, (size,), generator=self._random, device=device)
            columns = columns.gather(0, self.symmetries[kind].T)
        levels = None
        if self.density.noise_range is not None:
            low, high = (math.log(s) for s in self.density.noise_range)
            draw = torch.rand(size, generator=self._random, device=device)
            levels = (low + (high - low) * draw).exp().to(columns)
        scale = self.training.noise if levels is None else levels
        if levels is not None or self.training.noise:
            noise = torch.randn(columns.shape, generator=self._random, device=device)
            columns.add_(noise.to(columns).mul_(scale))
        return columns, levels

    def _pass(self, columns: Tensor, levels: Tensor | None) -> float:
        log_det: Tensor | float = 0.0
        if self.density.whitening is not None:
            columns, log_det = self.density.whitening.inverse(columns, levels)
        values = self._kernel.potential(columns, self.density.condition(levels)).sub_(log_det)
        self._kernel.backward(1 / self.training.batch)
        return float(values.mean())

    def _snapshot(self) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        state = self._optimiser.state[self._weights]
        return (
            self._weights.data.clone(),
            None if self._average is None else self._average.clone(),
            {key: value.clone() for key, value in state.items()},
        )

    def _roll_back(self, loss: float) -> None:
        self._halvings += 1
        if self._halvings > _HALVINGS:
            raise JobError(
                f"training diverged {self._halvings} times (loss {loss:.3g}) although the step "
                f"was halved to {self.rate(self.taken):.2g}; choose a smaller learning rate, or "
                "check the picked regions for broken values"
            )
        weights, average, state = self._good
        self._weights.data.copy_(weights)
        if self._average is not None and average is not None:
            self._average.copy_(average)
        self._optimiser.state[self._weights] = {k: v.clone() for k, v in state.items()}
        self.factor /= 2


def _cosine(start: float, stop: float, share: float) -> float:
    return stop + (start - stop) * 0.5 * (1 + math.cos(math.pi * share))
