"""The plan of a job: everything that any worker, now or after a restart, must know."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from napari_invprior.blocks.agree import Layout, Settlement
from napari_invprior.blocks.folder import FOLDER, PLAN, RESULT
from napari_invprior.blocks.grid import BlockGrid
from napari_invprior.blocks.inputs import Inputs
from napari_invprior.blocks.output import BlockedImage, Output
from napari_invprior.blocks.sealed import sealed, unsealed
from napari_invprior.errors import InvalidInput, OutOfMemory
from napari_invprior.geometry import Geometry
from napari_invprior.io.files import read_bytes, refusing, write_atomic
from napari_invprior.io.metadata import stored_geometry
from napari_invprior.io.omezarr_read import plain
from napari_invprior.io.provenance import versions
from napari_invprior.parameters import Parameters, parameter, per_axis, validate
from napari_invprior.posterior.chains import COPIES
from napari_invprior.recipes.layers import OutputLayer
from napari_invprior.recipes.model import Recipe
from napari_invprior.reconstruct.tiles import BYTES_PER_SAMPLE

UNIT = {2: 128, 3: 32}
"""Blocks have edges of multiples of this (image samples), so that the pyramid divides them."""
LARGEST = {2: 2048, 3: 256}
LARGEST_FILE = 64 << 20


class Plan(Parameters):
    """A job, settled."""

    version: int = parameter(1, "Version of this file.")
    id: str = parameter(..., "Digest of all that the result depends on.", max_length=64)
    created: str = parameter(..., "When the job was planned.")
    recipe: dict[str, Any] = parameter(..., "The settled recipe.")
    asked: dict[str, Any] = parameter(..., "The recipe as it was given.")
    scale: tuple[float, float] = parameter(..., "The user's numbers that mean 0 and 1.")
    value_range: tuple[float, float] | None = parameter(..., "Of the references (of 0-1).")
    noise_level: float = parameter(..., "Mean variance of the noise.", ge=0)
    frames: int = parameter(..., "Frames of the data.", ge=1)
    data: tuple[int, ...] = parameter(..., "Space shape of the data.")
    image: tuple[int, ...] = parameter(..., "Space shape of the image.")
    factor: tuple[int, ...] = parameter(..., "Image samples per data sample.")
    divisible: tuple[bool, ...] = parameter(..., "Axes that may be cut.")
    core: tuple[int, ...] = parameter(..., "Data samples of a block.")
    halo: tuple[int, ...] = parameter(..., "Data samples around it.")
    period: int = parameter(1, "Windows begin at multiples of so many.", ge=1)
    geometry: dict[str, Any] = parameter(..., "Where the image lies.")
    outputs: tuple[Output, ...] = Field(..., min_length=1)
    seconds_per_sample: float = parameter(0.0, "Of a window, measured.", ge=0)
    level: float = parameter(..., "How well blocks agree with the whole (of 0-1).", ge=0)
    felt: tuple[float, ...] = parameter((), "Largest difference at each distance from a cut.")
    facts: dict[str, Any] = Field(default_factory=dict)
    digests: dict[str, str] = Field(default_factory=dict)
    threads: int = parameter(
        1, "CPU threads per block: another number rounds otherwise.", ge=1, le=1024
    )
    has_prior: bool = parameter(False, "Whether a prior lies beside the plan.")

    @property
    def grid(self) -> BlockGrid:
        """The blocks."""
        return BlockGrid(
            self.frames, self.data, self.image, self.factor, self.core, self.halo, self.period,
            self.divisible,
        )

    @property
    def placement(self) -> Geometry:
        """Where the image lies in the world."""
        found = stored_geometry(self.geometry, "plan")
        assert found is not None
        return found

    @property
    def parsed(self) -> Recipe:
        """The settled recipe."""
        return Recipe.parse(self.recipe)

    def images(self, folder: Path) -> list[BlockedImage]:
        """The images that the blocks give together."""
        root = folder / RESULT
        return [BlockedImage(root / output.name, output, self.grid) for output in self.outputs]

    @property
    def attributes(self) -> dict[str, Any]:
        """Provenance that every image carries."""
        return {
            "recipe": self.recipe, "versions": versions(), "inputs": self.digests,
            "intensity_scale": list(self.scale), "notes": self.facts,
            "blocks": {"core": self.core, "halo": self.halo, "level": self.level, "job": self.id},
        }

    def seconds(self, workers: int) -> float:
        """How long all blocks take, estimated."""
        fine = math.prod(self.factor)
        total = sum(
            fine * math.prod(w.stop - w.start for w in block.window) for block in self.grid
        )
        return self.seconds_per_sample * total / max(1, workers)

    def save(self, folder: Path) -> None:
        """Write the plan into ``folder/job``."""
        text = sealed(plain(self.model_dump(mode="json")), indent=1)
        write_atomic(folder / FOLDER / PLAN, text)

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read the plan of a job.

        Raises
        ------
        InvalidInput
            If there is none, or it is damaged.
        """
        path = folder / FOLDER / PLAN
        if not path.is_file():
            raise InvalidInput(f"{folder} holds no job ({FOLDER}/{PLAN}); give a folder of a job")
        with refusing(path):
            data = unsealed(read_bytes(path, LARGEST_FILE))
        return validate(cls, data, str(path))


