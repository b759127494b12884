"""The runner: every job ends, whatever happens to it."""

from __future__ import annotations

import gc
import threading
import time

import psutil
import pytest
import torch
from qtpy.QtCore import QThreadPool

from napari_invprior.app.docks.jobs import JobRunner
from napari_invprior.errors import Cancelled, InvalidInput, JobError, OutOfMemory
from napari_invprior.jobs import Message, Preview, Progress, Result

pytestmark = pytest.mark.gui


def endless(should_stop):
    step = 0
    while True:
        time.sleep(0.02)
        step += 1
        yield Progress("train", step, 10**6, 0.0)


def failing(error):
    def job(should_stop):
        yield Message("about to fail")
        raise error

    return job


@pytest.fixture
def runner(qtbot):
    made = JobRunner()
    made.ends, made.seen = [], []
    made.ended.connect(made.ends.append)
    made.event.connect(made.seen.append)
    yield made
    assert made.shutdown()


def finish(qtbot, runner, count=1):
    qtbot.waitUntil(lambda: len(runner.ends) >= count, timeout=10_000)
    return runner.ends[-1]


def test_result_and_messages_arrive(qtbot, runner):
    def job(should_stop):
        yield Message("hello", "warning")
        yield Preview("image", [1])
        yield Result(42)

    assert runner.start("train", job)
    end = finish(qtbot, runner)
    assert (end.how, end.value, end.name) == ("done", 42, "train")
    assert [type(e) for e in runner.seen] == [Message, Preview]
    assert runner.state == "idle"


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), JobError),
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (InvalidInput("sigma = -1: must not be negative"), InvalidInput),
        (ZeroDivisionError("division"), ZeroDivisionError),
    ],
)
def test_every_error_arrives_once_and_frees_the_runner(qtbot, runner, raised, kind):
    """napari's generator workers would swallow the RuntimeErrors and spin for ever."""
    runner.start("train", failing(raised))
    end = finish(qtbot, runner)
    assert end.how == "failed"
    assert type(end.error) is kind
    assert runner.state == "idle"
    assert runner.start("train", lambda stop: iter([Result(1)]))
    assert finish(qtbot, runner, 2).value == 1


def test_error_while_the_job_is_made_arrives_too(qtbot, runner):
    def broken(should_stop):
        raise RuntimeError("no such device")

    runner.start("train", broken)
    assert isinstance(finish(qtbot, runner).error, JobError)


def test_cancel_within_a_second(qtbot, runner):
    runner.start("train", endless)
    qtbot.waitUntil(lambda: len(runner.seen) > 2)
    begin = time.monotonic()
    runner.cancel()
    assert runner.state == "stopping"
    end = finish(qtbot, runner)
    print(f"cancelled after {time.monotonic() - begin:.2f} s")
    assert end.how == "cancelled"
    runner.cancel()
    assert len(runner.ends) == 1


def test_cancel_keeps_the_best_state(qtbot, runner):
    def polite(should_stop):
        while not should_stop():
            time.sleep(0.01)
            yield Progress("train", 1, 2, 0.0)
        yield Result("best so far")

    runner.start("train", polite)
    qtbot.waitUntil(lambda: len(runner.seen) > 0)
    runner.cancel()
    end = finish(qtbot, runner)
    assert (end.how, end.value) == ("cancelled", "best so far")


def test_cancelled_is_no_failure(qtbot, runner):
    runner.start("train", failing(Cancelled("stopped")))
    assert finish(qtbot, runner).how == "cancelled"


def test_cancel_before_the_thread_starts(qtbot, runner):
    runner.start("train", endless)
    runner.cancel()
    assert finish(qtbot, runner).how == "cancelled"


def test_pause_holds_and_resume_goes_on(qtbot, runner):
    runner.start("train", endless)
    qtbot.waitUntil(lambda: len(runner.seen) > 2)
    runner.pause()
    qtbot.wait(150)
    held = runner.seen[-1].step
    qtbot.wait(300)
    assert runner.seen[-1].step == held
    assert runner.state == "paused"
    runner.resume()
    qtbot.waitUntil(lambda: runner.seen[-1].step > held)


def test_cancel_while_paused(qtbot, runner):
    runner.start("train", endless)
    qtbot.waitUntil(lambda: len(runner.seen) > 2)
    runner.pause()
    qtbot.wait(150)
    runner.cancel()
    assert finish(qtbot, runner).how == "cancelled"


