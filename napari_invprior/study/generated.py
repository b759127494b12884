"""New patches and textures of a material, and how far they are from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Event, Job, Progress, Result, ShouldStop, forward, never
from napari_invprior.numerics.patches import edges
from napari_invprior.parameters import parameter
from napari_invprior.priors.base import Reference
from napari_invprior.priors.patch_flow import PatchFlow, PatchFlowParameters

Side = Annotated[int, Field(ge=8, le=4096)]


class GenerateParameters(PatchFlowParameters):
    """What is made, and how the patches flow."""

    patches: int = parameter(64, "Patches to give as a stack; 0 for none.", ge=0, le=10_000)
    texture: Side | tuple[Side, ...] | None = parameter(
        None, "Edge of a texture to make, one number or one per axis; empty for none.", unit="px"
    )


@dataclass(frozen=True)
class Generated:
    """What was made.

    Attributes
    ----------
    patches : Tensor or None
        (n, C, *patch).
    texture : Tensor or None
        (C, *space).
    metrics : dict
        ``distance_generated`` and ``distance_real`` to held-out patches, and the ``curve``.
    """

    patches: Tensor | None
    texture: Tensor | None
    metrics: dict[str, Any] = field(default_factory=dict)


def generate(
    references: Sequence[Reference], parameters: GenerateParameters, *, seed: int = 0,
    should_stop: ShouldStop = never,
) -> Job:
    """Make patches and a texture like the references'; the `Result` is a `Generated`.

    All particles flow together, as many as the parameters say; the stack holds the first of them.
    """
    first = references[0].image
    ndim, channels = first.ndim - 1, first.shape[0]
    if not parameters.patches and parameters.texture is None:
        raise InvalidInput("nothing to generate: give a number of patches, or a texture's edge")
    if any(r.image.ndim != first.ndim or r.image.shape[0] != channels for r in references):
        raise InvalidInput("the references differ in axes or channels; give images of one kind")
    given = parameters.model_dump(exclude={"patches", "texture"})
    flow = PatchFlow(PatchFlowParameters(**given), ndim=ndim, channels=channels)
    yield from forward(flow.fit(references, seed=seed, should_stop=should_stop))
    patches, texture, metrics = None, None, dict[str, Any]()
    if parameters.patches:
        count = max(parameters.patches, parameters.particles)
        curve: list[list[float]] = []
        found = yield from forward(_watched(
            flow.generate(count, seed=seed, should_stop=should_stop), curve
        ))
        patches = found[: parameters.patches]
        metrics |= {"curve": curve} | flow.held_out_distances(found.flatten(1).T)
    if parameters.texture is not None and not (should_stop() and patches is not None):
        space = edges(parameters.texture, ndim, "texture")
        image = yield from forward(flow.texture(space, seed=seed, should_stop=should_stop))
        texture = torch.as_tensor(image)[0]
    yield Result(Generated(patches, texture, metrics))


def _watched(job: Job, curve: list[list[float]]) -> Iterator[Event]:
    """The job; its distances are written down as (step, distance)."""
    for event in job:
        if isinstance(event, Progress) and "distance" in event.losses:
            curve.append([event.step, event.losses["distance"]])
        yield event
