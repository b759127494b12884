"""Fits a PCA-GMM, and where components or directions are left open tries a few and keeps the best.

What decides is how well the good part of held-out patches follows from the poor part; without a
poor part it is the likelihood of held-out patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from napari_invprior.jobs import Event, Message, ShouldStop, Stage
from napari_invprior.numerics.expectation import Moments, covariance
from napari_invprior.numerics.low_rank_mixture import LowRankMixture
from napari_invprior.numerics.principal_em import (
    Statistics,
    enough,
    k_means_start,
    maximised,
    neighbour_start,
    rank_for,
)
from napari_invprior.numerics.regression import Regression
from napari_invprior.numerics.subspaces import RELATIVE_FLOOR, Mode, Subspaces

PATCHES_PER_COMPONENT = 10
"""A component needs so many patches."""
USUAL_COMPONENTS = 20
PATIENCE = 3
"""Steps without a better held-out figure after which a fit ends."""
Adopt = Callable[[LowRankMixture], None]


@dataclass(frozen=True)
class Plan:
    """One way to fit: components, directions and how many of them (None: by their variance)."""

    components: int
    mode: Mode
    rank: int | None


class JointFit:
    """One training.

    Parameters
    ----------
    parameters
        The parameters of the PCA-GMM.
    unseen : int
        Numbers of the good patch; the others are seen.
    train, held_out : Tensor
        Joint patches (D, N) and (D, M) in random order.
    generator : torch.Generator
        Source of randomness.
    """

    def __init__(
        self,
        parameters: Any,
        unseen: int,
        train: Tensor,
        held_out: Tensor,
        generator: torch.Generator,
    ) -> None:
        self._parameters, self._unseen = parameters, unseen
        self._train, self._held_out, self._generator = train, held_out, generator
        spread = covariance(train)[1]
        self._floor = RELATIVE_FLOOR * float(spread.trace()) / len(spread)
        self._best = float("inf")
        self._dropped = 0

    def run(
        self, before: LowRankMixture | None, adopt: Adopt, should_stop: ShouldStop
    ) -> Iterator[Event]:
        """Train; ``adopt`` is called with every mixture that is better than those before."""
        if before is not None:
            self._best = self._score(before)
            plans = [Plan(before.components, self._mode_of(before), before.rank)]
        else:
            plans = self._plans()
        stage = Stage("train", self._parameters.steps * len(plans))
        yield stage.progress(0)
        losses = {"gaussian": self._nll(self._gaussian())}
        for number, plan in enumerate(plans):
            yield from self._follow(plan, number, before, adopt, stage, losses, should_stop)
            if should_stop():
                return
        wanted = self._parameters.components
        if self._dropped or (wanted or 0) > plans[-1].components:
            kept = plans[-1].components - self._dropped
            yield Message(
                f"{wanted or plans[-1].components} components need more patches than the "
                f"{self._train.shape[1]} there are; {kept} components are used",
                "warning",
            )

    # --- plans ------------------------------------------------------------------------------

    def _plans(self) -> list[Plan]:
        given = self._parameters
        n = self._train.shape[1]
        components = given.components or USUAL_COMPONENTS
        components = max(1, min(components, n // PATCHES_PER_COMPONENT))
        if given.mode != "auto":
            modes: list[Mode] = [given.mode]
        else:
            modes = ["hddc"] if given.rank is not None else ["hddc", "full"]
        counts = [components] if given.components else [1, components]
        plans = [
            Plan(count, mode, None if mode == "full" else given.rank)
            for count in counts
            for mode in modes
        ]
        if given.components is None and given.mode == "auto":
            plans = [plan for plan in plans if plan.components > 1 or plan.mode == "full"]
        return plans

    def _mode_of(self, mixture: LowRankMixture) -> Mode:
        if mixture.rank == mixture.dim:
            return "full"
        mode: Mode = "hddc" if self._parameters.mode == "auto" else self._parameters.mode
        return mode

    def _subspaces(self, plan: Plan, statistics: Statistics | None) -> Subspaces:
        rank = len(self._train)
        if plan.mode != "full":
            wanted = plan.rank
            if wanted is None:
                assert statistics is not None
                wanted = rank_for(statistics)
            rank = min(rank, wanted)
        return Subspaces(
            plan.mode, rank, self._parameters.sigma**2, self._floor,
            self._parameters.optimiser == "palm",
        )

    def _start(self, plan: Plan) -> tuple[LowRankMixture, Subspaces]:
        if self._parameters.start == "neighbours" and plan.components > 1:
            statistics = neighbour_start(self._train, plan.components, self._generator)
        else:
            statistics = k_means_start(self._train, plan.components, self._generator)
        subspaces = self._subspaces(plan, statistics)
        statistics, kept = enough(statistics, 2 * subspaces.rank)
        self._dropped = int((~kept).sum())
        return subspaces.mixture(*statistics), subspaces

    # --- steps ------------------------------------------------------------------------------

    def _follow(
        self,
        plan: Plan,
        number: int,
        before: LowRankMixture | None,
        adopt: Adopt,
        stage: Stage,
        losses: dict[str, float],
        should_stop: ShouldStop,
    ) -> Iterator[Event]:
        """Steps of one plan, until nothing is gained."""
        if before is None:
            mixture, subspaces = self._start(plan)
            self._consider(mixture, adopt)
        else:
            mixture, subspaces = before, self._subspaces(plan, None)
        done = number * self._parameters.steps
        last, worse, lowest = float("inf"), 0, float("inf")
        for step in range(done + 1, done + self._parameters.steps + 1):
            moments = Moments(mixture, self._train.dtype)
            for _ in moments.add(self._train):
                if should_stop():
                    return
                if stage.due():
                    yield stage.progress(step - 1, **losses)
            mixture, dropped = maximised(moments, subspaces, mixture)
            self._dropped += dropped
            score = self._consider(mixture, adopt)
            worse = 0 if score < lowest else worse + 1
            lowest = min(lowest, score)
            losses |= {"train": moments.mean_nll, "held_out": self._nll(mixture)}
            yield stage.progress(step, **losses)
            if last - moments.mean_nll < self._parameters.tolerance or worse >= PATIENCE:
                break
            last = moments.mean_nll

    def _consider(self, mixture: LowRankMixture, adopt: Adopt) -> float:
        score = self._score(mixture)
        if score < self._best:
            self._best = score
            adopt(mixture)
        return score

    def _score(self, mixture: LowRankMixture) -> float:
        """What the held-out patches say; less is better."""
        if self._unseen == len(self._train):
            return self._nll(mixture)
        regression = Regression(mixture, self._unseen, dtype=self._train.dtype)
        predicted = regression(self._held_out[self._unseen :]).mean
        return float(((predicted - self._held_out[: self._unseen]) ** 2).double().mean())

    def _nll(self, mixture: LowRankMixture) -> float:
        """Mean ``-log p`` of held-out patches without ``d/2 log 2 pi``."""
        density = mixture.density(dtype=self._train.dtype)
        return float(density.potential(self._held_out).double().mean())

    def _gaussian(self) -> LowRankMixture:
        """One Gaussian: the level that a mixture must beat."""
        mean, spread = covariance(self._train)
        one = torch.ones_like(mean[:1])
        return Subspaces("full", len(mean), floor=self._floor).mixture(
            one, mean[None], spread[None]
        )
