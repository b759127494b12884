"""Who computes the blocks: threads of this process, processes of this machine, or a cluster."""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from napari_invprior.blocks.task import run_block
from napari_invprior.errors import InvalidInput, JobError
from napari_invprior.jobs import ShouldStop

TICK = 0.2
"""Seconds after which a pool looks whether it was stopped."""
SUSPECT, LOST = 2, 5
"""So many workers die with a block before it is computed alone, and before it counts as failed."""
PREFETCH = 2
"""Blocks that are handed to each worker of a cluster at once."""
CONNECT = 20.0
"""Seconds that a scheduler gets to answer."""
FAREWELL = 10.0
"""Seconds that running blocks get to notice that they were stopped."""
COUNT_EVERY = 1.0
"""Seconds between two looks at how many workers a cluster has."""
PATIENCE = 120.0
"""Seconds that a cluster may have no worker."""


@dataclass(frozen=True)
class Happened:
    """A block began, or ended with an error or without one."""

    index: int
    ended: bool
    error: Exception | None = None


class Pool(ABC):
    """Computes blocks side by side, in a ``with`` statement.

    Attributes
    ----------
    workers : int
        Blocks that are computed at once.
    threads : int
        CPU threads that each of them should have.
    """

    workers: int
    threads: int

    @abstractmethod
    def run(
        self, folder: str, indices: Iterable[int], token: str, should_stop: ShouldStop
    ) -> Generator[Happened | None, None, None]:
        """Compute blocks of a job; None when nothing happened for a moment.

        After a stop, or when the caller closes the iterator, nothing runs any more. Which blocks
        are done is not told then: the journal knows.
        """

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 (threads end with the run)
        """Release what the pool holds."""


