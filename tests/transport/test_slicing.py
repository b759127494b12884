"""Directions on the sphere and the constants of slicing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_invprior.errors import InvalidInput
from napari_invprior.transport.slices import directions as slicing
from napari_invprior.transport.slices import distance_optimal as distance_directions
from napari_invprior.transport.slices.directions import directions, slice_constant


@pytest.mark.parametrize(
    ("dim", "value"), [(2, math.pi / 2), (3, 2.0), (10, 3.865631585), (784, 35.0816073)]
)
def test_constants(dim: int, value: float) -> None:
    assert slice_constant(dim) == pytest.approx(value, rel=1e-8)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("kind", ["iid", "orthogonal", "sobol"])
@pytest.mark.parametrize("dim", [2, 3, 7])
def test_mean_of_slices_is_the_radial_function(dim: int, kind: str, exponent: float) -> None:
    xi = directions(20_000, dim, torch.Generator().manual_seed(0), kind, torch.float64)
    x = torch.arange(1.0, dim + 1, dtype=torch.float64)
    mean = (xi @ x).abs().pow(exponent).mean() * slice_constant(dim, exponent)
    assert float(mean) == pytest.approx(float(x.norm() ** exponent), rel=0.02)
    assert torch.allclose(xi.norm(dim=1), torch.ones(len(xi), dtype=torch.float64))


def test_distance_directions_are_the_best_and_auto_takes_them() -> None:
    x = torch.nn.functional.normalize(torch.randn((5, 500), dtype=torch.float64), dim=0)

    def error(kind: str) -> float:
        xi = directions(160, 5, torch.Generator().manual_seed(0), kind, torch.float64)
        assert torch.allclose(xi.norm(dim=1), torch.ones(160, dtype=torch.float64))
        return float(((xi @ x).abs().mean(0) * slice_constant(5) - 1).abs().mean())

    errors = {kind: error(kind) for kind in ("iid", "orthogonal", "sobol", "distance", "auto")}
    assert errors["auto"] == errors["distance"]
    assert 3 * errors["distance"] < min(errors["orthogonal"], errors["sobol"])
    assert errors["orthogonal"] < errors["iid"]


def test_each_call_turns_the_distance_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (
        directions(24, 4, generator, "distance", torch.float64) for _ in range(2)
    )
    assert not torch.allclose(first, second)
    turn = torch.linalg.lstsq(first, second).solution
    assert torch.allclose(turn @ turn.T, torch.eye(4, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(first @ turn, second)


def test_more_than_one_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slicing, "MOST_AT_ONCE", 12)
    xi = directions(30, 3, torch.Generator().manual_seed(0), "distance", torch.float64)
    assert xi.shape == (30, 3)
    assert torch.allclose(xi[:12] @ xi[:12].T, xi[12:24] @ xi[12:24].T), "the same set, turned"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(distance_directions, "user_cache_path", lambda name: tmp_path / "cache")
    distance_directions.distance_directions.cache_clear()
    yield tmp_path / "cache"
    distance_directions.distance_directions.cache_clear()


def found() -> torch.Tensor:
    distance_directions.distance_directions.cache_clear()
    return distance_directions.distance_directions(20, 3)


@pytest.mark.parametrize("damage", ["cut", "garbage", "shape", "lengths", "nan", "pickle", "type"])
def test_a_damaged_cache_is_harmless(cache: Path, damage: str) -> None:
    right = found()
    (path,) = cache.rglob("*.npy")
    data = np.load(path)
    wrong = {
        "shape": data[:5], "lengths": 2 * data, "nan": data * np.nan, "type": data.astype(int),
        "pickle": np.array([{"a": 1}] * 20, dtype=object),
    }
    if damage in wrong:
        np.save(path, wrong[damage], allow_pickle=True)
    else:
        path.write_bytes(path.read_bytes()[:90] if damage == "cut" else b"nonsense")
    assert torch.equal(found(), right)
    assert np.array_equal(np.load(path), data), "what was damaged is written again"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_cache_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = found()
    monkeypatch.setattr(distance_directions, "_spread", None)
    assert torch.equal(found(), right)


def test_a_cache_that_cannot_be_written_is_harmless(cache: Path) -> None:
    right = found()
    (path,) = cache.rglob("*.npy")
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file where the folder should be")
    assert torch.equal(found(), right)


@pytest.mark.parametrize(
    ("count", "kind", "message"), [(0, "iid", "1 or more"), (3, "idd", "'iid'")]
)
def test_what_does_not_fit_is_refused(count: int, kind: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        directions(count, 3, torch.Generator(), kind)


def test_one_seed_one_set_and_the_line_has_one_direction() -> None:
    first, second = (directions(9, 5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert directions(50, 1, torch.Generator()).tolist() == [[1.0]]
