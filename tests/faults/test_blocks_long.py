"""The long runs of what ``test_blocks.py`` does once: many kills, a minute of standstill, clusters.

They print rows for ``docs/reliability.md``.
"""

from __future__ import annotations

import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from napari_invprior import jobs
from napari_invprior.blocks.job import resume
from napari_invprior.blocks.journal import Journal
from napari_invprior.blocks.pool import Cluster
from tests.faults.clients import (
    DieAt,
    assert_nothing_torn,
    assert_whole,
    client,
    count,
    done,
    marked,
    planned,
    serial_run,
    until,
)
from tests.faults.test_blocks import (
    ENTRY,
    GROUP,
    METRICS,
    SHARD,
    Borrowed,
    ask_to_end,
    finish,
    kill_a_worker,
    kill_at_a_rename,
    kill_the_client,
    stop_a_worker,
    stop_the_client,
)

pytestmark = pytest.mark.faults


@pytest.fixture(scope="session")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of 54 blocks that was run without any fault."""
    return serial_run(tmp_path_factory.mktemp("long"), (144, 72, 72))


def repeated(what: str, folder: Path, runs: list[Callable[[Path], dict[str, Any]]]) -> None:
    """Do something several times; print how often it went well, and what was seen."""
    well, seen = 0, []
    for number, run in enumerate(runs):
        place = folder / f"run {number}" / "job"
        place.parent.mkdir()
        try:
            seen.append(run(place))
        except AssertionError as error:
            print(f"{what}: run {number} failed: {str(error)[:500]}")
            continue
        well += 1
        shutil.rmtree(place.parent)
    figures = {
        key: sorted({found[key] for found in seen}) for key in (seen[0] if seen else {})
    }
    told = "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in figures.items())
    print(f"| {what} | {well} of {len(runs)} | {told} |")
    assert well == len(runs)


# --- kills --------------------------------------------------------------------------------------


def test_ten_workers_are_killed(serial: Path, tmp_path: Path) -> None:
    repeated("SIGKILL of one of three workers", tmp_path, [
        lambda folder, seed=seed: kill_a_worker(serial, folder, 3, seed) for seed in range(10)
    ])


def test_five_clients_are_killed(serial: Path, tmp_path: Path) -> None:
    repeated("SIGKILL of a client with three workers", tmp_path, [
        lambda folder, seed=seed: kill_the_client(serial, folder, 3, seed) for seed in range(5)
    ])


@pytest.mark.parametrize(("what", "pattern", "most"), [
    ("a shard", SHARD, 4 * 54), ("a note of the journal", ENTRY, 54),
    ("a finished image", GROUP, 2), ("the figures", METRICS, 1),
])  # fmt: skip
def test_clients_are_killed_while_they_rename(
    serial: Path, tmp_path: Path, what: str, pattern: str, most: int
) -> None:
    """Five times at random places, before and after the rename by turns."""
    generator = random.Random(1)
    faults = [DieAt(pattern, generator.randint(1, most), before=i % 2 == 0) for i in range(5)]
    repeated(f"SIGKILL while {what} is renamed", tmp_path, [
        lambda folder, fault=fault: kill_at_a_rename(serial, folder, fault) for fault in faults
    ])


def test_a_block_kills_its_workers(serial: Path, tmp_path: Path) -> None:
    """A crash in a library over one block: named alone, the others are done."""
    poison = tmp_path / "poison.py"
    poison.write_text(
        "import os, signal\n"
        "from napari_invprior.blocks import task\n"
        "right = task.compute\n"
        "def compute(agreed, inputs, block, *rest):\n"
        "    if block.index == 7:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return right(agreed, inputs, block, *rest)\n"
        "def dask_setup(worker):\n"
        "    task.compute = compute\n"
    )
    folder = planned(serial, tmp_path / "job")
    running = client(
        folder, "--workers", "3", DASK_DISTRIBUTED__WORKER__PRELOAD=str(poison)
    )
    begin = time.monotonic()
    try:
        code, said = running.wait(600)
    finally:
        running.end()
    assert code == 3
    assert "1 of 54 blocks failed" in said and "7: block 7: 5 workers died over it" in said, said
    assert sorted(done(folder)) == [i for i in range(54) if i != 7]
    assert_nothing_torn(folder)
    assert finish(folder, serial) == [7]
    print(f"| a block that kills its worker | named after 5 | {time.monotonic() - begin:.0f} s |")


# --- stops --------------------------------------------------------------------------------------


def test_a_minute_of_standstill(serial: Path, tmp_path: Path) -> None:
    repeated("SIGSTOP of a worker for 60 s", tmp_path, [
        lambda folder: stop_a_worker(serial, folder, 3, 60)
    ])


def test_a_minute_of_standstill_of_the_client(serial: Path, tmp_path: Path) -> None:
    repeated("SIGSTOP of the client for 60 s", tmp_path, [
        lambda folder: stop_the_client(serial, folder, 3, 60)
    ])


def test_a_worker_that_never_goes_on(serial: Path, tmp_path: Path) -> None:
    """Without a heartbeat (for five minutes; seconds here) its blocks are given to others."""
    folder = planned(serial, tmp_path / "job")
    running = client(
        folder, "--workers", "3", DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="5s"
    )
    try:
        until(lambda: len(done(folder)) >= 2, what="the first blocks")
        running.workers[0].suspend()
        code, said = running.wait(300)
        assert code == 0, said
        until(lambda: not marked(running.mark), 30, "the end of the stopped worker")
    finally:
        running.end()
    assert_whole(folder, serial)
    print("| SIGSTOP of a worker for good | replaced | |")


@pytest.mark.parametrize(("number", "name"), [
    (signal.SIGTERM, "SIGTERM to the client"), (signal.SIGINT, "Ctrl-C (SIGINT to all of them)"),
])  # fmt: skip
def test_a_client_with_workers_is_asked_to_end(
    serial: Path, tmp_path: Path, number: int, name: str
) -> None:
    def run(folder: Path) -> dict[str, Any]:
        planned(serial, folder)
        running = client(folder, "--workers", "3")
        try:
            found = ask_to_end(serial, folder, running, running.process.pid, number)
            until(lambda: not marked(running.mark), 30, "the end of the workers")
        finally:
            running.end()
        return found

    repeated(name, tmp_path, [run] * 3)


# --- a cluster of its own -----------------------------------------------------------------------


class Scheduler:
    """A dask scheduler and its workers, as somebody starts them by hand."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self._options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
            "--scheduler-file", str(self.file),
        )
        until(self.file.exists, 60, "the scheduler")

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", *arguments]
        self.processes.append(subprocess.Popen(command, **self._options))  # type: ignore[call-overload]
        return self.processes[-1]

    def worker(self) -> subprocess.Popen[bytes]:
        """One more worker, without a nanny that would start it again."""
        return self._start(
            "worker", "--scheduler-file", str(self.file), "--nthreads", "1", "--no-nanny",
            "--no-dashboard", "--host", "127.0.0.1",
        )

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Scheduler]:
    found = Scheduler(tmp_path)
    yield found
    found.end()


