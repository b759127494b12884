"""Tasks on patches: maps of typical places, comparisons, new patches and textures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.image import denormalised
from napari_invprior.jobs import Job, Message, Result, ShouldStop, check_stop, forward
from napari_invprior.recipes.layers import OutputLayer, restored_axes
from napari_invprior.study.generated import Generated, generate
from napari_invprior.study.sameness import same_patches, same_points
from napari_invprior.study.typicality import Typicality, typicality


def typicality_map(inputs: Any, should_stop: ShouldStop) -> Job:
    """How typical each place of the observation is for the references."""
    image, recipe = inputs.observation, inputs.recipe
    references = [reference for side in inputs.sides for reference in side]
    maps: list[np.ndarray] = []
    for frame in image.normalised():
        found: Typicality = yield from forward(typicality(
            torch.from_numpy(frame), references, recipe.typicality, seed=recipe.seed,
            should_stop=should_stop,
        ))
        maps.append(found.values.numpy())
    values = np.stack(maps)
    if not np.isfinite(values).any():
        raise InvalidInput(f"every patch of {image.name} holds NaN or infinite samples")
    metrics: dict[str, Any] = {
        "mean_typicality": float(np.nanmean(values)),
        "mean_typicality_of_references": found.usual,
        "estimated_error": found.error, "scale": found.scale, "reference_patches": found.patches,
    }
    plain = replace(image, channel_axis=None, rgb=False)
    layer = OutputLayer(
        "typicality", restored_axes(values[:, None], plain), image.geometry, role="map",
        unit="own", frames=len(image.frame_axes),
    )
    yield Result(((layer,), metrics))


def comparison(inputs: Any, should_stop: ShouldStop) -> Job:
    """Whether two images, or two sets of points, differ by more than chance."""
    recipe, metrics = inputs.recipe, dict[str, Any]()
    check_stop(should_stop)
    if inputs.points is not None:
        x, y = (
            torch.from_numpy(p.array.T.copy()) for p in (inputs.points, inputs.target_points)
        )
        test = same_points(x, y, recipe.two_sample, seed=recipe.seed)
    else:
        yield Message(
            "cells of an image count as independent draws of it; structure larger than a cell "
            "makes p too small"
        )
        test, counts = same_patches(
            inputs.sides[0], inputs.sides[1], recipe.two_sample, seed=recipe.seed
        )
        metrics["cells"] = list(counts)
    median, most = test.quantiles((0.5, 0.95))
    metrics |= {
        "statistic": test.statistic, "p_value": test.p_value,
        "statistic_by_chance": median, "statistic_by_chance_95": most,
    }
    yield Result(((), metrics))


def synthesis(inputs: Any, should_stop: ShouldStop) -> Job:
    """New patches as a stack, and a texture, in the numbers of the references."""
    recipe = inputs.recipe
    references = [reference for side in inputs.sides for reference in side]
    found: Generated = yield from forward(generate(
        references, recipe.generate, seed=recipe.seed, should_stop=should_stop
    ))
    layers = []
    for name, values in (("patches", found.patches), ("texture", found.texture)):
        if values is not None:
            layers.append(_synthetic(name, values.numpy(), inputs))
    yield Result((tuple(layers), found.metrics))


def _synthetic(name: str, values: np.ndarray, inputs: Any) -> OutputLayer:
    """Values (frames, C, *space) or (C, *space) as a layer; three channels are colours."""
    values = denormalised(values, inputs.problem.scale)
    stack = name == "patches"
    channel = int(stack)
    rgb = values.shape[channel] == 3
    values = np.moveaxis(values, channel, -1) if rgb else values
    if not rgb and values.shape[channel] == 1:
        values = values.squeeze(channel)
    ndim = inputs.sides[0][0].image.ndim - 1
    return OutputLayer(
        name, values, Geometry.identity(ndim), rgb=rgb, role="map", frames=int(stack)
    )
