"""Adam that notices when it diverges, and that ends where there is no more to gain."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from napari_invprior.errors import JobError

EXPLODED, MAX_HALVINGS = 1e3, 3
SAFE_EVERY = 50
"""Steps between two sets of weights to roll back to."""
SETTLING, LAST_SHARE = 50, 0.05
"""In so many last steps the rate falls to this share, which averages the noise of batches out."""
PATIENCE = 3
"""So many judgements without a gain end the training."""
EARLIER_SHARE = 0.05
"""An objective that starts near its end has little to gain; this share of others counts too."""
COLD_SHARE = 0.05
"""Plateau of the first objective over that of the others: its first gains are large for nothing."""


class GuardedAdam:
    """Steps of Adam on a network, for one objective after the other.

    Attributes
    ----------
    taken : int
        Steps on the present objective.
    factor : float
        What divergence has left of the learning rate.

    Examples
    --------
    >>> from napari_invprior.networks.perceptron import Perceptron
    >>> net = Perceptron(1, 1, 0, 8, torch.Generator().manual_seed(0))
    >>> descent, x = GuardedAdam(net, 1e-2), torch.ones(1, 4)
    >>> descent.begin(500)
    >>> while not descent.done:
    ...     y = net(x)
    ...     going = descent.step(float(y.detach().square().mean()), y, y.detach() / 2)
    >>> bool(y.abs().max() < 1e-3)
    True
    """

    def __init__(self, net: nn.Module, learning_rate: float) -> None:
        self.net, self.learning_rate, self.factor = net, learning_rate, 1.0
        self._most = 0.0
        self._optimiser = torch.optim.Adam(net.parameters(), lr=learning_rate, fused=True)
        self.begin(1)

    def begin(self, iterations: int) -> None:
        """Start an objective of at most so many steps; the weights and moments stay."""
        self._cold = self._most == 0
        self.taken, self._end = 0, iterations
        self._first: float | None = None
        self._judged: list[float] = []
        self._poor, self._halvings = 0, 0
        self._good = self._copied()

    def judge(self, value: float, plateau: float) -> None:
        """Take note of a loss without noise; end soon if it gains no more.

        A gain is no gain below the share ``plateau`` of all that the objective has gained so far,
        or of a part of what an earlier one has; 0 for all steps. The first objective, which starts
        from random weights, has to settle more thoroughly.
        """
        plateau *= COLD_SHARE if self._cold else 1.0
        if plateau and self._judged:
            best = min(self._judged)
            fallen = self._judged[0] - min(best, value)
            self._most = max(self._most, fallen)
            enough = plateau * max(fallen, EARLIER_SHARE * self._most)
            self._poor = self._poor + 1 if best - value <= enough else 0
            if self._poor == PATIENCE:
                self._end = min(self._end, self.taken + SETTLING)
        self._judged.append(value)

    @property
    def done(self) -> bool:
        """Whether the present objective has had its steps."""
        return self.taken >= self._end

    def step(self, loss: float, output: Tensor, gradient: Tensor) -> bool:
        """One step along the gradient of the loss in the network's output; false if rolled back.

        Raises
        ------
        JobError
            If the loss explodes for the fourth time.
        """
        self._first = loss if self._first is None else self._first
        broken = not math.isfinite(loss) or not bool(gradient.isfinite().all())
        if broken or loss - self._first > EXPLODED * max(abs(self._first), 1.0):
            self._roll_back(loss)
            return False
        if self.taken % SAFE_EVERY == 0:
            self._good = self._copied()
        self._optimiser.zero_grad()
        output.backward(gradient)
        for group in self._optimiser.param_groups:
            group["lr"] = self.factor * self.learning_rate * self._share()
        self._optimiser.step()
        self.taken += 1
        return True

    def _share(self) -> float:
        """Share of the rate."""
        left = (self._end - self.taken) / min(SETTLING, self._end)
        return LAST_SHARE + (1 - LAST_SHARE) * min(1.0, max(0.0, left))

    def _copied(self) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        parameters = list(self.net.parameters())
        states = [
            {key: value.clone() for key, value in self._optimiser.state[p].items()}
            for p in parameters
        ]
        return [p.detach().clone() for p in parameters], states

    def _roll_back(self, loss: float) -> None:
        self._halvings += 1
        if self._halvings > MAX_HALVINGS:
            raise JobError(
                f"the network diverged {self._halvings} times (loss {loss:.3g}) although the step "
                f"was halved to {self.factor * self.learning_rate:.2g}; choose a smaller "
                "learning_rate or tau, or check the scale of the coordinates (about 1 is best)"
            )
        weights, states = self._good
        for p, weight, state in zip(self.net.parameters(), weights, states, strict=True):
            p.data.copy_(weight)
            self._optimiser.state[p] = {key: value.clone() for key, value in state.items()}
        self.factor /= 2
