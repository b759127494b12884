"""The engine on small problems: good runs, and every bad input that touches the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_invprior import jobs, recipes
from napari_invprior.errors import Cancelled, InvalidInput, JobError
from napari_invprior.geometry import Geometry
from napari_invprior.image import Image
from napari_invprior.io.images import image_from_array
from napari_invprior.priors.mixtures.gmm import GaussianMixture
from napari_invprior.recipes.device import choose_device
from napari_invprior.samples import load_sample

QUICK: dict[str, Any] = {
    "physics": {"kind": "superresolution", "factor": 2},
    "noise": {"kind": "gaussian", "sigma": 0.01},
    "prior": {"kind": "gmm", "components": 4, "patch_size": 4, "steps": 5},
    "solver": {"kind": "variational", "weight": 0.004, "iterations": 40},
    "baselines": False,
}


def texture(name: str = "brick-test", edge: int = 48) -> np.ndarray:
    return load_sample(name)[100 : 100 + edge, 40 : 40 + edge].copy()


def image(array: np.ndarray, name: str, **options: Any) -> Image:
    return image_from_array(array, name=name, **options)


def execute(
    observation: np.ndarray, reference: np.ndarray | None = None, **changes: Any
) -> tuple[recipes.Outcome, list[str]]:
    """Run a quick reconstruction from arrays; also the messages."""
    options = changes.pop("options", {})
    reference = texture("brick-reference", 96) if reference is None else reference
    arrays = {
        "low": image(observation, "low", **options),
        "good": image(reference, "good", **changes.pop("reference_options", {})),
    }
    recipe = QUICK | {
        "observation": {"layer": "low"}, "references": [{"layer": "good"}]
    } | changes
    events: list[jobs.Event] = []
    outcome = jobs.run(recipes.run(recipe, arrays=arrays), events.append)
    return outcome, [e.text for e in events if isinstance(e, jobs.Message)]


def test_simulation_gives_figures_and_lies_on_the_truth() -> None:
    recipe = QUICK | {
        "observation": {"simulate_from": {"sample": "brick-test", "crop": [[100, 149], [40, 88]]}},
        "references": [{"sample": "brick-reference", "regions": [[[0, 96], [0, 96]]]}],
        "baselines": True,
        "rim": 4,
    }
    events: list[jobs.Event] = []
    outcome = jobs.run(recipes.run(recipe), events.append)
    assert outcome.metrics["psnr"] > outcome.metrics["baselines"]["bicubic"]
    assert "tv" in outcome.metrics["baselines"]
    layer = outcome.layers[0]
    assert layer.array.shape == (48, 48)
    assert layer.geometry.scale == pytest.approx((1, 1))
    assert layer.geometry.translate == pytest.approx((100, 40))
    assert any("cropped (49, 48) to (48, 48)" in e.text for e in events if hasattr(e, "text"))
    assert layer.metadata["recipe"]["physics"] == {"kind": "superresolution", "factor": 2}
    assert set(layer.metadata["inputs"]) == {"observation", "reference 0"}
    assert recipes.parse(layer.metadata["recipe"])


def test_same_recipe_same_image() -> None:
    first, _ = execute(texture(edge=24))
    second, _ = execute(texture(edge=24))
    assert np.array_equal(first.layers[0].array, second.layers[0].array)


def test_a_fitted_prior_is_used_as_it_is_and_training_continues() -> None:
    arrays = {"good": image(texture("brick-reference", 96), "good")}
    fit = QUICK | {"task": "fit", "references": [{"layer": "good"}]}
    outcome = recipes.execute(fit, arrays=arrays)
    assert outcome.prior is not None
    assert outcome.layers == ()
    arrays["low"] = image(texture(edge=24), "low")
    state = {k: v.clone() for k, v in outcome.prior.state().items()}
    recipe = QUICK | {"observation": {"layer": "low"}}
    result = recipes.execute(recipe, arrays=arrays, prior=outcome.prior)
    assert result.layers[0].array.shape == (48, 48)
    assert all(torch.equal(state[k], v) for k, v in outcome.prior.state().items())
    again = recipes.execute(fit, arrays=arrays, prior=outcome.prior)
    assert again.prior is outcome.prior


def test_saved_prior_gives_the_same_image(tmp_path: Path) -> None:
    outcome, _ = execute(texture(edge=24))
    outputs = recipes.write_outcome(outcome, tmp_path / "run")
    prior = QUICK["prior"] | {"path": outputs["prior"]}
    again, _ = execute(texture(edge=24), prior=prior, references=[])
    assert np.array_equal(again.layers[0].array, outcome.layers[0].array)
    assert (tmp_path / "run" / "metrics.json").exists()


def test_user_arrays_are_never_written_to() -> None:
    low, good = texture(edge=24), texture("brick-reference", 96)
    low.setflags(write=False)
    good.setflags(write=False)
    before = low.copy(), good.copy()
    execute(low, good)
    assert np.array_equal(low, before[0])
    assert np.array_equal(good, before[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])  # rows 1 and 2
def test_samples_that_are_not_finite_count_as_unobserved(value: float) -> None:
    low = texture(edge=24).astype(np.float32) / 255
    low[5:8, 9] = value
    outcome, messages = execute(low, texture("brick-reference", 96).astype(np.float32) / 255)
    assert np.isfinite(outcome.layers[0].array).all()
    assert any("3 samples" in m and "unobserved" in m for m in messages)
    with pytest.raises(InvalidInput, match="no sample is finite"):
        execute(np.full((24, 24), value, np.float32))


def test_nan_in_the_reference_is_left_out() -> None:  # row 3
    good = texture("brick-reference", 96).astype(np.float32) / 255
    good[40:50, 40:50] = np.nan
    outcome, _ = execute(texture(edge=24).astype(np.float32) / 255, good)
    assert np.isfinite(outcome.layers[0].array).all()
    good[::3] = np.nan
    with pytest.raises(InvalidInput, match="0 patches"):
        execute(texture(edge=24).astype(np.float32) / 255, good)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float64", "float16", ">u2", ">f4"])
def test_types_are_scaled_and_the_result_is_in_the_users_numbers(dtype: str) -> None:  # 4, 6, 7
    factor = {"uint16": 200, "int16": 100, ">u2": 200}.get(dtype, 1)
    low = (texture(edge=24).astype(np.float64) * factor).astype(dtype)
    good = (texture("brick-reference", 96).astype(np.float64) * factor).astype(dtype)
    outcome, _ = execute(low, good)
    result = outcome.layers[0].array
    assert result.dtype == np.float32
    assert result.mean() == pytest.approx(low.astype(float).mean(), rel=0.05)


def test_other_types_and_layouts() -> None:  # rows 6 and 7
    flipped = texture(edge=24)[::-1, ::2][:, ::-1]
    outcome, _ = execute(flipped)
    assert outcome.layers[0].array.shape == (48, 24)
    mask = texture(edge=24) > 90
    outcome, _ = execute(mask, texture("brick-reference", 96) > 90)
    assert outcome.layers[0].array.dtype == np.float32
    with pytest.raises(InvalidInput, match="complex"):
        execute(texture(edge=24).astype(complex))


def test_different_scales_are_named() -> None:  # row 5
    low = texture(edge=24).astype(np.float32) / 255
    _, messages = execute(low, texture("brick-reference", 96))
    assert any("different types" in m and "uint8" in m for m in messages)


def test_constant_images() -> None:  # row 8
    with pytest.raises(InvalidInput, match=r"constant|variance"):
        execute(texture(edge=24), np.full((96, 96), 7, np.uint8))
    outcome, messages = execute(np.full((24, 24), 90, np.uint8))
    assert any("constant" in m for m in messages)
    assert np.isfinite(outcome.layers[0].array).all()


def test_regions() -> None:  # rows 9 to 12
    for regions, words in (
        ([[[200, 260], [0, 50]]], "empty"),
        ([[[0, 3], [0, 3]]], "0 patches"),
        ([[[0, 9], [0, 9], [0, 9]]], "3 axes"),
    ):
        with pytest.raises(InvalidInput, match=words):
            execute(texture(edge=24), references=[{"layer": "good", "regions": regions}])
    clipped = [[[60, 200], [60, 200]]]
    outcome, _ = execute(texture(edge=24), references=[{"layer": "good", "regions": clipped}])
    assert outcome.layers
    bow = {"polygon": [[5, 5], [80, 80], [5, 80], [80, 5]]}  # crosses itself
    outcome, _ = execute(texture(edge=24), references=[{"layer": "good", "regions": [bow]}])
    assert outcome.layers


def test_a_patch_larger_than_the_image_is_refused() -> None:  # row 12
    with pytest.raises(InvalidInput, match="patch"):
        prior = QUICK["prior"] | {"patch_size": 24}
        execute(texture(edge=24), texture("brick-reference", 20), prior=prior)


def test_tiny_images() -> None:  # row 13
    with pytest.raises(InvalidInput, match="single sample"):
        execute(np.array([[3]], np.uint8))
    flat = texture(edge=24)[None]
    outcome, messages = execute(flat, options={"ndim": 3})
    assert outcome.layers[0].array.shape[-2:] == (48, 48)
    assert any("one slice only" in m for m in messages)


def test_colours_and_channels() -> None:  # row 14
    low = np.stack([texture(edge=24)] * 3, -1)
    outcome, _ = execute(low, options={"rgb": True})
    assert outcome.layers[0].array.shape == (48, 48, 3)
    assert outcome.layers[0].rgb
    good = np.stack([texture("brick-reference", 96)] * 3, -1)
    joint = QUICK["prior"] | {"channels": "joint", "patch_size": 3}
    outcome, _ = execute(
        low, good, options={"rgb": True}, reference_options={"rgb": True}, prior=joint
    )
    assert outcome.layers[0].array.shape == (48, 48, 3)


def test_frames_are_reconstructed_one_by_one() -> None:  # row 15
    low = np.stack([texture(edge=24), texture(edge=24)[::-1], texture(edge=24)[:, ::-1]])
    low = np.concatenate([low, low])
    outcome, messages = execute(low, options={"ndim": 2})
    assert outcome.layers[0].array.shape == (6, 48, 48)
    assert any("frame 2 of 6" in m for m in messages)


def test_anisotropic_voxels() -> None:  # row 16
    from napari_invprior.samples import grey_volume

    volume = grey_volume((24, 24, 24), 0)[::2].astype(np.float32)
    arrays = {
        "low": image(volume, "low", geometry=Geometry((3.0, 1.0, 1.0), (0.0, 5.0, 0.0)), ndim=3),
        "good": image(grey_volume((32, 32, 32), 1).astype(np.float32), "good", ndim=3),
    }
    recipe = QUICK | {
        "observation": {"layer": "low"},
        "references": [{"layer": "good"}],
        "physics": {"kind": "superresolution", "factor": [3, 1, 1]},
        "prior": {"kind": "gmm", "components": 4, "patch_size": [4, 3, 3], "steps": 4},
        "solver": {"kind": "half_quadratic", "steps": 8, "weight": 0.25},
    }
    outcome = recipes.execute(recipe, arrays=arrays)
    assert outcome.layers[0].array.shape == (36, 24, 24)
    assert outcome.layers[0].geometry.scale == pytest.approx((1, 1, 1))
    assert outcome.layers[0].geometry.translate == pytest.approx((-1, 5, 0))


def test_factor_one_is_denoising() -> None:  # row 18
    outcome, _ = execute(texture(edge=24), physics={"kind": "superresolution", "factor": 1})
    assert outcome.layers[0].array.shape == (24, 24)


@pytest.mark.parametrize(
    ("psf", "words"),
    [
        (-np.ones((3, 3)), "negative"),
        (np.zeros((3, 3)), "zero"),
        (np.full((3, 3), np.nan), "finite"),
        (np.ones((99, 99)), "larger image"),
        (np.ones((3, 3, 3)), "axes"),
    ],
)
def test_bad_kernels(psf: np.ndarray, words: str, tmp_path: Path) -> None:  # row 19
    np.save(tmp_path / "psf.npy", psf)
    physics = {"kind": "blur", "psf": {"path": str(tmp_path / "psf.npy")}}
    with pytest.raises(InvalidInput, match=words):
        execute(texture(edge=24), physics=physics)


def test_unnormalised_kernels_are_normalised(tmp_path: Path) -> None:  # row 19
    np.save(tmp_path / "psf.npy", np.ones((4, 3)))
    physics = {"kind": "blur", "psf": {"path": str(tmp_path / "psf.npy")}}
    outcome, _ = execute(texture(edge=24), physics=physics)
    assert outcome.layers[0].array.mean() == pytest.approx(texture(edge=24).mean(), rel=0.05)
    assert outcome.layers[0].geometry.translate[0] == pytest.approx(-0.5)


def test_noise_level(tmp_path: Path) -> None:  # row 20
    _, messages = execute(texture(edge=24), noise={"kind": "gaussian", "sigma": 0})
    assert any("floor" in m for m in messages)
    outcome, messages = execute(texture(edge=48), noise={"kind": "gaussian"})
    assert any("estimated noise sigma" in m for m in messages)
    assert outcome.recipe.noise.parameters.sigma > 0
    _, messages = execute(texture(edge=10), noise={"kind": "gaussian"})
    assert any("too small to estimate" in m for m in messages)


def test_masks(tmp_path: Path) -> None:  # rows 21 and 22
    def run(mask: np.ndarray) -> tuple[recipes.Outcome, list[str]]:
        np.save(tmp_path / "mask.npy", mask)
        physics = {"kind": "inpainting", "mask": {"path": str(tmp_path / "mask.npy")}}
        return execute(texture(edge=24), physics=physics)

    with pytest.raises(InvalidInput, match="hides every sample"):
        run(np.zeros((24, 24), np.uint8))
    with pytest.raises(InvalidInput, match=r"\(20, 24\)"):
        run(np.ones((20, 24), np.uint8))
    outcome, messages = run(np.ones((24, 24), np.uint8))
    assert any("nothing is missing" in m for m in messages)
    mask = np.ones((24, 24), np.uint8)
    mask[8:12, 8:12] = 0
    outcome, _ = run(mask)
    assert outcome.layers[0].array.shape == (24, 24)


def test_automatic_weight_and_its_record() -> None:
    for rule in ("sure", "discrepancy", "reference"):
        solver = QUICK["solver"] | {"weight": "auto", "weight_rule": rule}
        outcome, _ = execute(texture(edge=24), solver=solver)
        assert outcome.metrics["weight"] > 0
        assert outcome.metrics["weights_tried"]


def test_zero_shot_learns_from_the_observation() -> None:
    recipe = QUICK | {"observation": {"layer": "low"}, "zero_shot": True}
    outcome = recipes.execute(recipe, arrays={"low": image(texture(edge=64), "low")})
    assert outcome.layers[0].array.shape == (128, 128)


def test_stopping_keeps_the_best_image() -> None:  # row 41
    arrays = {
        "low": image(texture(edge=24), "low"), "good": image(texture("brick-reference", 96), "good")
    }
    recipe = QUICK | {
        "observation": {"layer": "low"}, "references": [{"layer": "good"}],
        "solver": {"kind": "variational", "weight": 0.004, "iterations": 100000, "plateau": 0},
    }
    asked = []

    def should_stop() -> bool:
        return bool(asked)

    outcome = None
    for event in recipes.run(recipe, arrays=arrays, should_stop=should_stop):
        if isinstance(event, jobs.Progress) and event.stage == "reconstruct":
            asked.append(True)
        if isinstance(event, jobs.Result):
            outcome = event.value
    assert outcome is not None
    assert outcome.layers[0].array.shape == (48, 48)
    recipe["solver"] = {"kind": "variational", "weight": "auto"}
    with pytest.raises(Cancelled):
        recipes.execute(recipe, arrays=arrays, should_stop=lambda: True)


def test_torch_errors_become_job_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, patches: torch.Tensor) -> Any:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(GaussianMixture, "potential_and_grad", broken)
    with pytest.raises(JobError, match="shape mismatch"):
        execute(texture(edge=24))


def test_a_device_that_is_not_there_falls_back() -> None:  # row 52
    if not torch.cuda.is_available():
        device, message = choose_device("cuda")
        assert device.type == "cpu"
        assert message is not None
        assert message.level == "warning"
    assert choose_device("cpu") == (torch.device("cpu"), None)


def test_threads_change_nothing_that_matters() -> None:  # row 49
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(execute(texture(edge=24))[0].layers[0].array)
    torch.set_num_threads(1)
    assert np.abs(results[0] - results[1]).max() < 1e-4 * 255


def paired(pair: np.ndarray, **changes: Any) -> tuple[recipes.Outcome, list[str]]:
    """A one-pass run whose reference has a pair."""
    good, low = texture("brick-reference", 96), texture("brick-test", 24)
    arrays = {
        name: image(array, name)
        for name, array in {"good": good, "pair": pair, "low": low}.items()
    }
    recipe = QUICK | {
        "observation": {"layer": "low"},
        "references": [{"layer": "good", "pair": {"layer": "pair"}} | changes],
        "prior": {"kind": "pca_gmm", "components": 2, "patch_size": 4},
        "solver": {"kind": "direct"},
    }
    events: list[jobs.Event] = []
    outcome = jobs.run(recipes.run(recipe, arrays=arrays), events.append)
    return outcome, [e.text for e in events if isinstance(e, jobs.Message)]


def coarse() -> np.ndarray:
    good = texture("brick-reference", 96)
    return good.reshape(48, 2, 48, 2).mean((1, 3)).astype(good.dtype)


def test_a_registered_pair_trains_a_one_pass_estimate() -> None:
    outcome, _ = paired(coarse())
    assert outcome.layers[0].array.shape == (48, 48)
    assert "weight" not in outcome.metrics
    assert set(outcome.facts["training_data"]) >= {"reference 0", "pair 0", "observation"}
    again = recipes.Recipe.parse(outcome.recipe.to_dict())
    assert again.references[0].pair is not None
    assert again.references[0].pair.layer == "pair"


def test_a_pair_is_scaled_like_its_reference() -> None:
    outcome, messages = paired(coarse().astype(np.float32))
    assert any("different types" in text for text in messages)
    assert bool(np.isfinite(outcome.layers[0].array).all())


def test_a_pair_of_another_place_is_refused() -> None:
    with pytest.raises(InvalidInput, match="whole multiple of the pair's"):
        paired(coarse()[:, :47])
    with pytest.raises(InvalidInput, match="weight"):
        paired(coarse(), weight=0)


def test_a_solver_without_weight_refuses_one() -> None:
    with pytest.raises(InvalidInput, match="unknown key 'weight'"):
        execute(texture(), solver={"kind": "direct", "weight": 1.0})


def test_one_pass_needs_a_prior_that_knows_the_operator() -> None:
    with pytest.raises(InvalidInput, match="choose the PCA-GMM"):
        execute(texture(), solver={"kind": "direct"})


def test_prior_of_another_dimension_is_refused() -> None:  # rows 38 and 40
    arrays = {"good": image(texture("brick-reference", 96), "good")}
    fit = QUICK | {"task": "fit", "references": [{"layer": "good"}]}
    prior = recipes.execute(fit, arrays=arrays).prior
    arrays["low"] = image(np.random.default_rng(0).random((8, 8, 8)), "low", ndim=3)
    recipe = QUICK | {"observation": {"layer": "low"}}
    with pytest.raises(InvalidInput, match="2D"):
        recipes.execute(recipe, arrays=arrays, prior=prior)
