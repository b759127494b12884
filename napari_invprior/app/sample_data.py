"""Built-in data for napari's File > Open Sample: an observation, a reference, the hidden truth."""

from __future__ import annotations

from typing import Any

import numpy as np

from napari_invprior.app.viewer.layers import META
from napari_invprior.geometry import Geometry

LayerTuple = tuple[np.ndarray, dict[str, Any], str]

GAP = 0.06
"""Room between observation and reference, as a share of the width."""


def superresolution_2d() -> list[LayerTuple]:
    """A gravel photograph measured with a quarter of the samples per axis."""
    from napari_invprior.samples import load_sample

    truth = load_sample("gravel-test")[128:384, :].astype(np.float32) / 255
    reference = load_sample("gravel-reference").astype(np.float32) / 255
    return _layers(
        "gravel", truth, reference[:256], {"kind": "superresolution", "factor": 4}, sigma=0.01,
        step=(0.05, 0.05), unit="mm",
    )


def superresolution_3d() -> list[LayerTuple]:
    """A generated two-phase volume measured with half of the samples per axis."""
    from napari_invprior.samples import load_sample

    return _layers(
        "volume", load_sample("grey-volume-test"), load_sample("grey-volume-reference"),
        {"kind": "superresolution", "factor": 2}, sigma=0.01, step=(2.0, 2.0, 2.0), unit="um",
    )


def inpainting_2d() -> list[LayerTuple]:
    """A brick photograph of which seven samples in ten are missing."""
    from napari_invprior.samples import load_sample

    truth = load_sample("brick-test")[128:320, 32:224].astype(np.float32) / 255
    reference = load_sample("brick-reference")[:256].astype(np.float32) / 255
    mask = np.random.default_rng(0).random(truth.shape) >= 0.7
    return _layers(
        "brick", truth, reference, {"kind": "inpainting"}, sigma=0.01, step=(1.0, 1.0),
        unit="pixel", mask=mask,
    )


def tomography_2d() -> list[LayerTuple]:
    """The sinogram of a generated foam, seen at 60 angles, and another slice of it."""
    from napari_invprior.samples import load_sample

    return _layers(
        "foam", load_sample("foam-phantom-test"), load_sample("foam-phantom-reference"),
        {"kind": "tomography", "angle_count": 60}, sigma=0.005, step=(1.0, 1.0), unit="pixel",
    )


def _layers(
    name: str, truth: np.ndarray, reference: np.ndarray, physics: dict[str, Any], *, sigma: float,
    step: tuple[float, ...], unit: str, mask: np.ndarray | None = None,
) -> list[LayerTuple]:
    """Simulate the observation and place everything in one world."""
    import torch

    from napari_invprior import registry
    from napari_invprior.parameters import validate

    ndim = truth.ndim
    method = registry.get("physics", physics["kind"])
    given = {key: value for key, value in physics.items() if key != "kind"}
    arrays = {} if mask is None else {"mask": torch.from_numpy(mask).double()}
    operator = method.cls(validate(method.parameters, given), ndim, **arrays)
    noise = registry.get("noise", "gaussian")
    generator = torch.Generator().manual_seed(0)
    data = noise.cls(noise.parameters(sigma=sigma)).simulate(
        operator.A(torch.from_numpy(np.ascontiguousarray(truth))[None, None]), generator
    )[0, 0].numpy()
    axes = ("z", "y", "x")[-ndim:]
    fine = Geometry(step, (0.0,) * ndim)
    coarse = operator.data_grid(fine)
    beside = (0.0,) * (ndim - 1) + (truth.shape[-1] * step[-1] * (1 + GAP),)
    common: dict[str, Any] = {
        "units": (unit,) * ndim, "axis_labels": axes, "contrast_limits": (0.0, 1.0),
        "colormap": "gray",
    }
    kept = {"scale": coarse.scale, "translate": coarse.translate}
    if mask is not None:
        data = np.where(mask, data, 0).astype(np.float32)
        physics = physics | {"mask": {"layer": f"{name} mask"}}

    def options(role: str, title: str, **more: Any) -> dict[str, Any]:
        facts = {"role": role} | ({"physics": physics} if role == "observation" else {})
        return common | {"name": f"{name} {title}", "metadata": {META: facts}} | more

    layers: list[LayerTuple] = [
        (truth, options("truth", "truth", scale=step, visible=False), "image"),
        (reference, options("reference", "reference", scale=step, translate=beside), "image"),
        (data, options("observation", "observation", **kept), "image"),
    ]
    if mask is not None:
        labels = {k: v for k, v in common.items() if k in ("units", "axis_labels")}
        labels |= {"name": f"{name} mask", "visible": False, "scale": step,
                   "metadata": {META: {"role": "mask"}}}
        layers.insert(0, (mask.astype(np.uint8), labels, "labels"))
    return layers
