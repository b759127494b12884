"""A job from start to end: cancelled, resumed, refused; frames, masks, samples, maps, clusters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_invprior import jobs
from napari_invprior.blocks import catalogue, task
from napari_invprior.blocks.job import discard, needs_blocks, resume, start
from napari_invprior.blocks.journal import Journal
from napari_invprior.blocks.plan import Plan
from napari_invprior.blocks.pool import Cluster, Threads
from napari_invprior.errors import Cancelled, InvalidInput, JobError, OutOfMemory
from napari_invprior.io.images import image_from_array
from napari_invprior.io.omezarr import attributes, read_image
from napari_invprior.recipes.model import Recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, material: Path) -> Path:
    """A job that one thread has run."""
    folder = tmp_path_factory.mktemp("finished") / "job of å"
    recipe = {
        "title": "a quick one",
        "observation": {"path": str(material / "noisy.npy")},
        "references": [{"path": str(material / "reference.npy")}],
        "physics": {"kind": "denoising"}, "noise": {"kind": "gaussian", "sigma": 0.05},
        "prior": {"kind": "gmm", "components": 5, "steps": 4},
        "solver": {"kind": "half_quadratic", "steps": 4, "weight": 1.0}, "blocks": {"edge": 64},
    }
    place = tmp_path_factory.mktemp("known")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("napari_invprior.blocks.catalogue.user_data_path", lambda *_, **__: place)
        jobs.run(start(recipe, folder))
    return folder


def result(folder: Path) -> np.ndarray:
    return read_image(folder / "result.ome.zarr" / "reconstruction").array[0, 0]


def copied(finished: Path, folder: Path, done: int) -> Path:
    """A copy of the finished job as if it had been killed after some blocks."""
    shutil.copytree(finished, folder)
    group = folder / "result.ome.zarr" / "reconstruction"
    group.rename(group.with_name("reconstruction-incomplete"))
    (folder / "metrics.json").unlink()
    for path in sorted((folder / "job" / "done").glob("*.json"))[done:]:
        entry = json.loads(path.read_text())
        for name, _ in entry["files"]:
            shard = name.removeprefix("reconstruction/")
            (group.with_name("reconstruction-incomplete") / shard).unlink()
        path.unlink()
    return folder


def states(job: jobs.Job) -> dict[str, list[int]]:
    """Blocks by what was said of them."""
    found: dict[str, list[int]] = {}

    def note(event: Any) -> None:
        if isinstance(event, jobs.Blocks):
            found.setdefault(event.state, []).extend(event.indices)

    jobs.run(job, note)
    return found


def test_what_a_finished_job_leaves(finished: Path) -> None:
    facts = attributes(finished / "result.ome.zarr" / "reconstruction")
    assert facts["complete"] is True
    assert facts["recipe"]["solver"]["weight"] == 1.0
    assert set(facts["blocks"]) == {"core", "halo", "level", "job"}
    metrics = json.loads((finished / "metrics.json").read_text())["metrics"]
    assert 0.3 < metrics["residual_ratio"] < 1.1
    assert metrics["blocks"] == 8
    again = Recipe.parse((finished / "recipe.json").read_text())
    assert again.blocks is not None
    info = catalogue.info(finished)
    assert (info.state, info.done, info.failed, info.total) == ("finished", 8, 0, 8)
    assert info.title == "a quick one"
    assert not list(finished.rglob("*.partial"))
    assert not (finished / "job" / "lock.json").exists()
    assert not (finished / "job" / "stop").exists()


def test_resuming_runs_only_what_is_left(finished: Path, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path / "half", done=3)
    assert catalogue.info(folder).state == "unfinished"
    found = states(resume(folder))
    assert found["done"][:3] == [0, 1, 2]
    assert found["running"] == [3, 4, 5, 6, 7]
    np.testing.assert_array_equal(result(folder), result(finished))
    # a finished job is only told
    assert "running" not in states(resume(folder))


def test_a_lost_or_torn_shard_is_computed_again(finished: Path, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path / "torn", done=8)
    first, second = (
        folder / "result.ome.zarr" / "reconstruction-incomplete" / "0" / "c" / "0" / "0" / name
        for name in ("0", "1")
    )
    first.write_bytes(first.read_bytes()[:-10])
    second.unlink()
    (folder / "job" / "done" / "000003.json").write_text("{broken")
    assert states(resume(folder))["running"] == [0, 1, 3]
    np.testing.assert_array_equal(result(folder), result(finished))


def test_a_cancelled_job_goes_on(recipe: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    folder, done = tmp_path / "job", 0

    def note(event: Any) -> None:
        nonlocal done
        done += isinstance(event, jobs.Blocks) and event.state == "done" and bool(event.indices)

    with pytest.raises(Cancelled, match=r"stopped; [23] of 8 blocks are done, 'invprior resume"):
        jobs.run(start(recipe, folder, should_stop=lambda: done >= 2), note)
    assert not (folder / "job" / "lock.json").exists()
    assert len(list(catalogue.known())) == 1
    jobs.run(resume(folder))
    np.testing.assert_array_equal(result(folder), result(finished))


def test_a_poison_block_is_named_and_the_others_finish(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(finished, tmp_path / "poison", done=0)
    right = task.compute

    def poisoned(agreed, inputs, block, *rest):
        if block.index == 5:
            raise ValueError("bad luck")
        return right(agreed, inputs, block, *rest)

    monkeypatch.setattr(task, "compute", poisoned)
    with pytest.raises(JobError, match=r"1 of 8 blocks failed.*5: ValueError: bad luck.*resume"):
        jobs.run(resume(folder))
    info = catalogue.info(folder)
    assert (info.done, info.failed, info.state) == (7, 1, "unfinished")
    monkeypatch.undo()
    assert states(resume(folder))["running"] == [5]
    np.testing.assert_array_equal(result(folder), result(finished))


def test_short_memory_halves_blocks(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(finished, tmp_path / "short", done=6)
    right, asked = task.compute, []

    def greedy(agreed, inputs, block, *rest):
        samples = np.prod([w.stop - w.start for w in block.window])
        asked.append(samples)
        if samples > 60_000:
            raise MemoryError("no room")
        return right(agreed, inputs, block, *rest)

    monkeypatch.setattr(task, "compute", greedy)
    jobs.run(resume(folder))
    entries = {e.index: e for e in Journal(folder / "job").done()}
    assert entries[6].parts > 1
    assert np.abs(result(folder) - result(finished)).max() <= 1e-5
    monkeypatch.setattr(task, "compute", lambda *_: (_ for _ in ()).throw(MemoryError("none")))
    other = copied(finished, tmp_path / "none", done=7)
    with pytest.raises(JobError, match=r"1 of 8 blocks failed.*memory"):
        jobs.run(resume(other))


def test_places_that_are_taken_are_refused(
    recipe: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="holds a job already; go on with it"):
        jobs.run(start(recipe, finished))
    (tmp_path / "old" / "result.ome.zarr" / "reconstruction").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="holds a result already"):
        jobs.run(start(recipe, tmp_path / "old"))
    with pytest.raises(InvalidInput, match="holds no job"):
        jobs.run(resume(tmp_path))
    with pytest.raises(OutOfMemory, match="GB are allowed: use fewer workers"):
        jobs.run(start(recipe, tmp_path / "small", memory=1_000_000))


def test_an_input_that_changed_is_noticed(
    recipe: dict[str, Any], material: Path, tmp_path: Path
) -> None:
    path = tmp_path / "own.npy"
    shutil.copy(material / "noisy.npy", path)
    recipe["observation"] = {"path": str(path)}
    planned = []

    def note(event: Any) -> None:
        planned.extend([event] if isinstance(event, jobs.Planned) else [])

    with pytest.raises(Cancelled):
        jobs.run(start(recipe, tmp_path / "job", should_stop=lambda: bool(planned)), note)
    np.save(path, np.load(path) + 0.01)
    with pytest.raises(InvalidInput, match=r"observation of the job in .* changed since it began"):
        jobs.run(resume(tmp_path / "job"))


def test_discarding_keeps_what_is_finished(finished: Path, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path / "half", done=3)
    discard(folder)
    assert not (folder / "job").exists()
    assert not list((folder / "result.ome.zarr").glob("*-incomplete"))
    shutil.copytree(finished, tmp_path / "whole")
    discard(tmp_path / "whole")
    np.testing.assert_array_equal(result(tmp_path / "whole"), result(finished))


def test_arrays_in_memory_are_kept_for_later(
    recipe: dict[str, Any], material: Path, finished: Path, tmp_path: Path
) -> None:
    volume = image_from_array(np.load(material / "noisy.npy"), name="v", ndim=3)
    recipe["observation"] = {"layer": "v"}
    jobs.run(start(recipe, tmp_path / "job", arrays={"v": volume}))
    plan = Plan.load(tmp_path / "job")
    assert plan.recipe["observation"]["path"].endswith("observation.ome.zarr")
    assert np.abs(result(tmp_path / "job") - result(finished)).max() <= 1e-5


def test_frames_and_channels(material: Path, tmp_path: Path) -> None:
    plane = np.load(material / "noisy.npy")[:, :, :2].transpose(2, 0, 1)  # two channels
    movie = np.stack([plane, plane[:, ::-1]])
    stack = image_from_array(movie, name="m", channel_axis=1, ndim=2)
    outcome = jobs.run(start({
        "observation": {"layer": "m"}, "physics": {"kind": "denoising"}, "prior": None,
        "noise": {"kind": "gaussian", "sigma": 0.05}, "blocks": {"edge": 64},
        "solver": {"kind": "total_variation", "weight": 4.0, "iterations": 40},
    }, tmp_path / "job", arrays={"m": stack}))
    found = read_image(tmp_path / "job" / "result.ome.zarr" / "reconstruction")
    assert (found.array.shape, outcome.metrics["blocks"]) == ((2, 2, 100, 80), 8)
    # the second frame is the first one upside down
    assert np.abs(found.array[1, :, ::-1] - found.array[0]).mean() < 0.01


def test_samples_in_blocks(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe |= {
        "task": "sample", "blocks": {"edge": 72}, "observation": recipe["observation"] | {
            "crop": [[0, 100], [0, 32], [0, 32]]},
        "sampler": {"kind": "underdamped", "samples": 4, "chains": 2, "steps": 12, "warm_up": 4},
    }
    outcome = jobs.run(start(recipe, tmp_path / "job"))
    names = {layer.name for layer in outcome.layers}
    assert {"reconstruction", "mean", "std", "quantile_5", "quantile_95"} <= names
    assert "samples" not in names
    layers = {layer.name: np.asarray(layer.array) for layer in outcome.layers}
    assert layers["std"].shape == (100, 32, 32)
    assert (layers["quantile_5"] <= layers["quantile_95"] + 1e-6).all()
    assert 0 < layers["std"].mean() < 0.2


def test_maps_in_blocks(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe |= {"maps": True, "observation": recipe["observation"] | {
        "crop": [[0, 100], [0, 24], [0, 24]]}}
    outcome = jobs.run(start(recipe, tmp_path / "job"))
    found = {layer.name: layer for layer in outcome.layers}
    assert set(found) == {"reconstruction", "potential"}
    assert found["potential"].unit == "own"
    assert np.isfinite(np.asarray(found["potential"].array)).all()


def test_memory_decides_whether_blocks_are_needed(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    del recipe["blocks"]
    assert not needs_blocks(Recipe.parse(recipe))
    monkeypatch.setattr("napari_invprior.blocks.job.memory_limit", lambda: 1000)
    assert needs_blocks(Recipe.parse(recipe))


def test_threads_side_by_side_and_processes_give_the_same(finished: Path, tmp_path: Path) -> None:
    two = copied(finished, tmp_path / "two", done=4)
    jobs.run(resume(two, pool=lambda: Threads(2, 2)))
    np.testing.assert_array_equal(result(two), result(finished))
    cluster = copied(finished, tmp_path / "cluster", done=5)
    found = states(resume(cluster, pool=lambda: Cluster(workers=2)))
    assert sorted(found["running"]) == [5, 6, 7]
    np.testing.assert_array_equal(result(cluster), result(finished))


def test_gpu_blocks_go_to_workers_that_have_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(finished, tmp_path / "gpu", done=6)
    monkeypatch.setattr("napari_invprior.blocks.pool.PATIENCE", 1.0)
    with Cluster(workers=1) as without:
        address = without._cluster.scheduler_address
        with pytest.raises(JobError, match="no worker with the resource GPU"):
            jobs.run(resume(folder, pool=lambda: Cluster(address, gpu=True)))
    assert Journal(folder / "job").count() == 6
    monkeypatch.setattr("napari_invprior.blocks.pool.PATIENCE", 60.0)
    jobs.run(resume(folder, pool=lambda: Cluster(workers=1, gpu=True)))
    np.testing.assert_array_equal(result(folder), result(finished))


def test_a_scheduler_that_does_not_answer(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_invprior.blocks.pool.CONNECT", 1.0)
    folder = copied(finished, tmp_path / "nobody", done=7)
    with pytest.raises(InvalidInput, match=r"no dask scheduler answers at 'tcp:"):
        jobs.run(resume(folder, pool=lambda: Cluster("tcp://127.0.0.1:9")))
