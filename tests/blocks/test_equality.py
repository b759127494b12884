"""Blocks give what the whole gives: every kind of solver, prior and operator, to 1e-5."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_invprior import jobs
from napari_invprior.blocks.grid import BlockGrid
from napari_invprior.blocks.inputs import Inputs
from napari_invprior.blocks.job import start
from napari_invprior.blocks.task import Workplace
from napari_invprior.blocks.work import compute
from napari_invprior.errors import InvalidInput
from napari_invprior.physics.superresolution import SuperResolution, SuperResolutionParameters
from napari_invprior.samples import grey_volume, photograph

GMM = {"kind": "gmm", "components": 6, "steps": 4}
QUICK = {"kind": "variational", "weight": 0.01, "iterations": 25}
SPLIT = {"kind": "half_quadratic", "weight": 0.3, "steps": 8}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of a photograph (330 x 200 px) for several operators."""
    folder = tmp_path_factory.mktemp("pictures")
    truth = photograph("gravel", "test")[:330, :200] / np.float32(255)
    generator = np.random.default_rng(0)

    def noisy(image: np.ndarray, sigma: float) -> np.ndarray:
        return (image + sigma * generator.standard_normal(image.shape)).astype(np.float32)

    np.save(folder / "reference.npy", photograph("gravel", "reference")[:160, :160] / 255)
    np.save(folder / "noisy.npy", noisy(truth, 0.05))
    x = torch.from_numpy(truth)[None, None]
    for name, options in (("low", {}), ("valid", {"boundary": "valid"})):
        physics = SuperResolution(SuperResolutionParameters(factor=2, **options), 2)
        fitting = x[(..., *(slice(0, n) for n in physics.fitting_shape(x.shape[2:])))]
        np.save(folder / f"{name}.npy", noisy(physics.A(fitting)[0, 0].numpy(), 0.01))
    mask = generator.random(truth.shape) < 0.6
    np.save(folder / "mask.npy", mask.astype(np.uint8))
    np.save(folder / "holes.npy", noisy(truth, 0.02) * mask)
    psf = np.ones((3, 5)) / 15
    psf[1, 2] += 0.5
    np.save(folder / "psf.npy", psf)
    counts = generator.poisson(200 * truth) / 200
    np.save(folder / "counts.npy", counts.astype(np.float32))
    volume = grey_volume((96, 40, 36), seed=5)
    np.save(folder / "volume.npy", noisy(volume, 0.05))
    np.save(folder / "volume-reference.npy", grey_volume((36, 36, 36), seed=0))
    return folder


SR = {"kind": "superresolution", "factor": 2}
CASES: dict[str, dict[str, Any]] = {
    "denoising, split": {"data": "noisy", "physics": {"kind": "denoising"}, "solver": SPLIT},
    "super-resolution, descent": {"data": "low", "physics": SR, "solver": QUICK},
    "super-resolution, no border assumed": {
        "data": "valid", "physics": SR | {"boundary": "valid"}, "solver": SPLIT,
    },
    "blur with a measured kernel": {
        "data": "noisy", "physics": {"kind": "blur", "psf": {"path": "psf.npy"}}, "solver": SPLIT,
    },
    "inpainting": {
        "data": "holes", "physics": {"kind": "inpainting", "mask": {"path": "mask.npy"}},
        "solver": QUICK,
    },
    "Poisson noise": {
        "data": "counts", "physics": {"kind": "denoising"}, "solver": SPLIT,
        "noise": {"kind": "poisson", "peak": 200},
    },
    "total variation": {
        "data": "low", "physics": SR, "prior": None,
        "solver": {"kind": "total_variation", "weight": 4.0, "iterations": 100},
    },
    "smooth total variation": {
        "data": "noisy", "physics": {"kind": "denoising"}, "prior": {"kind": "smooth_tv"},
        "solver": QUICK | {"weight": 5.0},
    },
    "transport": {
        "data": "low", "physics": SR, "solver": QUICK | {"weight": 3.0},
        "prior": {"kind": "semi_unbalanced", "reference_patches": 400},
    },
    "one pass": {
        "data": "low", "physics": SR, "solver": {"kind": "direct"},
        "prior": {"kind": "pca_gmm", "components": 4, "patch_size": 6},
    },
    "volume": {
        "data": "volume", "physics": {"kind": "denoising"}, "solver": SPLIT | {"steps": 5},
        "blocks": {"edge": 48},
    },
}


