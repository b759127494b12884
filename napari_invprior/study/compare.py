"""Run several methods on one problem and put what they reach into one table."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from napari_invprior.errors import Cancelled, InvPriorError
from napari_invprior.jobs import (
    Event,
    Job,
    Message,
    Preview,
    Result,
    ShouldStop,
    Stage,
    forward,
    guard,
    never,
)
from napari_invprior.priors.base import Measurement, Prior
from napari_invprior.reconstruct.base import Solver
from napari_invprior.reconstruct.case import Case, find_weight, reconstruct, train
from napari_invprior.study.baselines import BASELINES
from napari_invprior.study.effort import Effort
from napari_invprior.study.figures import PatchDistance, against_truth
from napari_invprior.study.table import Row, with_intervals

CANCELLED = "cancelled"


@dataclass(frozen=True)
class Entrant:
    """A method that takes part.

    Attributes
    ----------
    title : str
        For people; no two entrants have the same.
    solver : callable
        Makes the solver. Here and in ``prior``, `InvalidInput` counts as a refusal of this method.
    prior : callable or None
        A job whose `Result` is the prior, fitted or not; None for a solver that needs none.
    prior_key : hashable
        Entrants of the same key share one prior, which is fitted once.
    """

    title: str
    solver: Callable[[], Solver]
    prior: Callable[[], Job] | None = None
    prior_key: Hashable = None


@dataclass(frozen=True)
class Compared(Message):
    """A row is finished. It is a message, so that no listener drops it."""

    row: Row = field(default_factory=lambda: Row("", ""))


@dataclass(frozen=True)
class Comparison:
    """The outcome: rows in the order in which they ran, images by the rows' names.

    Attributes
    ----------
    rows : list of Row
        One per entrant and baseline.
    images : dict of str to Tensor
        (frames, C, *space) on the CPU.
    """

    rows: list[Row]
    images: dict[str, Tensor]


@dataclass
class _Trained:
    """A prior that was fitted (or handed over) and what that took."""

    prior: Prior
    seconds: float
    peak_mb: float


Attempt = Callable[[], Job]
"""Job whose `Result` is ``(image, figures)``."""


def compare(
    case: Case,
    entrants: Sequence[Entrant],
    baselines: Sequence[str] = (),
    *,
    should_stop: ShouldStop = never,
    budget_s: float | None = None,
) -> Job:
    """Run every method on the same data; the `Result` is a `Comparison`.

    A method that fails or is refused becomes a row with its reason and the others go on. After a
    stop the finished rows stay and the rest is marked as cancelled.

    Parameters
    ----------
    baselines : sequence of str
        Names from `baselines.BASELINES`.
    budget_s : float, optional
        Time for all reconstructions, shared out evenly among those that are still to come.

    Yields
    ------
    Event
        Progress (stage ``"compare"`` counts methods), a `Compared` per row, the `Result`.
    """
    if should_stop():
        raise Cancelled("stopped before the comparison began")
    begin = time.monotonic()
    held: dict[Hashable, _Trained] = {}
    plan: list[tuple[Row, Attempt]] = []
    titles = [*(e.title for e in entrants), *(_baseline_title(b, case) for b in baselines)]
    for title, name in zip(titles, slugs(titles), strict=True):
        number = len(plan)
        if number < len(entrants):
            plan.append((Row(name, title), _entrant(
                case, entrants[number], held, should_stop,
                _share(begin, budget_s, len(entrants) - number),
            )))
        else:
            baseline = baselines[number - len(entrants)]
            plan.append((Row(name, title, "baseline"), _baseline(case, baseline, should_stop)))
    space = case.physics.in_shape(case.y.shape[2:])
    distance = PatchDistance(case.references, space, case.seed)
    rows: list[Row] = []
    images: dict[str, Tensor] = {}
    stage = Stage("compare", len(plan))
    for row, attempt in plan:
        yield stage.progress(len(rows))
        if not should_stop():
            row, image = yield from forward(_run(row, attempt, case, distance, should_stop))
            if image is not None:
                images[row.name] = image
        else:
            row = _without(row, CANCELLED, "cancelled before it began")
        rows.append(row)
        yield Compared(_sentence(row), "warning" if row.status == "failed" else "info", row)
    yield stage.progress(len(rows))
    yield Result(Comparison(with_intervals(rows, case.seed), images))


def slugs(titles: Sequence[str]) -> list[str]:
    """Names of layers and folders: plain letters, each once.

    Examples
    --------
    >>> slugs(["Gaussian mixture (EPLL)", "patchNR", "patch-NR", "?"])
    ['gaussian_mixture_epll', 'patchnr', 'patch_nr', 'method']
    """
    found: list[str] = []
    for title in titles:
        stem = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") or "method"
        name, number = stem, 2
        while name in found:
            name, number = f"{stem}_{number}", number + 1
        found.append(name)
    return found


def _run(
    row: Row, attempt: Attempt, case: Case, distance: PatchDistance, should_stop: ShouldStop
) -> Job:
    """One row; the `Result` is the completed row and its image (None where there is none)."""
    try:
        image, figures = yield from forward(_quiet(guard(attempt())))
        if should_stop():
            raise Cancelled("cancelled while it ran")
        images = against_truth(image, case)
        means = {key: sum(values) / len(values) for key, values in images.items()}
        means["residual_ratio"] = case.residual_ratio(image)
        means["patch_w2"] = yield from forward(distance.of(image))
        done = Row(row.name, row.title, row.kind, "done", "", figures | means, images)
        yield Result((done, image))
    except Cancelled as error:
        yield Result((_without(row, CANCELLED, str(error)), None))
    except InvPriorError as error:
        yield Result((_without(row, "failed", str(error)), None))
    except Exception as error:  # a fault of one method must not take the others along
        yield Result((_without(row, "failed", f"{type(error).__name__}: {error}"), None))


def _entrant(
    case: Case, entrant: Entrant, held: dict[Hashable, _Trained], should_stop: ShouldStop,
    share: Callable[[], float | None],
) -> Attempt:
    """A learned method: its prior (fitted once per key), its weight, its image."""

    def attempt() -> Job:
        figures: dict[str, float] = {}
        prior = None
        solver = entrant.solver()
        if entrant.prior is not None:
            if entrant.prior_key not in held:
                held[entrant.prior_key] = yield from forward(
                    _trained(case, entrant.prior, should_stop)
                )
            trained = held[entrant.prior_key]
            prior = trained.prior
            figures["training_seconds"] = trained.seconds
            advice = prior.advice(case.physics.in_shape(case.y.shape[2:]))
            if advice:
                yield Message(f"{entrant.title}: {advice}", "warning")
        with Effort() as effort:
            choice = yield from forward(find_weight(case, solver, prior, should_stop=should_stop))
            end = share()
            image = yield from forward(reconstruct(
                case, solver, prior, choice.weight, should_stop=should_stop,
                time_left=lambda: None if end is None else max(0.1, end - time.monotonic()),
            ))
        peak = effort.peak_mb if prior is None else max(effort.peak_mb, trained.peak_mb)
        figures |= {"seconds": effort.seconds, "peak_memory_mb": peak}
        if solver.has_weight:
            figures["weight"] = choice.weight
        yield Result((image, figures))

    return attempt


def _trained(case: Case, make: Callable[[], Job], should_stop: ShouldStop) -> Job:
    with Effort() as effort:
        prior: Prior = yield from forward(make())
        new = not prior.is_fitted
        if new:
            measurement = Measurement(case.y, case.physics, case.noise)
            prior = yield from forward(train(
                prior, case.references, measurement, seed=case.seed, should_stop=should_stop
            ))
    if should_stop():
        raise Cancelled("cancelled while its prior was trained")
    yield Result(_Trained(prior, effort.seconds if new else 0.0, effort.peak_mb))


def _baseline(case: Case, name: str, should_stop: ShouldStop) -> Attempt:
    def attempt() -> Job:
        baseline = BASELINES[name]
        missing = baseline.missing(case.y.ndim - 2)
        if missing:
            raise InvPriorError(missing)
        with Effort() as effort:
            image, weight = yield from forward(baseline.make(case, should_stop))
        figures = {"seconds": effort.seconds, "peak_memory_mb": effort.peak_mb}
        yield Result((image, figures | ({} if weight is None else {"weight": weight})))

    return attempt


def _baseline_title(name: str, case: Case) -> str:
    """The physics says what its first image is, such as a spline."""
    return case.physics.start_title if name == "start" else BASELINES[name].title


def _share(
    begin: float, budget_s: float | None, left: int
) -> Callable[[], float | None]:
    """When a reconstruction that begins now must end, if ``left`` of them share the rest."""

    def end() -> float | None:
        if budget_s is None:
            return None
        now = time.monotonic()
        return now + max(0.1, (begin + budget_s - now) / left)

    return end


def _quiet(job: Job) -> Iterator[Event]:
    """The job without previews, and without the sentences that belong to one method alone."""
    for event in job:
        if not isinstance(event, Preview) and not (
            isinstance(event, Message) and event.level == "info"
        ):
            yield event


def _without(row: Row, status: str, reason: str) -> Row:
    return Row(row.name, row.title, row.kind, status, reason)  # type: ignore[arg-type]


def _sentence(row: Row) -> str:
    if row.status != "done":
        return f"{row.title}: {row.reason}"
    quality = f"{row.figures['psnr']:.2f} dB, " if "psnr" in row.figures else ""
    seconds = row.figures["seconds"] + row.figures.get("training_seconds", 0.0)
    return f"{row.title}: {quality}{seconds:.1f} s"


