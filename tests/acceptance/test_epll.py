"""EPLL on the SiC images: mixture prior and half-quadratic splitting (review sheet, check 5)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from napari_invprior.recipes import execute

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

OFFICIAL = 28.14
"""PSNR of the review's own EPLL on the same image (sheet)."""

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int, float]] = {
    "whole image": (
        {"components": 200, "patch_size": 6, "steps": 40, "max_patches": 360_000}, {}, 40, 28.1,
    ),
    "crop": ({"components": 20, "patch_size": 6}, {"crop": [[200, 320], [200, 320]]}, 16, 29.4),
}


@pytest.mark.parametrize("name", CASES)
def test_epll(name: str, shared_data: Path, show: Callable[[str], None]) -> None:
    mixture, part, rim, wanted = CASES[name]
    sic = shared_data / "sic"
    began = time.process_time()
    outcome = execute({
        "observation": {"simulate_from": {"path": str(sic / "test.png")} | part},
        "references": [{"path": str(sic / "reference.png")}],
        "physics": {
            "kind": "superresolution", "factor": 4, "blur_sigma": 2, "kernel_size": 16,
            "boundary": "circular",
        },
        "noise": {"kind": "gaussian", "sigma": 0.01},
        "prior": {"kind": "gmm"} | mixture,
        "solver": {"kind": "half_quadratic"},
        "rim": rim,
    })
    found = outcome.metrics
    baselines = ", ".join(
        f"{key} {value:.2f}" for key, value in found["baselines"].items()
    )
    show(
        f"EPLL, {name}: {found['psnr']:.2f} dB (>= {wanted}; official {OFFICIAL} on the whole), "
        f"SSIM {found['ssim']:.3f}, weight {found['weight']:.3f}, "
        f"{time.process_time() - began:.0f} CPU-s; {baselines}"
    )
    assert found["psnr"] >= wanted
