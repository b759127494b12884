"""Runs cases in a child process, so that a crash, a hang or a greedy reader is one failed case.

One case alone, with its traceback:  ``python -m tests.faults.runner tiff 17``
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import logging
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_invprior.errors import InvPriorError
from tests.faults.mutations import Case, generator

ROOT = Path(__file__).parents[2]
MIB = 1 << 20

LIMIT = 64 * MIB
"""What every reader is told to stay below."""

ALLOWANCE = 64 * MIB
"""What a reader may take beyond the limit, beside twice the size of the files."""

HANG = 10.0
"""Seconds after which a case counts as a hang."""

START = 120.0
"""Seconds that a child may take to come up and make its templates."""

LONGEST = 1000
"""Characters of a message for people."""

EXHAUSTED = ("allocate", "bad_alloc", "could not expand output buffer")
"""What libraries say when memory runs out, where they raise no `MemoryError`."""

CARELESS = (
    NameError, AttributeError, TypeError, LookupError, ArithmeticError, AssertionError,
    NotImplementedError,
)  # fmt: skip
"""What code raises that did not check its input, where it is not a library's."""

MODULES = {
    "zarr": "mutated_zarr", "tiff": "mutated_tiff", "safetensors": "mutated_priors",
    "recipe": "mutated_recipes", "defect": "defects",
}  # fmt: skip


# ---- the parent


@dataclass
class Verdict:
    """What became of one case."""

    kind: str
    number: int
    outcome: str
    """``read``, ``refused``, or what is wrong: ``crash``, ``hang``, ``memory``, ``error``,
    ``message`` (not for people) or ``careless`` (our own code stumbled)."""
    text: str = ""
    seconds: float = 0.0
    growth: int = 0
    done: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.outcome in ("read", "refused")

    def __str__(self) -> str:
        steps = "; ".join(self.done)
        return f"{self.kind} {self.number}: {self.outcome}: {self.text}\n    {steps}"


def run_cases(
    plan: Iterable[tuple[str, int, int]], folder: Path, *, hang: float = HANG
) -> list[Verdict]:
    """Every case of (kind, start, stop); a child that dies is replaced for the next one."""
    verdicts: list[Verdict] = []
    left = list(plan)
    while left:
        child = _Child(folder, left, hang)
        verdicts.extend(child.verdicts())
        # What the child did not get to: from the case after the last verdict on.
        done = {(v.kind, v.number) for v in verdicts}
        rest = []
        for kind, start, stop in left:
            while start < stop and (kind, start) in done:
                start += 1
            if start < stop:
                rest.append((kind, start, stop))
        if rest == left:
            raise RuntimeError(f"the child cannot start:\n{child.errors()}")
        left = rest
    return verdicts


class _Child:
    """One process that runs a plan until it ends or dies."""

    def __init__(self, folder: Path, plan: list[tuple[str, int, int]], hang: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self.hang = folder / "stderr.txt", hang
        private = {
            # One arena: each further one takes 64 MiB of addresses, which the limit counts.
            "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            "HOME": str(folder), "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0",
        }  # fmt: skip
        words = [f"{kind}:{start}:{stop}" for kind, start, stop in plan]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.runner", "--batch", str(folder), str(hang),
                 *words],
                cwd=ROOT, env={**os.environ, **private}, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip

    def verdicts(self) -> Iterator[Verdict]:
        """Verdicts as they come; the last one says how the child died, if it did."""
        running: dict[str, Any] | None = None
        try:
            while (line := self._line(self.hang + 5 if running else START)) is not None:
                if not line:
                    break
                data = json.loads(line)
                running = data if data.pop("begins", False) else None
                if running is None and data:
                    yield Verdict(**data)
            alive = line is None
        finally:
            self.process.kill()
            code = self.process.wait()
        if running is not None:
            hangs = alive or "Timeout (" in self.errors()
            what = "hang" if hangs else "crash"
            yield Verdict(**running, outcome=what, text=f"exit {code}: {self.errors()[-1500:]}")

    def _line(self, seconds: float) -> bytes | None:
        """The next line; empty at the end, None when nothing comes."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return None
        return self.process.stdout.readline()

    def errors(self) -> str:
        return self.log.read_text(errors="replace")


# ---- the child


def memory() -> dict[str, int]:
    """Bytes of this process by the names of ``/proc/self/status``; empty where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    return {k: int(v.split()[0]) << 10 for k, _,
            v in (x.partition(":") for x in lines) if k[:2] == "Vm"}


