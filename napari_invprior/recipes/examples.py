"""The shipped example recipes: documentation, smoke test and demo at once."""

from __future__ import annotations

from importlib import resources
from typing import Any

from napari_invprior.errors import InvalidInput, nearest
from napari_invprior.recipes.model import Recipe

_FOLDER = "example_recipes"


def _texts() -> dict[str, str]:
    folder = resources.files("napari_invprior.recipes") / _FOLDER
    return {
        entry.name.removesuffix(".json"): entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda e: e.name)
        if entry.name.endswith(".json")
    }


def load_example(name: str) -> Recipe:
    """The example of that name.

    Raises
    ------
    InvalidInput
        If there is none; the message lists the names.
    """
    texts = _texts()
    if name not in texts:
        raise InvalidInput(
            f"unknown example {name!r}{nearest(name, texts)} (known: {', '.join(texts)})"
        )
    return Recipe.parse(texts[name])


def examples() -> list[dict[str, Any]]:
    """Name, title, task and papers of every example."""
    recipes = {name: Recipe.parse(text) for name, text in _texts().items()}
    return [
        {"name": name, "title": r.title, "task": r.task, "papers": list(r.papers)}
        for name, r in recipes.items()
    ]
