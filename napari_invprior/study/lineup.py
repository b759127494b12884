"""Which methods can be compared on data of so many axes, as a recipe names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from napari_invprior import registry
from napari_invprior.priors.drawn import DrawsImages
from napari_invprior.study.baselines import BASELINES

QUICK = ("gmm", "start", "tv", "nlm")
"""What takes seconds: compared unless the user says otherwise."""


@dataclass(frozen=True)
class Candidate:
    """A method or a baseline that may take part.

    Attributes
    ----------
    name, title, about : str
        Name of the prior or baseline; title and one line for people.
    method : dict or None
        The entry of a recipe's ``methods``; None for a baseline.
    quick : bool
        Whether it takes seconds.
    """

    name: str
    title: str
    about: str
    method: dict[str, Any] | None
    quick: bool


def lineup(ndim: int) -> list[Candidate]:
    """Every prior that learns, with its usual solver, then every available baseline.

    Examples
    --------
    >>> [c.name for c in lineup(3) if c.method is None]
    ['start', 'tv', 'nlm']
    """
    priors = [
        Candidate(
            m.name, m.title, f"{m.summary} Reconstructed by: {solver.title.lower()}.",
            {"title": m.title, "prior": {"kind": m.name}, "solver": {"kind": solver.name}},
            m.name in QUICK,
        )
        for m in registry.methods("prior")
        if ndim in m.dimensions and m.needs_references
        for solver in [usual_solver(m, ndim)]
    ]
    baselines = [
        Candidate(b.name, b.title, b.about, None, b.name in QUICK)
        for b in BASELINES.values()
        if not b.missing(ndim)
    ]
    return priors + baselines


def usual_solver(prior: registry.Method, ndim: int) -> registry.Method:
    """The solver that goes with a prior: its own estimate, the default, or gradient descent.

    Examples
    --------
    >>> usual_solver(registry.get("prior", "gmm"), 3).name
    'half_quadratic'
    >>> usual_solver(registry.get("prior", "wasserstein"), 3).name
    'variational'
    """
    cls: Any = prior.cls
    if hasattr(cls, "estimate"):
        return registry.get("solver", "direct")
    default = registry.default("solver", ndim)
    splits = default.name == "half_quadratic"
    if splits and (not hasattr(cls, "denoise_patches") or cls.descends):
        return registry.get("solver", "variational")
    return default


def usual_sampler(prior: registry.Method, ndim: int) -> registry.Method:
    """The sampler that goes with a prior: its own draws where it learnt to, or the default.

    Examples
    --------
    >>> usual_sampler(registry.get("prior", "conditional_mmd"), 2).name
    'amortised'
    >>> usual_sampler(registry.get("prior", "gmm"), 2).name
    'underdamped'
    """
    if issubclass(prior.cls, DrawsImages):
        return registry.get("sampler", "amortised")
    return registry.default("sampler", ndim)


def usual_weight(solver: registry.Method, prior: registry.Method) -> float:
    """The order of magnitude of a weight, to begin with when it is chosen by hand.

    Examples
    --------
    >>> variational = registry.get("solver", "variational")
    >>> [round(usual_weight(variational, registry.get("prior", name)), 3)
    ...     for name in ("gmm", "wasserstein")]
    [0.004, 1.4]
    """
    weights: tuple[float, ...] = solver.cls.automatic_weights  # type: ignore[attr-defined]
    scale: float = prior.cls.weight_scale if solver.cls.needs_prior else 1.0  # type: ignore[attr-defined]
    return weights[len(weights) // 2] * scale