def bytes_per_sample(recipe: Recipe) -> int:
    """Peak working memory per image sample and channel of a window."""
    if recipe.task != "sample":
        return BYTES_PER_SAMPLE
    parameters: Any = recipe.sampler.parameters
    chains = getattr(parameters, "chains", None) or 8
    return BYTES_PER_SAMPLE + 4 * (COPIES * chains + parameters.samples)


def chosen_edges(
    recipe: Recipe, layout: Layout, halo: int, channels: int, memory: int
) -> tuple[int, ...]:
    """Edges of a block, image samples: as given, or the largest that the memory has room for.

    Parameters
    ----------
    memory : int
        Bytes that one worker may use.

    Raises
    ------
    OutOfMemory
        If even the smallest blocks do not fit.
    InvalidInput
        If edges were given that are no multiples of the factor.
    """
    ndim = len(layout.image)
    given = recipe.blocks.edge if recipe.blocks else None
    unit = math.lcm(UNIT[ndim], *(f for f, c in zip(layout.factor, layout.divisible, strict=True)
                                  if c))
    if given is not None:
        edges = per_axis(given, ndim, "blocks.edge")
        if any(c and e % f for e, f, c in zip(edges, layout.factor, layout.divisible, strict=True)):
            raise InvalidInput(
                f"blocks.edge = {edges}: give multiples of the factor {layout.factor}"
            )
    each = bytes_per_sample(recipe) * channels
    sizes = [given] if given is not None else range(max(LARGEST[ndim], unit), 0, -unit)
    for size in sizes:
        edges = per_axis(size, ndim, "blocks.edge")
        needed = each * math.prod(
            min(n, e + 2 * halo) if cut else n
            for n, e, cut in zip(layout.image, edges, layout.divisible, strict=True)
        )
        if needed <= memory:
            return tuple(
                e if cut else n
                for n, e, cut in zip(layout.image, edges, layout.divisible, strict=True)
            )
    raise OutOfMemory(
        f"blocks of {edges} px with a halo of {halo} need {needed / 1e9:.3g} GB for each worker; "
        f"{memory / 1e9:.3g} GB are allowed: use fewer workers, more memory, or smaller blocks"
    )


def checked_halo(recipe: Recipe, needed: int) -> int:
    """The halo to use, image samples.

    Raises
    ------
    InvalidInput
        If a smaller one than needed was given.
    """
    given = recipe.blocks.halo if recipe.blocks else None
    if given is not None and given < needed:
        raise InvalidInput(
            f"blocks.halo = {given}: a border is felt over {needed} samples (to "
            f"blocks.tolerance); give at least {needed}, or nothing"
        )
    return needed if given is None else given


def plan(
    asked: Recipe, settlement: Settlement, inputs: Inputs, *, memory: int, threads: int
) -> Plan:
    """A plan from what was settled.

    Parameters
    ----------
    memory : int
        Bytes that one worker may use.
    threads : int
        CPU threads of one worker.
    """
    agreed, layout = settlement.agreed, settlement.layout
    recipe, channels = agreed.recipe, inputs.observation.channels
    halo = checked_halo(recipe, settlement.reach.halo)
    edges = chosen_edges(recipe, layout, halo, channels, memory)
    space = inputs.observation.space
    core = tuple(
        min(n, -(-e // f)) if cut else n
        for n, e, f, cut in zip(space, edges, layout.factor, layout.divisible, strict=True)
    )
    fields: dict[str, Any] = {
        "recipe": recipe.to_dict(), "asked": asked.to_dict(), "scale": agreed.scale,
        "value_range": agreed.value_range, "noise_level": agreed.noise_level,
        "frames": inputs.observation.shape[0], "data": space, "image": layout.image,
        "factor": layout.factor, "divisible": layout.divisible, "core": core,
        "halo": tuple(-(-halo // f) for f in layout.factor), "period": settlement.period,
        "geometry": plain(asdict(layout.geometry)), "outputs": _outputs(settlement.layers,
                                                                       len(space)),
        "level": settlement.reach.level, "threads": threads,
        "digests": settlement.facts["digests"] | inputs.digest(),
    }
    text = json.dumps(plain({k: _bare(v) for k, v in fields.items()}), sort_keys=True)
    return Plan(
        id=hashlib.sha256(text.encode()).hexdigest()[:16],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds_per_sample=settlement.seconds, felt=settlement.reach.curve,
        facts=plain({k: v for k, v in settlement.facts.items() if k != "digests"}),
        has_prior=agreed.prior is not None, **fields,
    )


def _bare(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_bare(v) for v in value]
    return value.model_dump(mode="json") if isinstance(value, Output) else value


def _outputs(layers: Sequence[OutputLayer], ndim: int) -> tuple[Output, ...]:
    return tuple(
        Output(
            name=layer.name, kind="labels" if layer.kind == "labels" else "image",
            unit=layer.unit, role=layer.role,
            dtype=str(layer.array.dtype),
            channels=layer.array.shape[0] if layer.array.ndim > ndim else None,
        )
        for layer in layers
    )


def summary(found: Plan, workers: int) -> Mapping[str, Any]:
    """What a user wants to know before the blocks begin."""
    window = found.grid.largest_window * math.prod(found.factor)
    return {
        "blocks": found.grid.count,
        "memory_gb": window * bytes_per_sample(found.parsed) * workers / 1e9,
        "seconds": found.seconds(workers),
    }
