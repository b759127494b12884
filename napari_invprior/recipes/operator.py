"""Task ``estimate_operator``: the pair of a recipe to a kernel, its figures and its physics."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.image import Image
from napari_invprior.io.images import Arrays, load
from napari_invprior.jobs import Job, Message, Result, ShouldStop, forward
from napari_invprior.parameters import per_axis
from napari_invprior.physics.convolution import SampledConvolution
from napari_invprior.physics.estimated import EstimatedOperator, estimation
from napari_invprior.recipes.model import Recipe
from napari_invprior.recipes.prepare import Problem


@dataclass(frozen=True)
class Estimate:
    """What the task gives.

    Attributes
    ----------
    problem : Problem
        Recipe, digests and scale, for provenance; there are no data in it.
    kernel : numpy.ndarray
        Float32 taps of sum one.
    geometry : Geometry
        The good image's sample spacing; the middle of the kernel lies at the origin.
    metrics : dict
        Figures; ``physics`` holds the choice that reads such data, less its ``psf``.
    """

    problem: Problem
    kernel: np.ndarray
    geometry: Geometry
    metrics: dict[str, Any]


def estimate(recipe: Recipe, arrays: Arrays, should_stop: ShouldStop) -> Job:
    """Estimate the operator of the recipe's pair, a job; its `Result` is an `Estimate`."""
    source = recipe.references[0]
    assert source.pair is not None
    high, low = load(source, arrays), load(source.pair, arrays)
    for image in (high, low):
        for note in image.facts.get("notes", ()):
            yield Message(f"{image.name}: {note}")
    if high.ndim != low.ndim:
        raise InvalidInput(
            f"{high.name} has {high.ndim} space axes, its pair {low.name} {low.ndim}; give both "
            "as planes or both as volumes"
        )
    physics: SampledConvolution = recipe.physics.method.cls(recipe.physics.parameters, high.ndim)
    size = recipe.physics.parameters.kernel_size
    found: EstimatedOperator = yield from forward(estimation(
        high.array, low.array, physics.factor,
        None if size is None else per_axis(size, high.ndim, "kernel_size"),
        should_stop=should_stop,
    ))
    spacing = high.geometry.scale
    geometry = Geometry(
        spacing, tuple(-s * (k - 1) / 2 for s, k in zip(spacing, found.kernel.shape, strict=True)),
        high.geometry.units, high.geometry.axis_labels,
    )
    problem = Problem(
        recipe=recipe, observation=None, y=None, physics=None, noise=None, truth=None,
        references=[], scale=high.value_range,
        digests={"reference 0": high.digest(), "pair 0": low.digest()},
    )
    metrics = _figures(found, high.value_range) | {
        "physics": _physics(recipe, found),
        "baselines": {"gaussian": _gaussian(found, physics, high, low)},
    }
    yield Result(Estimate(problem, found.kernel.astype(np.float32), geometry, metrics))


def _figures(found: EstimatedOperator, value_range: tuple[float, float]) -> dict[str, Any]:
    """Noise and PSNR on the good image's scale, where its range is 0 to 1."""
    unit = found.gain * (value_range[1] - value_range[0])
    error = float(np.linalg.norm(found.standard_error) / np.linalg.norm(found.kernel))
    return {
        "fit_psnr": _psnr(found.rmse / unit),
        "held_out_psnr": _psnr(found.held_out_rmse / unit),
        "explained": found.explained,
        "noise_sigma": found.noise_sigma / unit,
        "gain": found.gain,
        "offset": found.offset,
        "standard_error": error,
        "shift": list(found.shift),
        "nonnegative": found.nonnegative,
    }


def _psnr(rmse: float) -> float:
    return -20 * math.log10(max(rmse, 1e-15))


def _physics(recipe: Recipe, found: EstimatedOperator) -> dict[str, Any]:
    """The recipe's physics with gain and offset, and without what described a Gaussian."""
    given = recipe.physics.to_dict()
    kept = {k: v for k, v in given.items() if k not in ("blur_sigma", "kernel_size", "psf")}
    # the window is centred on the block of fine samples, wherever the recipe's began
    anchored = {"anchor": "centre"} if "anchor" in type(recipe.physics.parameters).model_fields \
        else {}
    return kept | anchored | {"gain": found.gain, "offset": found.offset}


def _gaussian(
    found: EstimatedOperator, physics: SampledConvolution, high: Image, low: Image
) -> float:
    """PSNR of the recipe's own Gaussian with the best line between the two grey scales."""
    guess = replace(found, kernel=physics.kernel().numpy(), gain=1.0, offset=0.0)
    predicted, seen = [], []
    for fine, coarse in zip(
        high.array.reshape(-1, *high.space), low.array.reshape(-1, *low.space), strict=True
    ):
        values, place = guess.predict(fine, low.space)
        predicted.append(values.ravel())
        seen.append(coarse[place].ravel())
    x, y = np.concatenate(predicted), np.concatenate(seen).astype(np.float64)
    if x.size < 2:
        return math.nan
    line = np.polyfit(x, y, 1)
    unit = found.gain * (high.value_range[1] - high.value_range[0])
    return _psnr(float(np.sqrt(np.mean((np.polyval(line, x) - y) ** 2))) / unit)
