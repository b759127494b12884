"""Every method of the package, listed once: name, kind, papers, what it can do.

A method is one module. Importing it registers its class; `load` imports every module of the
method packages, so a new file is found by the window, the command line and the law tests
without being named anywhere else.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from napari_invprior.errors import InvalidInput, nearest
from napari_invprior.parameters import Parameters

METHOD_PACKAGES = ("physics", "priors", "reconstruct", "posterior", "transport")
"""Sub-packages whose modules hold registered methods."""

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Method:
    """What the registry knows of one method.

    Attributes
    ----------
    kind : str
        ``"physics"``, ``"noise"``, ``"prior"``, ``"solver"``, ``"sampler"`` or ``"flow"`` (of
        particles).
    name, title : str
        Name used in recipes; title shown to people.
    cls : type
        The class; ``cls.Parameters`` is its parameter model.
    papers : tuple of str
        Identifiers of the papers the method comes from.
    inputs, outputs : tuple of str
        What goes in and what comes out, in words of the window (``"observation"``, ...).
    dimensions : tuple of int
        Space dimensions it handles.
    needs_references, uncertainty : bool
        Whether it needs reference images, and whether it yields uncertainty.
    default_for : tuple of int
        Space dimensions in which the window proposes it first.
    widget : str
        The dock that shows it.
    """

    kind: str
    name: str
    title: str
    cls: type
    papers: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = (2, 3)
    needs_references: bool = False
    uncertainty: bool = False
    default_for: tuple[int, ...] = ()
    widget: str = "workbench"

    @property
    def parameters(self) -> type[Parameters]:
        """The parameter model of the method."""
        return self.cls.Parameters  # type: ignore[attr-defined,no-any-return]

    @property
    def summary(self) -> str:
        """First line of the class docstring."""
        return (self.cls.__doc__ or "").strip().split("\n")[0]

    def describe(self) -> dict[str, Any]:
        """Plain data for ``invprior methods --json``."""
        return {
            "kind": self.kind,
            "name": self.name,
            "title": self.title,
            "summary": self.summary,
            "papers": list(self.papers),
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "dimensions": list(self.dimensions),
            "needs_references": self.needs_references,
            "uncertainty": self.uncertainty,
            "default_for": list(self.default_for),
            "widget": self.widget,
            "parameters": self.parameters.model_json_schema(),
        }


_METHODS: dict[tuple[str, str], Method] = {}


def register(*, kind: str, name: str, title: str, **facts: Any) -> Callable[[T], T]:
    """Class decorator that lists a method; see `Method` for the facts."""

    def decorate(cls: T) -> T:
        known = _METHODS.get((kind, name))
        if known is not None and known.cls.__module__ != cls.__module__:
            raise ValueError(f"{kind} {name!r} is registered twice: {known.cls} and {cls}")
        cls.kind, cls.name = kind, name  # type: ignore[attr-defined]
        _METHODS[kind, name] = Method(kind=kind, name=name, title=title, cls=cls, **facts)
        return cls

    return decorate


@cache
def load() -> None:
    """Import every module of the method packages, once: recipes are parsed for every block."""
    for package_name in METHOD_PACKAGES:
        package = importlib.import_module(f"napari_invprior.{package_name}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def methods(kind: str | None = None) -> list[Method]:
    """All registered methods, sorted by kind and name."""
    load()
    return sorted(
        (m for m in _METHODS.values() if kind in (None, m.kind)), key=lambda m: (m.kind, m.name)
    )


def default(kind: str, ndim: int) -> Method:
    """The method of that kind that is proposed first in ``ndim`` dimensions."""
    listed = methods(kind)
    return next((m for m in listed if ndim in m.default_for), listed[0])


def get(kind: str, name: str) -> Method:
    """Look one method up.

    Raises
    ------
    InvalidInput
        If there is none of that name; the message lists the known names.
    """
    load()
    if (kind, name) not in _METHODS:
        known = [m.name for m in methods(kind)]
        raise InvalidInput(
            f"unknown {kind} {name!r}{nearest(str(name), known)} (known: {', '.join(known)})"
        )
    return _METHODS[kind, name]