def reset_peak() -> None:
    """Let the peak of resident memory start anew (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def addresses(room: int | None) -> Iterator[None]:
    """Let this process take no more than ``room`` further bytes, touched or not."""
    size = memory().get("VmSize")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if room is not None and size is not None:
        resource.setrlimit(resource.RLIMIT_AS, (size + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def judge(case: Case) -> tuple[str, str, float, int]:
    """Run a case; its outcome, what it said, seconds, and growth of memory in bytes."""
    allowed = LIMIT + ALLOWANCE + 2 * case.size
    reset_peak()
    before = memory().get("VmRSS", 0)
    start = time.perf_counter()
    with addresses(2 * allowed):
        try:
            case.run()
            outcome, text = "read", ""
        except InvPriorError as error:
            outcome, text = "refused", f"{type(error).__name__}: {error}"
            if tried := _exhausted(error):
                outcome, text = "memory", f"tried to take too much ({tried}): {text}"
            elif fault := _unfit(str(error)):
                outcome, text = "message", f"{fault}: {text!r}"
            elif place := _careless(error):
                outcome, text = "careless", f"{place}: {text}"
        except BaseException:
            outcome, text = "error", traceback.format_exc(limit=-6)
    seconds = time.perf_counter() - start
    growth = max(0, memory().get("VmHWM", 0) - before)
    if growth > allowed:
        outcome, text = "memory", f"{growth / MIB:.0f} MiB, {allowed / MIB:.0f} allowed; {text}"
    if seconds > HANG:
        outcome, text = "hang", f"{seconds:.1f} s; {text}"
    return outcome, text[-3000:], seconds, growth


def _exhausted(error: BaseException) -> str:
    """The first cause that says that memory ran out: the size was not checked before."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        said = str(cause).lower()
        if isinstance(cause, MemoryError) or any(word in said for word in EXHAUSTED):
            return f"{type(cause).__name__}: {cause}"
        cause = cause.__cause__ or cause.__context__
    return ""


def _careless(error: BaseException) -> str:
    """Where our own code stumbled, if it did: only libraries may, whose errors become refusals."""
    cause = error.__cause__
    frames = traceback.extract_tb(cause.__traceback__) if isinstance(cause, Exception) else []
    if not frames or not isinstance(cause, CARELESS):
        return ""
    last = Path(frames[-1].filename)
    if not last.is_relative_to(ROOT / "napari_invprior"):
        return ""
    return f"{type(cause).__name__} at {last.name}:{frames[-1].lineno} ({frames[-1].line})"


def _unfit(message: str) -> str:
    """Why a message is none that people can read."""
    if len(message) > LONGEST:
        return f"{len(message)} characters"
    odd = [c for c in message if unicodedata.category(c) in ("Cc", "Cs", "Cf", "Zl", "Zp")]
    return f"characters {odd[:5]!r}" if odd else "" if message.strip() else "empty"


def _prepared(kind: str, folder: Path) -> Any:
    """Makes a case of that kind, once templates and everything else are loaded."""
    module = importlib.import_module(f"tests.faults.{MODULES[kind]}")
    intact = module.templates(folder / kind)

    def make(number: int) -> Case:
        case: Case = module.make(number, generator(kind, number), folder / kind, intact, LIMIT)
        return case

    rng = random.Random(0)
    for number in range(-12, 0):  # imports, thread pools and caches are no growth of a case
        with contextlib.suppress(Exception):
            module.make(number, rng, folder / kind, intact, LIMIT).run()
    return make


def _batch(folder: Path, hang: float, plan: list[str]) -> None:
    """Run a plan, with one line on standard output before and after each case."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**data: Any) -> None:
        lines.write(json.dumps(data) + "\n")
        lines.flush()

    _quiet()
    for word in plan:
        kind, start, stop = word.split(":")
        make = _prepared(kind, folder)
        gc.collect()
        gc.freeze()
        for number in range(int(start), int(stop)):
            say(kind=kind, number=number, begins=True, done=["the case is made"])
            try:
                case = make(number)
            except Exception:
                say(kind=kind, number=number, outcome="error", text=traceback.format_exc(limit=-4))
                continue
            gc.collect()
            say(kind=kind, number=number, begins=True, done=case.done)
            faulthandler.dump_traceback_later(hang, exit=True)
            outcome, text, seconds, growth = judge(case)
            faulthandler.cancel_dump_traceback_later()
            say(kind=kind, number=number, outcome=outcome, text=text, done=case.done,
                seconds=round(seconds, 4), growth=growth)  # fmt: skip
        say()


def _quiet() -> None:
    """What readers warn of is not what is tested here; a crash still prints where it was."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    faulthandler.enable()


def _alone(kind: str, number: int) -> None:
    """One case in this process, with its traceback."""
    _quiet()
    folder = Path(tempfile.mkdtemp(prefix="invprior-case-"))
    make = _prepared(kind, folder)
    case = make(number)
    print(folder / kind, *case.done, sep="\n")
    outcome, text, seconds, growth = judge(case)
    print(f"{outcome} after {seconds:.3f} s, {growth / MIB:.1f} MiB more: {text}")
    print(case.run())


if __name__ == "__main__":
    if sys.argv[1] == "--batch":
        _batch(Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
    else:
        _alone(sys.argv[1], int(sys.argv[2]))
