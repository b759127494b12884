"""Between a recipe's study and the comparison: who takes part, what is written about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from napari_invprior.jobs import Job
from napari_invprior.priors.base import Prior
from napari_invprior.recipes.model import Choice, StudyMethod
from napari_invprior.recipes.prepare import Problem
from napari_invprior.study.baselines import available, key_of
from napari_invprior.study.compare import Comparison, Entrant
from napari_invprior.study.table import best, shown_columns


def chosen_baselines(problem: Problem) -> tuple[str, ...]:
    """The baselines of the recipe, or all that are available for its data."""
    wanted = problem.recipe.study_baselines
    assert problem.physics is not None
    return available(problem.physics.ndim) if wanted is None else wanted


def entrant(
    method: StudyMethod, title: str, prior: Prior | None,
    at_hand: Callable[[Choice, Prior | None], Job],
) -> Entrant:
    """A method of the recipe as one that takes part.

    Parameters
    ----------
    prior : Prior, optional
        A prior that was handed over; it serves the methods that ask for just this one.
    at_hand : callable
        From a choice and the prior handed over (or None) to a job whose `Result` is the prior.
    """
    solver: Choice = method.solver

    def make() -> Any:
        return solver.method.cls(solver.parameters)  # type: ignore[call-arg]

    choice: Choice | None = method.prior
    if choice is None:
        return Entrant(title, make)
    given = prior if _is(prior, choice) else None
    return Entrant(title, make, lambda: at_hand(choice, given), repr(choice.to_dict()))


def _is(prior: Prior | None, choice: Choice) -> bool:
    return (
        prior is not None and prior.name == choice.name and prior.parameters == choice.parameters
    )


def single(problem: Problem, comparison: Comparison, name: str) -> Problem:
    """The problem of one method alone: its layer carries a recipe that reconstructs it again."""
    index = next(i for i, row in enumerate(comparison.rows) if row.name == name)
    row, recipe = comparison.rows[index], problem.recipe
    facts = problem.facts | {"figures": row.to_dict()}
    if index < len(recipe.methods):
        method = recipe.methods[index]
        recipe = recipe.model_copy(update={
            "task": "reconstruct", "title": row.title, "prior": method.prior,
            "solver": method.solver, "methods": (), "study_baselines": None,
        })
    return replace(problem, recipe=recipe, facts=facts)


def study_metrics(problem: Problem, comparison: Comparison) -> dict[str, Any]:
    """Figures of a study: the table, who wins each column, and the usual keys of a run.

    ``psnr`` is that of the best learned method, ``baselines`` holds those of the baselines.
    """
    rows = comparison.rows
    assert problem.physics is not None
    metrics: dict[str, Any] = {"table": [row.to_dict() for row in rows]} | problem.facts
    winners = {column.key: best(rows, column) for column in shown_columns(rows)}
    metrics["best"] = {key: row.title for key, row in winners.items() if row is not None}
    learned = [r.figures["psnr"] for r in rows if r.kind == "method" and "psnr" in r.figures]
    if learned:
        metrics["psnr"] = max(learned)
    ran = dict(zip(chosen_baselines(problem), rows[len(problem.recipe.methods) :], strict=True))
    metrics["baselines"] = {
        key_of(name, problem.physics): row.figures["psnr"]
        for name, row in ran.items() if "psnr" in row.figures
    }
    return metrics
