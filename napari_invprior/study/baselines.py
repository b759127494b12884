"""Named baselines that every method must beat: fast first image, total variation, NLM, BM3D."""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_invprior import jobs
from napari_invprior.jobs import (
    MAX_INTERVAL,
    Job,
    Result,
    ShouldStop,
    Stage,
    forward,
    never,
)
from napari_invprior.numerics.metrics import psnr
from napari_invprior.numerics.noise_level import estimate_sigma
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise
from napari_invprior.physics.piece import representative_piece
from napari_invprior.reconstruct.case import Case, find_weight, reconstruct
from napari_invprior.reconstruct.total_variation import (
    Box,
    TotalVariation,
    TotalVariationParameters,
)

CONVERGED = TotalVariationParameters(iterations=1000, tolerance=1e-5)
"""Stop rule of the image that counts; ten times as many iterations change its PSNR by 0.001 dB."""


@dataclass(frozen=True)
class Baseline:
    """A method without a learned prior.

    Attributes
    ----------
    name, title, about : str
        Name used in recipes; title and one line for people.
    make : callable
        ``make(case, should_stop)`` is a job whose `Result` is the image (frames, C, *space) on the
        CPU and its weight (None where there is none).
    dimensions : tuple of int
        Space dimensions it handles.
    package : str
        A package that it needs and that is no dependency.
    """

    name: str
    title: str
    about: str
    make: Callable[[Case, ShouldStop], Job]
    dimensions: tuple[int, ...] = (2, 3)
    package: str = ""

    def missing(self, ndim: int) -> str:
        """Why it cannot run on images of ``ndim`` space axes; empty where it can."""
        if ndim not in self.dimensions:
            return f"{self.title} does not handle {ndim} space dimensions"
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.title} needs the package {self.package}: pip install {self.package}"
        return ""


def _first_image(case: Case, _: ShouldStop) -> Job:
    yield Result((case.physics.start(case.y).cpu(), None))


def _total_variation(case: Case, should_stop: ShouldStop) -> Job:
    """Weight of highest PSNR on frame 0 where a truth is known, else the one of least SURE."""
    solver = TotalVariation(CONVERGED)
    if case.truth is None:
        choice = yield from forward(find_weight(case, solver, None, should_stop=should_stop))
        weight = choice.weight
    else:
        weight = yield from forward(_best_weight(case, case.truth[:1].to(case.y), should_stop))
    image = yield from forward(reconstruct(case, solver, None, weight, should_stop=should_stop))
    yield Result((image, weight))


def _best_weight(case: Case, truth: Tensor, should_stop: ShouldStop) -> Job:
    """Found on a representative piece of frame 0 when that is large, then refined on the whole."""
    y, centre, step, refinements = case.y[:1], 2.0, 1.0, 2
    piece = representative_piece(y, case.physics)
    if piece.physics is not case.physics:
        _, weight = yield from forward(tuned_total_variation(
            y[piece.data_index], piece.physics, case.noise, truth[piece.image_window], 16,
            should_stop=should_stop,
        ))
        centre, step, refinements = math.log2(weight), 0.5, 0
    _, weight = yield from forward(tuned_total_variation(
        y, case.physics, case.noise, truth, case.rim, centre=centre, step=step,
        refinements=refinements, should_stop=should_stop,
    ))
    yield Result(weight)


def _non_local_means(case: Case, should_stop: ShouldStop) -> Job:
    """Non-local means of the first image, for the noise that is found on it."""
    from skimage.restoration import denoise_nl_means

    edge, reach = (5, 6) if case.y.ndim == 4 else (3, 4)

    def denoise(plane: np.ndarray, sigma: float) -> np.ndarray:
        cleaned: np.ndarray = denoise_nl_means(
            plane, patch_size=edge, patch_distance=reach, h=0.8 * sigma, sigma=sigma
        )
        return cleaned

    yield from _denoised(case, denoise, should_stop)


def _bm3d(case: Case, should_stop: ShouldStop) -> Job:
    """BM3D of the first image, for the noise that is found on it."""
    import bm3d  # type: ignore[import-not-found,unused-ignore]

    yield from _denoised(case, bm3d.bm3d, should_stop)


def _denoised(
    case: Case, denoise: Callable[[np.ndarray, float], np.ndarray], should_stop: ShouldStop
) -> Job:
    """The first image through a denoiser of planes (or volumes) that does not tell how far it is.

    It works in a thread of its own, so that events go on; a stop gives the first image at once.
    """
    begin = case.physics.start(case.y).cpu()
    sigma, _ = estimate_sigma(begin)
    sigma = max(sigma if math.isfinite(sigma) else case.noise.variance_level(case.y) ** 0.5, 1e-4)
    planes = begin.flatten(0, 1).numpy()
    stage = Stage("denoise", len(planes))
    cleaned = []
    for done, plane in enumerate(planes):
        held: list[np.ndarray | Exception] = []
        thread = threading.Thread(target=_keep, args=(held, denoise, plane, sigma), daemon=True)
        thread.start()
        while thread.is_alive() and not should_stop():
            thread.join(MAX_INTERVAL / 2)
            yield stage.progress(done)
        if not held:
            yield Result((begin, None))
            return
        if isinstance(held[0], Exception):
            raise held[0]
        cleaned.append(torch.from_numpy(np.asarray(held[0], np.float32)))
    yield Result((torch.stack(cleaned).reshape(begin.shape), None))


