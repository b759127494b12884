"""Damaged and hostile files: read or refused with a reason, never a crash, a hang or a flood.

The short run is part of `make test`; `make faults` runs all cases. One case alone, with its
traceback: ``python -m tests.faults.runner zarr 17``.
"""

from __future__ import annotations

import importlib
import stat
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from napari_invprior.io.images import load
from napari_invprior.sources import Source
from tests.faults import defects, intact_tiff, intact_zarr
from tests.faults.mutations import KINDS, emptied, generator, write_tree
from tests.faults.runner import HANG, LIMIT, MIB, MODULES, Verdict, run_cases

CASES = 2500
"""Cases of each kind in the long run."""

SHORT = {"zarr": 150, "tiff": 180, "safetensors": 80, "recipe": 80}
"""Cases of each kind in the short run."""


def summary(verdicts: list[Verdict]) -> str:
    """What became of the cases of one kind, in a line."""
    counts = Counter(v.outcome for v in verdicts)
    slow = max(verdicts, key=lambda v: v.seconds)
    large = max(verdicts, key=lambda v: v.growth)
    return (
        f"{verdicts[0].kind}: {len(verdicts)} cases, "
        f"{', '.join(f'{count} {outcome}' for outcome, count in counts.most_common())}; slowest "
        f"{slow.seconds:.2f} s ({slow.number}), most memory {large.growth / MIB:.0f} MiB "
        f"({large.number})"
    )


def assert_good(verdicts: list[Verdict], count: int) -> None:
    bad = [v for v in verdicts if not v.good]
    shown = "\n".join(str(v) for v in bad[:10])
    assert not bad, f"{len(bad)} of {len(verdicts)} cases are bad:\n{shown}"
    assert [v.number for v in verdicts] == list(range(count))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> list[Verdict]:
    """All kinds in one child: most of the time goes into its start."""
    plan = [(kind, 0, count) for kind, count in SHORT.items()]
    return run_cases(plan, tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_cases(kind: str, short: list[Verdict]) -> None:
    verdicts = [v for v in short if v.kind == kind]
    assert_good(verdicts, SHORT[kind])
    assert min(Counter(v.outcome for v in verdicts).values()) > 0.05 * len(verdicts)


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_all_cases(kind: str, tmp_path: Path) -> None:
    verdicts = run_cases([(kind, 0, CASES)], tmp_path)
    print(f"\n{summary(verdicts)}")
    assert_good(verdicts, CASES)


def test_the_runner_finds_every_kind_of_defect(tmp_path: Path) -> None:
    verdicts = run_cases([("defect", 0, len(defects.EXPECTED))], tmp_path, hang=1.0)
    assert [v.outcome for v in verdicts] == list(defects.EXPECTED.values())
    assert HANG == 10


def test_intact_stores_are_read(tmp_path: Path) -> None:
    """Else a mutation would only show that nothing can be read."""
    for number, tree in enumerate(intact_zarr.templates(tmp_path)):
        write_tree(tmp_path / f"{number}.zarr", tree)
        key = "one" if "one/zarr.json" in tree else None
        image = load(Source(path=str(tmp_path / f"{number}.zarr"), key=key), limit=LIMIT)
        expected = (np.arange(image.array.size) % 70).reshape(image.array.shape)
        np.testing.assert_array_equal(image.array, expected)


def test_intact_tiffs_are_read(tmp_path: Path) -> None:
    for number, data in enumerate(intact_tiff.templates(tmp_path)):
        path = tmp_path / f"{number}.tif"
        path.write_bytes(data)
        assert load(Source(path=str(path)), limit=LIMIT).space[-2] == 30


def snapshot(folder: Path) -> list[tuple[str, object]]:
    """Every entry with its content; of links where they lead, of very large files the size."""
    found: list[tuple[str, object]] = []
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        content: object = facts.st_size
        if path.is_symlink():
            content = str(path.readlink())
        elif stat.S_ISREG(facts.st_mode) and facts.st_size < 32 * MIB:
            content = path.read_bytes()
        elif stat.S_ISDIR(facts.st_mode):
            content = None
        found.append((path.relative_to(folder).as_posix(), content))
    return found


@pytest.mark.parametrize(
    "name", ["zarr", "tiff", pytest.param("safetensors", marks=pytest.mark.faults)]
)
def test_a_case_is_the_same_whenever_it_is_made(tmp_path: Path, name: str) -> None:
    module = importlib.import_module(f"tests.faults.{MODULES[name]}")
    made = []
    for place in (tmp_path / "first", tmp_path / "second"):
        intact = module.templates(emptied(place))
        cases = []
        for number in range(12):
            module.make(number, generator(name, number), place, intact, LIMIT)
            cases.append(snapshot(place / "case"))
        made.append(cases)
    assert made[0] == made[1]
