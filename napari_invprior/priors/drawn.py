"""Priors that draw images for given data: what they offer, and what follows from it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from napari_invprior.cutout import Cutout
from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import (
    Event,
    Job,
    Progress,
    Result,
    Sample,
    ShouldStop,
    forward,
    never,
)
from napari_invprior.numerics.moments import Moments
from napari_invprior.numerics.patches import PatchGrid
from napari_invprior.physics.base import Physics
from napari_invprior.priors.base import Map, Measurement
from napari_invprior.priors.patchwise import PatchPrior


@runtime_checkable
class DrawsImages(Protocol):
    """A prior that draws images for data by itself."""

    def draws(
        self, y: Tensor, physics: Physics, count: int, *, seed: int = 0,
        should_stop: ShouldStop = never,
    ) -> Job:
        """Draw ``count`` independent images for data (1, C, *space).

        The same seed gives the same images, however many are asked for.

        Yields
        ------
        Event
            Progress, a `Sample` for each image, on the operator's own grid, and a `Result` with
            their number: fewer than ``count`` after a stop, at least one.
        """


class DrawingPrior(PatchPrior):
    """A prior that draws images, learns from patches with data of their own, and has no potential.

    Attributes
    ----------
    operator : Physics or None
        That of the data that `estimate` is given; see `at_operator`.
    """

    parameters: Any
    has_gradient = False
    operator: Physics | None = None

    @abstractmethod
    def draws(
        self, y: Tensor, physics: Physics, count: int, *, seed: int = 0,
        should_stop: ShouldStop = never,
    ) -> Job:
        """See `DrawsImages`."""

    @abstractmethod
    def at_operator(self, physics: Physics) -> DrawingPrior:
        """The prior for data of an operator like the one that it learnt for.

        Raises
        ------
        InvalidInput
            If it is too different.
        """

    def estimate(self, y: Tensor, *, seed: int = 0, should_stop: ShouldStop = never) -> Job:
        """The mean of ``samples`` images of data (B, C, *space), on the operator's own grid."""
        if self.operator is None:
            raise InvalidInput("a saved prior does not hold its operator: call at_operator first")
        return self._mean(y, self.operator, seed, should_stop)

    def _mean(self, y: Tensor, operator: Physics, seed: int, should_stop: ShouldStop) -> Job:
        means = []
        for frame in y.split(1):
            job = self.draws(
                frame, operator, self.parameters.samples, seed=seed, should_stop=should_stop
            )
            moments = yield from forward(_collected(job, [], 0))
            means.append(moments.mean)
        yield Result(torch.cat(means))

    def maps(
        self, x: Tensor, measurement: Measurement | None = None, *, seed: int = 0
    ) -> Job:
        """``std``: standard deviation of the samples, over the channels' mean square; ``samples``.

        Both of the images that `estimate` averages; empty without data.
        """
        if measurement is None or measurement.y is None:
            yield Result([])
            return
        count = self.parameters.samples
        shown = min(self.parameters.shown, count)
        stds: list[Tensor] = []
        stacks: list[list[Tensor]] = []
        for frame in measurement.y.split(1):
            stacks.append([])
            job = self.draws(frame, measurement.physics, count, seed=seed)
            moments = yield from forward(_collected(job, stacks[-1], shown))
            stds.append(moments.std.square().mean(1, keepdim=True).sqrt().cpu())
        maps = [Map("std", torch.cat(stds), unit="difference")]
        if shown:
            frames = [torch.stack(images) for images in zip(*stacks, strict=True)]
            maps.append(Map("samples", torch.stack(frames), unit="image"))
        yield Result(maps)

    def g(self, x: Tensor) -> Tensor:
        raise self._no_potential()

    def grad(self, x: Tensor) -> Tensor:
        raise self._no_potential()

    def subset_value_and_grad(
        self, x: Tensor, generator: torch.Generator, stride: int | Sequence[int] | None = None,
        grid: PatchGrid | None = None, cutout: Cutout | None = None,
    ) -> tuple[Tensor, Tensor]:
        raise self._no_potential()

    def drawn_value_and_grad(
        self, x: Tensor, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        raise self._no_potential()

    def _no_potential(self) -> InvalidInput:
        return InvalidInput(
            f"the prior {self.name!r} draws images and has no potential: reconstruct with the "
            "solver 'direct', sample with 'amortised', or choose another prior"
        )


def _collected(job: Job, stack: list[Tensor], shown: int) -> Iterator[Event]:
    """The job's progress; the first ``shown`` samples go on the stack, `Moments` of all result."""
    moments: Moments | None = None
    for event in job:
        if isinstance(event, Sample):
            image = event.image[None]
            moments = Moments(image) if moments is None else moments
            moments.add(image)
            if event.slot < shown:
                stack.append(event.image.cpu())
        elif isinstance(event, Progress):
            yield event
    yield Result(moments)
