"""Adam that notices when it diverges, and that ends where the loss no longer falls."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from napari_invprior.errors import JobError

EXPLODED, MAX_HALVINGS = 1e3, 3
SAFE_EVERY = 50
"""Steps between two sets of weights to roll back to."""
WINDOW = 100
"""Steps whose losses are averaged to see whether they fall."""
LAST_SHARE = 0.05
"""What is left of the rate at the end of a settling window."""


class GuardedAdam:
    """Steps of Adam on a network, for one objective after the other.

    Attributes
    ----------
    factor : float
        What divergence has left of the learning rate.

    Examples
    --------
    >>> from napari_invprior.networks.perceptron import Perceptron
    >>> net = Perceptron(1, 1, 0, 8, torch.Generator().manual_seed(0))
    >>> descent, x = GuardedAdam(net, 1e-2), torch.ones(1, 4)
    >>> descent.begin(500, plateau=0.0)
    >>> while not descent.done:
    ...     y = net(x)
    ...     going = descent.step(float(y.detach().square().mean()), y, y.detach() / 2)
    >>> bool(y.abs().max() < 1e-3)
    True
    """

    def __init__(self, net: nn.Module, learning_rate: float) -> None:
        self.net, self.learning_rate, self.factor = net, learning_rate, 1.0
        self._optimiser = torch.optim.Adam(net.parameters(), lr=learning_rate, fused=True)
        self.begin(1, 0.0)

    def begin(self, iterations: int, plateau: float) -> None:
        """Start an objective of at most so many steps; the weights and moments stay.

        Parameters
        ----------
        plateau : float
            The steps end after a window in which the loss fell by less than this share of what it
            fell since the start; 0 for all steps.
        """
        self._iterations, self._plateau = iterations, plateau
        self._losses: list[float] = []
        self._end = iterations
        self._halvings = 0
        self._good = self._copied()

    @property
    def taken(self) -> int:
        """Steps on the present objective."""
        return len(self._losses)

    @property
    def done(self) -> bool:
        """Whether the present objective has had its steps."""
        return self.taken >= self._end

    @property
    def loss(self) -> float:
        """Mean loss of the last window."""
        recent = self._losses[-WINDOW:]
        return sum(recent) / len(recent) if recent else math.nan

    def step(self, loss: float, output: Tensor, gradient: Tensor) -> bool:
        """One step along the gradient of the loss in the network's output; false if rolled back.

        Raises
        ------
        JobError
            If the loss explodes for the fourth time.
        """
        first = self._losses[0] if self._losses else loss
        broken = not math.isfinite(loss) or not bool(gradient.isfinite().all())
        if broken or loss - first > EXPLODED * max(abs(first), 1.0):
            self._roll_back(loss)
            return False
        if self.taken % SAFE_EVERY == 0:
            self._good = self._copied()
        self._optimiser.zero_grad()
        output.backward(gradient)
        for group in self._optimiser.param_groups:
            group["lr"] = self.factor * self.learning_rate * self._share()
        self._optimiser.step()
        self._losses.append(loss)
        if self.taken % WINDOW == 0 and self._end == self._iterations and self._is_flat():
            self._end = min(self._iterations, self.taken + WINDOW)
        return True

    def _share(self) -> float:
        """The rate falls over the last window, which averages the noise of the batches out."""
        left = (self._end - self.taken) / min(WINDOW, self._end)
        return LAST_SHARE + (1 - LAST_SHARE) * min(1.0, max(0.0, left))

    def _is_flat(self) -> bool:
        means = [
            sum(self._losses[k : k + WINDOW]) / WINDOW for k in range(0, self.taken, WINDOW)
        ]
        if self._plateau == 0 or len(means) < 3:
            return False
        fallen = max(self._losses[0], means[0]) - min(means)
        return means[-2] - means[-1] <= self._plateau * fallen

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
