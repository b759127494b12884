"""Nothing of a job in blocks is lost: kills, stops, poison, full disks, two clients, bad files.

Each ends with a result that is to the bit that of a serial run without faults. The long runs of
the same scenarios are in ``test_blocks_long.py``.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from napari_invprior import cli, jobs
from napari_invprior.blocks import task
from napari_invprior.blocks.job import resume
from napari_invprior.blocks.journal import Journal
from napari_invprior.blocks.lock import JobLock, Locked, holder, owner_is_gone
from napari_invprior.blocks.output import BlockedImage
from napari_invprior.blocks.plan import Plan
from napari_invprior.blocks.pool import Cluster, Threads
from napari_invprior.errors import JobError
from tests.faults.clients import (
    Client,
    DieAt,
    assert_nothing_torn,
    assert_whole,
    client,
    count,
    done,
    marked,
    planned,
    quick,
    until,
)

SHARD, ENTRY, GROUP, METRICS = r"/c/\d", r"/done/\d+\.json$", r"ome\.zarr/\w+$", r"metrics\.json$"
"""What is renamed to its place: a shard, a note in the journal, a finished image, the figures."""


def command(*arguments: str) -> tuple[int, str]:
    """The command line in this process: exit code and what it said."""
    result = CliRunner().invoke(cli.app, list(arguments))
    return result.exit_code, result.stderr


def finish(folder: Path, serial: Path) -> list[int]:
    """Go on with a job to its end; the blocks that were computed for it."""
    before = done(folder)
    jobs.run(resume(folder, pool=lambda: Threads(1, 1)))
    after = done(folder)
    assert_whole(folder, serial)
    again = [i for i in before if after[i] != before[i]]
    assert not again, f"blocks {again} were done and computed once more"
    return sorted(set(after) - set(before))


# --- kills --------------------------------------------------------------------------------------


def kill_a_worker(serial: Path, folder: Path, workers: int, seed: int) -> dict[str, Any]:
    """SIGKILL one of some workers at a random block; the client must notice nothing."""
    generator = random.Random(seed)
    planned(serial, folder)
    after = generator.randrange(1, count(folder) // 2)
    running = client(folder, "--workers", str(workers))
    try:
        until(lambda: len(done(folder)) >= after, what="the first blocks")
        victim = generator.choice(running.workers)
        victim.kill()
        left = count(folder) - len(done(folder))
        code, said = running.wait()
        assert code == 0, said
    finally:
        running.end()
    assert_whole(folder, serial)
    return {"killed after": after, "left": left}


def kill_the_client(serial: Path, folder: Path, workers: int, seed: int) -> dict[str, Any]:
    """SIGKILL the client at a random block; its workers die, a new one runs what is left."""
    planned(serial, folder)
    after = random.Random(seed).randrange(1, count(folder) // 2)
    running = client(folder, "--workers", str(workers))
    try:
        until(lambda: len(done(folder)) >= after, what="the first blocks")
        seconds = kill_with_its_workers(running)
    finally:
        running.end()
    return finish_what_is_left(serial, folder, after) | {"workers gone after": round(seconds, 2)}


def kill_with_its_workers(running: Client) -> float:
    """SIGKILL a client; how long its workers live on."""
    assert len(marked(running.mark)) >= 3
    running.process.kill()
    return until(lambda: not marked(running.mark), 30, "the end of the workers")


def finish_what_is_left(serial: Path, folder: Path, least: int) -> dict[str, Any]:
    """Go on with a job: what is not done is computed, and nothing else."""
    before = done(folder)
    assert least <= len(before) < count(folder)
    ran = finish(folder, serial)
    assert ran == sorted(set(range(count(folder))) - set(before))
    return {"done": len(before), "resumed": len(ran)}


def kill_at_a_rename(serial: Path, folder: Path, fault: DieAt) -> dict[str, Any]:
    """SIGKILL a client right before or after it renames something to its place."""
    planned(serial, folder)
    code, said = quick(folder, fault).wait()
    assert code == -signal.SIGKILL, said
    before = done(folder)
    ran = finish(folder, serial)
    assert ran == sorted(set(range(count(folder))) - set(before))
    return {"done": len(before), "resumed": len(ran)}


def test_a_worker_is_killed(serial: Path, tmp_path: Path, cluster: Cluster) -> None:
    folder, ended = planned(serial, tmp_path / "job"), 0

    def note(event: Any) -> None:
        nonlocal ended
        ended += isinstance(event, jobs.Blocks) and event.state == "done" and bool(event.indices)
        if ended == 3:
            ended += 1
            pids(cluster)[0].kill()

    jobs.run(resume(folder, pool=lambda: Borrowed(cluster)), note)
    assert_whole(folder, serial)


@pytest.mark.parametrize("fault", [
    DieAt(SHARD, 11, before=True), DieAt(SHARD, 33, before=False), DieAt(ENTRY, 3, before=True),
    DieAt(GROUP, 2, before=True), DieAt(GROUP, 1, before=False), DieAt(METRICS, 1, before=True),
])  # fmt: skip
def test_the_client_is_killed_while_it_renames(
    serial: Path, tmp_path: Path, fault: DieAt
) -> None:
    kill_at_a_rename(serial, tmp_path / "job", fault)


def test_a_block_that_kills_its_worker_is_named_alone(
    serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool of workers that die over block 3, and take the other block of their queue with it."""
    folder = planned(serial, tmp_path / "job")
    monkeypatch.setattr("napari_invprior.blocks.pool.TICK", 0.01)
    fragile = Fragile(poison=3)
    with pytest.raises(JobError, match=r"1 of 8 blocks failed.*3: block 3: 5 workers died"):
        jobs.run(resume(folder, pool=lambda: fragile))
    assert sorted(done(folder)) == [i for i in range(8) if i != 3]
    assert_nothing_torn(folder)
    assert finish(folder, serial) == [3]


