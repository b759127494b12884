"""Jobs in blocks, real clients that work on them, and what must be left of both."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from napari_invprior import cli, jobs
from napari_invprior.blocks.job import start
from napari_invprior.blocks.plan import Plan
from napari_invprior.blocks.pool import Threads
from napari_invprior.samples import grey_volume

ROOT = Path(__file__).parents[2]
MARK = "INVPRIOR_TEST_CLIENT"
"""Environment variable by which the processes of a client are known, whoever their parent is."""
SIGMA = 0.05

# --- jobs ---------------------------------------------------------------------------------------


def serial_run(folder: Path, shape: tuple[int, int, int], steps: int = 2) -> Path:
    """A job that one thread has run, with two images; blocks take about 0.1 s (for two steps)."""
    truth = grey_volume(shape, seed=3)
    noise = np.random.default_rng(0).standard_normal(shape)
    np.save(folder / "noisy.npy", (truth + SIGMA * noise).astype(np.float32))
    np.save(folder / "reference.npy", grey_volume((40, 40, 40), seed=0))
    recipe = {
        "observation": {"path": str(folder / "noisy.npy")},
        "references": [{"path": str(folder / "reference.npy")}],
        "physics": {"kind": "denoising"}, "noise": {"kind": "gaussian", "sigma": SIGMA},
        "prior": {"kind": "gmm", "components": 3, "steps": 2, "patch_size": 4},
        "solver": {"kind": "half_quadratic", "steps": steps, "weight": 1.0},
        "maps": True, "blocks": {"edge": 24, "tolerance": 1e-3},
    }
    jobs.run(start(recipe, folder / "serial", pool=lambda: Threads(1, 1)))
    return folder / "serial"


def planned(serial: Path, folder: Path) -> Path:
    """The job as it was when it had been planned and no block was done."""
    (folder / "job").mkdir(parents=True)
    for path in (serial / "job").iterdir():
        if path.is_file():
            shutil.copy(path, folder / "job" / path.name)
    plan = Plan.load(folder)
    for image in plan.images(folder):
        image.create(plan.placement, plan.attributes, plan.scale)
    return folder


def done(folder: Path) -> dict[int, tuple[int, int]]:
    """Blocks that are noted as done, and which file says so."""
    found = {}
    for path in (folder / "job" / "done").glob("*.json"):
        with suppress(FileNotFoundError):
            found[int(path.stem)] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def count(folder: Path) -> int:
    """How many blocks there are."""
    return Plan.load(folder).grid.count


def assert_whole(folder: Path, serial: Path) -> None:
    """The job is finished, to the bit what the serial run is, and nothing else is left."""
    files, expected = _files(folder / "result.ome.zarr"), _files(serial / "result.ome.zarr")
    assert sorted(files) == sorted(expected)
    for name, path in files.items():
        assert path.read_bytes() == expected[name].read_bytes(), name
    assert sorted(os.listdir(folder)) == sorted(os.listdir(serial))
    assert sorted(_files(folder / "job")) == sorted(_files(serial / "job"))
    for name in _files(folder / "job" / "done"):
        one, other = (json.loads((f / "job" / "done" / name).read_text()) for f in (folder, serial))
        changing = {"seconds": 0, "sha256": ""}
        assert one | changing == other | changing
    assert (folder / "recipe.json").read_bytes() == (serial / "recipe.json").read_bytes()
    one, other = (json.loads((f / "metrics.json").read_text())["metrics"] for f in (folder, serial))
    assert one | {"block_seconds": 0} == other | {"block_seconds": 0}


def assert_nothing_torn(folder: Path) -> None:
    """An unfinished job whose client has ended by itself holds no lock and no halves of files."""
    names = [path.name for path in folder.rglob("*")]
    bad = [n for n in names if n.endswith((".partial", ".tmp")) or n in ("lock.json", "stop")]
    assert not bad


def _files(folder: Path) -> dict[str, Path]:
    return {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}


# --- clients ------------------------------------------------------------------------------------


@dataclass
class Client:
    """``invprior resume`` in a process of its own."""

    process: subprocess.Popen[str]
    mark: str
    began: float = field(default_factory=time.monotonic)

    @property
    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        return [
            p for p in psutil.Process(self.process.pid).children(recursive=True)
            if "spawn_main" in " ".join(p.cmdline())
        ]

    def wait(self, seconds: float = 300) -> tuple[int, str]:
        """Exit code and what it said."""
        _, said = self.process.communicate(timeout=seconds)
        return self.process.returncode, said

    def end(self) -> None:
        """Kill whatever is left of it."""
        for process in marked(self.mark):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.communicate()


def client(folder: Path, *options: str, **environment: str) -> Client:
    """Start a client that goes on with a job."""
    mark = uuid.uuid4().hex
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-m", "napari_invprior.cli", "resume", str(folder), "--json", *options],
        env=os.environ | {MARK: mark, "PYTHONPATH": path} | environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )
    return Client(process, mark)


def marked(mark: str) -> list[psutil.Process]:
    """Processes of a client that still run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def until(condition: Callable[[], Any], seconds: float = 120, what: str = "") -> float:
    """Wait for something; how long it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, f"{what or condition} took over {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - begin


# --- quick clients: processes that have imported everything already ------------------------------

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["napari_invprior.blocks.job", __name__])


@dataclass
class Quick:
    """``invprior resume`` without workers, in a process that begins at once."""

    process: Any
    report: Path

    def wait(self, seconds: float = 120) -> tuple[int, str]:
        """Exit code and what it said."""
        self.process.join(seconds)
        assert not self.process.is_alive()
        return self.process.exitcode, self.report.read_text()


def quick(folder: Path, fault: Callable[[], None] | None = None) -> Quick:
    """Start a client that goes on with a job; ``fault`` is called in it first."""
    report = folder.parent / f"report-{uuid.uuid4().hex}.txt"
    process = _forks.Process(target=_resume, args=(str(folder), str(report), fault), daemon=True)
    process.start()
    return Quick(process, report)


def _resume(folder: str, report: str, fault: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    handle = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    import torch

    torch.set_num_threads(1)
    if fault is not None:
        fault()
    cli.app(["resume", folder, "--json"])


@dataclass(frozen=True)
class DieAt:
    """SIGKILL itself at the n-th rename to a path that matches, before or after it."""

    pattern: str
    nth: int
    before: bool

    def __call__(self) -> None:
        right, seen = Path.replace, 0

        def replace(path: Path, target: Any) -> Path:
            nonlocal seen
            hit = re.search(self.pattern, str(target)) is not None
            seen += hit
            last = hit and seen == self.nth
            if last and self.before:
                os.kill(os.getpid(), signal.SIGKILL)
            found = right(path, target)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        Path.replace = replace  # type: ignore[method-assign]