class Threads(Pool):
    """Threads of this process.

    Parameters
    ----------
    workers : int
        Blocks at once; all cores are shared between them.
    threads : int
        CPU threads of all workers together; 0 for one per core.
    """

    def __init__(self, workers: int = 1, threads: int = 0) -> None:
        self.workers = max(1, workers)
        self.threads = max(1, (threads or os.cpu_count() or 1) // self.workers)

    def run(
        self, folder: str, indices: Iterable[int], token: str, should_stop: ShouldStop
    ) -> Generator[Happened | None, None, None]:
        left, running = iter(indices), dict[Future[int], int]()
        stopped = False

        def stop() -> bool:
            return stopped or should_stop()

        work = partial(run_block, folder, token=token, stop=stop)
        executor = ThreadPoolExecutor(self.workers, "block")
        try:
            while True:
                while len(running) < self.workers and not should_stop():
                    index = next(left, None)
                    if index is None:
                        break
                    running[executor.submit(work, index)] = index
                    yield Happened(index, ended=False)
                if not running:
                    return
                ended, _ = wait(running, TICK, FIRST_COMPLETED)
                for future in ended:
                    index = running.pop(future)
                    yield Happened(index, ended=True, error=_error(index, future.exception()))
                if not ended:
                    yield None
        finally:
            stopped = True
            executor.shutdown(wait=True, cancel_futures=True)


def _error(index: int, error: BaseException | None) -> Exception | None:
    """What a block ended with; an interrupt in a worker is an error like others."""
    if error is None or isinstance(error, Exception):
        return error
    return JobError(f"block {index}: {type(error).__name__}")


class Cluster(Pool):
    """Workers of dask: processes of this machine, or any scheduler by its address.

    Parameters
    ----------
    address : str, optional
        Of a scheduler, such as ``tcp://host:8786`` or a file that it wrote; without one, processes
        are started here, and reached from this machine only.
    workers : int
        Processes to start; without an address alone.
    threads : int
        CPU threads of each.
    gpu : bool
        Run blocks only on workers that have the resource ``GPU``, one at a time on each.

    Raises
    ------
    InvalidInput
        If dask.distributed is not installed, or there is no scheduler.
    """

    _count_again = 0.0

    def __init__(
        self, address: str | None = None, workers: int = 2, threads: int = 1, gpu: bool = False
    ) -> None:
        try:
            import distributed
        except ImportError:
            raise InvalidInput(
                "work on several processes or machines needs dask.distributed; install it: pip "
                "install 'napari-invprior[cluster]'"
            ) from None
        self._distributed: Any = distributed
        self.threads, self._resources = threads, {"GPU": 1} if gpu else {}
        self._cluster: Any = self._local(workers) if address is None else None
        try:
            options = {"timeout": CONNECT, "set_as_default": False}
            if address is not None and os.path.exists(address):  # noqa: PTH110
                self._client = distributed.Client(scheduler_file=address, **options)
            else:
                self._client = distributed.Client(self._cluster or address, **options)
        except (OSError, TimeoutError, ValueError) as error:
            self._close_local()
            raise InvalidInput(
                f"no dask scheduler answers at {address!r} ({error}); start one with 'dask "
                "scheduler', workers with 'dask worker ADDRESS', and give its address"
            ) from error
        self.workers = max(1, self._count())

    def _local(self, workers: int) -> Any:
        """A cluster of processes that only this machine can reach."""
        import dask

        settings = {
            "distributed.scheduler.allowed-failures": 0,  # deaths are counted here
            "distributed.worker.daemon": True,
            "distributed.admin.log-format": "%(message)s",
        }
        wanted = dask.config.get("distributed.worker.preload")
        wanted = [wanted] if isinstance(wanted, str) else wanted
        with dask.config.set(settings):
            return self._distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1",
                memory_limit=0, resources=self._resources or None, silence_logs=50,
                scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                preload=["napari_invprior.blocks.worker", *wanted],
            )

    def _count(self) -> int:
        """Workers there are, with the resource where one is asked for."""
        known = self._client.scheduler_info(n_workers=-1).get("workers", {})  # none if it is gone
        return sum(
            1 for worker in known.values()
            if all(worker.get("resources", {}).get(k, 0) >= v for k, v in self._resources.items())
        )

    def run(
        self, folder: str, indices: Iterable[int], token: str, should_stop: ShouldStop
    ) -> Generator[Happened | None, None, None]:
        waiting, suspects = deque(indices), deque[int]()
        running, deaths = dict[Any, int](), Counter[int]()
        since = time.monotonic()
        try:
            while not should_stop() and (waiting or suspects or running):
                while waiting and len(running) < PREFETCH * self.workers and self._is_connected():
                    index = waiting.popleft()
                    running[self._submit(folder, index, token)] = index
                    yield Happened(index, ended=False)
                if suspects and not waiting and not running and self._is_connected():
                    index = suspects.popleft()
                    running[self._submit(folder, index, token)] = index
                ended = self._ended(running)
                for future in ended:
                    index = running.pop(future)
                    happened = self._told(index, future, deaths)
                    if happened is not None:
                        yield happened
                    elif deaths[index] < SUSPECT:
                        waiting.append(index)
                    else:
                        suspects.append(index)
                since = time.monotonic() if ended else since
                self._require_workers(since)
                if not ended:
                    yield None
        finally:
            self._leave(running)

    def _is_connected(self) -> bool:
        """Whether the scheduler can be reached now.

        Raises
        ------
        JobError
            If it could not for long.
        """
        if self._client.status == "closed":
            raise JobError("the dask scheduler is gone; start it again, and resume")
        return bool(self._client.status == "running")

    def _told(self, index: int, future: Any, deaths: Counter[int]) -> Happened | None:
        """How a block ended; None where it was lost, with its worker or the scheduler.

        A worker takes the blocks with it that it had not begun. So a block that was there more
        than once is a suspect, and computed while no other one is.
        """
        if future.status == "finished":
            return Happened(index, ended=True)
        if future.status != "error":
            return None
        error = future.exception()
        if not isinstance(error, self._distributed.KilledWorker):
            return Happened(index, ended=True, error=_error(index, error))
        deaths[index] += error.allowed_failures + 1
        if deaths[index] < LOST:
            return None
        return Happened(index, ended=True, error=JobError(
            f"block {index}: {deaths[index]} workers died over it (no memory, or a crash)"
        ))

    def _submit(self, folder: str, index: int, token: str) -> Any:
        return self._client.submit(
            run_block, folder, index, token, pure=False,
            resources=self._resources or None, key=f"block-{index}-{time.monotonic_ns()}",
        )

    def _ended(self, running: dict[Any, int]) -> list[Any]:
        """Futures that ended within a moment."""
        end = time.monotonic() + TICK
        while not any(future.done() for future in running) and time.monotonic() < end:
            time.sleep(TICK / 10)
        return [future for future in running if future.done()]

    def _require_workers(self, since: float) -> None:
        """Count the workers now and then; give up when the cluster has had none for long."""
        now = time.monotonic()
        if now < self._count_again:
            return
        self._count_again = now + COUNT_EVERY
        count = self._count()
        self.workers = max(1, count)
        if count == 0 and now - since > PATIENCE:
            what = " with the resource GPU" if self._resources else ""
            raise JobError(
                f"the cluster has had no worker{what} for two minutes; start some and resume"
            )

    def _leave(self, running: dict[Any, int]) -> None:
        """Wait until the workers have noticed that they shall stop, and give up what is left."""
        end = time.monotonic() + FAREWELL
        while time.monotonic() < end and self._client.status == "running":
            if all(future.done() for future in running):
                break
            time.sleep(TICK)
        with suppress(Exception):  # the scheduler may be gone
            self._client.cancel(list(running))

    def close(self) -> None:
        with suppress(Exception):
            self._client.close(timeout=5)
        self._close_local()

    def _close_local(self) -> None:
        if self._cluster is not None:
            with suppress(Exception):
                self._cluster.close(timeout=10)


def memory_per_worker(free: int, workers: int, allowed: int | None) -> int:
    """Bytes that a worker may use: as allowed for all of them, or half of what is free.

    Examples
    --------
    >>> memory_per_worker(8_000_000_000, 4, None)
    1000000000
    """
    return math.floor((free // 2 if allowed is None else allowed) / max(1, workers))