# --- pools --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two worker processes for several jobs."""
    with Cluster(workers=2) as pool:
        assert isinstance(pool, Cluster)
        yield pool


class Borrowed(Cluster):
    """A cluster that is not closed."""

    def __init__(self, cluster: Cluster) -> None:
        self.__dict__.update(cluster.__dict__)

    def close(self) -> None:
        pass


def pids(cluster: Cluster) -> list[psutil.Process]:
    """The worker processes of a cluster of this machine."""
    return [psutil.Process(nanny.pid) for nanny in cluster._cluster.workers.values()]


class Fragile(Cluster):
    """A cluster of one worker that dies over one block, with all blocks that it was given.

    It stands in for dask's client and its futures; blocks are computed when they are asked for.
    """

    status = "running"

    def __init__(self, poison: int) -> None:
        self.workers, self.threads, self._resources = 1, 1, {}
        self._cluster, self._client, self._poison = None, self, poison
        self._distributed = distributed
        self._queue: list[Fragile.Future] = []

    class Future:
        """Of one block."""

        def __init__(self, pool: Fragile, index: int, work: Any) -> None:
            self.pool, self.index, self.work = pool, index, work
            self.status, self.error = "pending", None

        def done(self) -> bool:
            if self.status == "pending":
                self.pool.step()
            return self.status != "pending"

        def exception(self) -> Exception | None:
            return self.error

    def _count(self) -> int:
        return 1

    def submit(self, work: Any, folder: str, index: int, token: str, **_: Any) -> Future:
        future = self.Future(self, index, lambda: work(folder, index, token))
        self._queue.append(future)
        return future

    def cancel(self, futures: list[Future]) -> None:
        pass

    def close(self) -> None:
        pass

    def step(self) -> None:
        """Compute the first block of the queue, or die over it."""
        if self._queue[0].index == self._poison:
            for future in self._queue:
                future.status = "error"
                future.error = distributed.KilledWorker(f"block-{future.index}", None, 0)
            self._queue.clear()
            return
        future = self._queue.pop(0)
        future.work()
        future.status = "finished"


# --- stops --------------------------------------------------------------------------------------


def stop_a_worker(serial: Path, folder: Path, workers: int, seconds: float) -> dict[str, Any]:
    """SIGSTOP one of some workers for a while; the others go on, and nothing is harmed."""
    planned(serial, folder)
    running = client(folder, "--workers", str(workers))
    try:
        until(lambda: len(done(folder)) >= 2, what="the first blocks")
        victim, before = running.workers[0], len(done(folder))
        victim.suspend()
        time.sleep(seconds)
        meanwhile = len(done(folder)) - before
        assert running.process.poll() is None
        victim.resume()
        code, said = running.wait()
        assert code == 0, said
    finally:
        running.end()
    assert_whole(folder, serial)
    return {"blocks meanwhile": meanwhile}


