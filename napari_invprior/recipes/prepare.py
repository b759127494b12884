"""From a recipe to a problem: arrays loaded, checked, scaled and joined with the physics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.image import Image
from napari_invprior.io.images import Arrays, load, load_list
from napari_invprior.jobs import Message
from napari_invprior.numerics.noise_level import estimate_sigma
from napari_invprior.physics.base import Physics
from napari_invprior.physics.calibration import on_the_images_scale, scale_of
from napari_invprior.physics.noise import Noise
from napari_invprior.physics.unobserved import Masked
from napari_invprior.priors.base import Reference
from napari_invprior.recipes.model import Choice, Recipe, ReferenceSource, Simulation
from napari_invprior.recipes.regions import region_mask
from napari_invprior.recipes.scale import (
    UNKNOWN,
    from_unit,
    range_of_start,
    ranges_of,
    to_unit,
)
from napari_invprior.reconstruct.case import Case
from napari_invprior.reconstruct.tiles import require_room
from napari_invprior.sources import Source


@dataclass
class Problem:
    """Everything a solver needs.

    Attributes
    ----------
    recipe : Recipe
        With estimated figures filled in.
    observation : Image or None
        The data as given (or simulated), in the user's numbers.
    y : Tensor
        (frames, C, *space), normalised; samples that were not finite are filled.
    physics, noise
        The forward operator and the noise.
    truth : Tensor or None
        (frames, C, *space) on the image grid, normalised.
    references : list of Reference
        Normalised examples with masks.
    value_range : tuple of float or None
        Smallest and largest value in the references (normalised).
    scale : tuple of float
        The user's numbers that mean 0 and 1.
    digests : dict
        SHA-256 of every input by its role.
    """

    recipe: Recipe
    observation: Image | None
    y: Tensor | None
    physics: Physics | None
    noise: Noise | None
    truth: Tensor | None
    references: list[Reference]
    scale: tuple[float, float]
    digests: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def value_range(self) -> tuple[float, float] | None:
        lows = [float(r.image[:, _mask(r)].min()) for r in self.references]
        highs = [float(r.image[:, _mask(r)].max()) for r in self.references]
        return (min(lows), max(highs)) if lows else None

    def case(self, device: torch.device) -> Case:
        """What the solvers see of the problem, with the data on the device."""
        assert self.y is not None and self.physics is not None and self.noise is not None
        return Case(
            self.y.to(device), self.physics, self.noise, self.references, self.value_range,
            self.truth, self.recipe.rim, self.recipe.seed,
        )


def _mask(reference: Reference) -> Tensor:
    finite = torch.isfinite(reference.image).all(0)
    return finite if reference.mask is None else finite & reference.mask


def prepare(
    recipe: Recipe, arrays: Arrays, scale: tuple[float, float] | None = None
) -> Iterator[Message | Problem]:
    """Yield messages for the user and, at last, the `Problem`.

    Parameters
    ----------
    scale : tuple of float, optional
        The user's numbers that mean 0 and 1, where they are settled; else told from the images.
    """
    observation, simulated = _observation(recipe, arrays)
    calibration = scale_of(recipe.physics.parameters)
    references = [(source, load(source, arrays)) for source in recipe.references]
    pairs = {i: load(s.pair, arrays) for i, (s, _) in enumerate(references) if s.pair is not None}
    digests = {f"reference {i}": image.digest() for i, (_, image) in enumerate(references)}
    digests |= {f"pair {i}": image.digest() for i, image in pairs.items()}
    pairs = {i: on_the_images_scale(pair, calibration) for i, pair in pairs.items()}
    if observation is not None:
        digests["observation"] = observation.digest()
        observation = observation if simulated else on_the_images_scale(observation, calibration)
    images = [image for _, image in references] + list(pairs.values())
    images += [observation] if observation else []
    if not images:
        raise InvalidInput("nothing to work on: give references or an observation")
    for image in images:
        for note in image.facts.get("notes", ()):
            yield Message(f"{image.name}: {note}")
    same_units = recipe.physics.method.cls.same_units or recipe.observation is None
    alike = [True] * len(references) + [calibration is None] * len(pairs)
    alike += [simulated or (same_units and calibration is None)] * (observation is not None)
    ranges, warning = ranges_of(images, alike, same_units)
    if scale is not None:
        ranges = [scale] * len(images)
    elif warning:
        yield Message(warning, "warning")
    images = [replace(i, value_range=r) for i, r in zip(images, ranges, strict=True)]
    problem = Problem(
        recipe=recipe, observation=None, y=None, physics=None, noise=None, truth=None,
        references=[], scale=images[-1].value_range, digests=digests,
    )
    scaled = dict(zip(pairs, images[len(references) :], strict=False))
    for i, ((source, _), image) in enumerate(zip(references, images, strict=False)):
        problem.references += _references(source, image, scaled.get(i), arrays)
    if observation is not None:
        observation = images[-1]
        yield from _attach_data(problem, observation, simulated, arrays)
    if recipe.zero_shot and problem.y is not None and problem.physics is not None:
        own = problem.y if same_units else problem.physics.start(problem.y)
        problem.references = [Reference(frame) for frame in own]
    yield from _warn_about_references(problem)
    yield problem


def _observation(recipe: Recipe, arrays: Arrays) -> tuple[Image | None, bool]:
    """The observation, or the image that it is simulated from."""
    if recipe.observation is None:
        return None, False
    if isinstance(recipe.observation, Simulation):
        return load(recipe.observation.simulate_from, arrays), True
    return load(recipe.observation, arrays), False


def _references(
    source: ReferenceSource, image: Image, pair: Image | None, arrays: Arrays
) -> list[Reference]:
    """Normalised frames of one reference image, with the mask of its regions and its pair."""
    mask = region_mask(source, image.space, arrays)
    frames = [torch.from_numpy(frame) for frame in image.normalised()]
    if pair is None:
        return [Reference(frame, mask, source.weight) for frame in frames]
    poor = [torch.from_numpy(frame) for frame in pair.normalised()]
    whole = len(pair.space) == len(image.space) and not any(
        n % m for n, m in zip(image.space, pair.space, strict=True)
    )
    if not whole or pair.channels != image.channels or len(poor) != len(frames):
        raise InvalidInput(
            f"the pair {pair.name} has shape {pair.space} ({len(poor)} frames, {pair.channels} "
            f"channels), the reference {image.space} ({len(frames)} frames, {image.channels} "
            "channels); each axis of the reference must be a whole multiple of the pair's: crop "
            "both to the same place"
        )
    return [
        Reference(frame, mask, source.weight, low)
        for frame, low in zip(frames, poor, strict=True)
    ]


def _attach_data(
    problem: Problem, image: Image, simulated: bool, arrays: Arrays
) -> Iterator[Message]:
    """Physics, noise and data, simulated where the recipe says so."""
    if simulated:
        yield from _simulate(problem, image, arrays)
    else:
        yield from _measure(problem, image, arrays)
    assert problem.physics is not None and problem.y is not None
    if problem.physics.mask is not None and bool(problem.physics.mask.all()):
        yield Message("nothing is missing: the mask is positive everywhere", "warning")
    if float(problem.y.std()) == 0:
        yield Message(f"{image.name} is constant ({float(problem.y.flatten()[0]):g})", "warning")


def _simulate(problem: Problem, image: Image, arrays: Arrays) -> Iterator[Message]:
    """Data from an image, which becomes the truth."""
    recipe = problem.recipe
    values = torch.from_numpy(image.normalised())
    physics = build_physics(recipe, values, True, arrays)
    choice: Choice = recipe.noise
    if getattr(choice.parameters, "sigma", 0.0) is None:
        raise InvalidInput("noise.sigma is missing: a simulation needs its noise level")
    if not bool(torch.isfinite(values).all()):
        raise InvalidInput(f"{image.name} holds NaN or infinite values; clean it to simulate")
    fitting = physics.fitting_shape(image.space)
    if fitting != image.space:
        yield Message(f"cropped {image.space} to {fitting} px to fit the physics")
        values = values[(..., *(slice(0, n) for n in fitting))]  # type: ignore[index]
    noise = choice.method.cls(choice.parameters)
    generator = torch.Generator().manual_seed(recipe.seed)
    problem.truth = values
    problem.y = noise.simulate(physics.A(values), generator)
    problem.observation = _simulated_image(image, problem.y, physics)
    problem.physics, problem.noise, problem.scale = physics, noise, image.value_range


def _measure(problem: Problem, image: Image, arrays: Arrays) -> Iterator[Message]:
    """Observed data: checked, scaled, and joined with what can be estimated from them."""
    raw = torch.from_numpy(image.array.astype(np.float32))
    physics = build_physics(problem.recipe, raw, False, arrays).bound_to(image.space)
    require_room(physics, image.array.shape, image.name)
    inspection = physics.inspect(raw)
    yield from inspection.messages
    unusable = int((~torch.isfinite(raw)).flatten(0, 1).any(0).sum())
    if inspection.observed is not None:
        raw[..., ~inspection.observed] = math.nan
    values, observed = filled(raw)
    if unusable:
        yield Message(
            f"{unusable} samples of {image.name} are NaN or infinite and count as unobserved",
            "warning",
        )
    if image.value_range == UNKNOWN:
        image = replace(image, value_range=range_of_start(values, physics))
        yield Message(
            "without a reference the image is assumed to span {:.4g}..{:.4g}, as its first "
            "reconstruction does".format(*image.value_range)
        )
    problem.y = to_unit(values, physics, image.value_range)
    if observed is not None:
        physics = Masked(physics, observed)
    problem.observation, problem.physics, problem.scale = image, physics, image.value_range
    yield from _estimate_noise(problem, image, physics)
    choice: Choice = problem.recipe.noise
    problem.noise = choice.method.cls(choice.parameters)
    if problem.recipe.truth is not None:
        problem.truth = _truth(problem.recipe.truth, problem, physics, image, arrays)


def build_physics(recipe: Recipe, values: Tensor, simulated: bool, arrays: Arrays) -> Physics:
    """The forward operator of a recipe, with its arrays loaded.

    Parameters
    ----------
    values : Tensor
        Data or image (frames, C, *space), of which only the shape counts.
    simulated : bool
        Whether data are to be simulated; a mask that is not given is then drawn.
    """
    choice: Choice = recipe.physics
    ndim = values.ndim - 2
    cls: Any = choice.method.cls
    tensors: dict[str, Tensor] = {}
    for name in cls.array_inputs:
        source = getattr(choice.parameters, name)
        if isinstance(source, Source):
            array = load(source, arrays).array[0]
            if array.shape[0] != 1:
                raise InvalidInput(f"physics.{name} has {array.shape[0]} channels; give one")
            tensors[name] = torch.from_numpy(np.ascontiguousarray(array[0]).astype(np.float64))
    for name in cls.list_inputs:
        source = getattr(choice.parameters, name)
        if isinstance(source, Source):
            tensors[name] = torch.from_numpy(load_list(source, arrays))
    missing = getattr(choice.parameters, "missing", None)
    if simulated and missing is not None and "mask" not in tensors:
        generator = torch.Generator().manual_seed(recipe.seed + 1)
        tensors["mask"] = (torch.rand(values.shape[2:], generator=generator) >= missing).double()
    return cls(choice.parameters, ndim, **tensors)


def _simulated_image(image: Image, y: Tensor, physics: Physics) -> Image:
    """The simulated data as an image, placed so that its image grid is the truth's."""
    array = from_unit(y, physics, image.value_range).numpy()
    geometry = physics.data_grid(image.geometry)
    return replace(image, array=array, geometry=geometry, name=f"{image.name} (simulated)")


