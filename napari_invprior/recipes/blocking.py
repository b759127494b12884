"""How a large volume is divided: a part of the recipe, because it is a part of the result."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from napari_invprior.parameters import Parameters, parameter

Edge = Annotated[int, Field(ge=8, le=4096)]
Halo = Annotated[int, Field(ge=0, le=1024)]


class BlockParameters(Parameters):
    """Blocks, and how far their results may differ from that of the whole."""

    edge: Edge | tuple[Edge, ...] | None = parameter(
        None, "Edge of a block of the result, one number or one per axis; empty: by the memory.",
        unit="px",
    )
    halo: Halo | None = parameter(
        None,
        "Samples around a block that it is computed with; empty: measured, and refused where "
        "it is smaller than that.",
        unit="px",
    )
    tolerance: Annotated[float, Field(ge=1e-7, le=0.1)] = parameter(
        1e-5, "How far a sample may be from the result of the whole at once.", unit="grey, 0-1",
        advanced=True,
    )