def _keep(
    held: list[np.ndarray | Exception], denoise: Callable[..., np.ndarray], *arguments: object
) -> None:
    try:
        held.append(denoise(*arguments))
    except Exception as error:
        held.append(error)


BASELINES: dict[str, Baseline] = {
    b.name: b
    for b in (
        Baseline("start", "Fast first image",
                 "What the physics gives at once: a shift-corrected spline for sampled images.",
                 _first_image),
        Baseline("tv", "Total variation",
                 "Converged; its weight is chosen with the truth where one is known, else by SURE.",
                 _total_variation),
        Baseline("nlm", "Non-local means",
                 "Denoises the first image by averaging patches that look alike.",
                 _non_local_means),
        Baseline("bm3d", "BM3D", "Denoises the first image; needs the package bm3d.",
                 _bm3d, dimensions=(2,), package="bm3d"),
    )
}
"""Every baseline by its name in recipes."""


def available(ndim: int) -> tuple[str, ...]:
    """Names of the baselines that can run here.

    Examples
    --------
    >>> available(3)
    ('start', 'tv', 'nlm')
    """
    return tuple(name for name, baseline in BASELINES.items() if not baseline.missing(ndim))


# ---- total variation at its best


def climb(
    score: Callable[[float], Job],
    centre: float,
    step: float,
    refinements: int,
    should_stop: ShouldStop = never,
) -> Job:
    """Argument of the highest score: walk uphill by ``step``, then halve the step.

    ``score(argument)`` is a job whose `Result` is the score; that of this job is the argument.
    """
    known = {centre: (yield from forward(score(centre)))}
    for _ in range(refinements + 1):
        while not should_stop():
            for argument in (centre - step, centre + step):
                if argument not in known:
                    known[argument] = yield from forward(score(argument))
            best = max((centre - step, centre, centre + step), key=known.__getitem__)
            if best == centre:
                break
            centre = best
        step /= 2
    yield Result(centre)


def tuned_total_variation(
    y: Tensor,
    physics: Physics,
    noise: Noise,
    truth: Tensor,
    rim: int = 0,
    box: Box | None = None,
    *,
    iterations: int = 300,
    centre: float = 2.0,
    step: float = 1.0,
    refinements: int = 2,
    should_stop: ShouldStop = never,
) -> Job:
    """The total-variation image of highest PSNR against the truth; the `Result` is it, its weight.

    This is the strongest form of the baseline: its weight is chosen with the truth, which no
    method of this package may look at.
    """
    solver = TotalVariation(TotalVariationParameters(iterations=iterations, box=box is not None))
    stage = Stage("total variation", 3 + 2 * refinements)
    images: dict[float, Tensor] = {}

    def score(log_weight: float) -> Job:
        for event in solver.solve(
            y, physics, noise, weight=2.0**log_weight, value_range=box, should_stop=should_stop
        ):
            if isinstance(event, Result):
                images[log_weight] = event.value
                yield Result(psnr(event.value, truth, rim))
            elif stage.due():
                yield stage.progress(min(len(images), stage.total), weight=2.0**log_weight)

    best = yield from forward(climb(score, centre, step, refinements, should_stop))
    yield Result((images[best], 2.0**best))


def best_total_variation(
    y: Tensor,
    physics: Physics,
    noise: Noise,
    truth: Tensor,
    rim: int = 0,
    box: Box | None = None,
    **options: Any,
) -> tuple[Tensor, float]:
    """`tuned_total_variation` run to its end: the image and its weight."""
    found: tuple[Tensor, float] = jobs.run(
        tuned_total_variation(y, physics, noise, truth, rim, box, **options)
    )
    return found


def key_of(name: str, physics: Physics) -> str:
    """Key of a baseline among the figures of a run: the first image goes by its own name."""
    return physics.start_name if name == "start" else name


def baselines(
    y: Tensor,
    physics: Physics,
    noise: Noise,
    truth: Tensor,
    rim: int = 0,
    *,
    should_stop: ShouldStop = never,
) -> Job:
    """PSNR of the baselines for frame 0, as a job whose `Result` is ``{name: dB}``.

    The physics' first image goes by its own name (``bicubic``, a shift-corrected cubic spline, for
    super-resolution; ``fbp`` for tomography); ``tv`` is converged total variation with the weight
    of highest PSNR.
    """
    truth = truth[:1]
    case = Case(y[:1], physics, noise, truth=truth, rim=rim)
    stage = Stage("baselines", 2)
    figures: dict[str, float] = {}
    for name in ("start", "tv"):
        image, _ = yield from forward(BASELINES[name].make(case, should_stop))
        key = key_of(name, physics)
        figures[key] = psnr(image, truth, rim)
        yield stage.progress(len(figures), **{key: figures[key]})
    yield Result(figures)
