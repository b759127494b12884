"""A recipe held against its data before it runs: adjoint test, memory and time estimate."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from napari_invprior.io.images import Arrays
from napari_invprior.jobs import Message
from napari_invprior.memory import free_bytes
from napari_invprior.physics.base import Physics
from napari_invprior.points import PointSet
from napari_invprior.recipes.clouds import check_clouds
from napari_invprior.recipes.model import Recipe
from napari_invprior.recipes.prepare import Problem, prepare
from napari_invprior.recipes.requirements import CLOUD_TASKS
from napari_invprior.reconstruct.tiles import estimated_bytes


def adjoint_mismatch(physics: Physics, space: tuple[int, ...], seed: int = 0) -> float:
    """Relative error of ``<A x, v> = <x, A^T v>`` for random x and v in float64.

    Examples
    --------
    >>> from napari_invprior.physics.inpainting import Denoising, DenoisingParameters
    >>> adjoint_mismatch(Denoising(DenoisingParameters(), 2), (5, 6)) < 1e-12
    True
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((1, 1, *space), generator=generator, dtype=torch.float64)
    y = physics.A(x)
    v = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    left, right = float((y * v).sum()), float((x * physics.A_adjoint(v)).sum())
    return abs(left - right) / max(float(y.norm() * v.norm()), 1e-300)


def check_recipe(
    recipe: Recipe, arrays: Arrays | None = None,
    points: Mapping[str, PointSet] | None = None,
) -> dict[str, Any]:
    """Load the data, test the operator and estimate what a run will need.

    Raises
    ------
    InvalidInput
        If the run would be refused.
    """
    if recipe.task in CLOUD_TASKS:
        return check_clouds(recipe, arrays or {}, points or {})
    messages: list[str] = []
    problem: Problem | None = None
    for item in prepare(recipe, arrays or {}):
        if isinstance(item, Message):
            messages.append(item.text)
        else:
            problem = item
    assert problem is not None
    report: dict[str, Any] = {"valid": True, "messages": messages}
    if problem.y is not None and problem.physics is not None:
        space = problem.physics.in_shape(problem.y.shape[2:])
        report["data_shape"] = list(problem.y.shape[2:])
        report["image_shape"] = list(space)
        report["adjoint_mismatch"] = adjoint_mismatch(problem.physics, space)
        report["memory_mb"] = round(estimated_bytes(problem.y, problem.physics) / 2**20, 1)
        report["free_memory_mb"] = round(free_bytes() / 2**20, 1)
        report["operator_ms"] = round(_operator_seconds(problem) * 1e3, 2)
    report["reference_samples"] = sum(
        math.prod(r.image.shape) if r.mask is None else int(r.mask.sum())
        for r in problem.references
    )
    return report


def _operator_seconds(problem: Problem) -> float:
    """Time of one forward and one adjoint product on frame 0, after a warm-up."""
    assert problem.y is not None and problem.physics is not None
    y = problem.y[:1]
    problem.physics.A(problem.physics.A_adjoint(y))
    start = time.perf_counter()
    problem.physics.A(problem.physics.A_adjoint(y))
    return time.perf_counter() - start
