"""Where an array comes from: a file, a layer of the window, a built-in sample or a simulation."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from napari_invprior.parameters import Parameters, parameter


def _not_empty(interval: tuple[int, int]) -> tuple[int, int]:
    if interval[1] <= interval[0]:
        raise ValueError(f"[{interval[0]}, {interval[1]}] is empty; stop must exceed start")
    return interval


Interval = Annotated[
    tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], AfterValidator(_not_empty)
]
Box = Annotated[tuple[Interval, ...], Field(min_length=2, max_length=3)]


class Source(Parameters):
    """One array. Exactly one of ``path``, ``layer`` and ``sample`` is given."""

    path: str | None = parameter(None, "File: PNG, TIFF, NPY, NPZ or OME-Zarr.")
    layer: str | None = parameter(None, "Name of an array handed over in memory (a layer).")
    sample: str | None = parameter(None, "Name of a built-in sample.")
    key: str | None = parameter(None, "Array inside an NPZ file or group inside an OME-Zarr.")
    crop: Box | None = parameter(None, "Part to use: [start, stop] for each space axis.", unit="px")
    channel: int | None = parameter(None, "Use one channel only.", ge=0)
    scale: tuple[float, ...] | None = parameter(
        None, "Sample spacing per space axis; overrides what the file says."
    )
    dtype_range: tuple[float, float] | None = parameter(
        None, "Values that map to 0 and 1; taken from the data type or the data when not given."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        _require_one(self, "path", "layer", "sample")
        return self


Row = Annotated[tuple[float, ...], Field(fail_fast=True)]
Rows = Annotated[tuple[Row, ...], Field(max_length=10_000, fail_fast=True)]


class PointSource(Parameters):
    """One set of points. Exactly one of ``path``, ``layer`` and ``positions`` is given."""

    path: str | None = parameter(None, "File: CSV as napari writes it, or NPY (points, axes).")
    layer: str | None = parameter(None, "Name of points handed over in memory (a layer).")
    positions: Rows | None = parameter(None, "One row of coordinates for each point.")

    @model_validator(mode="after")
    def _one_origin(self) -> PointSource:
        _require_one(self, "path", "layer", "positions")
        return self


class AtomSource(Parameters):
    """Atoms of a target. One of ``path``, ``layer``, ``positions``, ``preset``, ``patch_size``."""

    path: str | None = parameter(None, "File: CSV as napari writes it, or NPY (atoms, axes).")
    layer: str | None = parameter(None, "Name of points handed over in memory (a layer).")
    positions: Rows | None = parameter(None, "One row of coordinates for each atom.")
    preset: str | None = parameter(None, "Name of built-in atoms.")
    patch_size: Annotated[int, Field(ge=2, le=64)] | None = parameter(
        None, "The atoms are patches of the observation around the points, as their first "
        "principal components.", unit="px",
    )
    count: Annotated[int, Field(ge=1, le=20_000)] = parameter(12, "Atoms of a random preset.")
    components: Annotated[int, Field(ge=2, le=3)] = parameter(
        2, "Principal components of patches: the dimension of the source."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> AtomSource:
        _require_one(self, "path", "layer", "positions", "preset", "patch_size")
        return self

    @property
    def points(self) -> PointSource | None:
        """The atoms as points; None for a preset and for patches."""
        if self.preset is not None or self.patch_size is not None:
            return None
        return PointSource(path=self.path, layer=self.layer, positions=self.positions)


def _require_one(source: Parameters, *origins: str) -> None:
    given = [name for name in origins if getattr(source, name) is not None]
    if len(given) != 1:
        listed = ", ".join(repr(name) for name in origins)
        raise ValueError(f"give exactly one of {listed} (given: {given or 'none'})")
