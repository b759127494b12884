"""The language of the package: recipes, and the one engine entry `run`."""

from __future__ import annotations

from napari_invprior.recipes.engine import execute, run
from napari_invprior.recipes.examples import examples, load_example
from napari_invprior.recipes.layers import OutputLayer
from napari_invprior.recipes.model import Recipe
from napari_invprior.recipes.outcome import Outcome
from napari_invprior.recipes.outputs import write_outcome
from napari_invprior.recipes.script import script

parse = Recipe.parse

__all__ = [
    "Outcome",
    "OutputLayer",
    "Recipe",
    "examples",
    "execute",
    "load_example",
    "parse",
    "run",
    "script",
    "write_outcome",
]
