"""Priors compared on a held-out piece of the reference."""

from __future__ import annotations

from typing import Any

import pytest

from napari_invprior import jobs, recipes
from napari_invprior.errors import InvalidInput
from napari_invprior.priors.mixtures.gmm import GaussianMixture
from napari_invprior.reconstruct import propose
from napari_invprior.reconstruct.half_quadratic import HalfQuadratic
from napari_invprior.reconstruct.propose import Candidate, default_candidates


def candidate(components: int) -> Candidate:
    parameters = GaussianMixture.Parameters(components=components, patch_size=4, steps=5)
    solver = HalfQuadratic(HalfQuadratic.Parameters(steps=12))
    return Candidate(f"{components} Gaussians", GaussianMixture, parameters, solver, (0.25,))


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(propose, "default_candidates", lambda ndim: [candidate(1), candidate(8)])
    monkeypatch.setattr(propose, "TV_WEIGHTS", (4.0,))
    return {
        "task": "propose",
        "observation": {"simulate_from": {"sample": "brick-test", "crop": [[100, 148], [40, 88]]}},
        "references": [{"sample": "brick-reference", "crop": [[0, 128], [0, 128]]}],
        "physics": {"kind": "superresolution", "factor": 2},
        "noise": {"kind": "gaussian", "sigma": 0.01},
    }


def test_the_ranking_is_by_psnr_and_its_choices_are_valid_recipes(recipe: dict[str, Any]) -> None:
    ranking = recipes.execute(recipe).metrics["ranking"]
    figures = [entry["psnr"] for entry in ranking]
    assert figures == sorted(figures, reverse=True)
    assert {e["name"] for e in ranking} >= {"1 Gaussians", "8 Gaussians", "total variation"}
    place = [e["name"] for e in ranking].index
    assert place("8 Gaussians") < place("1 Gaussians")
    for entry in ranking:
        parsed = recipes.parse(
            recipe | {"task": "reconstruct", "prior": entry["prior"], "solver": entry["solver"]}
        )
        assert parsed.solver.name in ("half_quadratic", "total_variation")


def test_stopping_gives_what_is_known_so_far(recipe: dict[str, Any]) -> None:
    seen: list[jobs.Event] = []
    seen.extend(recipes.run(recipe, should_stop=lambda: len(seen) > 2))
    assert isinstance(seen[-1], jobs.Result)
    assert len(seen[-1].value.metrics["ranking"]) < 4


def test_masks_and_missing_references_are_refused(recipe: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="mask"):
        recipes.execute(recipe | {"physics": {"kind": "inpainting"}})
    with pytest.raises(InvalidInput, match="reference"):
        recipes.execute(recipe | {"references": []})


@pytest.mark.parametrize("ndim", [2, 3])
def test_default_candidates_are_valid_choices(ndim: int) -> None:
    for chosen in default_candidates(ndim):
        assert chosen.build(ndim, 1) is not None
        recipes.parse({"observation": {"sample": "gravel"}} | chosen.choices())
