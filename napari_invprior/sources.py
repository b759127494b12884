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
        given = [n for n in ("path", "layer", "sample") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of 'path', 'layer', 'sample' (given: {given or 'none'})"
            )
        return self


class PointSource(Parameters):
    """One set of points. Exactly one of ``path`` and ``layer`` is given."""

    path: str | None = parameter(None, "File: CSV as napari writes it, or NPY (points, axes).")
    layer: str | None = parameter(None, "Name of points handed over in memory (a layer).")

    @model_validator(mode="after")
    def _one_origin(self) -> PointSource:
        given = [n for n in ("path", "layer") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of 'path', 'layer' (given: {given or 'none'})")
        return self
