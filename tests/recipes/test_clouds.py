"""Tasks on points and patches: layers, figures, files, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_invprior import jobs, recipes
from napari_invprior.errors import Cancelled, InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.io.arrays import image_from_array
from napari_invprior.io.points import read_points
from napari_invprior.points import PointSet
from napari_invprior.recipes.check import check_recipe
from napari_invprior.samples import binary_volume

PLACE = Geometry((0.5, 0.25), (3.0, 7.0), ("micrometer", "micrometer"))
FLOW = {"kind": "particle", "particles": 60, "final_time": 2.0}


def image(name: str = "image", seed: int = 0, shape: tuple[int, ...] = (40, 48), **options: Any):
    return image_from_array(binary_volume(shape, seed), name=name, **options)


def arrays(**options: Any) -> dict[str, Any]:
    return {"image": image(geometry=PLACE), "other": image("other", 1), **options}


def cloud(name: str, seed: int = 0, count: int = 60, ndim: int = 2) -> PointSet:
    rng = np.random.default_rng(seed)
    return PointSet(rng.normal(20 + seed, 5, (count, ndim)), name)


POINTS = {"a": cloud("a"), "b": cloud("b", 4), "deep": cloud("deep", ndim=3)}


def run(recipe: dict[str, Any], **options: Any) -> recipes.Outcome:
    options = {"arrays": arrays(), "points": POINTS} | options
    return recipes.execute(recipe, **options)


def test_particles_flow_to_an_image_and_lie_on_it(tmp_path: Path) -> None:
    recipe = {"task": "particles", "observation": {"layer": "image"}, "flow": FLOW}
    events: list[jobs.Event] = []
    outcome = jobs.run(recipes.run(recipe, arrays=arrays()), events.append)
    (layer,) = outcome.layers
    rows, metrics = layer.array, outcome.metrics
    assert layer.kind == "points" and layer.frames == 1 and layer.geometry == PLACE
    assert rows.shape == (60 * metrics["frames"], 3)
    assert np.allclose(rows[:60, 1:], [19.5, 23.5], atol=0.01), "it begins in the middle"
    assert metrics["times"][0] == 0 and metrics["times"][-1] == pytest.approx(2)
    assert metrics["discrepancy"] < 0.05 * metrics["discrepancies"][0]
    assert metrics["discrepancy_of_random_points"] > 0
    previews = [e for e in events if isinstance(e, jobs.Preview)]
    assert np.allclose(previews[-1].array, rows[-60:, 1:], atol=1e-3), "previews are in pixels"
    outputs = recipes.write_outcome(outcome, tmp_path)
    assert np.allclose(read_points(Path(outputs["particles"])).array, rows, atol=1e-3)
    assert json.loads((tmp_path / "recipe.json").read_text())["task"] == "particles"
    again = run(json.loads((tmp_path / "recipe.json").read_text()))
    assert np.array_equal(again.layers[0].array, rows)


def test_particles_of_points_keep_their_coordinates() -> None:
    far = PointSet(1000 + 10 * POINTS["b"].array, "far")
    outcome = run({"task": "particles", "points": {"layer": "a"}, "target_points": {"layer": "far"},
                   "flow": FLOW}, points=POINTS | {"far": far})
    rows = outcome.layers[0].array
    assert np.allclose(rows[:60, 1:], POINTS["a"].array, atol=1e-2)
    apart = run({"task": "particles", "flow": FLOW})
    assert apart.metrics["discrepancy"] < 0, "they only push each other"
    deep = run({"task": "particles", "target_points": {"layer": "deep"}, "flow": FLOW})
    assert deep.layers[0].array.shape[1] == 4


def test_a_stop_keeps_the_movie_so_far() -> None:
    seen: list[int] = []
    recipe = {"task": "particles", "observation": {"layer": "image"},
              "flow": FLOW | {"final_time": 1000.0}}
    job = recipes.run(
        recipe, arrays=arrays(), should_stop=lambda: len(seen) > 2,
    )
    outcome = jobs.run(job, lambda e: seen.append(1))
    assert outcome.metrics["frames"] > 1 and outcome.metrics["times"][-1] < 1000


def test_halftone_beside_random_dots() -> None:
    outcome = run({"task": "halftone", "observation": {"layer": "image"},
                   "target": {"mass": "bright", "background": 0.0}, "halftone": {"dots": 150}})
    assert outcome.layers[0].array.shape == (150, 2)
    assert outcome.metrics["psnr"] > outcome.metrics["baselines"]["random dots"] + 5


def test_density_maps_on_a_grid_and_on_one_of_their_own(tmp_path: Path) -> None:
    outcome = run({"task": "density", "points": {"layer": "a"}, "observation": {"layer": "image"}})
    (layer,) = outcome.layers
    assert layer.array.shape == (40, 48) and layer.geometry == PLACE
    own = run({"task": "density", "points": {"layer": "deep"}, "density": {"resolution": 24}})
    layer = own.layers[0]
    assert max(layer.array.shape) == 24
    assert own.metrics["points_inside"] == pytest.approx(60, rel=0.1)
    peak = np.unravel_index(layer.array.argmax(), layer.array.shape)
    world = np.add(layer.geometry.translate, np.multiply(layer.geometry.scale, peak))
    assert np.linalg.norm(world - POINTS["deep"].array.mean(0)) < 6
    assert (Path(recipes.write_outcome(own, tmp_path)["density"])).is_dir()


def test_typicality_in_planes_volumes_frames_and_colours() -> None:
    recipe = {"task": "typicality", "observation": {"layer": "image"},
              "references": [{"layer": "other", "regions": [[[0, 30], [0, 48]]]}]}
    outcome = run(recipe)
    layer = outcome.layers[0]
    assert layer.array.shape == (40, 48) and layer.geometry == PLACE
    assert np.isfinite(layer.array).all() and outcome.metrics["estimated_error"] < 0.05
    frames = np.stack([binary_volume((40, 48), k) for k in range(2)])
    colours = np.stack([frames[0]] * 3, -1)
    given = arrays(frames=image_from_array(frames, name="frames", ndim=2),
                   colours=image_from_array(colours, name="colours", rgb=True),
                   deep=image("deep", 2, (14, 15, 16)), more=image("more", 3, (14, 15, 16)))
    frames = run(recipe | {"observation": {"layer": "frames"}}, arrays=given)
    assert frames.layers[0].array.shape == (2, 40, 48)
    both = {"observation": {"layer": "colours"}, "references": [{"layer": "colours"}]}
    assert run(recipe | both, arrays=given).layers[0].array.shape == (40, 48)
    deep = {"observation": {"layer": "deep"}, "references": [{"layer": "more"}]}
    assert run(recipe | deep, arrays=given).layers[0].array.shape == (14, 15, 16)


def test_comparisons_of_images_and_points() -> None:
    options = {"two_sample": {"permutations": 99}}
    images = run({"task": "two_sample", "references": [{"layer": "image"}, {"layer": "other"}],
                  **options})
    assert images.layers == () and images.metrics["p_value"] > 0.01
    points = run({"task": "two_sample", "points": {"layer": "a"}, "target_points": {"layer": "b"},
                  **options})
    assert points.metrics["p_value"] == 0.01
    assert points.metrics["statistic"] > points.metrics["statistic_by_chance_95"]


def test_generated_layers_come_in_the_users_numbers() -> None:
    bright = image_from_array(1000 + 500 * binary_volume((48, 48), 0), name="bright")
    outcome = run({"task": "generate", "references": [{"layer": "bright"}],
                   "generate": {"patch_size": 4, "particles": 60, "steps": 20, "patches": 5,
                                "texture": 16}}, arrays={"bright": bright})
    patches, texture = outcome.layers
    assert patches.array.shape == (5, 4, 4) and texture.array.shape == (16, 16)
    assert 1000 < texture.array.mean() < 1500


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        ({"task": "halftone"}, "needs an observation"),
        ({"task": "typicality", "observation": {"layer": "image"}}, "needs references"),
        ({"task": "density"}, "needs points"),
        ({"task": "generate"}, "needs references"),
        ({"task": "two_sample"}, "two references"),
        ({"task": "two_sample", "references": [{"layer": "image"}]}, "two references"),
        ({"task": "particles", "observation": {"layer": "image"},
          "target_points": {"layer": "a"}}, "one target"),
        ({"task": "halftone", "observation": {"simulate_from": {"layer": "image"}}},
         "without 'simulate_from'"),
        ({"task": "particles", "flow": {"kind": "particel"}}, "did you mean 'particle'"),
        ({"task": "particles", "flow": {"kind": "particle", "taau": 1}}, "did you mean 'tau'"),
        ({"task": "particles", "points": {}}, "exactly one of 'path', 'layer'"),
        ({"task": "particles", "points": {"layer": "aa"}}, "no points 'aa'; did you mean"),
        ({"task": "halftone", "observation": {"layer": "image"}, "halftone": {"dotz": 3}},
         "did you mean 'dots'"),
        ({"task": "particles", "points": {"layer": "deep"}, "observation": {"layer": "image"}},
         "3 coordinates, the target 2"),
        ({"task": "particles", "points": {"layer": "deep"}, "target_points": {"layer": "a"}},
         "3 coordinates, the target 2"),
        ({"task": "density", "points": {"layer": "deep"}, "observation": {"layer": "image"}},
         "3 coordinates, the grid has 2"),
        ({"task": "halftone", "observation": {"layer": "frames"}}, "2 frames"),
        ({"task": "halftone", "observation": {"layer": "broken"}}, "NaN"),
        ({"task": "typicality", "observation": {"layer": "dark"},
          "references": [{"layer": "image"}]}, "no sample is finite|every patch"),
    ],
)
def test_bad_input_is_refused(recipe: dict[str, Any], match: str) -> None:
    broken = binary_volume((20, 20), 0)
    broken[3, 3] = np.nan
    sparse = np.full((20, 20), np.nan, np.float32)
    sparse[::3, ::3] = 0.5
    given = arrays(
        frames=image_from_array(np.zeros((2, 20, 20)), name="frames", ndim=2),
        broken=image_from_array(broken, name="broken"),
        dark=image_from_array(sparse, name="dark"),
    )
    with pytest.raises(InvalidInput, match=match):
        run(recipe, arrays=given)


def test_typicality_that_is_stopped_is_cancelled() -> None:
    with pytest.raises(Cancelled):
        run({"task": "typicality", "observation": {"layer": "image"},
             "references": [{"layer": "other"}]}, should_stop=lambda: True)


def test_check_says_what_there_is() -> None:
    recipe = recipes.parse({"task": "particles", "observation": {"layer": "image"},
                            "points": {"layer": "a"}})
    report = check_recipe(recipe, arrays(), POINTS)
    assert report["image_shape"] == [40, 48] and report["points"] == [60, 2]
    with pytest.raises(InvalidInput, match="no points"):
        check_recipe(recipe, arrays(), {})


def test_scripts_hand_layers_over() -> None:
    recipe = {"task": "particles", "observation": {"layer": "image"}, "points": {"layer": "a"}}
    text = recipes.script(recipes.parse(recipe))
    compile(text, "script.py", "exec")
    assert "points_from_layer(viewer.layers[name], onto)" in text
    assert "onto = viewer.layers['image']" in text


@pytest.mark.parametrize("name", ["halftone-dots", "patch-typicality"])
def test_quick_examples_reach_their_figures(name: str) -> None:
    metrics = recipes.execute(recipes.load_example(name)).metrics
    if name == "halftone-dots":
        assert metrics["psnr"] > metrics["baselines"]["random dots"] + 20
    else:
        assert metrics["mean_typicality"] < metrics["mean_typicality_of_references"] - 0.5
