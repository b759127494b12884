"""The one declaration per method: frozen, validated parameters with units and bounds.

From a subclass of `Parameters` come the form in the window, the tooltip, the command-line
option, the JSON schema, the docs table and the provenance in the result.

Examples
--------
>>> class Demo(Parameters):
...     sigma: float = parameter(0.01, "Noise level.", unit="grey", ge=0)
>>> Demo().sigma
0.01
>>> validate(Demo, {"sigmma": 1})
Traceback (most recent call last):
    ...
napari_invprior.errors.InvalidInput: Demo: unknown key 'sigmma'; did you mean 'sigma'?
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict

from napari_invprior.errors import InvalidInput, nearest

MOST_FAULTS = 6
"""Faults that one message names."""


class Parameters(BaseModel):
    """Base of all parameter models: frozen, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)
V = TypeVar("V", int, float)
D = TypeVar("D", bound=Any)


def per_axis(value: V | Sequence[V], ndim: int, name: str) -> tuple[V, ...]:
    """One value per space axis, from one number or a sequence of the right length.

    Raises
    ------
    InvalidInput
        If the sequence does not have ``ndim`` entries.
    """
    if isinstance(value, int | float):
        return (value,) * ndim
    if len(value) != ndim:
        raise InvalidInput(
            f"{name} = {tuple(value)}: the data has {ndim} space axes; give one number or {ndim}"
        )
    return tuple(value)


def parameter(
    default: Any,
    description: str,
    *,
    unit: str = "",
    advanced: bool = False,
    **bounds: Any,
) -> Any:
    """Declare one parameter.

    Parameters
    ----------
    default
        Value used when nothing is given.
    description : str
        One line; becomes the tooltip and the command-line help.
    unit : str
        Unit shown beside the control, for example ``"px"``.
    advanced : bool
        Fold the control under the gear.
    **bounds
        Pydantic bounds: ``ge, gt, le, lt, min_length, max_length``.
    """
    extra: JsonDict = {"unit": unit, "advanced": advanced}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def overlaid(usual: D, parameters: Parameters) -> D:
    """The dataclass ``usual`` with every field that the parameters give (is not None there)."""
    chosen = {field.name: getattr(parameters, field.name) for field in dataclasses.fields(usual)}
    given = {name: value for name, value in chosen.items() if value is not None}
    return dataclasses.replace(usual, **given)


def validate(model: type[M], data: Mapping[str, Any] | M, where: str = "") -> M:
    """Build ``model`` from plain data, with one-line errors that a user can act on.

    Raises
    ------
    InvalidInput
        Names the key, the value given, what is allowed and, for an unknown key, the nearest
        known one.
    """
    if isinstance(data, model):
        return data
    try:
        return model.model_validate(dict(data) if isinstance(data, Mapping) else data)
    except ValidationError as error:
        raise InvalidInput(explain(model, error, where or model.__name__)) from None


def explain(model: type[BaseModel], error: ValidationError, where: str) -> str:
    """One line for a pydantic error: the first faults, the value given and what is allowed."""
    faults = _nearest_kinds(error.errors(include_url=False))
    lines: dict[str, None] = {}
    for number, fault in enumerate(faults):
        if len(lines) == MOST_FAULTS:  # there may be a hundred thousand
            return "; ".join([*lines, f"and {len(faults) - number} more"])
        lines[_line(model, fault, where)] = None
    return "; ".join(lines)


def _line(model: type[BaseModel], fault: Any, where: str) -> str:
    places = list(fault["loc"])
    location = ".".join(
        str(part)[:80] for i, part in enumerate(places) if not _is_kind(fault, i)
    )
    if fault["type"] == "extra_forbidden":
        key = str(places[-1])[:80]
        return f"{where}: unknown key {location!r}{nearest(key, _known_keys(model, fault['loc']))}"
    if fault["type"] == "missing":
        return f"{where}: {location!r} is missing"
    given = _shortened(fault["input"])
    message = fault["msg"].removeprefix("Value error, ")
    prefix = f"{where}.{location}" if location else where
    return f"{prefix} = {given}: {message[:1].lower()}{message[1:]}"


def _is_kind(fault: Any, index: int) -> bool:
    """Whether a part of a fault's place is no key, but a kind of value that pydantic tried there.

    Where several kinds are allowed, it names each of them: ``int``, ``tuple[int, ...]``.
    """
    given = index == len(fault["loc"]) - 1 and fault["type"] in ("extra_forbidden", "missing")
    return not given and re.fullmatch(r"\d+|[a-z_][a-z0-9_]*", str(fault["loc"][index])) is None


def _nearest_kinds(faults: Sequence[Any]) -> list[Any]:
    """The faults, less those of kinds of values that fit worse than another kind did."""
    tried = []
    misfits: dict[Any, dict[Any, tuple[int, int]]] = {}
    for fault in faults:
        place = fault["loc"]
        index = next((i for i in range(len(place)) if _is_kind(fault, i)), None)
        at, kind = (None, None) if index is None else (place[:index], place[index])
        tried.append((at, kind))
        # A fault deep inside is near: what lies around it is right. Else few faults are.
        deep = len(place) - (fault["type"] in ("extra_forbidden", "missing"))
        depth, count = misfits.setdefault(at, {}).get(kind, (0, 0))
        misfits[at][kind] = min(depth, -deep), count + 1
    least = {at: min(kinds.values()) for at, kinds in misfits.items()}
    return [
        fault for fault, (at, kind) in zip(faults, tried, strict=True)
        if at is None or misfits[at][kind] == least[at]
    ]  # fmt: skip


def _shortened(value: Any) -> str:
    """The value as it was given, cut at 80 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or of too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _known_keys(model: Any, location: tuple[Any, ...]) -> list[str]:
    """Field names at the place in the (possibly nested) model where the key was refused."""
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        candidates = _models_in(field.annotation) if field else _models_in(model)
        model = candidates[0] if candidates else model
    return list(getattr(model, "model_fields", {}))


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _models_in(part)]