def filled(values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Replace samples that are not finite by the nearest finite one of their plane.

    Returns
    -------
    values : Tensor
        The input itself where all of it is finite.
    observed : Tensor or None
        Boolean (*space), false where any frame or channel was not finite; None for none.

    Raises
    ------
    InvalidInput
        If nothing is finite.
    """
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return values, None
    observed = finite.flatten(0, 1).all(0)
    if not bool(observed.any()):
        raise InvalidInput("every sample of the observation is NaN or infinite; nothing to do")
    nearest = ndimage.distance_transform_edt(
        ~observed.numpy(), return_distances=False, return_indices=True
    )
    return values[(..., *(torch.from_numpy(i) for i in nearest))], observed  # type: ignore[index]


def _estimate_noise(
    problem: Problem, image: Image, physics: Physics
) -> Iterator[Message]:
    """Fill in a Gaussian sigma that was left open; warn where it is zero."""
    choice: Choice = problem.recipe.noise
    if choice.name != "gaussian":
        return
    sigma = getattr(choice.parameters, "sigma", None)
    if sigma == 0:
        yield Message("noise level 0 is replaced by a floor of 1e-4 (in units of 0-1)", "warning")
    if sigma is not None:
        return
    assert problem.y is not None
    values = problem.y.clone()
    if physics.mask is not None:
        values[..., ~physics.mask] = math.nan
    sigma, spread = estimate_sigma(values)
    gain, _ = scale_of(problem.recipe.physics.parameters) or (1.0, 0.0)
    span = gain * (image.value_range[1] - image.value_range[0])
    if not math.isfinite(sigma):
        sigma, spread = 0.01, math.nan
        yield Message(
            "the observation is too small to estimate its noise; sigma 0.01 is assumed "
            "(set noise.sigma)", "warning",
        )
    else:
        yield Message(
            f"estimated noise sigma {sigma:.4f} ± {spread:.1g} (of 0-1), {sigma * span:.4g} in "
            "data units"
        )
    problem.facts["estimated_sigma"] = [sigma, None if math.isnan(spread) else spread]
    problem.recipe = problem.recipe.with_settings({"noise": {"kind": "gaussian", "sigma": sigma}})


def _truth(
    source: Source, problem: Problem, physics: Physics, image: Image, arrays: Arrays
) -> Tensor:
    truth = load(source, arrays)
    expected = physics.in_shape(image.space)
    if truth.space != expected or truth.channels != image.channels:
        raise InvalidInput(
            f"the truth has shape {truth.space} and {_channels(truth.channels)}; the result "
            f"will have {expected} and {_channels(image.channels)}"
        )
    problem.digests["truth"] = truth.digest()
    same_type = np.dtype(truth.array.dtype).kind == np.dtype(image.array.dtype).kind
    alone = scale_of(problem.recipe.physics.parameters) is not None and not problem.references
    one_scale = same_type or not physics.same_units or alone
    scaled = replace(truth, value_range=image.value_range) if one_scale else truth
    return torch.from_numpy(scaled.normalised())


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


def _warn_about_references(problem: Problem) -> Iterator[Message]:
    """Say where a reference does not resemble the observation in brightness."""
    if problem.y is None or not problem.references or problem.recipe.zero_shot:
        return
    values = torch.cat([r.image[:, _mask(r)].flatten() for r in problem.references])
    low, high = float(values.min()), float(values.max())
    physics = problem.physics
    assert physics is not None
    seen = physics.observed(problem.y) if physics.same_units else physics.start(problem.y[:1])
    mean = float(seen.mean())
    if not low <= mean <= high:
        yield Message(
            f"the observation's mean {mean:.3g} lies outside the references' values "
            f"{low:.3g}..{high:.3g} (of 0-1); match their scales first", "warning",
        )
