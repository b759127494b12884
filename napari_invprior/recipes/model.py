"""The recipe: a whole run as validated data, to and from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from napari_invprior import registry
from napari_invprior.errors import InvalidInput, nearest
from napari_invprior.io.files import reason_of
from napari_invprior.parameters import Parameters, parameter, validate
from napari_invprior.recipes.blocking import BlockParameters
from napari_invprior.recipes.requirements import CLOUD_TASKS, lacking
from napari_invprior.sources import AtomSource, Box, Interval, PointSource, Source
from napari_invprior.study.baselines import BASELINES
from napari_invprior.study.generated import GenerateParameters
from napari_invprior.study.point_density import PointDensityParameters
from napari_invprior.study.sameness import SamenessParameters
from napari_invprior.study.tessellation import SourceWindow, TessellationParameters
from napari_invprior.study.typicality import TypicalityParameters
from napari_invprior.transport.riesz_flows.density import TargetParameters
from napari_invprior.transport.riesz_flows.halftone import HalftoneParameters

VERSION = 1

NESTED = {list, tuple, dict}

DEEPEST = 100
"""Lists and tables inside one another in a recipe."""

LONGEST_LIST, LONGEST_TEXT = 100_000, 16 << 20
"""Entries of a list in a recipe, and characters of its text."""


@dataclass(frozen=True)
class Choice:
    """One registered method with its parameters."""

    method: registry.Method
    parameters: Parameters
    path: str | None = None

    @property
    def name(self) -> str:
        """The method's name in recipes."""
        return self.method.name

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the kind and every parameter that differs from its default."""
        data: dict[str, Any] = {"kind": self.method.name}
        if self.path is not None:
            data["path"] = self.path
        return data | self.parameters.model_dump(mode="json", exclude_defaults=True)


def _choose(kind: str, data: Any) -> Choice:
    if isinstance(data, Choice):
        return data
    if isinstance(data, str):
        data = {"kind": data}
    if not isinstance(data, Mapping) or not isinstance(data.get("kind"), str):
        names = ", ".join(m.name for m in registry.methods(kind))
        raise InvalidInput(f"give a {kind} as {{'kind': name, ...}} with name one of {names}")
    given = dict(data)
    method = registry.get(kind, given.pop("kind"))
    path = given.pop("path", None) if kind == "prior" else None
    if path is not None and not isinstance(path, str):
        raise InvalidInput(f"prior.path = {path!r}: give the path of a saved prior")
    return Choice(method, validate(method.parameters, given, f"{kind} {method.name}"), path)


_SERIALISE = PlainSerializer(Choice.to_dict, return_type=dict)
PhysicsChoice = Annotated[Any, BeforeValidator(partial(_choose, "physics")), _SERIALISE]
NoiseChoice = Annotated[Any, BeforeValidator(partial(_choose, "noise")), _SERIALISE]
PriorChoice = Annotated[Any, BeforeValidator(partial(_choose, "prior")), _SERIALISE]
SolverChoice = Annotated[Any, BeforeValidator(partial(_choose, "solver")), _SERIALISE]
SamplerChoice = Annotated[Any, BeforeValidator(partial(_choose, "sampler")), _SERIALISE]
FlowChoice = Annotated[Any, BeforeValidator(partial(_choose, "flow")), _SERIALISE]


ONE = Field(fail_fast=True)
"""Of a list that may be long the first fault is enough: each takes a kilobyte."""

Weights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(max_length=20_000), ONE]


class Polygon(Parameters):
    """A region with straight edges in the last two axes."""

    polygon: Annotated[
        tuple[tuple[float, float], ...], Field(min_length=3, max_length=LONGEST_LIST), ONE
    ] = parameter(..., "Vertices (y, x).", unit="px")
    depth: Interval | None = parameter(None, "Range [start, stop] along the first of three axes.")


class ReferenceSource(Source):
    """A good image and the parts of it to learn from (all of it when none is named)."""

    regions: Annotated[tuple[Box | Polygon, ...], ONE] = parameter(
        (), "Boxes [[start, stop], ...] or polygons."
    )
    labels: Source | None = parameter(
        None, "Label image of the same shape; learn where it is positive."
    )
    pair: Source | None = parameter(
        None, "The poor image of the same place, registered; for priors that learn from pairs."
    )
    weight: Annotated[float, Field(ge=1e-9, le=1e6)] = parameter(
        1.0, "How much one patch of this reference counts beside one of another."
    )


class Simulation(Parameters):
    """Data made from an image by the recipe's physics and noise."""

    simulate_from: Source = parameter(..., "The image that is measured; it becomes the truth.")


class StudyMethod(Parameters):
    """One method of a study: a prior and how to reconstruct with it."""

    title: str = parameter("", "Name in the table; that of the prior or solver by default.")
    prior: PriorChoice | None = parameter(None, "What images look like.")
    solver: SolverChoice = parameter(
        {"kind": "variational"}, "How to find the image.", validate_default=True
    )

    @model_validator(mode="after")
    def _complete(self) -> StudyMethod:
        _require_prior(self.solver, self.prior)
        return self

    @property
    def shown_title(self) -> str:
        """The title, or one made of prior and solver."""
        chosen: Choice = self.solver if self.prior is None else self.prior
        return self.title or chosen.method.title