def test_machines_leave_and_join_a_cluster(
    serial: Path, tmp_path: Path, scheduler: Scheduler
) -> None:
    folder = planned(serial, tmp_path / "job")
    workers = [scheduler.worker() for _ in range(2)]
    running = client(folder, "--cluster", str(scheduler.file))
    try:
        until(lambda: len(done(folder)) >= 5, what="the first blocks")
        for worker in workers:
            worker.kill()
        time.sleep(1)
        left = count(folder) - len(done(folder))
        assert left
        scheduler.worker()
        code, said = running.wait()
        assert code == 0, said
    finally:
        running.end()
    assert_whole(folder, serial)
    print(f"| all machines leave a cluster, another one joins | went on | {left} blocks left |")


def test_the_scheduler_of_a_cluster_is_killed(
    serial: Path, tmp_path: Path, scheduler: Scheduler
) -> None:
    folder = planned(serial, tmp_path / "job")
    scheduler.worker()
    running = client(folder, "--cluster", str(scheduler.file))
    try:
        until(lambda: len(done(folder)) >= 5, what="the first blocks")
        scheduler.scheduler.kill()
        begin = time.monotonic()
        code, said = running.wait(180)
        seconds = time.monotonic() - begin
    finally:
        running.end()
    assert (code, "the dask scheduler is gone" in said) == (3, True), said
    assert_nothing_torn(folder)
    left = count(folder) - len(done(folder))
    assert len(finish(folder, serial)) == left > 0
    print(f"| SIGKILL of a cluster's scheduler | told after {seconds:.0f} s | {left} resumed |")


def test_a_client_of_a_cluster_is_killed(
    serial: Path, tmp_path: Path, scheduler: Scheduler
) -> None:
    """Its workers live on; they write nothing for a client that is gone, and serve the next."""
    folder = planned(serial, tmp_path / "job")
    for _ in range(2):
        scheduler.worker()
    running = client(folder, "--cluster", str(scheduler.file))
    try:
        until(lambda: len(done(folder)) >= 5, what="the first blocks")
        running.process.kill()
    finally:
        running.end()
    jobs.run(resume(folder, pool=lambda: Cluster(str(scheduler.file))))
    assert_whole(folder, serial)
    print("| SIGKILL of a client of a cluster | taken over at once | |")


# --- speed --------------------------------------------------------------------------------------


def test_strong_scaling(tmp_path: Path) -> None:
    """From one worker to two, three times; the machine may be shared, so nothing is asserted.

    Beside it stands what two busy loops at once gain over one: more than that is not to be had.
    """
    serial = serial_run(tmp_path, (144, 72, 24), steps=12)
    each = statistics.median(entry.seconds for entry in Journal(serial / "job").done())
    pools = {n: Cluster(workers=n) for n in (1, 2)}
    ratios, possible = [], []
    try:
        for run in range(4):
            seconds = {}
            for n, pool in pools.items():
                folder = planned(serial, tmp_path / f"{run} {n}")
                begin = time.monotonic()
                jobs.run(resume(folder, pool=lambda pool=pool: Borrowed(pool)))
                seconds[n] = time.monotonic() - begin
                assert_whole(folder, serial)
            if run:  # the first one lets the workers import what they need
                ratios.append(seconds[1] / seconds[2])
                possible.append(turns(2) / turns(1))
    finally:
        for pool in pools.values():
            pool.close()
    print(
        f"| one worker to two, {psutil.cpu_count()} cores | {max(ratios):.2f} times at best, "
        f"{statistics.median(ratios):.2f} in the median; possible: {max(possible):.2f} and "
        f"{statistics.median(possible):.2f} | blocks of {each:.2f} s |"
    )


def turns(processes: int) -> int:
    """How many turns so many processes do in three seconds."""
    code = (
        "import time\nend, n = time.monotonic() + 3, 0\n"
        "while time.monotonic() < end:\n    n += 1\nprint(n)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        for _ in range(processes)
    ]
    return sum(int(process.communicate()[0]) for process in running)
