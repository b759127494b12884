"""Which prior suits this material and this operator: a dress rehearsal on the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Event, Job, Message, Preview, Result, ShouldStop, Stage, never
from napari_invprior.numerics.metrics import psnr
from napari_invprior.parameters import Parameters
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise
from napari_invprior.priors.base import Prior, Reference
from napari_invprior.priors.mixtures.gmm import GaussianMixture, GaussianMixtureParameters
from napari_invprior.priors.patchnr import PatchNR, PatchNRParameters
from napari_invprior.reconstruct.base import Solver
from napari_invprior.reconstruct.half_quadratic import HalfQuadratic, HalfQuadraticParameters
from napari_invprior.reconstruct.total_variation import TotalVariation, TotalVariationParameters
from napari_invprior.reconstruct.variational import Variational, VariationalParameters

LARGEST_PIECE = {2: 128, 3: 32}
"""Edge of the held-out piece, samples: large enough to score, small enough to be quick."""
TV_WEIGHTS = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class Candidate:
    """A prior with its solver and the weights to try.

    Attributes
    ----------
    name : str
        Shown to the user.
    prior : type or None
        Class of the prior; None for a solver that needs none.
    parameters : Parameters or None
        Of the prior.
    solver : Solver
        The solver.
    weights : tuple of float
        Weights to try; the best one counts.
    """

    name: str
    prior: type[Prior] | None
    parameters: Parameters | None
    solver: Solver
    weights: tuple[float, ...]

    def build(self, ndim: int, channels: int) -> Prior | None:
        """The unfitted prior."""
        if self.prior is None or self.parameters is None:
            return None
        return self.prior(self.parameters, ndim=ndim, channels=channels)

    def choices(self) -> dict[str, dict[str, Any] | None]:
        """Prior and solver as a recipe names them."""
        return {
            "prior": None if self.prior is None else _choice(self.prior, self.parameters),
            "solver": _choice(type(self.solver), self.solver.parameters),
        }


def _choice(cls: Any, parameters: Parameters | None) -> dict[str, Any]:
    given = {} if parameters is None else parameters.model_dump(mode="json", exclude_defaults=True)
    return {"kind": cls.name} | given


@dataclass(frozen=True)
class Score:
    """How a candidate did on the held-out piece.

    Attributes
    ----------
    candidate : Candidate
        What was tried.
    psnr : float
        dB on the piece without its rim.
    weight : float
        Weight that gave it.
    seconds : float
        Time for learning and reconstructing.
    """

    candidate: Candidate
    psnr: float
    weight: float
    seconds: float

    @property
    def name(self) -> str:
        """Name of the candidate."""
        return self.candidate.name


def default_candidates(ndim: int) -> list[Candidate]:
    """The priors that the window compares: mixtures of two sizes and a flow.

    Examples
    --------
    >>> [c.name for c in default_candidates(3)]
    ['50 Gaussians', '100 Gaussians', 'patchNR for all noise levels']
    """
    if ndim == 3:
        splitting = HalfQuadratic(HalfQuadraticParameters())
        flow = PatchNRParameters(noise_conditional=True, hidden=96, batch=512, steps=4000)
        return [
            *mixture_candidates((50, 100), splitting, (0.25, 0.5)),
            Candidate("patchNR for all noise levels", PatchNR, flow, splitting, (0.25, 0.5)),
        ]
    descent = Variational(VariationalParameters())
    return [
        *mixture_candidates((20, 50), descent, (0.003, 0.006)),
        Candidate("patchNR", PatchNR, PatchNRParameters(), descent, (0.003, 0.006)),
    ]


def mixture_candidates(
    sizes: Sequence[int], solver: Solver, weights: tuple[float, ...]
) -> list[Candidate]:
    """Gaussian mixtures of several sizes (turned patches are added where they help)."""
    return [
        Candidate(
            f"{components} Gaussians", GaussianMixture,
            GaussianMixtureParameters(components=components), solver, weights,
        )
        for components in sizes
    ]


def total_variation_candidates() -> list[Candidate]:
    """Total variation, without and with values kept in the references' range."""
    return [
        Candidate(
            name,
            None,
            None,
            TotalVariation(TotalVariationParameters(box=box, iterations=200)),
            TV_WEIGHTS,
        )
        for name, box in (
            ("total variation", False),
            ("total variation in the references' range", True),
        )
    ]


