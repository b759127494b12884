"""Computed tomography: line integrals in parallel beams or fans, slice by slice in 3D."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.jobs import Message
from napari_invprior.numerics.backprojection import Filter, back_projection
from napari_invprior.numerics.krylov import convolution_inverse
from napari_invprior.numerics.projector import Projector, projector
from napari_invprior.numerics.rays import Scan
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.physics.base import Inspection, Physics
from napari_invprior.physics.sinogram import inspect_sinogram
from napari_invprior.registry import register
from napari_invprior.sources import Source

Edge = Annotated[int, Field(ge=1, le=16_384)]
Distance = Annotated[float, Field(ge=1e-3, le=1e7)]


class TomographyParameters(Parameters):
    """The scan and the image."""

    geometry: Literal["parallel", "fan"] = parameter(
        "parallel", "Parallel rays, or a fan from a point source onto a flat detector."
    )
    angle_count: Annotated[int, Field(ge=1, le=20_000)] = parameter(
        180, "Projections, evenly spread over the range."
    )
    angle_start: Annotated[float, Field(ge=-360, le=360)] = parameter(
        0.0, "First angle.", unit="degrees", advanced=True
    )
    angle_range: Annotated[float, Field(ge=1e-3, le=3600)] = parameter(
        180.0, "Range that the angles share; its end is not measured again.", unit="degrees"
    )
    angles: Annotated[tuple[float, ...], Field(min_length=1, max_length=20_000)] | None = (
        parameter(None, "Every angle, instead of count, start and range.", advanced=True)
    )
    angle_array: Source | None = parameter(
        None, "List of the angles in a file (NPY, NPZ, text) or a layer.", advanced=True
    )
    angle_unit: Literal["auto", "degrees", "radians"] = parameter(
        "auto",
        "Unit of listed angles; automatic: degrees when one is larger than 2 pi.",
        advanced=True,
    )
    detector_count: Edge | None = parameter(
        None, "Detector bins; empty: those of the data, or enough to cover the image.",
        unit="bins", advanced=True,
    )
    detector_spacing: Annotated[float, Field(ge=0.05, le=100)] | None = parameter(
        None, "Distance of the bins; empty: a bin, seen at the axis, is one pixel.", unit="px",
        advanced=True,
    )
    centre: Annotated[float, Field(ge=-8192, le=8192)] = parameter(
        0.0, "Where the rotation axis projects, from the detector's middle.", unit="bins"
    )
    image_size: Edge | tuple[Edge, Edge] | None = parameter(
        None, "Edge of the image, or rows and columns; empty: what the detector spans.", unit="px",
        advanced=True,
    )
    pixel_size: Annotated[float, Field(ge=1e-12, le=1e6)] | None = parameter(
        None,
        "Length of a pixel in the unit of the line integrals; empty: the image is one wide.",
        advanced=True,
    )
    source_to_centre: Distance = parameter(
        1000.0, "Fan: from the source to the rotation axis.", unit="px", advanced=True
    )
    source_to_detector: Distance = parameter(
        1500.0, "Fan: from the source to the detector.", unit="px", advanced=True
    )
    filter: Filter = parameter(
        "hann", "Filter of the back-projection that the solvers begin with.", advanced=True
    )
    cutoff: Annotated[float, Field(ge=0.01, le=1)] = parameter(
        0.8, "Share of the detector's band that the filter passes.", advanced=True
    )

    @model_validator(mode="after")
    def _one_list(self) -> TomographyParameters:
        if self.angles is not None and self.angle_array is not None:
            raise ValueError("give angles or angle_array, not both")
        if self.geometry == "fan" and self.source_to_detector < self.source_to_centre:
            raise ValueError(
                f"source_to_detector = {self.source_to_detector:g} lies before the rotation axis "
                f"at {self.source_to_centre:g}; give the longer distance"
            )
        return self


@register(
    kind="physics",
    name="tomography",
    title="Computed tomography",
    papers=("2205.12021", "2312.16611"),
    inputs=("observation",),
    outputs=("reconstruction",),
)
class Tomography(Physics):
    """Integrate along the rays of a scan: a slice (H, W) gives a sinogram (angles, bins).

    A volume (Z, H, W) gives one sinogram per slice, (Z, angles, bins). At angle ``t`` the bins
    lie along ``(column, row) = (cos t, -sin t)``, as in scikit-image.

    Examples
    --------
    >>> physics = Tomography(TomographyParameters(angle_count=4), ndim=2)
    >>> physics.A(torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 1, 4, 8])
    >>> physics.in_shape((4, 8))
    (8, 8)
    """

    Parameters = TomographyParameters
    parameters: TomographyParameters
    list_inputs = ("angle_array",)
    same_units = False
    start_name = "fbp"
    start_title = "Filtered back-projection (FBP)"
    prox_tolerance = 1e-3  # total variation ends at the same image (to 0.001 dB) in half the time

    def __init__(
        self, parameters: TomographyParameters, ndim: int, angle_array: Tensor | None = None
    ) -> None:
        super().__init__(parameters, ndim)
        self.angles, self._assumed = _angles(parameters, angle_array)
        self._bins = parameters.detector_count
        fan = parameters.geometry == "fan"
        self._distances = (
            (parameters.source_to_centre, parameters.source_to_detector) if fan else (None, None)
        )
        magnification = (
            parameters.source_to_detector / parameters.source_to_centre if fan else 1.0
        )
        self._spacing = parameters.detector_spacing or magnification
        self._step = self._spacing / magnification
        self._preconditioner = lru_cache(maxsize=4)(self._build_preconditioner)

    # --- shapes -----------------------------------------------------------------------------

    def _image_edges(self, bins: int) -> tuple[int, int]:
        """Rows and columns of the image that so many bins show."""
        size = self.parameters.image_size
        if size is None:
            edge = max(1, round(bins * self._step))
            return edge, edge
        return (size, size) if isinstance(size, int) else size

    def _bins_for(self, edges: tuple[int, int]) -> int:
        """Bins of the data of an image."""
        if self._bins is not None:
            return self._bins
        if self.parameters.image_size is None:
            return max(1, round(edges[1] / self._step))
        return math.ceil(math.hypot(*edges) / self._step - 1e-9)

    def in_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        *slices, count, bins = shape
        if count != len(self.angles):
            turned = "; the sinogram seems to be transposed" if bins == len(self.angles) else ""
            raise InvalidInput(
                f"the sinogram has {count} rows but the scan {len(self.angles)} angles{turned}; "
                "rows are angles, columns are bins: set angle_count or give every angle"
            )
        if self._bins is not None and bins != self._bins:
            raise InvalidInput(
                f"the sinogram has {bins} bins but the detector {self._bins}; leave detector_count "
                "empty to take those of the data"
            )
        return (*slices, *self._image_edges(bins))

    def out_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        *slices, height, width = shape
        bins = self._bins_for((height, width))
        expected = self._image_edges(bins)
        if expected != (height, width):
            raise InvalidInput(
                f"an image of {height} x {width} px does not fit the scan, which shows {expected} "
                "px; crop it or set image_size"
            )
        return (*slices, len(self.angles), bins)

    def fitting_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        *slices, height, width = shape
        edge = min(height, width)
        if self._bins is None and self.parameters.image_size is None:
            while edge > 0 and self._image_edges(self._bins_for((edge, edge)))[0] != edge:
                edge -= 1
            fitting = edge, edge
        else:
            fitting = self._image_edges(self._bins or 1)
        if min(fitting) < 1 or fitting[0] > height or fitting[1] > width:
            raise InvalidInput(
                f"an image of {height} x {width} px is smaller than the {fitting[0]} x "
                f"{fitting[1]} px that the scan shows; choose a larger image or another image_size"
            )
        return (*slices, *fitting)

    def bound_to(self, shape: Sequence[int]) -> Physics:
        self.in_shape(shape)
        if self._bins is not None:
            return self
        part = copy.copy(self)
        part._bins = shape[-1]
        part._preconditioner = lru_cache(maxsize=4)(part._build_preconditioner)
        return part

    # --- the operator -----------------------------------------------------------------------

    def scan(self, bins: int) -> Scan:
        """The rays onto so many bins."""
        return Scan(self.angles, bins, self._spacing, self.parameters.centre, *self._distances)

    def _length(self, width: int) -> float:
        """Length of a pixel."""
        return self.parameters.pixel_size or 1 / width

    def _projector(self, edges: tuple[int, int], bins: int, like: Tensor) -> Projector:
        source = self._distances[0]
        if source is not None and source <= math.hypot(*edges) / 2:
            raise InvalidInput(
                f"source_to_centre = {source:g} px lies inside the image of {edges[0]} x "
                f"{edges[1]} px; it must exceed half of its diagonal, "
                f"{math.hypot(*edges) / 2:.1f} px"
            )
        return projector(self.scan(bins), edges, like.dtype, like.device)

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        shape = self.out_shape(x.shape[2:])
        project = self._projector((x.shape[-2], x.shape[-1]), shape[-1], x)
        y = project(x.reshape(-1, *x.shape[-2:])) * self._length(x.shape[-1])
        return y.view(*x.shape[:2], *shape)

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        shape = self.in_shape(y.shape[2:])
        project = self._projector((shape[-2], shape[-1]), y.shape[-1], y)
        x = project.adjoint(y.reshape(-1, *y.shape[-2:])) * self._length(shape[-1])
        return x.view(*y.shape[:2], *shape)

    def preconditioner(self, shape: Sequence[int], mu: float) -> Callable[[Tensor], Tensor]:
        return self._preconditioner((shape[-2], shape[-1]))(mu)

    def _build_preconditioner(
        self, edges: tuple[int, int]
    ) -> Callable[[float], Callable[[Tensor], Tensor]]:
        """``A^T A`` is nearly a convolution; its response to a spot gives the spectrum."""
        spot = torch.zeros((1, 1, *((1,) if self.ndim == 3 else ()), *edges))
        spot[..., edges[0] // 2, edges[1] // 2] = 1
        response = self.A_adjoint(self.A(spot)).view(edges)
        return convolution_inverse(response)

    # --- placement and parts ----------------------------------------------------------------

    def _offset(self, pixel: float) -> tuple[float, float]:
        """World distance from the first datum to the first pixel: rows from the corner's pixel.

        Rows of a sinogram are angles and have no place: the image begins where it begins. Across,
        the middle of the image lies on the middle of the detector.
        """
        size = self.parameters.image_size
        if size is None:
            return 0.0, pixel * (1 - self._spacing) / 2
        bins = self._bins_for(self._image_edges(1))
        width = self._image_edges(bins)[1]
        return 0.0, pixel * ((bins - 1) * self._spacing - (width - 1)) / 2

    def grid(self, geometry: Geometry) -> Geometry:
        """Square pixels of the size of a bin at the axis, over the sinogram."""
        pixel = geometry.scale[-1] / self._spacing
        shift = (0.0,) * (self.ndim - 2) + self._offset(pixel)
        return geometry.moved((*geometry.scale[:-2], pixel, pixel), shift)

    def data_grid(self, geometry: Geometry) -> Geometry:
        pixel = geometry.scale[-1]
        shift = (0.0,) * (self.ndim - 2) + self._offset(pixel)
        scale = (*geometry.scale[:-2], pixel, pixel * self._spacing)
        return geometry.moved(scale, tuple(-s for s in shift))

    def divisible(self) -> tuple[bool, ...]:
        return (True,) * (self.ndim - 2) + (False, False)

    def restricted(self, window: tuple[slice, ...]) -> tuple[Physics, tuple[int, ...]]:
        angles, bins = window[-2], window[-1]
        cut = (angles.start, angles.stop) != (0, len(self.angles)) or bins.start != 0
        if cut or (self._bins is not None and bins.stop != self._bins):
            raise InvalidInput(
                f"a sinogram cannot be cut to angles {angles.start}:{angles.stop} and bins "
                f"{bins.start}:{bins.stop}: every pixel is seen at all angles; cut slices only"
            )
        return self, (*(w.start for w in window[:-2]), 0, 0)

    def reach(self) -> tuple[int, ...]:
        return (1,) * self.ndim

    def inspect(self, y: Tensor) -> Inspection:
        """Consistency of a sinogram with the scan; see `physics.sinogram`."""
        found = inspect_sinogram(y.numpy(force=True), self.scan(y.shape[-1]))
        return Inspection((*self._assumed, *found.messages), found.observed)

    def start(self, y: Tensor) -> Tensor:
        """Filtered back-projection."""
        shape = self.in_shape(y.shape[2:])
        edges = shape[-2], shape[-1]
        x = back_projection(
            y.reshape(-1, *y.shape[-2:]), self.scan(y.shape[-1]), edges,
            self.parameters.filter, self.parameters.cutoff,
        )
        return (x / self._length(edges[1])).view(*y.shape[:2], *shape)


def _angles(
    parameters: TomographyParameters, listed: Tensor | None
) -> tuple[tuple[float, ...], tuple[Message, ...]]:
    """The angles in radians, and what was assumed about them."""
    if listed is not None:
        values = listed.double().numpy(force=True)
    elif parameters.angles is not None:
        values = np.asarray(parameters.angles)
    else:
        count, turn = parameters.angle_count, parameters.angle_range
        degrees = parameters.angle_start + turn * np.arange(count) / count
        return tuple(np.deg2rad(degrees).tolist()), ()
    if not np.isfinite(values).all():
        raise InvalidInput("the list of angles holds NaN or infinite values; clean it first")
    largest = float(np.abs(values).max())
    unit = parameters.angle_unit
    messages = []
    if unit == "auto":
        unit = "degrees" if largest > 2 * math.pi + 1e-6 else "radians"
        messages.append(Message(
            f"angles up to {largest:.4g} are taken for {unit}; set angle_unit to change that"
        ))
    elif unit == "radians" and largest > 4 * math.pi:
        messages.append(Message(
            f"angles up to {largest:.4g} radians are {largest / (2 * math.pi):.1f} turns; are they "
            "degrees? (set angle_unit)", "warning",
        ))
    radians = np.deg2rad(values) if unit == "degrees" else values
    copies = len(radians) - len(np.unique(np.round(np.mod(radians, 2 * math.pi), 6)))
    if copies:
        messages.append(Message(
            f"{copies} of {len(radians)} angles occur more than once; they count as often",
            "warning",
        ))
    return tuple(radians.tolist()), tuple(messages)
