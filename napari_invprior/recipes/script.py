"""A recipe as a Python script that does the same."""

from __future__ import annotations

import pprint

from napari_invprior.recipes.model import Recipe, Simulation
from napari_invprior.sources import Source

_HEADER = '''"""Run with: python script.py (needs napari-invprior)."""

from napari_invprior import recipes

recipe = {recipe}

'''

_WITHOUT_LAYERS = """outcome = recipes.execute(recipe)
"""

_WITH_LAYERS = """# In napari's console the layers are at hand; elsewhere load the arrays yourself.
from napari_invprior.app.viewer.layers import image_from_layer

arrays = {{name: image_from_layer(viewer.layers[name]) for name in {names}}}
outcome = recipes.execute(recipe, arrays=arrays)
"""

_WITH_POINTS = """# In napari's console the layers are at hand; elsewhere load the arrays yourself.
from napari_invprior.app.viewer.layers import image_from_layer
from napari_invprior.app.viewer.points import points_from_layer

arrays = {{name: image_from_layer(viewer.layers[name]) for name in {names}}}
onto = {onto}
points = {{name: points_from_layer(viewer.layers[name], onto) for name in {points}}}
outcome = recipes.execute(recipe, arrays=arrays, points=points)
"""

_FOOTER = """print(outcome.metrics)
recipes.write_outcome(outcome, "invprior-output")
"""


def layer_names(recipe: Recipe) -> list[str]:
    """Names of all layers that the recipe refers to, in order, each once."""
    sources: list[Source | None] = [recipe.truth, recipe.initial]
    if isinstance(recipe.observation, Simulation):
        sources.append(recipe.observation.simulate_from)
    else:
        sources.append(recipe.observation)
    for reference in recipe.references:
        sources += [reference, reference.labels, reference.pair]
    for choice in (recipe.physics, recipe.noise):
        sources += [v for _, v in choice.parameters if isinstance(v, Source)]
    names = [s.layer for s in sources if s is not None and s.layer is not None]
    return list(dict.fromkeys(names))


def point_names(recipe: Recipe) -> list[str]:
    """Names of all layers of points that the recipe refers to, each once."""
    sources = (recipe.points, recipe.target_points, recipe.atoms)
    names = [s.layer for s in sources if s is not None and s.layer is not None]
    return list(dict.fromkeys(names))


def script(recipe: Recipe) -> str:
    """Python source that runs the recipe and writes its results.

    Examples
    --------
    >>> recipe = Recipe.parse({"observation": {"sample": "gravel-test"}, "prior": None,
    ...     "physics": {"kind": "denoising"}, "solver": {"kind": "total_variation"}})
    >>> compile(script(recipe), "script.py", "exec") is not None
    True
    """
    text = _HEADER.format(recipe=pprint.pformat(recipe.to_dict(), sort_dicts=False, width=88))
    names = layer_names(recipe)
    points = point_names(recipe)
    if points:
        shown = recipe.observation.layer if isinstance(recipe.observation, Source) else None
        onto = None if shown is None else f"viewer.layers[{shown!r}]"
        text += _WITH_POINTS.format(names=names, points=points, onto=onto)
    else:
        text += _WITH_LAYERS.format(names=names) if names else _WITHOUT_LAYERS
    return text + _FOOTER
