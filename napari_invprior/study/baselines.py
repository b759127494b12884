"""Named baselines that every method must beat: shift-corrected spline and tuned total variation."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from napari_invprior.jobs import Job, Result, ShouldStop, Stage, never
from napari_invprior.numerics.metrics import psnr
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise
from napari_invprior.physics.piece import representative_piece
from napari_invprior.reconstruct.total_variation import Box, total_variation


def best_total_variation(
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
) -> tuple[Tensor, float]:
    """The total-variation image of highest PSNR against the truth, and its weight.

    This is the strongest form of the baseline: its weight is chosen with the truth, which no
    method of this package may look at.
    """
    variance = noise.variance_level(y)

    def image(log_weight: float) -> Tensor:
        return total_variation(
            y, physics, variance, 2.0**log_weight, box=box, iterations=iterations
        )

    found: dict[float, tuple[float, Tensor]] = {}

    def score(log_weight: float) -> float:
        if log_weight not in found:
            x = image(log_weight)
            found[log_weight] = psnr(x, truth, rim), x
        return found[log_weight][0]

    best = climb(score, centre, step, refinements, should_stop)
    return found[best][1], 2.0**best


def climb(
    score: Callable[[float], float],
    centre: float,
    step: float,
    refinements: int,
    should_stop: ShouldStop = never,
) -> float:
    """Argument of the highest score: walk uphill by ``step``, then halve the step."""
    for _ in range(refinements + 1):
        while not should_stop():
            best = max((centre - step, centre, centre + step), key=score)
            if best == centre:
                break
            centre = best
        step /= 2
    return centre


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
    super-resolution; ``fbp`` for tomography); ``tv`` is total variation with the weight of highest
    PSNR, found on a representative piece when the image is large and refined on the whole.
    """
    stage = Stage("baselines", 2)
    y, truth = y[:1], truth[:1]
    begin = physics.start(y)
    figures = {physics.start_name: psnr(begin, truth, rim)}
    yield stage.progress(1, **figures)
    piece = representative_piece(y, physics)
    centre = 2.0
    if piece.physics is not physics:
        inner = piece.image_window
        _, weight = best_total_variation(
            y[piece.data_index], piece.physics, noise, truth[inner], 16, should_stop=should_stop
        )
        centre = math.log2(weight)
    image, weight = best_total_variation(
        y, physics, noise, truth, rim, centre=centre, refinements=2 if centre == 2.0 else 0,
        step=1.0 if centre == 2.0 else 0.5, should_stop=should_stop,
    )
    figures["tv"] = psnr(image, truth, rim)
    yield stage.progress(2, tv=figures["tv"])
    yield Result(figures)
