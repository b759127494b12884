"""The comparison: rows, faults that stay in their row, a stop that keeps what is finished."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from napari_invprior import jobs, registry
from napari_invprior.errors import Cancelled, InvalidInput
from napari_invprior.numerics.metrics import psnr, ssim
from napari_invprior.parameters import validate
from napari_invprior.priors.base import Reference
from napari_invprior.reconstruct.case import Case
from napari_invprior.samples import load_sample
from napari_invprior.study import figures
from napari_invprior.study.baselines import BASELINES, available, baselines, best_total_variation
from napari_invprior.study.compare import Compared, Comparison, Entrant, compare
from napari_invprior.study.effort import Effort
from napari_invprior.study.figures import PatchDistance
from napari_invprior.study.lineup import lineup
from napari_invprior.study.table import COLUMNS, Row, as_csv, best, shown_columns, with_intervals

PRIOR = {"components": 3, "patch_size": 4, "steps": 3}


def texture(name: str, edge: int = 48, shift: int = 0) -> torch.Tensor:
    piece = load_sample(name)[100 + shift : 100 + shift + edge, 40 : 40 + edge]
    return torch.from_numpy(piece.astype(np.float32) / 255)[None]


def make(kind: str, name: str, **parameters: Any) -> Any:
    method = registry.get(kind, name)
    return method.cls(validate(method.parameters, parameters))


def case(frames: int = 1, *, truth: bool = True) -> Case:
    """Gravel at factor 2, quick to reconstruct."""
    method = registry.get("physics", "superresolution")
    physics = method.cls(validate(method.parameters, {"factor": 2}), 2)
    noise = make("noise", "gaussian", sigma=0.02)
    images = torch.stack([texture("brick-test", shift=9 * i) for i in range(frames)])
    y = noise.simulate(physics.A(images), torch.Generator().manual_seed(0))
    return Case(
        y, physics, noise, [Reference(texture("brick-reference", 96))], (0.0, 1.0),
        images if truth else None, 2,
    )


def solver(**parameters: Any) -> Callable[[], Any]:
    given = {"weight": 0.004, "iterations": 15} | parameters
    return lambda: make("solver", "variational", **given)


def fitted(counter: list[int] | None = None, **parameters: Any) -> Callable[[], jobs.Job]:
    """A job that makes an unfitted mixture and counts how often it is asked."""

    def job() -> jobs.Job:
        if counter is not None:
            counter.append(1)
        method = registry.get("prior", "gmm")
        chosen = validate(method.parameters, PRIOR | parameters)
        yield jobs.Result(method.cls(chosen, ndim=2))

    return job


def run(*arguments: Any, **options: Any) -> tuple[Comparison, list[jobs.Event]]:
    events: list[jobs.Event] = []
    return jobs.run(compare(*arguments, **options), events.append), events


def test_rows_hold_what_can_be_computed_by_hand() -> None:
    problem = case()
    entrants = [Entrant("EPLL", solver(), fitted(), "gmm"), Entrant("EPLL 2", solver(weight=0.01),
                                                                    fitted(), "gmm")]
    outcome, events = run(problem, entrants, ["start", "tv"])
    assert [r.title for r in outcome.rows] == [
        "EPLL", "EPLL 2", "Spline (shift-corrected)", "Total variation"
    ]
    assert [r.kind for r in outcome.rows] == ["method"] * 2 + ["baseline"] * 2
    assert [e.row.name for e in events if isinstance(e, Compared)] == [r.name for r in outcome.rows]
    for row in outcome.rows:
        image = outcome.images[row.name]
        assert problem.truth is not None
        assert row.figures["psnr"] == pytest.approx(psnr(image, problem.truth, 2))
        assert row.figures["ssim"] == pytest.approx(ssim(image, problem.truth, 2))
        residual = (problem.physics.A(image) - problem.y) / 0.02
        assert row.figures["residual_ratio"] == pytest.approx(float((residual**2).mean()), rel=1e-4)
        assert row.figures["seconds"] >= 0
        assert row.intervals == {}
    assert [r.figures.get("weight") for r in outcome.rows[:3]] == [0.004, 0.01, None]
    assert outcome.rows[3].figures["psnr"] > outcome.rows[2].figures["psnr"]


def test_one_prior_is_fitted_once_for_all_that_share_it() -> None:
    counter: list[int] = []
    entrants = [
        Entrant("a", solver(), fitted(counter), "shared"),
        Entrant("b", solver(weight=0.002), fitted(counter), "shared"),
        Entrant("c", solver(), fitted(counter, components=2), "another"),
    ]
    outcome, _ = run(case(), entrants)
    assert len(counter) == 2
    times = [row.figures["training_seconds"] for row in outcome.rows]
    assert times[0] == times[1] != times[2]


def test_a_method_that_fails_becomes_a_row_and_the_others_go_on() -> None:
    def refused() -> Any:
        raise InvalidInput("weight = -1: give a positive number")

    def broken() -> jobs.Job:
        raise RuntimeError("shape mismatch")
        yield

    def odd() -> jobs.Job:
        raise KeyError("what")
        yield

    entrants = [
        Entrant("refused", refused), Entrant("broken", solver(), broken, 1),
        Entrant("odd", solver(), odd, 2), Entrant("good", solver(), fitted(), 3),
    ]
    outcome, events = run(case(), entrants, ["bm3d", "start"])
    status = {row.title: row.status for row in outcome.rows}
    assert [status[t] for t in ("refused", "broken", "odd", "good")] == ["failed"] * 3 + ["done"]
    reasons = {row.title: row.reason for row in outcome.rows}
    assert "positive number" in reasons["refused"]
    assert "shape mismatch" in reasons["broken"]
    assert "KeyError" in reasons["odd"]
    if importlib.util.find_spec("bm3d") is None:
        assert "pip install bm3d" in reasons["BM3D"]
    assert status["Spline (shift-corrected)"] == "done"
    assert set(outcome.images) >= {"good", "spline_shift_corrected"}
    assert any(e.level == "warning" for e in events if isinstance(e, Compared))


def test_a_stop_keeps_the_finished_rows() -> None:
    finished: list[Row] = []
    entrants = [Entrant("first", solver(), fitted(), 1),
                Entrant("second", solver(iterations=100_000, plateau=0), fitted(), 1),
                Entrant("third", solver(), fitted(), 1)]
    stop = [False]
    outcome = None
    for event in compare(case(), entrants, should_stop=lambda: stop[0]):
        if isinstance(event, Compared):
            finished.append(event.row)
        elif isinstance(event, jobs.Progress) and event.stage == "reconstruct" and finished:
            stop[0] = True
        if isinstance(event, jobs.Result):
            outcome = event.value
    assert outcome is not None
    assert [row.status for row in outcome.rows] == ["done", "cancelled", "cancelled"]
    assert "while it ran" in outcome.rows[1].reason
    assert list(outcome.images) == ["first"]
    with pytest.raises(Cancelled):
        run(case(), entrants, should_stop=lambda: True)


def test_several_images_have_intervals_and_a_paired_difference() -> None:
    entrants = [Entrant("some", solver(), fitted(), 1),
                Entrant("others", solver(iterations=2), fitted(), 1)]
    outcome, _ = run(case(4), entrants)
    good, bad = sorted(outcome.rows, key=lambda row: -row.figures["psnr"])
    assert len(good.images["psnr"]) == 4
    assert good.figures["psnr"] == pytest.approx(np.mean(good.images["psnr"]))
    low, high = good.intervals["psnr"]
    assert min(good.images["psnr"]) <= low <= good.figures["psnr"] <= high
    assert good.behind_best["psnr"] == (0.0, 0.0, 0.0)
    difference = np.mean(np.subtract(bad.images["psnr"], good.images["psnr"]))
    assert bad.behind_best["psnr"][0] == pytest.approx(difference)
    assert bad.behind_best["psnr"][2] < 0
    lines = as_csv(outcome.rows).splitlines()
    assert "psnr,psnr_low,psnr_high" in lines[0]
    assert len(lines) == 3


def test_without_a_truth_total_variation_takes_its_weight_from_sure() -> None:
    outcome, _ = run(case(truth=False), [], ["start", "tv"])
    assert all("psnr" not in row.figures for row in outcome.rows)
    assert 0.1 < outcome.rows[1].figures["weight"] < 100
    assert "psnr" not in [c.key for c in shown_columns(outcome.rows)]


def test_a_time_budget_is_shared() -> None:
    long = solver(iterations=100_000, plateau=0)
    entrants = [Entrant(title, long, fitted(), 1) for title in ("first", "second")]
    outcome, _ = run(case(), entrants, budget_s=2.0)
    assert [row.status for row in outcome.rows] == ["done"] * 2
    assert sum(row.figures["seconds"] for row in outcome.rows) < 10


# ---- baselines


def test_the_registry_serves_the_baselines_of_a_reconstruction() -> None:
    problem = case()
    assert problem.truth is not None
    found = jobs.run(baselines(problem.y, problem.physics, problem.noise, problem.truth, 2))
    assert set(found) == {"bicubic", "tv"}
    start = problem.physics.start(problem.y)
    assert found["bicubic"] == pytest.approx(psnr(start, problem.truth, 2))
    image, weight = best_total_variation(
        problem.y, problem.physics, problem.noise, problem.truth, 2
    )
    assert found["tv"] == pytest.approx(psnr(image, problem.truth, 2), abs=0.02)
    for other in (weight / 1.5, weight * 1.5):
        worse = jobs.run(make("solver", "total_variation", weight=other, iterations=300).solve(
            problem.y, problem.physics, problem.noise, weight=other
        ))
        assert psnr(worse, problem.truth, 2) <= found["tv"] + 0.02


@pytest.mark.parametrize("ndim", [2, 3])
def test_non_local_means_denoises(ndim: int) -> None:
    from napari_invprior.samples import grey_volume

    truth = texture("brick-test", 64)[None] if ndim == 2 else torch.from_numpy(
        grey_volume((24, 24, 24), 0)
    )[None, None]
    method = registry.get("physics", "denoising")
    noise = make("noise", "gaussian", sigma=0.08)
    y = noise.simulate(truth, torch.Generator().manual_seed(0))
    problem = Case(y, method.cls(method.parameters(), ndim), noise, truth=truth)
    image, weight = jobs.run(BASELINES["nlm"].make(problem, jobs.never))
    assert weight is None
    assert psnr(image, truth) > psnr(y, truth) + 3


def test_a_stop_does_not_wait_for_a_denoiser() -> None:
    problem = case()
    image, _ = jobs.run(BASELINES["nlm"].make(problem, lambda: True))
    assert torch.equal(image, problem.physics.start(problem.y))


def test_what_is_not_installed_or_not_for_volumes_is_not_offered() -> None:
    assert "bm3d" not in available(3)
    assert "3 space dimensions" in BASELINES["bm3d"].missing(3)
    offered = {c.name for c in lineup(2)}
    assert {"patchnr", "gmm", "wasserstein", "start", "tv", "nlm"} <= offered


# ---- figures


def test_patch_distance_is_transport_less_its_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "PATCHES", 120)
    image = texture("grass-test", 64)
    distance = PatchDistance([Reference(texture("brick-reference", 96))], (64, 64), 0)
    found = jobs.run(distance.of(image[None]))
    again = PatchDistance([Reference(texture("brick-reference", 96))], (64, 64), 0)
    places = [torch.arange(59 * 59)]
    points, other = again._draw([image], places), again._draw([image], places)

    def exact(a: torch.Tensor, b: torch.Tensor) -> float:
        cost = torch.cdist(a.T.double(), b.T.double()).square().numpy()
        return float(cost[linear_sum_assignment(cost)].mean())

    expected = exact(points, again._sites) - (
        exact(other, points) + exact(again._others, again._sites)
    ) / 2
    assert found == pytest.approx(expected, abs=0.02 * exact(points, again._sites))


def test_patch_distance_prefers_the_texture_to_a_smooth_image() -> None:
    reference = [Reference(texture("gravel-reference", 200))]
    distance = PatchDistance(reference, (96, 96), 0)
    same = texture("gravel-test", 96)[None]
    smooth = torch.nn.functional.avg_pool2d(same, 7, 1, 3, count_include_pad=False)
    assert jobs.run(distance.of(same)) < 0.5 * jobs.run(distance.of(smooth))
    nothing = PatchDistance([], (48, 48), 0)
    assert np.isnan(jobs.run(nothing.of(same)))


def test_patches_stay_inside_masks_and_need_no_large_references() -> None:
    image = torch.full((1, 20, 20), 0.2)
    image[:, :8, :8] = 0.9
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[:8, :8] = True
    distance = PatchDistance([Reference(image, mask)], (5, 30), 0)
    assert distance.edge == 5
    assert bool((distance._sites == 0.9).all())
    mask[:] = False
    assert not PatchDistance([Reference(image, mask)], (30, 30), 0).usable


def test_lpips_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = case(2)
    assert problem.truth is not None
    monkeypatch.setattr(figures, "perceptual", lambda: lambda x, t: float((x - t).abs().mean()))
    found = figures.against_truth(problem.truth + 0.0, problem)
    assert found["lpips"] == [0.0, 0.0]


def test_effort_sees_time_and_memory() -> None:
    with Effort() as effort:
        block = np.ones(12_500_000)
        time.sleep(0.1)
        del block
    assert 60 < effort.peak_mb < 200
    assert effort.seconds > 0.1


# ---- table


def test_best_and_text_of_a_table() -> None:
    rows = [
        Row("a", "A", figures={"psnr": 30.0, "ssim": 0.9, "seconds": 3.0}, images={"psnr": [30.0]}),
        Row("b", "B", figures={"psnr": 31.0, "seconds": 4.0}, images={"psnr": [31.0]}),
        Row("c", "C", status="failed", reason="too large, says \"x\""),
    ]
    columns = {c.key: c for c in COLUMNS}
    assert best(rows, columns["psnr"]) is rows[1]
    assert best(rows, columns["seconds"]) is rows[0]
    assert best(rows, columns["residual_ratio"]) is None
    assert best(rows, columns["lpips"]) is None
    assert [c.key for c in shown_columns(rows)] == ["psnr", "ssim", "seconds"]
    assert rows[2].text(columns["psnr"]) == "–"
    assert with_intervals(rows) == rows
    lines = as_csv(rows).splitlines()
    assert lines[0] == "title,kind,status,reason,psnr,ssim,seconds"
    assert lines[3] == 'C,method,failed,"too large, says ""x""",,,'
    assert [Row.from_dict(r.to_dict()) for r in rows] == [
        Row(r.name, r.title, r.kind, r.status, r.reason, r.figures) for r in rows
    ]
