"""Sparse and limited-angle tomography: learned priors against total variation tuned with the truth.

A prior is one line of `PRIORS`. It learns from three slices of a material and reconstructs three
others; its weight is given or chosen automatically on the first of these and kept for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from napari_invprior.io.arrays import image_from_array
from napari_invprior.numerics.metrics import psnr
from napari_invprior.phantoms import KINDS, phantoms
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.physics.tomography import Tomography, TomographyParameters
from napari_invprior.recipes import execute
from napari_invprior.study.baselines import best_total_variation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

PRIORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "patchNR": (
        {"kind": "patchnr"},
        {"kind": "variational", "iterations": 300, "learning_rate": 0.02},
    ),
    "EPLL": ({"kind": "gmm"}, {"kind": "half_quadratic"}),
    "WPP": (
        {
            "kind": "semi_unbalanced", "blur": 0.1, "patch_size": 4, "scales": 1,
            "symmetries": True, "reference_patches": 10_000,
        },
        {"kind": "half_quadratic"},
    ),
}
WEIGHTS = {"WPP": 0.15}
"""Given, for all materials and scans: the automatic choice takes minutes. Set on slice 0."""
LIMITED: dict[str, dict[str, Any]] = {"patchNR": {"iterations": 1000, "plateau": 0}}
"""What the missing angles hide moves by the prior alone, and slowly: 300 steps end 5 dB lower."""

SCANS = {
    "40 views": {"angle_count": 40},
    "120 views over 120 degrees": {"angle_count": 120, "angle_range": 120},
}
REFERENCES = {f"reference {i}": i + 100 for i in range(3)}
TESTS = (0, 1, 2)
NOISE, MARGIN = 0.02, 0.5


@pytest.mark.parametrize("material", KINDS)
@pytest.mark.parametrize("scan", SCANS)
def test_priors_beat_total_variation(
    material: str, scan: str, show: Callable[[str], None]
) -> None:
    physics = Tomography(TomographyParameters(**SCANS[scan]), ndim=2)
    arrays = {
        name: image_from_array(phantoms(material, 1, first_seed=seed)[0], name=name)
        for name, seed in REFERENCES.items()
    }
    learnt: dict[str, tuple[Any, float | str]] = {
        name: (None, WEIGHTS.get(name, "auto")) for name in PRIORS
    }
    gains: dict[str, list[float]] = {name: [] for name in PRIORS}
    for seed in TESTS:
        slice_ = phantoms(material, 1, first_seed=seed)[0]
        truth = torch.from_numpy(slice_)[None, None]
        data = physics.A(truth)
        sigma = NOISE * float(data.max())
        noise = GaussianNoise(GaussianParameters(sigma=sigma))
        y = noise.simulate(data, torch.Generator().manual_seed(seed))
        arrays["truth"] = image_from_array(slice_, name="truth", value_range=(0, 1))
        tv = psnr(best_total_variation(y, physics, noise, truth)[0], truth)
        line = f"{material} {seed}, {scan}: FBP {psnr(physics.start(y), truth):.2f}, TV {tv:.2f}"
        for name, (prior, solver) in PRIORS.items():
            fitted, weight = learnt[name]
            more = LIMITED.get(name, {}) if "angle_range" in SCANS[scan] else {}
            outcome = execute(
                {
                    "observation": {"simulate_from": {"layer": "truth"}},
                    "references": [{"layer": reference} for reference in REFERENCES],
                    "physics": {"kind": "tomography", **SCANS[scan]},
                    "noise": {"kind": "gaussian", "sigma": sigma},
                    "prior": prior,
                    "solver": {**solver, **more, "weight": weight},
                    "baselines": False,
                    "seed": seed,
                },
                arrays=arrays,
                prior=fitted,
            )
            learnt[name] = outcome.prior, outcome.metrics["weight"]
            gains[name].append(outcome.metrics["psnr"] - tv)
            line += f", {name} {outcome.metrics['psnr']:.2f} (weight {learnt[name][1]:.3g})"
        show(line)
    means = {name: float(np.mean(gain)) for name, gain in gains.items()}
    show(f"mean gain over TV (>= {MARGIN} each time): " + ", ".join(
        f"{name} {mean:+.2f} dB" for name, mean in means.items()
    ))
    for name, gain in gains.items():
        assert min(gain) >= MARGIN, name