def test_start_pressed_twenty_times_is_one_job(qtbot, runner):
    begun = []

    def job(should_stop):
        begun.append(1)
        yield from endless(should_stop)

    other = JobRunner()
    assert [runner.start("train", job) for _ in range(20)] == [True] + 19 * [False]
    assert not other.start("train", job), "one job in the process, not one per dock"
    qtbot.waitUntil(lambda: len(runner.seen) > 2)
    runner.cancel()
    finish(qtbot, runner)
    assert begun == [1]
    assert other.start("train", lambda stop: iter(()))
    other.shutdown()


def test_a_window_that_cannot_keep_up_gets_fewer_events_but_every_message(qtbot, runner):
    def flood(should_stop):
        for step in range(2000):
            yield Progress("train", step, 2000, 0.0)
        yield Message("last")

    runner.event.connect(lambda _: time.sleep(0.005))
    runner.start("train", flood)
    finish(qtbot, runner)
    assert len(runner.seen) < 1000
    assert Message("last") in runner.seen


def test_shutdown_leaves_no_thread_and_says_nothing(qtbot, runner):
    closed = []

    def job(should_stop):
        try:
            yield from endless(should_stop)
        finally:
            closed.append(threading.current_thread())

    runner.start("train", job)
    qtbot.waitUntil(lambda: len(runner.seen) > 2)
    begin = time.monotonic()
    assert runner.shutdown()
    print(f"shut down after {time.monotonic() - begin:.2f} s")
    assert len(closed) == 1
    qtbot.wait(50)
    assert runner.ends == []


def test_shutdown_before_the_thread_starts(qtbot, runner):
    begun, free, pool = [], threading.Event(), QThreadPool.globalInstance()
    places = pool.maxThreadCount()
    pool.setMaxThreadCount(1)
    pool.start(free.wait)  # the only thread is taken: what comes now is queued
    try:
        runner.start("train", lambda stop: begun.append(1))
        qtbot.wait(20)
        assert runner.shutdown()
    finally:
        free.set()
        pool.setMaxThreadCount(places)
    qtbot.wait(50)
    assert begun == []


def test_napari_quits_workers_when_a_viewer_closes(qtbot, runner):
    runner.start("train", endless)
    qtbot.waitUntil(lambda: len(runner.seen) > 2)
    runner._thread.worker.quit()
    assert finish(qtbot, runner).how == "cancelled"


def test_fifty_cycles_leave_no_thread_and_little_memory(qtbot, runner):
    process = psutil.Process()

    def job(should_stop):
        ballast = torch.zeros(250_000)
        while not should_stop():
            time.sleep(0.002)
            yield Preview("patches", ballast.numpy())

    def living():
        gc.collect()
        return sum(type(found).__name__ == "_Thread" for found in gc.get_objects())

    def cycle(count):
        runner.start("train", job)
        qtbot.waitUntil(lambda: len(runner.seen) > 0)
        runner.cancel()
        finish(qtbot, runner, count)
        runner.seen.clear()
        runner.ends[:-1] = [None] * (len(runner.ends) - 1)

    for count in range(1, 6):
        cycle(count)
    jobs = living()
    threads, memory = process.num_threads(), process.memory_info().rss
    for count in range(6, 56):
        cycle(count)
    jobs = living() - jobs
    grown = (process.memory_info().rss - memory) / 2**20
    print(f"50 cycles: {grown:.1f} MB, {process.num_threads() - threads} threads")
    assert grown < 50
    assert process.num_threads() <= threads + 1  # the pool may keep one thread for a while
    assert jobs <= 0, "ended jobs are released"


def test_threads_preference_reaches_torch(qtbot):
    runner = JobRunner(threads=lambda: 1)
    seen = []
    runner.start("train", lambda stop: iter([Result(seen.append(torch.get_num_threads()))]))
    qtbot.waitUntil(lambda: runner.state == "idle", timeout=5000)
    assert seen == [1]


def test_a_busy_window_still_gets_the_last_of_each_kind(runner, qtbot):
    """What waits is dropped, but not the end: a training is over when its pictures are shown."""
    def job(should_stop):
        for step in range(200):
            yield Progress("train", step + 1, 200, 0.0)
            yield Preview("patches", step)
        yield Result("done")

    runner.start("train", job)
    time.sleep(0.3)  # the window is busy elsewhere
    assert finish(qtbot, runner).how == "done"
    assert len(runner.seen) < 20
    for kind, last in ((Progress, 200), (Preview, 199)):
        shown = [event for event in runner.seen if isinstance(event, kind)][-1]
        assert (shown.step if kind is Progress else shown.array) == last
