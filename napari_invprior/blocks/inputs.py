"""What blocks are computed from: the observation, and masks of its size, read by windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from napari_invprior.errors import InvalidInput
from napari_invprior.io.arrays import Range
from napari_invprior.io.images import Arrays
from napari_invprior.io.volume import Volume, open_volume
from napari_invprior.jobs import Message
from napari_invprior.recipes.model import Recipe
from napari_invprior.recipes.prepare import Problem, prepare
from napari_invprior.sources import Source

OBSERVATION = "observation"


@dataclass(frozen=True)
class Inputs:
    """Lazily opened inputs of the data's size.

    Attributes
    ----------
    observation : Volume
        The data.
    others : dict of str to Volume
        Data-shaped arrays of the physics by their field: masks.
    arrays : mapping of str to Image
        Small arrays in memory.
    """

    observation: Volume
    others: dict[str, Volume]
    arrays: Arrays

    @classmethod
    def open(cls, recipe: Recipe, arrays: Arrays) -> Inputs:
        """Open what a recipe names.

        Raises
        ------
        InvalidInput
            If there is no observation, it is to be simulated, or a mask has another shape.
        """
        source = recipe.observation
        if not isinstance(source, Source):
            raise InvalidInput(
                "blocks need measured data: give an observation (a simulation is made as a whole)"
            )
        observation = open_volume(source, arrays)
        others = {}
        for field in data_shaped(recipe):
            volume = open_volume(getattr(recipe.physics.parameters, field), arrays)
            if volume.space != observation.space:
                raise InvalidInput(
                    f"physics.{field} ({volume.name}) has shape {volume.space}, the observation "
                    f"{observation.space}; they must agree"
                )
            others[field] = volume
        return cls(observation, others, arrays)

    def digest(self) -> dict[str, str]:
        """SHA-256 of every input, of samples all over it."""
        return {OBSERVATION: self.observation.digest()} | {
            name: volume.digest() for name, volume in self.others.items()
        }

    def problem(
        self, recipe: Recipe, frame: int, window: Sequence[slice], *,
        scale: Range | None = None, value_range: Range | None = None,
    ) -> Iterator[Message | Problem]:
        """The problem of a window alone, with the operator of its data, as `prepare` gives it.

        Parameters
        ----------
        scale : tuple of float, optional
            What 0 and 1 mean, where it is settled; told from ``value_range`` and the references
            else.
        value_range : tuple of float, optional
            What 0 and 1 mean for the observation alone; ``scale`` by default.
        """
        known = value_range or scale
        assert known is not None
        arrays = dict(self.arrays)
        arrays[_key(OBSERVATION)] = self.observation.image(frame, window, known)
        local: dict[str, Any] = {"observation": {"layer": _key(OBSERVATION)}, "truth": None}
        for field, volume in self.others.items():
            arrays[_key(field)] = volume.image(0, window, (0.0, 1.0))
            local[f"physics.{field}"] = {"layer": _key(field)}
        yield from prepare(recipe.with_settings(local), arrays, scale)


def data_shaped(recipe: Recipe) -> list[str]:
    """Fields of the physics that name an array of the data's size."""
    cls: Any = recipe.physics.method.cls
    return [
        field for field in cls.data_shaped
        if isinstance(getattr(recipe.physics.parameters, field), Source)
    ]


def _key(part: str) -> str:
    """Name of a window among the arrays; no layer is called that."""
    return f"\0{part}"
