"""Studies as recipes: what is read and refused, what a run gives and writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from napari_invprior import jobs, recipes
from napari_invprior.errors import InvalidInput
from napari_invprior.io.omezarr import attributes, read_image
from napari_invprior.recipes.outputs import table_csv
from napari_invprior.recipes.picture import table_png

PRIOR = {"kind": "gmm", "components": 4, "patch_size": 4, "steps": 4}
STUDY: dict[str, Any] = {
    "task": "study",
    "observation": {"simulate_from": {"sample": "brick-test", "crop": [[100, 148], [40, 88]]}},
    "references": [{"sample": "brick-reference", "crop": [[0, 96], [0, 96]]}],
    "physics": {"kind": "superresolution", "factor": 2},
    "noise": {"kind": "gaussian", "sigma": 0.01},
    "methods": [
        {"title": "EPLL", "prior": PRIOR,
         "solver": {"kind": "variational", "weight": 0.004, "iterations": 20}},
        {"prior": PRIOR, "solver": {"kind": "half_quadratic", "weight": 0.25, "steps": 6}},
        {"title": "ALR, split", "prior": {"kind": "adversarial", "steps": 10},
         "solver": {"kind": "half_quadratic", "weight": 0.25}},
    ],
    "study_baselines": ["start", "nlm"],
    "rim": 2,
}


@pytest.fixture(scope="module")
def outcome() -> recipes.Outcome:
    return recipes.execute(STUDY)


def test_a_study_reads_back_and_its_titles_are_unique() -> None:
    recipe = recipes.parse(STUDY | {"methods": [{"prior": "gmm"}] * 3})
    assert recipe.titles == ("Gaussian mixture", "Gaussian mixture 2", "Gaussian mixture 3")
    assert recipes.parse(recipe.to_dict()) == recipe
    assert recipes.parse(json.dumps(recipe.to_dict())) == recipe
    compile(recipes.script(recipe), "script.py", "exec")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": [], "study_baselines": []}, "at least one"),
        ({"study_baselines": ["tvv"]}, "did you mean 'tv'"),
        ({"methods": [{"prior": "patchnrr"}]}, "did you mean 'patchnr'"),
        ({"methods": [{"prio": "patchnr"}]}, "did you mean 'prior'"),
        ({"methods": [{"solver": "variational"}]}, "needs a prior"),
        ({"task": "reconstruct"}, "for task 'study'"),
        ({"observation": None}, "needs an observation"),
    ],
)
def test_refusals_name_the_fault(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        recipes.parse(STUDY | change)


def test_layers_and_figures_of_a_study(outcome: recipes.Outcome) -> None:
    table = {row["title"]: row for row in outcome.metrics["table"]}
    assert list(table) == ["EPLL", "Gaussian mixture", "ALR, split", "Spline (shift-corrected)",
                           "Non-local means"]
    assert table["ALR, split"]["status"] == "failed"
    assert "denoise patches" in table["ALR, split"]["reason"]
    assert [layer.name for layer in outcome.layers] == [
        "reconstruction_epll", "reconstruction_gaussian_mixture",
        "reconstruction_spline_shift_corrected", "reconstruction_non_local_means", "truth",
    ]
    learned = max(table[t]["psnr"] for t in ("EPLL", "Gaussian mixture"))
    assert outcome.metrics["psnr"] == learned
    assert outcome.metrics["baselines"] == {
        "bicubic": table["Spline (shift-corrected)"]["psnr"],
        "nlm": table["Non-local means"]["psnr"],
    }
    assert outcome.metrics["best"]["psnr"] in table
    assert table["EPLL"]["training_seconds"] == table["Gaussian mixture"]["training_seconds"]
    assert json.loads(json.dumps(outcome.metrics, allow_nan=False)) == outcome.metrics


def test_a_layer_of_a_study_carries_the_recipe_that_makes_it_again(
    outcome: recipes.Outcome,
) -> None:
    layer = outcome.layers[1]
    recipe = recipes.parse(layer.metadata["recipe"])
    assert recipe.task == "reconstruct"
    assert recipe.solver.name == "half_quadratic"
    again = recipes.execute(recipe.with_settings({"baselines": False}))
    assert np.array_equal(again.layers[0].array, layer.array)


def test_a_prior_at_hand_serves_the_methods_that_ask_for_it() -> None:
    fit = {key: STUDY[key] for key in ("references", "physics", "noise")}
    prior = recipes.execute(fit | {"task": "fit", "prior": PRIOR}).prior
    events: list[jobs.Event] = []
    other = {"prior": PRIOR | {"components": 3},
             "solver": STUDY["methods"][0]["solver"]}
    study = STUDY | {"methods": [*STUDY["methods"][:2], other], "study_baselines": []}
    outcome = jobs.run(recipes.run(study, prior=prior), events.append)
    times = [row["training_seconds"] for row in outcome.metrics["table"]]
    assert times[:2] == [0.0, 0.0]
    assert times[2] > 0


def test_outputs_of_a_study(outcome: recipes.Outcome, tmp_path: Path) -> None:
    outputs = recipes.write_outcome(outcome, tmp_path)
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["done", "done", "failed", "done", "done"]
    assert float(rows[0]["psnr"]) == outcome.metrics["table"][0]["psnr"]
    with Image.open(outputs["table.png"]) as picture:
        assert picture.format == "PNG"
        assert picture.width > 600
    stored = read_image(tmp_path / "result.ome.zarr" / "truth")
    assert np.array_equal(np.asarray(stored.array).squeeze(), outcome.layers[-1].array)
    assert attributes(tmp_path / "result.ome.zarr" / "reconstruction_epll")["recipe"]["task"] == (
        "reconstruct"
    )


@pytest.mark.parametrize("shape", ["volume", "frames", "colours"])
def test_pictures_of_other_data(shape: str) -> None:
    from napari_invprior.io.images import image_from_array

    generator = np.random.default_rng(0)
    array, options = {
        "volume": (generator.random((8, 9, 10)), {"ndim": 3}),
        "frames": (generator.random((3, 16, 20)), {"ndim": 2}),
        "colours": (generator.random((16, 20, 3)), {"rgb": True}),
    }[shape]
    image = image_from_array(array.astype(np.float32), name="low", **options)
    study = {"task": "study", "observation": {"layer": "low"}, "physics": {"kind": "denoising"},
             "noise": {"kind": "gaussian", "sigma": 0.1}, "study_baselines": ["start", "nlm"]}
    outcome = recipes.execute(study, arrays={"low": image})
    assert table_png(outcome)[:4] == b"\x89PNG"
    assert b"psnr" not in table_csv(outcome)
