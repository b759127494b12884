"""A small volume of two phases with noise, its truth and a reference, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_invprior.samples import grey_volume

SIGMA = 0.05


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``noisy.npy``, ``truth.npy`` (100 x 80 x 72) and ``reference.npy``."""
    folder = tmp_path_factory.mktemp("material")
    truth = grey_volume((100, 80, 72), seed=3)
    noise = np.random.default_rng(0).standard_normal(truth.shape)
    np.save(folder / "truth.npy", truth)
    np.save(folder / "noisy.npy", (truth + SIGMA * noise).astype(np.float32))
    np.save(folder / "reference.npy", grey_volume((40, 40, 40), seed=0))
    return folder


@pytest.fixture
def recipe(material: Path) -> dict[str, Any]:
    """Quick denoising of the volume in blocks of 64 (eight of them)."""
    return {
        "observation": {"path": str(material / "noisy.npy")},
        "references": [{"path": str(material / "reference.npy")}],
        "physics": {"kind": "denoising"},
        "noise": {"kind": "gaussian", "sigma": SIGMA},
        "prior": {"kind": "gmm", "components": 5, "steps": 4},
        "solver": {"kind": "half_quadratic", "steps": 4, "weight": 1.0},
        "blocks": {"edge": 64},
    }


@pytest.fixture(autouse=True)
def own_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Jobs of tests are remembered nowhere else."""
    monkeypatch.setattr(
        "napari_invprior.blocks.catalogue.user_data_path", lambda *_, **__: tmp_path / "known"
    )
    return tmp_path / "known"
