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
from napari_invprior.numerics.expectation import Moments, covariance, require_mixture
from napari_invprior.numerics.low_rank_mixture import LowRankMixture
from napari_invprior.numerics.principal_em import (
    Statistics,
    enough,
    k_means_start,
    maximised,
    neighbour_start,
    rank_for,
    shrunk,
)
from napari_invprior.numerics.regression import Regression
from napari_invprior.numerics.subspaces import RELATIVE_FLOOR, Mode, Subspaces
from napari_invprior.priors.mixtures.joint_patches import JointDraws

PATCHES_PER_COMPONENT = 10
"""A component needs so many patches."""
USUAL_COMPONENTS = 20
SHRINKAGE = 300.0
"""Patches that the pooled covariance counts in mode ``auto``; the papers' modes have none."""
MIXTURE_BONUS = 0.015
"""Share of the squared error by which one Gaussian must win: the final fit has an eighth more
patches than the trials, from which mixtures gain more (goldhill: 0.4 dB were lost without)."""
PATIENCE = 3
"""Steps without a better held-out figure after which a fit ends."""
Adopt = Callable[[LowRankMixture], None]


@dataclass(frozen=True)
class Plan:
    """One way to fit: components, directions and how many of them (None: by their variance)."""

    components: int
    mode: Mode
    rank: int | None


@dataclass(frozen=True)
class Trial:
    """How well a plan did at its best, and after how many steps."""

    score: float
    plan: Plan
    steps: int


class JointFit:
    """One training.

    Parameters
    ----------
    parameters
        The parameters of the PCA-GMM.
    unseen : int
        Numbers of the good patch; the others are seen.
    draws : JointDraws
        Joint patches.
    generator : torch.Generator
        Source of randomness.
    """

    def __init__(
        self,
        parameters: Any,
        unseen: int,
        draws: JointDraws,
        generator: torch.Generator,
    ) -> None:
        self._parameters, self._unseen = parameters, unseen
        self._train, self._held_out, self._all = draws.train, draws.held_out, draws.patches
        self._generator = generator
        automatic = SHRINKAGE if parameters.mode == "auto" else 0.0
        given = parameters.shrinkage
        self._shrinkage: float = automatic if given is None else given
        spread = covariance(draws.train)[1]
        self._floor = RELATIVE_FLOOR * float(spread.trace()) / len(spread)

    def run(
        self, before: LowRankMixture | None, adopt: Adopt, should_stop: ShouldStop
    ) -> Iterator[Event]:
        """Train; ``adopt`` is called with every mixture that is better than those before."""
        plans = self._plans() if before is None else [self._plan_of(before)]
        again = 0 if before is not None else 1
        stage = Stage("train", self._parameters.steps * (len(plans) + again))
        yield stage.progress(0)
        losses = {"gaussian": self._nll(self._gaussian())}
        best = Trial(float("inf") if before is None else self._score(before), plans[0], 0)
        for number, plan in enumerate(plans):
            mixture, subspaces = self._start(plan, self._train) if before is None else (
                before, self._subspaces(plan, None)
            )
            worse, last = 0, float("inf")
            for step in range(self._parameters.steps + 1):
                score = self._score(mixture)
                worse += 1
                if score < best.score:
                    adopt(mixture)
                    best, worse = Trial(score, plan, step), 0
                if worse > PATIENCE or step == self._parameters.steps:
                    break
                moments = Moments(mixture, self._train.dtype)
                done = number * self._parameters.steps + step
                yield from self._expect(moments, self._train, stage, done, losses, should_stop)
                if should_stop():
                    return
                losses["train"] = moments.mean_nll
                mixture = maximised(moments, subspaces, mixture, self._shrinkage)
                losses["held_out"] = self._nll(mixture)
                yield stage.progress(done + 1, **losses)
                if last - moments.mean_nll < self._parameters.tolerance:
                    break
                last = moments.mean_nll
        if before is None:
            yield from self._repeat(best, adopt, stage, losses, should_stop)

    def _repeat(
        self,
        best: Trial,
        adopt: Adopt,
        stage: Stage,
        losses: dict[str, float],
        should_stop: ShouldStop,
    ) -> Iterator[Event]:
        """The best trial once more, now from all patches: held-out ones are patches too."""
        mixture, subspaces = self._start(best.plan, self._all)
        wanted = self._parameters.components
        for done in range(stage.total - best.steps, stage.total):
            moments = Moments(mixture, self._train.dtype)
            yield from self._expect(moments, self._all, stage, done, losses, should_stop)
            if should_stop():
                return
            mixture = maximised(moments, subspaces, mixture, self._shrinkage)
            yield stage.progress(done + 1, **losses)
        adopt(mixture)
        if wanted is not None and mixture.components < wanted:
            yield Message(
                f"{wanted} components need more patches than the {self._all.shape[1]} there are; "
                f"the number used is {mixture.components}",
                "warning",
            )

    @staticmethod
    def _expect(
        moments: Moments,
        patches: Tensor,
        stage: Stage,
        done: int,
        losses: dict[str, float],
        should_stop: ShouldStop,
    ) -> Iterator[Event]:
        """An expectation step, with events; left early when the user stops."""
        for _ in moments.add(patches):
            if should_stop():
                return
            if stage.due():
                yield stage.progress(done, **losses)

    # --- plans ------------------------------------------------------------------------------

    def _plans(self) -> list[Plan]:
        given = self._parameters
        n = self._train.shape[1]
        components = given.components or USUAL_COMPONENTS
        components = max(1, min(components, n // PATCHES_PER_COMPONENT))
        require_mixture(components, len(self._all))
        if given.mode != "auto":
            modes: list[Mode] = [given.mode]
        else:
            modes = ["hddc"] if given.rank is not None else ["hddc", "full"]
        counts = [components] if given.components else [1, components]
        return [
            Plan(count, mode, None if mode == "full" else given.rank)
            for count in counts
            for mode in modes
        ]

    def _plan_of(self, mixture: LowRankMixture) -> Plan:
        """How a mixture that is there was fitted."""
        mode: Mode = "hddc" if self._parameters.mode == "auto" else self._parameters.mode
        if mixture.rank == mixture.dim:
            mode = "full"
        return Plan(mixture.components, mode, mixture.rank)

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

    def _start(self, plan: Plan, patches: Tensor) -> tuple[LowRankMixture, Subspaces]:
        if self._parameters.start == "neighbours" and plan.components > 1:
            statistics = neighbour_start(patches, plan.components, self._generator)
        else:
            statistics = k_means_start(patches, plan.components, self._generator)
        subspaces = self._subspaces(plan, statistics)
        statistics, _ = enough(statistics, 2 * subspaces.rank)
        return subspaces.mixture(*shrunk(statistics, self._shrinkage)), subspaces

    # --- figures

    def _score(self, mixture: LowRankMixture) -> float:
        """What the held-out patches say; less is better."""
        if self._unseen == len(self._train):
            return self._nll(mixture)
        regression = Regression(mixture, self._unseen, dtype=self._train.dtype)
        predicted = regression(self._held_out[self._unseen :]).mean
        error = float(((predicted - self._held_out[: self._unseen]) ** 2).double().mean())
        return error * (1 - MIXTURE_BONUS) if mixture.components > 1 else error

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
