"""Task ``sample``: layers, figures, samples on disk, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from napari_invprior import jobs, recipes
from napari_invprior.errors import InvalidInput, OutOfMemory
from napari_invprior.io.images import image_from_array
from napari_invprior.io.omezarr import attributes, read_image
from napari_invprior.recipes import sample as sample_task
from napari_invprior.samples import load_sample
from tests.recipes.test_engine import QUICK, image, texture

SHORT = {"kind": "underdamped", "samples": 10, "chains": 3, "steps": 60, "warm_up": 20}


def recipe(**changes: Any) -> dict[str, Any]:
    return QUICK | {
        "task": "sample",
        "observation": {"simulate_from": {"sample": "brick-test", "crop": [[100, 132], [40, 80]]}},
        "references": [{"sample": "brick-reference", "regions": [[[0, 96], [0, 96]]]}],
        "sampler": SHORT, "rim": 4, "baselines": True,
    } | changes


def run(wanted: dict[str, Any], **options: Any) -> tuple[recipes.Outcome, list[str]]:
    events: list[jobs.Event] = []
    outcome = jobs.run(recipes.run(wanted, **options), events.append)
    return outcome, [e.text for e in events if isinstance(e, jobs.Message)]


def test_layers_and_figures() -> None:
    outcome, texts = run(recipe(threshold=128.0, quantiles=[0.1, 0.5, 0.9]))
    layers = {layer.name: layer for layer in outcome.layers}
    assert set(layers) == {"reconstruction", "mean", "std", "samples", "quantile_10",
                           "quantile_50", "quantile_90", "exceedance", "rhat"}
    assert layers["samples"].array.shape == (10, 32, 40)
    for name in ("mean", "std", "exceedance", "rhat"):
        assert layers[name].array.shape == (32, 40)
        assert np.isfinite(layers[name].array).all()
        assert layers[name].geometry == layers["reconstruction"].geometry
    samples = layers["samples"].array
    assert 50 < samples.mean() < 220, "samples come in the user's numbers"
    assert np.allclose(layers["exceedance"].array, (samples > 128).mean(0), atol=1e-6)
    assert np.all(layers["quantile_10"].array <= layers["quantile_90"].array)
    assert layers["std"].array.mean() == pytest.approx(samples.std(0).mean(), rel=0.4)
    metrics = outcome.metrics
    assert metrics["samples"] == 10
    assert metrics["states"] == 180
    assert set(metrics["coverage"]) == {"0.5", "0.8", "0.9", "0.95"}
    assert sum(metrics["ranks"]) == pytest.approx(1)
    assert metrics["baselines"]["reconstruction"] > 20
    assert any("R-hat" in text or "independent" in text for text in texts), "60 steps are few"
    assert recipes.parse(layers["mean"].metadata["recipe"]).task == "sample"


def test_same_recipe_same_samples_and_a_start_image_is_used() -> None:
    first, _ = run(recipe())
    second, _ = run(recipe())
    stacks = [next(x for x in o.layers if x.name == "samples").array for o in (first, second)]
    assert np.array_equal(*stacks)
    start = next(x for x in first.layers if x.name == "reconstruction")
    given = {"start": image_from_array(start.array, name="start")}
    third, _ = run(recipe(initial={"layer": "start"}), arrays=given)
    assert "reconstruction" not in [layer.name for layer in third.layers]
    mean = next(x for x in third.layers if x.name == "mean").array
    assert np.abs(mean - start.array).mean() < 15
    small = {"start": image_from_array(start.array[:8], name="start")}
    with pytest.raises(InvalidInput, match=r"initial image .* shape"):
        run(recipe(initial={"layer": "start"}), arrays=small)


def test_samples_are_written_while_they_come(tmp_path: Path) -> None:
    group = tmp_path / "result.ome.zarr" / "samples"
    seen: list[int] = []

    def watch(event: jobs.Event) -> None:
        growing = group.with_name("samples-incomplete")
        if isinstance(event, jobs.Progress) and growing.is_dir():
            assert not attributes(growing)["complete"]
            seen.append(zarr.open_array(growing / "0").shape[0])

    jobs.run(recipes.run(recipe(), folder=tmp_path), watch)
    assert seen[0] == 10, "an image that a viewer can open, from the first sample on"
    in_memory, _ = run(recipe())
    outcome = jobs.run(recipes.run(recipe(), folder=tmp_path))
    outputs = recipes.write_outcome(outcome, tmp_path)
    assert outputs["samples"] == str(group)
    stack = read_image(group)
    wanted = next(x for x in in_memory.layers if x.name == "samples").array
    assert np.allclose(stack.array[:, 0], wanted, atol=1e-3)
    assert attributes(group)["complete"]
    assert not group.with_name("samples-incomplete").exists()
    assert {"mean", "std", "quantile_5", "metrics", "recipe"} <= set(outputs)


def test_a_stop_keeps_what_is_there(tmp_path: Path) -> None:
    stage: list[str] = []

    def note(event: jobs.Event) -> None:
        if isinstance(event, jobs.Progress):
            stage.append(event.stage)

    wanted = recipe(sampler=SHORT | {"steps": 100_000, "stop_ess": 1e6})
    outcome = jobs.run(
        recipes.run(wanted, folder=tmp_path, should_stop=lambda: stage[-1:] == ["sample"]), note
    )
    assert 0 < outcome.metrics["samples"] <= 10
    assert {layer.name for layer in outcome.layers} >= {"mean", "samples"}


def test_colours_and_frames_keep_their_axes(tmp_path: Path) -> None:
    grey = load_sample("brick-test")[100:116, 40:60]
    colours = np.stack([grey, grey // 2, 255 - grey], -1)
    arrays = {"low": image(colours, "low", rgb=True),
              "good": image(np.stack([texture("brick-reference", 64)] * 3, -1), "good", rgb=True)}
    wanted = recipe(observation={"layer": "low"}, references=[{"layer": "good"}],
                    physics={"kind": "denoising"}, rim=0)
    for folder in (None, tmp_path):
        outcome, _ = run(wanted, arrays=arrays, folder=folder)
        layers = {layer.name: layer for layer in outcome.layers}
        assert layers["mean"].array.shape == (16, 20, 3)
        assert layers["std"].array.shape == (16, 20)
        assert layers["quantile_5"].array.shape == (16, 20, 3)
        assert layers["samples"].array.shape[0] == 10
    frames = np.stack([grey, grey[::-1]])
    arrays["low"] = image(frames, "low", ndim=2)
    arrays["good"] = image(texture("brick-reference", 64), "good")
    outcome, texts = run(wanted, arrays=arrays)
    layers = {layer.name: layer for layer in outcome.layers}
    assert layers["mean"].array.shape == (2, 16, 20)
    assert layers["samples"].array.shape == (10, 2, 16, 20)
    assert any("frame 2 of 2" in text for text in texts)


def test_total_variation_is_sampled_with_the_weight_of_the_solver() -> None:
    wanted = recipe(
        prior={"kind": "smooth_tv"}, references=[],
        solver={"kind": "variational", "weight": 4.0, "iterations": 40},
    )
    outcome, _ = run(wanted)
    assert outcome.metrics["weight"] == 4.0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prior": None}, "needs a prior"),
        ({"sampler": SHORT | {"samples": 1}}, "samples = 1"),
        ({"sampler": {"kind": "hmc"}}, "unknown sampler 'hmc'"),
        ({"quantiles": [1.5]}, "quantiles"),
        ({"sampler": {"kind": "exact_gaussian"}}, "one component"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        run(recipe(**changes))


def test_more_samples_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_task, "IN_MEMORY", 1e-9)
    with pytest.raises(OutOfMemory, match="give a folder"):
        run(recipe())


def test_a_sampler_that_does_not_suit_is_refused_before_anything_is_learnt() -> None:
    events: list[jobs.Event] = []
    wanted = recipe(sampler={"kind": "amortised"})
    with pytest.raises(InvalidInput, match="does not draw images by itself"):
        jobs.run(recipes.run(wanted), events.append)
    assert not any(isinstance(e, jobs.Progress) and e.stage == "train" for e in events)
