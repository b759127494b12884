"""What can be chosen for a conditional MMD flow, its presets, and the slices that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from napari_invprior.memory import require
from napari_invprior.networks.unet import UNetSize
from napari_invprior.parameters import Parameters, overlaid, parameter
from napari_invprior.transport.slices.draws import (
    FEWEST_LINES,
    MOST_LINES,
    DirectionDraw,
    LocalDraw,
    SliceDraw,
)

BLOCK, SIZES = 7, 2
"""Edge of the smallest parts that local slices look at, px, and how many sizes there are."""
LARGEST_BASIS = 512
"""Numbers of a pair beyond which orthogonal lines take longer than they save."""
USUAL_EDGE = {"fast": {2: 24, 3: 10}, "paper": {2: 100, 3: 24}}
PAPER = UNetSize(32, (1, 1, 2, 2, 4, 4), 2, normalised=False)
SIZE = {
    "fast": {n: UNetSize(base, (1, 2), 1, normalised=False) for n, base in ((2, 16), (3, 12))},
    "paper": {2: PAPER, 3: PAPER},
}

Edge = Annotated[int, Field(ge=2, le=256)]
Steps = Annotated[int, Field(ge=1, le=1_000_000)]


@dataclass(frozen=True)
class Plan:
    """One complete training plan; the fields are explained in `ConditionalMMDParameters`."""

    pairs: int
    centre_steps: int
    networks: int
    steps: int
    batch: int
    learning_rate: float
    first_flow: int
    most_flow: int
    step: float
    momentum: float
    slices: Literal["local", "whole"]


PRESETS = {
    "fast": Plan(4000, 600, 4, 250, 16, 2e-3, 32, 128, 1.0, 0.7, "local"),
    "paper": Plan(1000, 0, 30, 4000, 10, 5e-4, 8, 10_000, 1.0, 0.7, "whole"),
}


class ConditionalMMDParameters(Parameters):
    """Windows, particles and networks; empty fields follow the preset."""

    patch_size: Edge | tuple[Edge, ...] | None = parameter(
        None, "Edge of the windows to learn from; images of any size are drawn. Empty: 24, in "
        "volumes 10 (preset paper: 100 and 24).", unit="px",
    )
    channels: Literal["separate", "joint"] = parameter(
        "separate", "Channels as images of their own, or all in one window.", advanced=True
    )
    preset: Literal["fast", "paper"] = parameter(
        "fast", "Minutes, or the paper's setting (hours on a CPU)."
    )
    pairs: Annotated[int, Field(ge=100, le=1_000_000)] | None = parameter(
        None, "Windows with simulated data that are learnt from."
    )
    networks: Annotated[int, Field(ge=1, le=200)] | None = parameter(
        None, "Networks in a row that one training adds, at most."
    )
    steps: Steps | None = parameter(None, "Training steps of each network.")
    samples: Annotated[int, Field(ge=2, le=100_000)] = parameter(
        16, "Images drawn for the mean and the standard deviation."
    )
    shown: Annotated[int, Field(ge=0, le=1000)] = parameter(
        8, "Samples that come as a stack with the maps, at most.", advanced=True
    )
    centre_steps: Annotated[int, Field(ge=0, le=1_000_000)] | None = parameter(
        None, "Training steps of the network for middle and spread, from which the flow starts; "
        "0: from the first image, as in the paper.", advanced=True,
    )
    batch: Annotated[int, Field(ge=1, le=4096)] | None = parameter(
        None, "Windows per training step.", advanced=True
    )
    learning_rate: Annotated[float, Field(ge=1e-8, le=0.1)] | None = parameter(
        None, "Largest step of Adam; it falls to zero.", advanced=True
    )
    first_flow: Annotated[int, Field(ge=1, le=100_000)] | None = parameter(
        None, "Steps of the flow before the first network; later ones take more.", advanced=True
    )
    most_flow: Annotated[int, Field(ge=1, le=100_000)] | None = parameter(
        None, "Steps of the flow before a network, at most.", advanced=True
    )
    step: Annotated[float, Field(gt=0, le=10)] | None = parameter(
        None, "Size of a step of the flow, in units of the spread of the windows.", advanced=True
    )
    momentum: Annotated[float, Field(ge=0, le=0.95)] | None = parameter(
        None, "Share of a step of the flow that goes into the next one.", advanced=True
    )
    slices: Literal["local", "whole"] | None = parameter(
        None, "Compare by lines through small parts of the windows, or through all of them.",
        advanced=True,
    )
    lines: Annotated[int, Field(ge=1, le=20_000)] | None = parameter(
        None, "Lines per step of the flow; empty: by the size of what they run through, a quarter "
        "of the numbers of a pair where that is all of it.",
        advanced=True,
    )
    condition_weight: float = parameter(
        1.0, "How much the data count against the image in the distance.", gt=0, le=1000,
        advanced=True,
    )

    def plan(self) -> Plan:
        """The preset with every field that is given."""
        return overlaid(PRESETS[self.preset], self)


def draw_slices(
    parameters: ConditionalMMDParameters, joint: Tensor, patch: Sequence[int]
) -> SliceDraw:
    """Where the slices of a flow come from, for pairs (d, N) of windows of edges ``patch``."""
    whole, lines = parameters.plan().slices == "whole", parameters.lines
    if whole and lines is None:
        lines = max(FEWEST_LINES, len(joint) // 4)
    require(
        8 * (lines or MOST_LINES) * 3 * sum(joint.shape),
        f"{lines or MOST_LINES} lines through {joint.shape[1]} pairs", "lower lines or pairs",
    )
    if whole:
        return DirectionDraw(joint, lines, "iid" if len(joint) > LARGEST_BASIS else "auto")
    return LocalDraw(joint, patch, patch=BLOCK, scales=SIZES, count=lines)
