"""Data on another brightness scale than the image: ``data = offset + gain A(image)``.

An instrument that measures poorly often has another gain and another black level than the one
that made the references. The operators themselves know nothing of it: the engine brings data (and
the poor images of pairs) to the scale of the image before anything else looks at them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from napari_invprior.image import Image
from napari_invprior.parameters import Parameters, parameter

Gain = Annotated[float, Field(ge=1e-12, le=1e12)]


class Calibrated(Parameters):
    """Parameters of an operator whose data may be on another brightness scale."""

    gain: Gain | None = parameter(
        None, "Grey levels of the data per grey level of the image; empty: 1.", advanced=True
    )
    offset: float | None = parameter(
        None, "Level of the data where the image is 0; empty: 0.", unit="data", advanced=True
    )


def scale_of(parameters: Parameters) -> tuple[float, float] | None:
    """Gain and offset of an operator's data; None where they share the image's scale.

    Examples
    --------
    >>> scale_of(Calibrated(gain=2.0)), scale_of(Calibrated())
    ((2.0, 0.0), None)
    """
    if not isinstance(parameters, Calibrated):
        return None
    given = (parameters.gain, parameters.offset)
    gain = 1.0 if given[0] is None else given[0]
    offset = given[1] or 0.0
    return None if (gain, offset) == (1.0, 0.0) else (gain, offset)


def on_the_images_scale(data: Image, scale: tuple[float, float] | None) -> Image:
    """The data as the image's scale has them, ``(data - offset) / gain``; its range likewise."""
    if scale is None:
        return data
    gain, offset = scale
    low, high = ((value - offset) / gain for value in data.value_range)
    values = (data.array.astype(np.float64) - offset) / gain
    return replace(data, array=values.astype(np.float32), value_range=(low, high))