def _require_prior(solver: Choice, prior: Choice | None) -> None:
    if solver.method.cls.needs_prior and prior is None:  # type: ignore[attr-defined]
        raise ValueError(f"solver {solver.name!r} needs a prior")


def _check_lists(data: Any, where: str = "recipe", depth: int = 0) -> None:
    """Refuse endless lists before each of their entries is looked at.

    There may be a million rows, so that types are compared and nothing is kept.
    """
    if depth > DEEPEST:
        raise InvalidInput(f"{where:.200} is nested too deeply")
    if type(data) is list or type(data) is tuple:
        if len(data) > LONGEST_LIST:
            raise InvalidInput(
                f"{where:.200} has {len(data)} entries; at most {LONGEST_LIST} are possible"
            )
        for part in data:
            if type(part) in NESTED:
                _check_lists(part, where, depth + 1)
    elif isinstance(data, Mapping):
        for key, part in data.items():
            if type(part) in NESTED:
                _check_lists(part, f"{where}.{key!s:.80}", depth + 1)


class Recipe(SourceWindow):
    """Everything a run needs, and nothing it does not.

    Examples
    --------
    >>> recipe = Recipe.parse({"observation": {"sample": "gravel-test"},
    ...     "physics": {"kind": "denoising"}, "prior": None,
    ...     "solver": {"kind": "total_variation"}})
    >>> recipe.seed
    0
    """

    version: Literal[1] = parameter(VERSION, "Version of this language.")
    task: Literal[
        "reconstruct", "sample", "fit", "propose", "study", "estimate_operator",
        "particles", "halftone", "density", "typicality", "two_sample", "generate", "tessellate",
    ] = parameter(
        "reconstruct",
        "Reconstruct, sample plausible images, train a prior, propose one, study several methods, "
        "estimate the operator from a registered pair; let particles flow, halftone an image, map "
        "the density of points, map how typical places are, compare two images or point sets, "
        "generate patches and textures, or divide a source into the cells of atoms.",
    )
    title: str = parameter("", "A line for people.")
    papers: Annotated[tuple[str, ...], ONE] = parameter((), "Papers that an example shows.")
    observation: Source | Simulation | None = parameter(None, "The poor image or volume.")
    truth: Source | None = parameter(None, "The true image, for figures only.")
    references: Annotated[tuple[ReferenceSource, ...], Field(max_length=10_000), ONE] = (
        parameter((), "Good images of the same material.")
    )
    zero_shot: bool = parameter(False, "Learn from the observation itself; no references.")
    physics: PhysicsChoice = parameter(
        {"kind": "superresolution"}, "How the observation came about.", validate_default=True
    )
    noise: NoiseChoice = parameter({"kind": "gaussian"}, "Its noise.", validate_default=True)
    prior: PriorChoice | None = parameter(
        {"kind": "patchnr"}, "What images look like.", validate_default=True
    )
    solver: SolverChoice = parameter(
        {"kind": "variational"}, "How to find the image.", validate_default=True
    )
    sampler: SamplerChoice = parameter(
        {"kind": "underdamped"}, "How plausible images are drawn.", validate_default=True
    )
    initial: Source | None = parameter(
        None, "Image to start sampling from, on the result's grid; reconstructed when not given."
    )
    quantiles: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(max_length=20)
    ] = parameter((0.05, 0.95), "Quantiles of the samples to give as layers.")
    threshold: float | None = parameter(
        None, "Also give the probability that the value lies above this one.", unit="data"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = parameter(0, "Seed of all randomness.")
    device: Literal["auto", "cpu", "cuda", "mps"] = parameter("auto", "Where to compute.")
    time_budget_s: Annotated[float, Field(gt=0, le=1e7)] | None = parameter(
        None, "Stop in time with the best image so far.", unit="s"
    )
    blocks: BlockParameters | None = parameter(
        None, "Work block by block, from disk to disk, on volumes that memory has no room for."
    )
    rim: Annotated[int, Field(ge=0, le=10_000)] = parameter(
        0, "Border left out of the figures.", unit="px"
    )
    maps: bool = parameter(
        False, "Also give what the prior says about each place, as layers of their own."
    )
    baselines: bool = parameter(True, "Compute named baselines where a truth is known.")
    methods: Annotated[tuple[StudyMethod, ...], Field(max_length=100)] = parameter(
        (), "What a study compares, in place of prior and solver."
    )
    study_baselines: tuple[str, ...] | None = parameter(
        None, "Baselines of a study; all that are available by default."
    )

    points: PointSource | None = parameter(
        None, "Points: the start of a flow (its middle by default), what a density map counts, or "
        "one side of a comparison; in pixels of the observation where there is one.", unit="px",
    )
    target_points: PointSource | None = parameter(
        None, "Points that particles flow to, or the other side of a comparison.", unit="px"
    )
    target: TargetParameters = parameter(
        TargetParameters(), "How the observation becomes the density that points follow."
    )
    flow: FlowChoice = parameter(
        {"kind": "particle"}, "How particles move.", validate_default=True
    )
    halftone: HalftoneParameters = parameter(HalftoneParameters(), "Dots of a halftone.")
    density: PointDensityParameters = parameter(
        PointDensityParameters(), "Kernel of a density map."
    )
    typicality: TypicalityParameters = parameter(
        TypicalityParameters(), "Patches and kernel of a map of typical places."
    )
    two_sample: SamenessParameters = parameter(
        SamenessParameters(), "The test that compares two images or point sets."
    )
    generate: GenerateParameters = parameter(
        GenerateParameters(), "What is generated, and how."
    )
    atoms: AtomSource | None = parameter(None, "Atoms whose cells are computed.")
    weights: Weights | None = parameter(None, "Weight of each atom; equal by default.")
    tessellation: TessellationParameters = parameter(
        TessellationParameters(), "What is computed beside the cells on the grid."
    )

    @field_validator("study_baselines")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if name not in BASELINES:
                raise ValueError(
                    f"unknown baseline {name!r}{nearest(name, BASELINES)} "
                    f"(known: {', '.join(BASELINES)})"
                )
        return None if names is None else tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _complete(self) -> Recipe:
        if self.task in CLOUD_TASKS:
            missing = lacking(self)
            if missing:
                raise ValueError(missing)
            return self
        if self.task == "estimate_operator":
            self._require_pair()
        elif self.task != "fit" and self.observation is None:
            raise ValueError(f"task {self.task!r} needs an observation")
        if self.task in ("fit", "sample") and self.prior is None:
            raise ValueError(f"task {self.task!r} needs a prior")
        _require_prior(self.solver, self.prior)
        if self.task == "study" and not self.methods and self.study_baselines == ():
            raise ValueError("a study needs at least one of methods and study_baselines")
        if self.task != "study" and self.methods:
            raise ValueError(f"methods are for task 'study', not {self.task!r}")
        if self.zero_shot and self.references:
            raise ValueError("zero_shot learns from the observation; remove the references")
        return self

    def _require_pair(self) -> None:
        """One whole reference with its pair, and an operator that has a kernel."""
        if len(self.references) != 1 or self.references[0].pair is None:
            raise ValueError(
                "task 'estimate_operator' needs one reference with its poor image as 'pair'"
            )
        if self.references[0].regions or self.references[0].labels is not None:
            raise ValueError("an operator is estimated from a whole pair; crop both, no regions")
        if self.observation is not None:
            raise ValueError("task 'estimate_operator' reads a pair; remove the observation")
        if "psf" not in self.physics.method.cls.array_inputs:
            raise ValueError(
                f"physics {self.physics.name!r} has no kernel; choose superresolution or blur"
            )

    @property
    def titles(self) -> tuple[str, ...]:
        """A title for each method of a study; no two are the same.

        Examples
        --------
        >>> Recipe.parse({"task": "study", "observation": {"sample": "gravel-test"},
        ...     "methods": [{"prior": "gmm"}, {"prior": "gmm", "solver": "half_quadratic"}]}).titles
        ('Gaussian mixture', 'Gaussian mixture 2')
        """
        found: list[str] = []
        for method in self.methods:
            title, number = method.shown_title, 2
            while title in found:
                title, number = f"{method.shown_title} {number}", number + 1
            found.append(title)
        return tuple(found)

    @classmethod
    def parse(cls, data: Mapping[str, Any] | str | Recipe) -> Recipe:
        """Validate plain data or JSON text.

        Raises
        ------
        InvalidInput
            One line that names the key, the value and what is allowed.
        """
        if isinstance(data, Recipe):
            return data
        if isinstance(data, str):
            if len(data) > LONGEST_TEXT:
                raise InvalidInput(
                    f"the recipe has {len(data)} characters; at most {LONGEST_TEXT} are read: keep "
                    "points in files"
                )
            try:
                data = json.loads(data)
            except (ValueError, RecursionError) as error:  # whole numbers of 5000 digits, too
                raise InvalidInput(f"the recipe is not JSON: {reason_of(error)}") from None
        if not isinstance(data, Mapping):
            raise InvalidInput(f"a recipe is a JSON object, not {type(data).__name__}")
        _check_lists(data)
        return validate(cls, data, "recipe")

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `parse` reads back to an equal recipe."""
        data: dict[str, Any] = {"version": self.version, "task": self.task}
        return data | self.model_dump(mode="json", exclude_defaults=True)

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """A copy with dotted keys replaced, as in ``{"prior.patch_size": 8}``."""
        data = self.to_dict()
        for dotted, value in settings.items():
            *parents, last = dotted.split(".")
            place = data
            for parent in parents:
                held = place.setdefault(parent, {})
                if not isinstance(held, dict):
                    raise InvalidInput(f"--set {dotted}: {parent!r} is not a group of settings")
                place = held
            place[last] = value
        return Recipe.parse(data)
