"""What a form needs to know of each parameter, read from its pydantic declaration (no Qt)."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from napari_invprior.errors import InvalidInput
from napari_invprior.parameters import Parameters
from napari_invprior.sources import Source

UNION = (Union, types.UnionType)


@dataclass(frozen=True)
class Field:
    """One parameter as a control.

    Attributes
    ----------
    name : str
        Key in the recipe.
    kind : str
        ``"bool"``, ``"int"``, ``"float"``, ``"choice"``, ``"layer"`` or ``"text"``.
    default : object
        Value that reset restores.
    description, unit : str
        From the declaration.
    low, high : float or None
        Bounds; ``open_low`` says that ``low`` itself is excluded.
    optional : bool
        Whether None ("automatic") is allowed.
    per_axis : bool
        Whether one number per axis is allowed.
    choices : tuple
        Values of a ``"choice"``.
    advanced : bool
        Whether the control is folded under the gear.
    """

    name: str
    kind: str
    default: Any
    description: str = ""
    unit: str = ""
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    optional: bool = False
    per_axis: bool = False
    choices: tuple[Any, ...] = ()
    advanced: bool = False

    @property
    def label(self) -> str:
        """Words shown beside the control."""
        return self.name.replace("_", " ")

    @property
    def tooltip(self) -> str:
        """Description, unit and allowed range."""
        parts = [self.description]
        if self.unit:
            parts.append(f"Unit: {self.unit}.")
        if self.low is not None and self.high is not None:
            parts.append(f"{self.low:g} to {self.high:g}.")
        elif self.low is not None:
            parts.append(f"{'Above' if self.open_low else 'At least'} {self.low:g}.")
        if self.per_axis:
            parts.append("One number, or one per axis.")
        return " ".join(part for part in parts if part)

    @property
    def empty(self) -> str:
        """What an empty line of text stands for: a number that the description names, or so."""
        _, _, words = self.description.partition("empty: ")
        value = words.rstrip(".")
        return value if value.isdigit() else "automatic"

    def parse(self, text: str) -> Any:
        """Value of a typed text: a number, several separated by commas, or nothing.

        Independent of the system's language: the decimal mark is always a point.

        Raises
        ------
        InvalidInput
            If it is none of these.
        """
        text = text.strip()
        if not text and self.optional:
            return None
        if self.kind == "text":
            return text
        convert = int if self.kind == "int" else float
        try:
            numbers = [convert(part) for part in text.split(",")]
        except ValueError:
            kind = "a whole number" if self.kind == "int" else "a number such as 0.5"
            more = ", or one per axis separated by commas" if self.per_axis else ""
            empty = " (or nothing: automatic)" if self.optional else ""
            raise InvalidInput(f"{self.label} = {text!r}: give {kind}{more}{empty}") from None
        if len(numbers) > 1 and not self.per_axis:
            raise InvalidInput(f"{self.label} = {text!r}: give one number; the decimal mark is '.'")
        return numbers[0] if len(numbers) == 1 else numbers

    def text(self, value: Any) -> str:
        """The inverse of `parse`."""
        if value is None:
            return ""
        values = value if isinstance(value, list | tuple) else [value]
        return ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values)


def fields(model: type[Parameters]) -> list[Field]:
    """All parameters of a model, in the order of their declaration."""
    return [_field(name, info) for name, info in model.model_fields.items()]


def _field(name: str, info: FieldInfo) -> Field:
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    parts = list(_parts(info.annotation))
    bounds = [*info.metadata, *(m for _, metadata in parts for m in metadata)]
    kinds = [kind for kind, _ in parts]
    per_axis = any(get_origin(kind) in (tuple, list) for kind in kinds)
    if per_axis:
        for kind in [k for k in kinds if get_origin(k) in (tuple, list)]:
            inner = [p for a in get_args(kind) if a is not Ellipsis for p in _parts(a)]
            kinds += [k for k, _ in inner]
            bounds += [m for _, metadata in inner for m in metadata]
    above = _bound(bounds, "gt")
    kind = _kind(kinds)
    choices = tuple(v for k in kinds if get_origin(k) is Literal for v in get_args(k))
    if kind == "bool" and type(None) in kinds:
        kind, choices = "choice", (True, False)
    return Field(
        name=name,
        kind=kind,
        default=info.get_default(call_default_factory=True),
        description=info.description or "",
        unit=str(extra.get("unit", "")),
        low=above if above is not None else _bound(bounds, "ge"),
        open_low=above is not None,
        high=_bound(bounds, "le") if _bound(bounds, "lt") is None else _bound(bounds, "lt"),
        optional=type(None) in kinds,
        per_axis=per_axis,
        choices=choices,
        advanced=bool(extra.get("advanced", False)),
    )


def _parts(annotation: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The members of a union with the constraints written on each."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        flat = [m for item in metadata for m in getattr(item, "metadata", [item])]
        for part, more in _parts(inner):
            yield part, [*more, *flat]
    elif get_origin(annotation) in UNION:
        for member in get_args(annotation):
            yield from _parts(member)
    else:
        yield annotation, []


def _bound(metadata: list[Any], name: str) -> float | None:
    found = [getattr(m, name) for m in metadata if getattr(m, name, None) is not None]
    return float(found[0]) if found else None


def _kind(kinds: list[Any]) -> str:
    if any(get_origin(k) is Literal for k in kinds):
        numeric = float in kinds or int in kinds
        return "text" if numeric else "choice"
    if any(isinstance(k, type) and issubclass(k, Source) for k in kinds):
        return "layer"
    for kind, name in ((bool, "bool"), (float, "float"), (int, "int")):
        if kind in kinds:
            return name
    return "text"
