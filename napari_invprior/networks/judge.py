"""Which weights are best: the fit of held-out patches, beside the training fit and a Gaussian."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from napari_invprior.networks.density import PatchDensity
from napari_invprior.networks.draws import Draws
from napari_invprior.networks.whitening import Whitening
from napari_invprior.numerics.expectation import (
    Moments,
    Regularisation,
    covariance,
    from_labels,
    k_means,
)
from napari_invprior.numerics.mixture import MixtureDensity

MIXTURE_COMPONENTS, MIXTURE_PATCHES, MIXTURE_STEPS = 20, 6000, 8
"""The mixture that gives a level to beat: small enough to be fitted in a second."""
NOISE_LEVELS = 9
"""Noise levels at which a noise-conditional density is judged, evenly in the logarithm."""
GAIN = 0.2
"""Training is flat when several evaluations gain less than this, nats."""
OVERFIT = 5.0
"""Held-out minus training fit above which the user is warned, nats."""


class Judge:
    """Evaluates weights on fixed held-out patches and remembers the course.

    Parameters
    ----------
    density : PatchDensity
        Gives architecture and whitening; its weights are not touched.
    draws : Draws
        Training and held-out patches.
    count : int
        Patches of each kind to evaluate on.
    generator : torch.Generator
        Chooses them, and the noise for a noise-conditional density.

    Attributes
    ----------
    trial : PatchDensity
        The density with the weights last evaluated.
    held_out, best, gap : float
        Last and best negative log-likelihood of held-out patches without ``d/2 log(2 pi)``, and the
        last one minus that of training patches, nats.
    gaussian : float
        The held-out figure of the full-covariance Gaussian fitted to the training patches, nats.
    mixture : float
        That of a small mixture of Gaussians.

    Examples
    --------
    >>> from napari_invprior.networks.coupling import CouplingFlow
    >>> rows = torch.randn(900, 4, generator=torch.Generator().manual_seed(0))
    >>> density = PatchDensity(CouplingFlow(4, hidden=8, zero_last=True))
    >>> judge = Judge(density, Draws(rows[:800], rows[800:], 900), 100, torch.Generator())
    >>> judge.evaluate(density.flow.weights), round(judge.held_out - judge.gaussian, 1)
    (True, 0.0)
    """

    def __init__(
        self, density: PatchDensity, draws: Draws, count: int, generator: torch.Generator
    ) -> None:
        self.trial = density.twin()
        self._train = self._choose(draws.train, count, generator)
        self._held_out = self._choose(draws.held_out, count, generator)
        gaussian = Whitening.fit(draws.train.T)
        held_out, levels = self._held_out
        self.gaussian = float(gaussian.potential(held_out, levels).mean())
        order = torch.randperm(len(draws.train), generator=generator)[:MIXTURE_PATCHES]
        columns = draws.train[order.to(draws.train.device)].T.contiguous()
        self.mixture = mixture_level(columns, held_out, levels, generator)
        self.held_out = self.best = math.inf
        self.gap = 0.0
        self._history: list[float] = []

    def _choose(
        self, rows: Tensor, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Some patches as columns and, for a noise-conditional density, made noisy: the levels.

        There are `NOISE_LEVELS` of them, over the trained range.
        """
        order = torch.randperm(len(rows), generator=generator)[:count].to(rows.device)
        patches = rows[order].T.contiguous()
        if self.trial.noise_range is None:
            return patches, None
        low, high = self.trial.noise_range
        steps = torch.arange(len(order), device=rows.device) % NOISE_LEVELS / (NOISE_LEVELS - 1)
        levels = low * (high / low) ** steps
        noise = torch.randn(patches.shape, generator=generator).to(patches)
        return patches + noise * levels, levels

    def evaluate(self, weights: Tensor) -> bool:
        """Held-out fit of ``weights``; true if it is the best so far."""
        self.trial.flow.weights.copy_(weights)
        self.held_out = float(self.trial.potential(*self._held_out).mean())
        self.gap = self.held_out - float(self.trial.potential(*self._train).mean())
        self._history.append(self.held_out)
        if not self.held_out < self.best:
            return False
        self.best = self.held_out
        return True

    def is_flat(self, window: int) -> bool:
        """Whether the last ``window`` evaluations gained less than `GAIN` over the best before."""
        if len(self._history) <= window:
            return False
        return min(self._history[-window:]) > min(self._history[:-window]) - GAIN

    def levels(self) -> dict[str, float]:
        """The levels to plot."""
        return {"held_out": self.held_out, "gaussian": self.gaussian, "gmm": self.mixture}

    def overfit_text(self) -> str:
        """Why more training would not help."""
        return (
            f"held-out patches fit {self.gap:.1f} nats worse than training patches: the flow "
            "learns the picked patches by heart; the best state so far is kept. Pick a larger "
            "region, or switch symmetries on"
        )

    def verdict(self) -> str:
        """The figures in one clause."""
        return (
            f"held-out {self.best:.1f} nats per patch, Gaussian {self.gaussian:.1f}, mixture "
            f"{self.mixture:.1f}"
        )


def mixture_level(
    train: Tensor, held_out: Tensor, levels: Tensor | None, generator: torch.Generator
) -> float:
    """Held-out figure of a small full-covariance mixture fitted to ``train`` (d, N), nats.

    With noise ``levels`` of the held-out patches each of them meets the mixture plus its noise.
    """
    components = max(1, min(MIXTURE_COMPONENTS, train.shape[1] // (4 * train.shape[0])))
    _, spread = covariance(train)
    regularisation = Regularisation(0.05 * spread, 5.0, 1e-5)
    labels = k_means(train, components, 5, generator)
    mixture = from_labels(train, labels, regularisation)
    for _ in range(MIXTURE_STEPS):
        moments = Moments(mixture)
        for _ in moments.add(train):
            pass
        mixture = moments.update(regularisation)
    variances = torch.zeros(1) if levels is None else levels.unique().square()
    total = 0.0
    for variance in variances.tolist():
        seen = held_out if levels is None else held_out[:, levels.square() == variance]
        density = MixtureDensity(mixture, variance, held_out.dtype)
        total += float(density.potential(seen).sum())
    return total / held_out.shape[1]