def stop_the_client(serial: Path, folder: Path, workers: int, seconds: float) -> dict[str, Any]:
    """SIGSTOP the client for a while; a second one is refused, and the first one ends well."""
    planned(serial, folder)
    running = client(folder, "--workers", str(workers))
    try:
        until(lambda: len(done(folder)) >= 2, what="the first blocks")
        refused_while_stopped(folder, running, seconds)
        code, said = running.wait()
        assert code == 0, said
    finally:
        running.end()
    assert_whole(folder, serial)
    return {"second client": "refused"}


def refused_while_stopped(folder: Path, running: Client, seconds: float) -> None:
    """A client that is merely stopped keeps its job."""
    os.kill(running.process.pid, signal.SIGSTOP)
    end = time.monotonic() + seconds
    code, said = quick(folder).wait()
    assert code == 3
    assert f"process {running.process.pid} on {platform.node()!r} works on this job" in said
    time.sleep(max(0.0, end - time.monotonic()))
    os.kill(running.process.pid, signal.SIGCONT)


def ask_to_end(serial: Path, folder: Path, running: Any, pid: int, number: int) -> dict[str, Any]:
    """Ask a client to end by a signal; it does within seconds, and the job goes on later."""
    until(lambda: len(done(folder)) >= 2, what="the first blocks")
    (os.killpg if number == signal.SIGINT else os.kill)(pid, number)
    begin = time.monotonic()
    code, said = running.wait(60)
    seconds = time.monotonic() - begin
    assert (code, "resume" in said) == (130, True), said
    assert_nothing_torn(folder)
    before = done(folder)
    assert len(before) < count(folder)
    ran = finish(folder, serial)
    return {"ended after": round(seconds, 1), "done": len(before), "resumed": len(ran)}


def test_a_worker_is_stopped_for_a_while(
    serial: Path, tmp_path: Path, cluster: Cluster
) -> None:
    folder, ended, back = planned(serial, tmp_path / "job"), 0, threading.Event()

    def note(event: Any) -> None:
        nonlocal ended
        ended += isinstance(event, jobs.Blocks) and event.state == "done" and bool(event.indices)
        if ended == 3:
            ended += 1
            victim = pids(cluster)[0]
            victim.suspend()
            threading.Timer(4, lambda: (back.set(), victim.resume())).start()

    jobs.run(resume(folder, pool=lambda: Borrowed(cluster)), note)
    assert back.is_set()
    assert_whole(folder, serial)


def test_the_client_is_stopped_for_a_while_and_then_killed(
    serial_of_24: Path, tmp_path: Path
) -> None:
    folder = planned(serial_of_24, tmp_path / "job")
    running = client(folder, "--workers", "2")
    try:
        until(lambda: len(done(folder)) >= 2, what="the first blocks")
        refused_while_stopped(folder, running, 4)
        until(lambda: len(done(folder)) >= 10, what="more blocks")
        kill_with_its_workers(running)
    finally:
        running.end()
    finish_what_is_left(serial_of_24, folder, 10)


def test_the_client_is_asked_to_end(serial: Path, tmp_path: Path) -> None:
    folder = planned(serial, tmp_path / "job")
    running = quick(folder)
    told = ask_to_end(serial, folder, running, running.process.pid, signal.SIGTERM)
    assert told["ended after"] < 10


