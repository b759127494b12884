"""Volumes of 0.5 and 2 GB within 1.5 GB of memory, from disk to disk, through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from napari_invprior.blocks import catalogue
from napari_invprior.io.volume import open_volume
from napari_invprior.samples import grey_volume
from napari_invprior.sources import Source

SIGMA = 0.05
LIMIT = 1.5e9
FAST = {
    "references": [], "physics": {"kind": "denoising"},
    "noise": {"kind": "gaussian", "sigma": SIGMA},
    "prior": {"kind": "gmm", "components": 10},
    "solver": {"kind": "half_quadratic", "steps": 6, "weight": 1.0},
}


def tiled(path: Path, shape: tuple[int, ...], dtype: str, seed: int = 3) -> np.ndarray:
    """A file of periodic material with noise, written slab by slab; the clean period."""
    period = grey_volume((64, 128, 128), seed=seed)
    generator = np.random.default_rng(0)
    volume = np.lib.format.open_memmap(path, "w+", dtype, shape)
    across = np.tile(period, (1, shape[1] // 128, shape[2] // 128))
    for start in range(0, shape[0], 16):
        slab = across[np.arange(start, start + 16) % 64]
        slab = slab + SIGMA * generator.standard_normal(slab.shape, np.float32)
        if dtype == "uint8":
            slab = np.clip(np.rint(255 * slab), 0, 255)
        volume[start : start + 16] = slab
    volume.flush()
    return period


def recipe_file(folder: Path, **changes: object) -> Path:
    np.save(folder / "reference.npy", grey_volume((48, 48, 48), seed=0))
    path = folder / "recipe.json"
    path.write_text(json.dumps(FAST | {
        "references": [{"path": str(folder / "reference.npy")}],
        "observation": {"path": str(folder / "volume.npy"), "dtype_range": changes.pop("range")},
    } | changes))
    return path


def command(*arguments: object, folder: Path) -> subprocess.Popen[str]:
    """`invprior ...` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "napari_invprior.cli", *map(str, arguments)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"XDG_DATA_HOME": str(folder / "known")},
    )


def peak_of(process: subprocess.Popen[str], until) -> float:
    """Largest resident memory of a process until a condition holds, bytes."""
    peak, watched = 0.0, psutil.Process(process.pid)
    while process.poll() is None and not until():
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    return peak


@pytest.mark.slow
def test_half_a_gigabyte_is_denoised_within_a_gigabyte_and_a_half(tmp_path: Path) -> None:
    period = tiled(tmp_path / "volume.npy", (512, 512, 512), "float32")
    recipe = recipe_file(tmp_path, range=[0, 1])
    process = command("run", recipe, "--out", tmp_path / "out", "--memory", 0.7, "--json",
                      "--set", "blocks={}", folder=tmp_path)
    begin = time.monotonic()
    peak = peak_of(process, lambda: False)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    seconds = time.monotonic() - begin
    report = json.loads(out.strip().split("\n")[-1])
    found = open_volume(Source(path=str(tmp_path / "out" / "result.ome.zarr" / "reconstruction")))
    error = noise = 0.0
    noisy = open_volume(Source(path=str(tmp_path / "volume.npy")))
    for start in range(0, 512, 64):
        window = (slice(start, start + 64), slice(0, 512), slice(0, 512))
        truth = np.tile(period, (1, 4, 4))
        error += float(np.square(found.read(0, window)[0] - truth).mean()) / 8
        noise += float(np.square(noisy.read(0, window)[0] - truth).mean()) / 8
    print(f"\n512^3 float32: {seconds:.0f} s, {report['metrics']['blocks']} blocks, peak "
          f"{max(peak, 1e6 * report['peak_memory_mb']) / 1e9:.2f} GB; "
          f"{-10 * np.log10(error):.2f} dB (data {-10 * np.log10(noise):.2f} dB)")
    assert max(peak, 1e6 * report["peak_memory_mb"]) < LIMIT
    assert -10 * np.log10(error) > -10 * np.log10(noise) + 4


@pytest.mark.slow
def test_two_billion_voxels_start_stop_and_go_on(tmp_path: Path) -> None:
    tiled(tmp_path / "volume.npy", (2048, 2048, 512), "uint8")
    recipe = recipe_file(tmp_path, range=[0, 255])
    out = tmp_path / "out"
    peaks, begun = [], 0
    for arguments in (("run", recipe, "--out", out, "--memory", 0.7, "--set", "blocks={}"),
                      ("resume", out)):
        process = command(*arguments, folder=tmp_path)
        wanted = begun + 10
        peaks.append(peak_of(
            process, lambda wanted=wanted: catalogue.info(out).done >= wanted
        ))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert "resume" in errors
        info = catalogue.info(out)
        assert info.done >= wanted
        assert info.state == "unfinished"
        begun = info.done
    print(f"\n2048 x 2048 x 512: {begun} of {info.total} blocks in two runs, peak "
          f"{max(peaks) / 1e9:.2f} GB")
    assert begun >= 20
    assert max(peaks) < LIMIT