def propose_prior(
    reference: Reference,
    physics: Physics,
    noise: Noise,
    candidates: Sequence[Candidate] | None = None,
    *,
    seed: int = 0,
    should_stop: ShouldStop = never,
) -> Job:
    """Rank priors by reconstructing a held-out piece of the reference from simulated data.

    The piece is degraded by the operator and the noise model; every candidate learns from the
    rest. Total variation competes too: where it wins, no prior should be used.

    Parameters
    ----------
    candidates : sequence of Candidate, optional
        `default_candidates` by default.

    Yields
    ------
    Event
        Progress with the candidate's PSNR, and a `Result` with a list of `Score`, best first.
    """
    if candidates is None:
        candidates = default_candidates(reference.image.ndim - 1)
    chosen = [*total_variation_candidates(), *candidates]
    piece, rest = held_out_piece(reference, physics)
    values = rest.image[:, rest.mask]
    extremes = float(values.min()), float(values.max())
    y = noise.simulate(physics.A(piece), torch.Generator().manual_seed(seed))
    rim = min(6, min(piece.shape[2:]) // 6)
    stage = Stage("propose", len(chosen))
    scores: list[Score] = []
    for done, candidate in enumerate(chosen):
        begin = stage.seconds
        best = (float("-inf"), candidate.weights[0])
        attempts = _images(candidate, y, physics, noise, rest, extremes, seed, should_stop)
        for image, weight in attempts:
            if isinstance(image, Tensor):
                best = max(best, (psnr(image, piece, rim), weight))
            elif stage.due():
                yield stage.progress(done)
            if should_stop():
                yield Result(sorted(scores, key=lambda s: -s.psnr))
                return
        scores.append(Score(candidate, *best, stage.seconds - begin))
        yield stage.progress(done + 1, psnr=best[0])
        yield Message(f"{candidate.name}: {best[0]:.2f} dB at weight {best[1]:g}")
    yield Result(sorted(scores, key=lambda s: -s.psnr))


def _images(
    candidate: Candidate,
    y: Tensor,
    physics: Physics,
    noise: Noise,
    rest: Reference,
    extremes: tuple[float, float],
    seed: int,
    should_stop: ShouldStop,
) -> Iterator[tuple[Event | Tensor, float]]:
    """Learn, then reconstruct with each weight; images among the events of the jobs."""
    prior = candidate.build(rest.image.ndim - 1, rest.image.shape[0])
    if prior is not None:
        for event in prior.fit([rest], seed=seed, should_stop=should_stop):
            yield event, 0.0
        if not prior.is_fitted:
            return
    for weight in candidate.weights:
        job = candidate.solver.solve(
            y, physics, noise, prior, weight=weight, value_range=extremes, seed=seed,
            should_stop=should_stop,
        )
        for event in job:
            if isinstance(event, Result):
                yield event.value, weight
            elif not isinstance(event, Preview):
                yield event, weight


def held_out_piece(reference: Reference, physics: Physics) -> tuple[Tensor, Reference]:
    """A corner of the reference as a batch of one, and the reference without it.

    Of the corners, the one whose mean and spread are closest to those of the whole is taken.

    Raises
    ------
    InvalidInput
        If the reference is too small or no corner is free of the mask and of NaN.
    """
    space = tuple(reference.image.shape[1:])
    largest = LARGEST_PIECE[len(space)]
    size = physics.fitting_shape([min(largest, n // 2) for n in space])
    usable = torch.isfinite(reference.image).all(0)
    if reference.mask is not None:
        usable = usable & reference.mask
    values = reference.image[:, usable]
    best: tuple[float, tuple[slice, ...]] | None = None
    for corner in torch.cartesian_prod(*([torch.arange(2)] * len(space))).tolist():
        window = tuple(
            slice(n - s, n) if far else slice(0, s)
            for far, n, s in zip(corner, space, size, strict=True)
        )
        if not bool(usable[window].all()):
            continue
        piece = reference.image[(slice(None), *window)]
        distance = float((piece.mean() - values.mean()).abs() + (piece.std() - values.std()).abs())
        if best is None or distance < best[0]:
            best = distance, window
    if best is None:
        raise InvalidInput(
            f"no corner of {size} px of the reference is free of masked samples; pick a larger "
            "region to compare priors"
        )
    mask = usable.clone()
    mask[best[1]] = False
    return reference.image[(slice(None), *best[1])][None], Reference(reference.image, mask)