def test_an_empty_stop_file_stops_and_one_of_another_client_does_not(
    serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = planned(serial, tmp_path / "job")
    right, stop = task.compute, folder / "job" / "stop"

    def compute(agreed: Any, inputs: Any, block: Any, *rest: Any) -> Any:
        if block.index in (2, 5):
            stop.write_text("another client" if block.index == 2 else "")
        return right(agreed, inputs, block, *rest)

    monkeypatch.setattr(task, "compute", compute)
    code, said = command("resume", str(folder))
    assert (code, "stopped; 5 of 8 blocks are done" in said) == (130, True), said
    assert_nothing_torn(folder)
    monkeypatch.undo()
    assert finish(folder, serial) == list(range(5, 8))


# --- poison -------------------------------------------------------------------------------------


def test_a_poison_block_is_named_and_the_others_finish(
    serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, right = planned(serial, tmp_path / "job"), task.compute

    def compute(agreed: Any, inputs: Any, block: Any, *rest: Any) -> Any:
        if block.index == 5:
            raise ValueError("bad luck")
        return right(agreed, inputs, block, *rest)

    monkeypatch.setattr(task, "compute", compute)
    code, said = command("resume", str(folder))
    assert code == 3
    assert "1 of 8 blocks failed, the others are done (5: ValueError: bad luck)" in said
    assert sorted(done(folder)) == [i for i in range(8) if i != 5]
    assert_nothing_torn(folder)
    monkeypatch.undo()
    assert finish(folder, serial) == [5]


def test_a_failure_that_cannot_be_noted_is_no_success(
    serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the worker nor by the client: the block is missing all the same."""
    folder = planned(serial, tmp_path / "job")

    def broken(*_: Any) -> Any:
        raise ValueError("bad luck")

    def record(*_: Any) -> None:
        raise JobError("permission denied")

    monkeypatch.setattr(task, "compute", broken)
    monkeypatch.setattr(Journal, "record", record)
    with pytest.raises(JobError, match="8 of 8 blocks are not done"):
        jobs.run(resume(folder))
    assert not (folder / "result.ome.zarr" / "reconstruction").exists()


# --- full disks ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 8 MB; where none can be mounted, one that says that it is full when it is told."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True
    ) if shutil.which("mount") else None  # fmt: skip
    if made is None or made.returncode:
        with pytest.MonkeyPatch.context() as patch:
            yield PretendedDisk(place, patch)
        return
    yield Disk(place)
    subprocess.run(["umount", str(place)], check=True)


class Disk:
    """A real one."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def fill(self, but: int = 0) -> None:
        """Leave so many bytes free."""
        free = shutil.disk_usage(self.place).free - but
        (self.place / "filler").write_bytes(bytes(free))

    def free(self) -> None:
        (self.place / "filler").unlink()


class PretendedDisk(Disk):
    """Everything that opens a file to write it fails while the disk is full."""

    def __init__(self, place: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(place)
        self.but: int | None = None
        opened, low, usage = Path.open, os.open, shutil.disk_usage

        def refuse(path: Any, writes: bool) -> None:
            if self.but == 0 and writes and place in Path(path).parents:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        def open_(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
            refuse(path, "w" in mode)
            return opened(path, mode, *rest, **options)

        def low_open(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            refuse(path, bool(flags & os.O_CREAT))
            return low(path, flags, *rest, **options)

        def disk_usage(path: Any) -> Any:
            return usage(path) if self.but is None else usage(path)._replace(free=self.but)

        patch.setattr(Path, "open", open_)
        patch.setattr(os, "open", low_open)
        patch.setattr(shutil, "disk_usage", disk_usage)

    def fill(self, but: int = 0) -> None:
        self.but = but

    def free(self) -> None:
        self.but = None


@pytest.mark.parametrize(("room", "at"), [(0, 3), (500_000, 5)], ids=["shard", "journal"])
def test_a_full_disk_stops_the_job_and_it_goes_on(
    serial: Path, small_disk: Disk, monkeypatch: pytest.MonkeyPatch, room: int, at: int
) -> None:
    """No room at all, or for shards but not for a note: a block without one is not done."""
    folder = planned(serial, small_disk.place / "job")
    right = task.compute

    def compute(agreed: Any, inputs: Any, block: Any, *rest: Any) -> Any:
        if block.index == at:
            small_disk.fill(room)
        return right(agreed, inputs, block, *rest)

    monkeypatch.setattr(task, "compute", compute)
    code, said = command("resume", str(folder))
    assert code == 3, said
    assert f"the {8 - at} blocks that are left need up to" in said
    assert ("the disk is full; a block needs up to" if room == 0 else "are needed") in said
    assert sorted(done(folder)) == list(range(at))
    assert_nothing_torn(folder)
    small_disk.free()
    monkeypatch.setattr(task, "compute", right)
    assert finish(folder, serial) == list(range(at, 8))


def test_a_disk_that_is_full_at_the_beginning_or_at_the_end(
    serial: Path, small_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = planned(serial, small_disk.place / "job")
    small_disk.fill()
    code, said = command("resume", str(folder))
    assert (code, "lock.json: could not be written (the disk is full" in said) == (3, True), said
    assert_nothing_torn(folder)
    small_disk.free()
    right = BlockedImage.finish

    def finish_(image: BlockedImage, *arguments: Any) -> None:
        small_disk.fill()
        right(image, *arguments)

    monkeypatch.setattr(BlockedImage, "finish", finish_)
    code, said = command("resume", str(folder))
    assert (code, "-incomplete: could not be written (the disk is full" in said) == (3, True), said
    assert len(done(folder)) == 8
    assert_nothing_torn(folder)
    small_disk.free()
    monkeypatch.undo()
    assert finish(folder, serial) == []


# --- two clients --------------------------------------------------------------------------------


def lock_of(folder: Path, **changes: Any) -> Path:
    """A lock as this process makes it, changed."""
    with JobLock(folder / "job"):
        found = holder(folder / "job")
    assert found is not None
    path = folder / "job" / "lock.json"
    path.write_text(json.dumps(found | changes))
    return path


def dead() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_second_client_is_refused_by_name(serial: Path, tmp_path: Path) -> None:
    folder = planned(serial, tmp_path / "job")
    with JobLock(folder / "job"):
        code, said = command("resume", str(folder))
        assert code == 3
        who = f"process {os.getpid()} on {platform.node()!r} works on this job"
        assert who in said.replace("\n", " ")
        assert not done(folder)


def test_the_lock_of_a_dead_process_is_taken_over_at_once(serial: Path, tmp_path: Path) -> None:
    folder = planned(serial, tmp_path / "job")
    begin = time.monotonic()
    for changes in ({"pid": dead()}, {"started": 1.0}):  # a number may be given out again
        path = lock_of(folder, token="dead", **changes)
        assert owner_is_gone(path)
    assert time.monotonic() - begin < 2
    assert len(finish(folder, serial)) == 8


def test_the_lock_of_another_machine_is_taken_over_when_it_is_silent(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    for changes in ({"host": "elsewhere"}, {"space": "pid:[1]"}):  # or of another container
        path = lock_of(tmp_path, token="other", **changes)
        beating = threading.Event()

        def beat(path: Path = path, beating: threading.Event = beating) -> None:
            told = json.loads(path.read_text())
            while not beating.wait(0.05):
                told["beat"] += 1
                path.with_suffix(".own").write_text(json.dumps(told))
                path.with_suffix(".own").replace(path)

        thread = threading.Thread(target=beat)
        thread.start()
        with pytest.raises(Locked, match="works on this job"):
            JobLock(tmp_path / "job", dead=0.5).__enter__()
        beating.set()
        thread.join()
        begin = time.monotonic()
        with JobLock(tmp_path / "job", dead=0.5) as lock:
            assert lock.is_held() and time.monotonic() - begin >= 0.5
    assert os.listdir(tmp_path / "job") == []


def test_of_two_that_take_a_lock_over_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have found the owner dead before either of them acts."""
    (tmp_path / "job").mkdir()
    both = threading.Barrier(2)
    monkeypatch.setattr(
        "napari_invprior.blocks.lock.owner_is_gone", lambda *_: bool(both.wait(10) + 1)
    )
    for _ in range(20):
        lock_of(tmp_path, token="dead", pid=dead())
        got: list[JobLock] = []

        def take(got: list[JobLock] = got) -> None:
            lock = JobLock(tmp_path / "job")
            try:
                lock.__enter__()
            except Locked:
                return
            got.append(lock)

        threads = [threading.Thread(target=take) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [lock.is_held() for lock in got] == [True]
        got[0].__exit__(None, None, None)
        assert os.listdir(tmp_path / "job") == []


def test_a_client_that_lost_its_lock_writes_nothing_more(
    serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, right = planned(serial, tmp_path / "job"), task.compute
    lock = folder / "job" / "lock.json"

    def compute(agreed: Any, inputs: Any, block: Any, *rest: Any) -> Any:
        yield from right(agreed, inputs, block, *rest)
        if block.index == 4:  # computed, and not written yet
            lock.write_text(json.dumps({"token": "other", "host": "elsewhere", "pid": 1}))

    monkeypatch.setattr(task, "compute", compute)
    with pytest.raises(JobError, match="another client has taken this job over"):
        jobs.run(resume(folder))
    assert sorted(done(folder)) == [0, 1, 2, 3]
    shards = [p for p in folder.rglob("*") if p.is_file() and "/0/c/" in str(p)]
    assert len(shards) == 2 * 4
    assert json.loads(lock.read_text())["token"] == "other"
    assert not (folder / "job" / "stop").exists()
    monkeypatch.undo()
    lock.unlink()
    assert finish(folder, serial) == list(range(4, 8))


def test_a_client_that_lost_its_lock_finishes_nothing(
    serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped behind the last block, and another client came meanwhile."""
    folder = planned(serial, tmp_path / "job")
    lock, right = folder / "job" / "lock.json", Journal.failed

    def failed(journal: Journal) -> dict[int, str]:
        if len(done(folder)) == 8:
            lock.write_text(json.dumps({"token": "other", "host": "elsewhere", "pid": 1}))
        return right(journal)

    monkeypatch.setattr(Journal, "failed", failed)
    with pytest.raises(JobError, match="another client has taken this job over"):
        jobs.run(resume(folder))
    assert not (folder / "result.ome.zarr" / "reconstruction").exists()
    monkeypatch.undo()
    lock.unlink()
    assert finish(folder, serial) == []


# --- files --------------------------------------------------------------------------------------


def half_done(serial: Path, folder: Path) -> Path:
    """The job after five blocks."""
    planned(serial, folder)
    ended = 0

    def note(event: Any) -> None:
        nonlocal ended
        ended += isinstance(event, jobs.Blocks) and event.state == "done" and bool(event.indices)

    with pytest.raises(jobs.Cancelled):
        jobs.run(resume(folder, should_stop=lambda: ended >= 5), note)
    assert sorted(done(folder)) == list(range(5))
    return folder


def test_damaged_notes_and_lost_shards_are_computed_again(serial: Path, tmp_path: Path) -> None:
    folder = half_done(serial, tmp_path / "job")
    notes = folder / "job" / "done"
    texts = [(notes / f"{i:06d}.json").read_bytes() for i in range(5)]
    (notes / "000000.json").write_bytes(texts[0][:40])
    (notes / "000001.json").write_bytes(texts[1].replace(b'"index": 1', b'"index": 2'))
    (notes / "000005.json").write_bytes(b'{"index": 5}')  # without files: nothing to check
    (notes / "000006.json").write_bytes(texts[2])  # of another block
    (notes / "000007.json").write_bytes(b"")
    growing = folder / "result.ome.zarr" / "potential-incomplete"
    (growing / "0" / "c" / "3" / "0" / "0").unlink()
    shard = growing / "1" / "c" / "4" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-10])
    for left in (notes / ".000006.json.1.2.tmp", growing / "0" / "c" / "0.3.partial",
                 folder / "job" / "lock.0123", folder / ".metrics.json.1.2.tmp"):
        left.write_bytes(b"half")
    before = done(folder)
    jobs.run(resume(folder, pool=lambda: Threads(1, 1)))
    assert_whole(folder, serial)
    after = done(folder)
    again = sorted(i for i in after if after[i] != before.get(i))
    assert again == [0, 1, 3, 4, 5, 6, 7]


def test_a_finished_job_that_lost_a_shard_is_finished_anew(serial: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    shutil.copytree(serial, folder)
    (folder / "result.ome.zarr" / "reconstruction" / "1" / "c" / "3" / "0" / "0").unlink()
    jobs.run(resume(folder, pool=lambda: Threads(1, 1)))
    assert_whole(folder, serial)


def test_no_damage_of_notes_and_plan_is_believed(serial: Path, tmp_path: Path) -> None:
    """A byte at a random place, a hundred times: refused, or the same as before."""
    folder, generator = tmp_path / "job", np.random.default_rng(0)
    (folder / "job" / "done").mkdir(parents=True)
    plan, note = folder / "job" / "plan.json", folder / "job" / "done" / "000003.json"
    right_plan, right_note = Plan.load(serial), list(Journal(serial / "job").done())[3]
    believed = 0
    for _ in range(100):
        for path in (plan, note):
            text = bytearray((serial / path.relative_to(folder)).read_bytes())
            text[generator.integers(len(text))] = generator.integers(256)
            path.write_bytes(text)
        try:
            found = Plan.load(folder)
            believed += 1
            assert found == right_plan
        except JobError:
            raise
        except ValueError as error:  # InvalidInput is one
            assert "plan.json" in str(error)
        for entry in Journal(folder / "job").done():
            assert entry == right_note
    assert believed < 20


def test_what_was_damaged_or_changed_is_refused(
    serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = half_done(serial, tmp_path / "job")
    plan, prior = folder / "job" / "plan.json", folder / "job" / "prior.safetensors"
    for path, expected in ((plan, "plan.json"), (prior, "prior.safetensors")):
        right = path.read_bytes()
        for wrong in (right[: len(right) // 2], right.replace(right[-40:-30], bytes(10))):
            path.write_bytes(wrong)
            code, said = command("resume", str(folder))
            assert (code, expected in said) == (2, True), said
        path.write_bytes(right)
    (folder / "job" / "done").rename(folder / "job" / "gone")
    growing = folder / "result.ome.zarr" / "potential-incomplete"
    growing.rename(growing.with_name("elsewhere"))
    code, said = command("resume", str(folder))
    assert (code, "the images of the job are gone" in said) == (3, True)
    growing.with_name("elsewhere").rename(growing)
    (folder / "job" / "gone").rename(folder / "job" / "done")
    noisy = serial.parent / "noisy.npy"
    right = noisy.read_bytes()
    try:
        noisy.write_bytes(right[:-4] + bytes(4))  # one sample
        code, said = command("resume", str(folder))
        assert (code, "observation of the job in" in said) == (2, True)
    finally:
        noisy.write_bytes(right)
    assert_nothing_torn(folder)
    assert finish(folder, serial) == list(range(5, 8))


def test_what_a_client_left_that_died_before_there_was_a_plan(
    serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "job"
    planned(serial, folder)
    recipe = Plan.load(folder).asked
    (folder / "job" / "plan.json").unlink()
    from napari_invprior.blocks.job import start

    planned_: list[Any] = []
    with pytest.raises(jobs.Cancelled):
        jobs.run(
            start(recipe, folder, should_stop=lambda: bool(planned_)),
            lambda event: planned_.extend([event] if isinstance(event, jobs.Planned) else []),
        )
    assert Plan.load(folder).grid.count == 8


# --- inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("for_good", [False, True])
def test_an_input_that_vanishes(
    serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_good: bool
) -> None:
    """For a moment nobody notices; for good it stops the job, and does not fail its blocks."""
    folder, right = planned(serial, tmp_path / "job"), task.compute
    noisy, elsewhere = serial.parent / "noisy.npy", serial.parent / "elsewhere.npy"
    monkeypatch.setattr(task, "PATIENCE", 2 if for_good else task.PATIENCE)
    timers: list[threading.Timer] = []

    def compute(agreed: Any, inputs: Any, block: Any, *rest: Any) -> Any:
        if block.index == 4 and not timers:
            noisy.rename(elsewhere)
            timers.append(threading.Timer(60 if for_good else 1.0, elsewhere.rename, (noisy,)))
            timers[0].start()
        return right(agreed, inputs, block, *rest)

    monkeypatch.setattr(task, "compute", compute)
    try:
        code, said = command("resume", str(folder), "--threads", "1")
    finally:
        timers[0].cancel()
        if elsewhere.exists():
            elsewhere.rename(noisy)
    if for_good:
        assert (code, "noisy.npy" in said, "is the drive there?" in said) == (3, True, True), said
        assert sorted(done(folder)) == [0, 1, 2, 3]
        assert_nothing_torn(folder)
        assert finish(folder, serial) == list(range(4, 8))
    assert_whole(folder, serial)


def test_a_store_that_vanishes_does_not_read_as_zeros(tmp_path: Path) -> None:
    from napari_invprior.geometry import Geometry
    from napari_invprior.io.omezarr import write_image
    from napari_invprior.io.volume import open_volume
    from napari_invprior.sources import Source

    store = tmp_path / "data.ome.zarr" / "image"
    write_image(store, np.ones((70, 70, 70), np.float32), Geometry.identity(3))
    volume = open_volume(Source(path=str(tmp_path / "data.ome.zarr")))
    window = (slice(0, 70),) * 3
    assert (volume.read(0, window) == 1).all()
    (tmp_path / "data.ome.zarr").rename(tmp_path / "away")
    with pytest.raises(OSError, match="the folder is gone") as caught:
        volume.read(0, window)
    assert caught.value.errno in task.MAY_PASS


# --- others -------------------------------------------------------------------------------------


def test_a_cluster_of_this_machine_listens_to_this_machine_only(cluster: Cluster) -> None:
    processes = [psutil.Process(), *pids(cluster)]
    listening = [
        c for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN
    ]
    scheduler = int(cluster._cluster.scheduler_address.rpartition(":")[2])
    assert scheduler in {c.laddr.port for c in listening}
    assert len(listening) >= 1 + len(pids(cluster))
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