def recipe_of(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe of a case, with the files of the folder."""

    def placed(node: Any) -> Any:
        if isinstance(node, dict):
            return {
                k: str(folder / v) if k == "path" else placed(v) for k, v in node.items()
            }
        return node

    reference = "volume-reference.npy" if case["data"] == "volume" else "reference.npy"
    recipe = {
        "observation": {"path": f"{case['data']}.npy"}, "prior": GMM,
        "noise": {"kind": "gaussian", "sigma": 0.05 if case["data"] == "noisy" else 0.02},
        "references": [], "blocks": {"edge": 96},
    } | {k: v for k, v in case.items() if k != "data"}
    if recipe["prior"] is not None and recipe["prior"]["kind"] != "smooth_tv":
        recipe["references"] = [{"path": str(folder / reference)}]
    return placed(recipe) | {"references": recipe["references"]}


def at_once(folder: Path) -> np.ndarray:
    """What a job's settlement gives on all of the data in one piece."""
    here = Workplace.open(folder)
    plan = here.plan
    return in_blocks(here, here.inputs, replace(plan.grid, core=plan.data))


def in_blocks(here: Workplace, inputs: Inputs, grid: BlockGrid) -> np.ndarray:
    """What a job's settlement gives on these data by this grid."""
    found = np.empty(grid.image, np.float32)
    for block in grid:
        done = jobs.run(compute(here.agreed, inputs, block, grid.image, here.device, jobs.never))
        found[block.target] = done.layers[0].array[block.inner]
    return found


@pytest.fixture
def settled(pictures: Path, tmp_path: Path) -> Workplace:
    """A job on a volume of 96 x 40 x 36 voxels."""
    recipe = recipe_of(CASES["volume"], pictures)
    jobs.run(start(recipe, tmp_path / "job"))
    return Workplace.open(tmp_path / "job")


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_the_whole(name: str, pictures: Path, tmp_path: Path) -> None:
    recipe = recipe_of(CASES[name], pictures)
    outcome = jobs.run(start(recipe, tmp_path / "job"))
    plan = outcome.detail.plan
    assert plan.grid.count >= 4 or len(plan.image) == 3
    blocked = np.asarray(outcome.layers[0].array)
    span = plan.scale[1] - plan.scale[0]
    difference = np.abs(blocked - at_once(tmp_path / "job")) / span
    assert plan.level == 1e-5
    assert difference.max() <= 1e-5
    faces = np.zeros(difference.shape, bool)
    for block in plan.grid:
        for axis, target in enumerate(block.target):
            if target.start:
                near = [slice(None)] * difference.ndim
                near[axis] = slice(target.start - 1, target.start + 1)
                faces[tuple(near)] = True
    assert difference[faces].max() <= max(2 * difference[~faces].max(), 5e-7)


@settings(max_examples=10)
@given(
    shape=st.tuples(st.integers(20, 96), st.integers(20, 40), st.integers(20, 36)),
    edge=st.tuples(*[st.integers(12, 50)] * 3), more=st.integers(0, 5),
)
def test_any_grid_gives_the_whole(settled: Workplace, shape: Any, edge: Any, more: int) -> None:
    """Of any part of the data, with any edge and halo that is no smaller than measured."""
    plan, recipe = settled.plan, settled.agreed.recipe
    source = recipe.observation.model_copy(update={"crop": tuple((0, n) for n in shape)})
    inputs = Inputs.open(recipe.model_copy(update={"observation": source}), {})
    halo = (max(plan.grid.halo) + more,) * 3  # measured along the one axis that is cut there
    grid = replace(
        plan.grid, data=shape, image=shape, halo=halo, core=edge, divisible=(True,) * 3
    )
    whole = in_blocks(settled, inputs, replace(grid, core=shape))
    difference = np.abs(in_blocks(settled, inputs, grid) - whole)
    assert difference.max() <= 1e-5 * (plan.scale[1] - plan.scale[0])


@pytest.mark.slow
def test_a_prior_that_does_not_settle_says_how_well_blocks_agree(
    pictures: Path, tmp_path: Path
) -> None:
    recipe = recipe_of({
        "data": "noisy", "physics": {"kind": "denoising"},
        "prior": {"kind": "patchnr", "steps": 400},
        "solver": {"kind": "variational", "weight": 0.2, "iterations": 100},
    }, pictures)
    said: list[str] = []
    outcome = jobs.run(
        start(recipe, tmp_path / "job"),
        lambda event: said.append(event.text) if isinstance(event, jobs.Message) else None,
    )
    level = outcome.detail.plan.level
    assert level > 1e-5
    assert any("do not settle" in text for text in said)
    difference = np.abs(np.asarray(outcome.layers[0].array) - at_once(tmp_path / "job"))
    assert difference.max() <= level
    assert np.sqrt((difference**2).mean()) <= level / 5


def test_a_method_that_needs_the_whole_image_is_refused(pictures: Path, tmp_path: Path) -> None:
    case = {"data": "low", "physics": SR, "solver": QUICK | {"optimiser": "lbfgs"}}
    with pytest.raises(InvalidInput, match="needs the whole image at once"):
        jobs.run(start(recipe_of(case, pictures), tmp_path / "job"))


def test_a_halo_that_is_too_small_is_refused(pictures: Path, tmp_path: Path) -> None:
    case = CASES["denoising, split"] | {"blocks": {"edge": 96, "halo": 4}}
    with pytest.raises(InvalidInput, match=r"blocks\.halo = 4: a border is felt over \d+ samples"):
        jobs.run(start(recipe_of(case, pictures), tmp_path / "job"))


def test_a_circular_operator_is_refused(pictures: Path, tmp_path: Path) -> None:
    case = {"data": "low", "physics": SR | {"boundary": "circular"}, "solver": SPLIT}
    with pytest.raises(InvalidInput, match=r"set physics\.boundary to 'reflect'"):
        jobs.run(start(recipe_of(case, pictures), tmp_path / "job"))
