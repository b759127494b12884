"""What a solver must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from napari_invprior.cutout import Cutout
from napari_invprior.jobs import Job, ShouldStop, never
from napari_invprior.parameters import Parameters as Declaration
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise
from napari_invprior.priors.base import Prior


class Solver(ABC):
    """Finds one best image for given data.

    Attributes
    ----------
    automatic_weights : tuple of float
        Weights at which the automatic choice begins, largest first, in units of the prior's
        ``weight_scale``.
    """

    Parameters: ClassVar[type[Declaration]]
    name: ClassVar[str]
    automatic_weights: ClassVar[tuple[float, ...]]
    needs_prior: ClassVar[bool] = True
    has_weight: ClassVar[bool] = True
    """Whether the prior is weighed against the data (``parameters.weight``)."""

    def __init__(self, parameters: Declaration) -> None:
        self.parameters = parameters

    def objective_weight(self, weight: float, prior: Prior) -> float:
        """The weight in `Objective` that means the same as ``weight`` here."""
        return weight

    def settled(self, steps: int) -> Solver:
        """The solver with so many steps in place of a rule that looks at all of the image."""
        return self

    @abstractmethod
    def solve(
        self,
        y: Tensor,
        physics: Physics,
        noise: Noise,
        prior: Prior | None,
        *,
        weight: float,
        start: Tensor | None = None,
        value_range: tuple[float, float] | None = None,
        seed: int = 0,
        should_stop: ShouldStop = never,
        time_budget_s: float | None = None,
        cutout: Cutout | None = None,
    ) -> Job:
        """Reconstruct from ``y`` (B, C, *space).

        Parameters
        ----------
        weight : float
            How much the prior counts against the data; see the class for its unit.
        start : Tensor, optional
            First image; ``physics.start(y)`` by default.
        value_range : tuple of float, optional
            Smallest and largest value of the references.
        should_stop
            Polled in every step; the best image so far is then the result.
        cutout : Cutout, optional
            Where the image lies in a whole whose result is wanted there. What is said of the whole
            at once, such as a rule to stop, must have been settled before (see `settled`).

        Yields
        ------
        Event
            Progress (with the residual ratio), previews, and a `Result` with the image
            (B, C, *space).
        """
