"""Task ``estimate_operator``, and runs whose data are on another brightness scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from napari_invprior import jobs, recipes
from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.image import Image
from napari_invprior.io.images import image_from_array
from napari_invprior.io.omezarr import read_image
from napari_invprior.samples import (
    PAIR_GAIN,
    PAIR_OFFSET,
    PAIR_SIGMA,
    load_sample,
    pair_kernel,
)

PAIR = {"layer": "good", "pair": {"layer": "poor"}}
ESTIMATE: dict[str, Any] = {
    "task": "estimate_operator",
    "references": [PAIR],
    "physics": {"kind": "superresolution", "factor": 2, "kernel_size": 15},
}
QUICK: dict[str, Any] = {
    "observation": {"layer": "poor"},
    "references": [{"layer": "good"}],
    "noise": {"kind": "gaussian", "sigma": 0.005},
    "prior": {"kind": "gmm", "components": 4, "patch_size": 4, "steps": 4},
    "solver": {"kind": "half_quadratic", "steps": 20, "weight": 0.25},
    "baselines": False,
}


@pytest.fixture(scope="module")
def arrays() -> dict[str, Image]:
    """The built-in pair on scales of their own, the good one placed in the world."""
    place = Geometry((0.5, 0.5), (10.0, 20.0), units=("um", "um"))
    good = image_from_array(load_sample("pair-good"), name="good", geometry=place)
    return {"good": good, "poor": image_from_array(load_sample("pair-poor"), name="poor")}


@pytest.fixture(scope="module")
def estimate(arrays: dict[str, Image]) -> recipes.Outcome:
    return recipes.execute(ESTIMATE, arrays=arrays)


def test_the_sheets_check_5_through_the_example(tmp_path: Any) -> None:
    outcome = recipes.execute(recipes.load_example("operator-from-pair"))
    kernel = outcome.layers[0].array
    assert outcome.layers[0].name == "psf"
    error = np.linalg.norm(kernel - pair_kernel()) / np.linalg.norm(pair_kernel())
    assert error <= 0.10
    figures = outcome.metrics
    assert figures["held_out_psnr"] >= 40
    assert figures["fit_psnr"] >= 40
    assert figures["baselines"]["gaussian"] < 30
    outputs = recipes.write_outcome(outcome, tmp_path)
    assert np.array_equal(read_image(outputs["psf"]).array.squeeze(), kernel)


def test_figures_are_on_the_good_images_scale(
    arrays: dict[str, Image], estimate: recipes.Outcome
) -> None:
    figures, layer = estimate.metrics, estimate.layers[0]
    low, high = arrays["good"].value_range
    assert figures["noise_sigma"] == pytest.approx(PAIR_SIGMA / (high - low), rel=0.03)
    assert figures["gain"] == pytest.approx(PAIR_GAIN, rel=0.01)
    assert figures["offset"] == pytest.approx(PAIR_OFFSET, abs=0.01)
    assert figures["shift"] == [0, 0]
    assert layer.geometry.scale == (0.5, 0.5)
    assert layer.geometry.units == ("um", "um")
    assert recipes.parse(layer.metadata["recipe"]).task == "estimate_operator"
    # plain data: what a file holds reads back
    assert recipes.parse({"observation": {"layer": "poor"}, "physics": figures["physics"]})


@pytest.mark.parametrize("dtype", ["float32", "uint8", "uint16"])
def test_a_reconstruction_has_the_good_images_brightness(
    dtype: str, arrays: dict[str, Image]
) -> None:
    """Whatever the types and scales of the pair are."""
    good, poor = arrays["good"].array[0, 0].astype(float), arrays["poor"].array[0, 0].astype(float)
    if dtype == "uint8":
        good, poor = good * 255, 30 + 110 * (poor + 0.2)
    elif dtype == "uint16":
        good, poor = good * 255, 3000 + 20000 * (poor + 0.2)
    good = good.astype("float32" if dtype == "float32" else "uint8")
    given = {
        "good": image_from_array(good, name="good"),
        "poor": image_from_array(poor.round(8 if dtype == "float32" else 0).astype(dtype),
                                 name="poor"),
    }
    found = recipes.execute(ESTIMATE, arrays=given)
    given["psf"] = image_from_array(found.layers[0].array, name="psf")
    physics = found.metrics["physics"] | {"psf": {"layer": "psf"}}
    events: list[jobs.Event] = []
    part = QUICK | {
        "observation": {"layer": "poor", "crop": [[0, 40], [8, 48]]},
        "truth": {"layer": "good", "crop": [[0, 80], [16, 96]]},
    }
    outcome = jobs.run(recipes.run(part | {"physics": physics}, arrays=given), events.append)
    assert not [e for e in events if isinstance(e, jobs.Message) and e.level == "warning"]
    inner = (slice(8, -8),) * 2
    seen = good.astype(float)[0:80, 16:96]
    difference = (outcome.layers[0].array - seen)[inner]
    assert abs(difference.mean()) < 0.01 * np.ptp(good)
    assert difference.std() < 0.6 * seen.std()
    span = given["good"].value_range[1] - given["good"].value_range[0]
    own = -20 * np.log10(np.sqrt(np.mean((outcome.layers[0].array - seen) ** 2)) / span)
    assert outcome.metrics["psnr"] == pytest.approx(own, abs=0.3)
    # without the brightness scale the same run is far off
    wrong = {k: v for k, v in physics.items() if k not in ("gain", "offset")}
    spoiled = recipes.execute(part | {"physics": wrong}, arrays=given).layers[0].array
    assert np.mean((spoiled - seen)[inner] ** 2) > 1.5 * np.mean(difference**2)


def test_scaled_data_without_references(arrays: dict[str, Image]) -> None:
    physics = {"kind": "superresolution", "factor": 2, "gain": PAIR_GAIN, "offset": PAIR_OFFSET}
    recipe = {
        "observation": {"layer": "poor"}, "truth": {"layer": "good"}, "physics": physics,
        "noise": {"kind": "gaussian", "sigma": 0.01}, "prior": None, "baselines": False,
        "solver": {"kind": "total_variation", "weight": 0.5},
    }
    outcome = recipes.execute(recipe, arrays=arrays)
    good = arrays["good"].array[0, 0]
    assert outcome.layers[0].array.mean() == pytest.approx(good.mean(), abs=0.01)


def test_pairs_of_a_joint_prior_are_on_the_same_scale(arrays: dict[str, Image]) -> None:
    physics = {"kind": "superresolution", "factor": 2, "gain": PAIR_GAIN, "offset": PAIR_OFFSET}
    recipe = {
        "observation": {"layer": "poor"}, "references": [PAIR], "physics": physics,
        "prior": {"kind": "pca_gmm", "components": 4}, "solver": {"kind": "direct"},
        "baselines": False,
    }
    result = recipes.execute(recipe, arrays=arrays).layers[0].array
    good = arrays["good"].array[0, 0]
    assert result.mean() == pytest.approx(good.mean(), abs=0.02)
    assert (result - good)[8:-8, 8:-8].std() < 0.6 * good.std()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"references": []}, "needs one reference with its poor image"),
        ({"references": [{"layer": "good"}]}, "needs one reference with its poor image"),
        ({"references": [PAIR, PAIR]}, "needs one reference"),
        ({"references": [PAIR | {"regions": [[[0, 9], [0, 9]]]}]}, "crop both"),
        ({"observation": {"layer": "poor"}}, "remove the observation"),
        ({"physics": {"kind": "denoising"}}, "choose superresolution or blur"),
        ({"physics": {"kind": "superresolution", "gain": -1}}, "greater than"),
        ({"task": "estimate_operators"}, "task"),
    ],
)
def test_recipes_that_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        recipes.parse(ESTIMATE | change)


def test_pairs_that_are_refused(arrays: dict[str, Image]) -> None:
    with pytest.raises(InvalidInput, match="change the factor"):
        recipes.execute(ESTIMATE | {"physics": {"kind": "blur"}}, arrays=arrays)
    volume = image_from_array(np.random.default_rng(0).random((8, 8, 8)), name="poor", ndim=3)
    with pytest.raises(InvalidInput, match="both as planes"):
        recipes.execute(ESTIMATE, arrays=arrays | {"poor": volume})


def test_blur_is_estimated_too(arrays: dict[str, Image]) -> None:
    good = load_sample("pair-good")
    poor = (np.roll(good, 1, 0) + 2 * good + np.roll(good, -1, 0)) / 4
    recipe = ESTIMATE | {"physics": {"kind": "blur", "kernel_size": 5}}
    given = {n: image_from_array(a, name=n) for n, a in (("good", good), ("poor", poor))}
    kernel = recipes.execute(recipe, arrays=given).layers[0].array
    assert kernel[1:4, 2] == pytest.approx([0.25, 0.5, 0.25], abs=0.01)
