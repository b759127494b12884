"""Halftoning: an image said in dots of one size.

Dots are drawn to the image and push each other away. Where the discrepancy is least, every
region has as many dots as it is dark, and the dots keep even distances. The image acts through its
exact potential, so that no noise of drawn target points is left in the result.
"""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor

from napari_invprior.jobs import Job, Message, Preview, Result, ShouldStop, Stage, never
from napari_invprior.numerics.lbfgs import minimise
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.transport.riesz_flows.density import Density
from napari_invprior.transport.riesz_flows.discrepancy import Discrepancy
from napari_invprior.transport.riesz_flows.image_potential import ImagePotential

WINDOW, PLATEAU = 10, 0.01
"""The dots rest when so many steps gain less than this share of all that has been gained."""
FIRST_STEP = 0.1
"""Largest first move, in mean distances of the dots."""


class HalftoneParameters(Parameters):
    """How many dots, and how long they may settle."""

    dots: int = parameter(2000, "Number of dots.", ge=1, le=1_000_000)
    iterations: int = parameter(
        100, "At most so many steps; the dots usually rest before.", ge=1, le=10_000, advanced=True
    )
    r: float = parameter(
        1.0, "Power of the distance in the kernel -|x - y|^r.", ge=0.05, le=1.95, advanced=True
    )


def halftone(
    density: Density,
    parameters: HalftoneParameters,
    *,
    seed: int = 0,
    should_stop: ShouldStop = never,
) -> Job:
    """Place dots; the `Result` is their pixel coordinates (d, N).

    The descent is that of L-BFGS, not the gradient flow: fine detail, which the flow reaches last,
    comes many times sooner.

    Yields
    ------
    Event
        Progress with ``discrepancy``, previews of the dots (N, d) in pixel coordinates, the
        `Result`. When stopped, the dots so far are the result.

    Examples
    --------
    >>> from napari_invprior import jobs
    >>> ramp = Density(torch.arange(20.0).expand(10, 20))
    >>> dots = jobs.run(halftone(ramp, HalftoneParameters(dots=50)))
    >>> int((dots[1] > 9.5).sum())  # three quarters of the mass lie to the right
    38
    """
    generator = torch.Generator().manual_seed(seed)
    return _settled(density.draw(parameters.dots, generator), density, parameters, should_stop)


def _settled(
    x: Tensor, density: Density, parameters: HalftoneParameters, should_stop: ShouldStop
) -> Job:
    discrepancy = Discrepancy(ImagePotential(density), parameters.r)
    count = x.shape[1]
    values, newest = [], 0.0

    def function(points: Tensor) -> tuple[float, Tensor]:
        nonlocal newest
        newest, gradient = discrepancy.value_and_grad(points)
        return newest, gradient / count

    stage, shown = Stage("halftone", parameters.iterations), 0.0
    distance = float(density.pixel.prod() * density.mass.numel() / count) ** (1 / len(x))
    iterates = minimise(function, x, memory=20, first_step=FIRST_STEP * distance)
    for step, x in enumerate(islice(iterates, parameters.iterations), 1):
        values.append(newest)  # the last point that was tried is the one that was taken
        if stage.due():
            yield stage.progress(step, discrepancy=values[-1])
        if stage.seconds > shown + 0.5:
            shown = stage.seconds
            yield _preview(x, density)
        if should_stop():
            yield Message(f"stopped by you after {step} steps")
            break
        if step > WINDOW and values[-1 - WINDOW] - newest < PLATEAU * (values[0] - newest):
            break
    yield stage.progress(len(values), discrepancy=values[-1] if values else newest)
    yield _preview(x, density)
    yield Result(density.to_pixels(x).float())


def _preview(x: Tensor, density: Density) -> Preview:
    return Preview("points", density.to_pixels(x).T.float().numpy().copy(), "halftone")
