"""Results of a session: the newest is shown, earlier ones are kept hidden (no Qt)."""

from __future__ import annotations

from napari.components import ViewerModel
from napari.layers import Layer

from napari_invprior.app.viewer.layers import META, recipe_of
from napari_invprior.recipes.requirements import CLOUD_TASKS

MAP = "map"
"""Role of layers that say something about a result."""
COMPARED = "compared"
"""Role of the results of a comparison: they are looked at side by side, not one after another."""
UNCERTAINTY = "uncertainty"
"""Role of what a sampler found: the uncertainty dock shows it."""

NO_RESULTS = ("study", "estimate_operator", *CLOUD_TASKS)
"""Tasks whose layers are no results to step through: truth and baselines of a study, a kernel,
points and maps."""


class History:
    """Which result is on show; "<" goes back to the one before.

    Parameters
    ----------
    viewer : ViewerModel
        Its layers are the store: a result that the user deletes is gone from the history too.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self.viewer = viewer
        self._shown: Layer | None = None

    def results(self) -> list[Layer]:
        """Result layers, oldest first (those of an earlier session included)."""
        return [
            layer for layer in self.viewer.layers
            if recipe_of(layer) is not None
            and layer.metadata[META].get("role") not in (MAP, COMPARED, UNCERTAINTY)
            and recipe_of(layer).get("task") not in NO_RESULTS
        ]

    @property
    def shown(self) -> Layer | None:
        """The result on show."""
        results = self.results()
        if self._shown not in results:
            self._shown = results[-1] if results else None
        return self._shown

    def add(self, layer: Layer) -> None:
        """Put a new result in front; the others are hidden, never removed."""
        self.viewer.add_layer(layer)
        self._show(layer)

    def add_map(self, layer: Layer) -> None:
        """Put a map below the results, hidden: it is looked at when it is asked for."""
        layer.visible = False
        layer.metadata[META]["role"] = MAP
        shown = self.shown
        self.viewer.add_layer(layer)
        if shown is not None:
            self.viewer.layers.move(len(self.viewer.layers) - 1, self.viewer.layers.index(shown))
            self.viewer.layers.selection.active = shown

    def step(self, by: int) -> None:
        """Show an earlier (-1) or later (+1) result."""
        results, shown = self.results(), self.shown
        if shown is None:
            return
        index = results.index(shown) + by
        if 0 <= index < len(results):
            self._show(results[index])

    def can_step(self, by: int) -> bool:
        """Whether there is one."""
        results, shown = self.results(), self.shown
        return shown is not None and 0 <= results.index(shown) + by < len(results)

    def _show(self, layer: Layer) -> None:
        for other in self.results():
            other.visible = other is layer
        self._shown = layer
