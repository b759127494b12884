"""The command line: exit codes, one-line reasons, results on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from napari_invprior import cli
from napari_invprior.errors import Cancelled, JobError
from napari_invprior.io.omezarr import read_image

QUICK = {
    "observation": {"simulate_from": {"sample": "brick-test", "crop": [[100, 148], [40, 88]]}},
    "references": [{"sample": "brick-reference", "crop": [[0, 96], [0, 96]]}],
    "physics": {"kind": "superresolution", "factor": 2},
    "noise": {"kind": "gaussian", "sigma": 0.01},
    "prior": {"kind": "gmm", "components": 4, "patch_size": 4, "steps": 4},
    "solver": {"kind": "variational", "weight": 0.004, "iterations": 80},
}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(QUICK))
    return str(path)


def test_run_writes_results_and_prints_one_object(recipe: str, tmp_path: Path) -> None:
    out = tmp_path / "with space é"
    result = call("run", recipe, "--out", str(out), "--json", "--set", "rim=2")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.strip().split("\n")[-1])
    assert report["metrics"]["psnr"] > report["metrics"]["baselines"]["bicubic"]
    assert set(report) == {"metrics", "seconds", "peak_memory_mb", "outputs"}
    image = read_image(out / "result.ome.zarr" / "reconstruction")
    assert image.space == (48, 48)
    assert json.loads((out / "recipe.json").read_text())["rim"] == 2
    assert (out / "prior.safetensors").stat().st_size > 1000
    again = call("run", str(out / "recipe.json"), "--out", str(tmp_path / "again"))
    assert again.exit_code == 0
    assert "reconstruction" in again.output


def test_a_study_prints_its_table(tmp_path: Path) -> None:
    settings = {
        "observation": QUICK["observation"], "references": QUICK["references"],
        "physics": QUICK["physics"], "study_baselines": ["start"],
        "methods": [{"title": "EPLL [quick]", "prior": QUICK["prior"], "solver": QUICK["solver"]}],
    }
    options = [text for key, value in settings.items() for text in
               ("--set", f"{key}={json.dumps(value)}")]
    example = ("run", "compare-priors", *options, "--out", str(tmp_path / "study"))
    result = call(*example)
    assert result.exit_code == 0, result.output
    assert "EPLL [quick]" in result.output
    assert "PSNR" in result.output
    assert (tmp_path / "study" / "table.png").stat().st_size > 5000
    report = json.loads(call(*example, "--json").stdout.strip().split("\n")[-1])
    rows = report["metrics"]["table"]
    assert [row["title"] for row in rows] == ["EPLL [quick]", "Spline (shift-corrected)"]
    assert report["metrics"]["psnr"] == rows[0]["psnr"] > rows[1]["psnr"]
    assert {"table.csv", "table.png", "reconstruction_epll_quick", "truth"} <= set(
        report["outputs"]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "no-such-example"), "unknown example"),
        (("run", "missing.json"), "cannot read"),
        (("run", "{recipe}", "--set", "prior.patchsize=3"), "did you mean 'patch_size'"),
        (("run", "{recipe}", "--set", "nonsense"), "key=value"),
        (("check", "{recipe}", "--set", "physics.factor=40"), "factor"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    arguments: tuple[str, ...], words: str, recipe: str
) -> None:
    result = call(*(a.format(recipe=recipe) for a in arguments))
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().split("\n")) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [(JobError("broke"), 3), (Cancelled("stopped"), 130), (KeyboardInterrupt(), 130)],
)
def test_exit_codes(
    error: BaseException, code: int, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(cli.jobs, "run", fails)
    assert call("run", recipe).exit_code == code


def test_methods_and_examples_are_listed() -> None:
    methods = json.loads(call("methods", "--json").stdout)
    assert {m["name"] for m in methods} >= {"patchnr", "gmm", "superresolution", "variational"}
    assert all(m["parameters"]["properties"] is not None for m in methods)
    examples = json.loads(call("examples", "--json").stdout)
    assert {"name", "title", "task", "papers"} == set(examples[0])
    assert call("methods").exit_code == call("examples").exit_code == 0


def test_check_reports_the_adjoint_and_the_memory(recipe: str) -> None:
    report = json.loads(call("check", recipe, "--json").stdout)
    assert report["adjoint_mismatch"] < 1e-10
    assert report["image_shape"] == [48, 48]
    assert report["memory_mb"] > 0


def test_without_a_display_the_reason_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(cli.sys, "platform", "linux")
    monkeypatch.setattr(cli.shutil, "which", lambda name: None)
    result = call("demo")
    assert result.exit_code == 2
    assert "xvfb-run -a invprior demo --headless" in " ".join(result.stderr.split())
