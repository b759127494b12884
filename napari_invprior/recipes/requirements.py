"""What the tasks on points and patches need of a recipe."""

from __future__ import annotations

from typing import Any

CLOUD_TASKS = (
    "particles", "halftone", "density", "typicality", "two_sample", "generate", "tessellate",
)
"""Tasks on points and patches: no physics, no noise, no prior, no solver."""


def lacking(recipe: Any) -> str:
    """What a recipe of such a task lacks or has too much; empty when it is complete."""
    task, seen, count = recipe.task, recipe.observation is not None, len(recipe.references)
    if seen and not hasattr(recipe.observation, "crop"):
        return f"task {task!r} reads the observation as it is: give it without 'simulate_from'"
    if task in ("halftone", "typicality") and not seen:
        return f"task {task!r} needs an observation"
    if task in ("typicality", "generate") and not count:
        return f"task {task!r} needs references: good images of the material"
    if task == "tessellate":
        return _lacking_atoms(recipe)
    if task == "density" and recipe.points is None:
        return "task 'density' needs points"
    if task == "particles" and seen and recipe.target_points is not None:
        return "particles flow to one target: give observation or target_points, not both"
    if task == "two_sample":
        sets = recipe.points is not None and recipe.target_points is not None
        if sets == (count == 2) or (count not in (0, 2)):
            return (
                "task 'two_sample' compares two images, given as two references, or two sets of "
                "points, given as points and target_points"
            )
    return ""


def _lacking_atoms(recipe: Any) -> str:
    if recipe.atoms is None:
        return "task 'tessellate' needs atoms, for example {'preset': 'triangle_with_centre'}"
    picked = recipe.atoms.patch_size is not None
    if picked and (recipe.observation is None or recipe.points is None):
        return "atoms that are patches need an observation, and points to cut them around"
    return ""
