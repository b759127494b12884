"""WPPFlow: samples, moments and layers; and the border of both networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_invprior import jobs, recipes
from napari_invprior.errors import InvalidInput
from napari_invprior.image import Image
from napari_invprior.io.images import image_from_array
from napari_invprior.io.omezarr import read_image
from napari_invprior.physics.blocks import from_blocks
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.physics.superresolution import SuperResolution, SuperResolutionParameters
from napari_invprior.priors.base import Measurement, Reference
from napari_invprior.priors.data_networks.tiles import cut_tiles, first_image
from napari_invprior.priors.data_networks.wppflow import WPPFlow, WPPFlowParameters
from napari_invprior.priors.data_networks.wppnet import WPPNet, WPPNetParameters
from napari_invprior.recipes.outputs import write_outcome
from napari_invprior.samples import load_sample

QUICK: dict[str, Any] = {
    "reference_patches": 100, "steps": 2, "centre_steps": 1, "tile": 8, "tiles": 2, "samples": 4,
    "shown": 3, "patch_size": 4,
}


def trained(
    data: tuple[int, ...], factor: int | tuple[int, ...] = 2, **changes: Any
) -> tuple[WPPFlow, Measurement]:
    """A flow after two steps, and data of two channels (2, 2, *data)."""
    physics = SuperResolution(
        SuperResolutionParameters(factor=factor, boundary="circular"), ndim=len(data)
    )
    generator = torch.Generator().manual_seed(0)
    y = torch.rand((2, 2, *data), generator=generator)
    measurement = Measurement(y, physics, GaussianNoise(GaussianParameters(sigma=0.05)))
    prior = WPPFlow(WPPFlowParameters(**QUICK | changes), ndim=len(data), channels=2)
    reference = torch.rand((2, *(24,) * len(data)), generator=generator)
    return jobs.run(prior.fit([Reference(reference)], measurement=measurement)), measurement


@pytest.mark.parametrize(
    ("data", "factor"),
    [((9, 10), 2), ((9, 10), 3), ((9, 11), 1), ((8, 9), (1, 2)), ((8, 9, 8), (1, 2, 2))],
    ids=str,
)
def test_moments_are_those_of_the_samples(
    data: tuple[int, ...], factor: int | tuple[int, ...]
) -> None:
    prior, measurement = trained(data, factor)
    assert measurement.y is not None
    drawn = jobs.run(prior.draw(measurement.y, 4, seed=3))
    mean = jobs.run(prior.estimate(measurement.y, seed=3))
    assert drawn.shape[:3] == (4, 2, 2)
    assert torch.allclose(drawn.mean(0), mean, atol=1e-5)
    assert not torch.allclose(drawn, jobs.run(prior.draw(measurement.y, 4, seed=4)))
    # every frame sees the same noise, alone or in company
    assert torch.equal(drawn[:, 1:], jobs.run(prior.draw(measurement.y[1:], 4, seed=3)))
    std, samples = jobs.run(prior.maps(torch.empty(0), measurement, seed=3))
    expected = from_blocks(drawn, measurement.physics, data)
    assert (std.unit, samples.unit) == ("difference", "image")
    assert torch.equal(samples.values, expected[:3])
    spread = expected.var(0).mean(1, keepdim=True).sqrt()
    assert torch.allclose(std.values, spread, atol=1e-5)
    assert 0.003 < float(std.values.mean()) < 0.3


def test_maps_need_data_and_samples_are_optional() -> None:
    prior, measurement = trained((8, 8), shown=0)
    assert jobs.run(prior.maps(torch.empty(0))) == []
    assert [m.name for m in jobs.run(prior.maps(torch.empty(0), measurement))] == ["std"]


def test_stopping_gives_the_mean_so_far() -> None:
    prior, measurement = trained((8, 8))
    assert measurement.y is not None
    calls = iter([False, True])
    mean = jobs.run(prior.estimate(measurement.y[:1], should_stop=lambda: next(calls)))
    drawn = jobs.run(prior.draw(measurement.y[:1], 2))
    assert torch.allclose(mean, drawn.mean(0), atol=1e-5)


def test_a_fit_without_data_says_what_to_do() -> None:
    prior = WPPFlow(WPPFlowParameters(**QUICK), ndim=2)
    with pytest.raises(InvalidInput, match="give an observation"):
        jobs.run(prior.fit([Reference(torch.rand(1, 24, 24))]))
    with pytest.raises(InvalidInput, match="not trained yet"):
        jobs.run(prior.estimate(torch.rand(1, 1, 8, 8)))


def executed(low: Image, good: Image) -> recipes.Outcome:
    recipe = {
        "observation": {"layer": "low"}, "references": [{"layer": "good"}],
        "physics": {"kind": "superresolution", "factor": 2},
        "noise": {"kind": "gaussian", "sigma": 0.02},
        "prior": {"kind": "wppflow", **QUICK, "samples": 3}, "solver": {"kind": "direct"},
        "maps": True, "seed": 5,
    }
    return recipes.execute(recipe, arrays={"low": low, "good": good})


@pytest.mark.parametrize(
    ("lead", "trail", "options"),
    [
        ((), (), {}),
        ((2,), (), {}),
        ((3,), (), {"channel_axis": 0}),
        ((2, 3), (), {"channel_axis": 1}),
        ((), (3,), {"rgb": True}),
    ],
    ids=["plain", "frames", "channels", "frames and channels", "colours"],
)
def test_layers_of_a_run(
    tmp_path: Path, lead: tuple[int, ...], trail: tuple[int, ...], options: dict[str, Any]
) -> None:
    """``std`` and ``samples`` in the user's numbers and axes, on the image's grid, on disk too."""
    generator = np.random.default_rng(0)
    sample = load_sample("brick-test")[100:112, 40:54].astype(float) + 1000
    shape = (*lead, *sample.shape, *trail)
    expanded = sample.reshape((1,) * len(lead) + sample.shape + (1,) * len(trail))
    low = (expanded + generator.normal(0, 4, shape)).astype(np.float32)
    if options.get("rgb"):
        low = (low - 1000).clip(0, 255).astype(np.uint8)
    good_lead = (3,) if "channel_axis" in options else ()
    good = np.broadcast_to(
        low[(0,) * (len(lead) - len(good_lead))], (*good_lead, *sample.shape, *trail)
    ).repeat(2, len(good_lead)).repeat(2, len(good_lead) + 1)
    good_options = options | ({"channel_axis": 0} if good_lead else {})
    outcome = executed(
        image_from_array(low, name="low", ndim=2, **options),
        image_from_array(good, name="good", ndim=2, **good_options),
    )
    layers = {layer.name: layer for layer in outcome.layers}
    assert list(layers) == ["reconstruction", "std", "samples"]
    mean, std, samples = layers.values()
    assert mean.array.shape == (*lead, 24, 28, *trail)
    assert samples.array.shape == (3, *mean.array.shape)
    assert samples.rgb == mean.rgb == bool(trail)
    assert std.role == samples.role == "map" and not std.rgb
    channel = options.get("channel_axis", -1 if trail else None)
    assert np.allclose(samples.array.mean(0), mean.array, rtol=1e-3, atol=0.05)
    variance = samples.array.var(0, ddof=1)
    expected = np.sqrt(variance if channel is None else variance.mean(channel))
    assert np.allclose(std.array, expected, rtol=1e-2, atol=0.02)
    assert samples.geometry == mean.geometry == std.geometry
    write_outcome(outcome, tmp_path)
    frames = 3 * (lead[0] if lead and channel != 0 else 1)
    stored = read_image(tmp_path / "result.ome.zarr" / "samples").array
    assert stored.shape == (frames, 3 if channel is not None else 1, 24, 28)
    assert read_image(tmp_path / "result.ome.zarr" / "std").array.shape[-2:] == (24, 28)


def test_channels_of_a_place_are_drawn_together() -> None:
    physics = SuperResolution(SuperResolutionParameters(factor=2), ndim=2)
    plane = torch.rand(1, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    tiles = cut_tiles(torch.cat((plane, plane + 1, plane + 2), 1), physics, 8)
    data, first = tiles.draw(4, torch.Generator().manual_seed(1), channels=3)
    assert data.shape == (6, 1, 8, 8)
    assert first.shape == (6, 1, 16, 16)
    assert torch.allclose(data[0::3] + 1, data[1::3])
    assert torch.allclose(data[1::3] + 1, data[2::3])


@pytest.mark.parametrize(("boundary", "circular"), [("reflect", False), ("circular", True)])
def test_what_a_network_does_at_the_rim_of_its_tiles_is_not_shown(
    boundary: Literal["reflect", "circular"], circular: bool
) -> None:
    """There no data hold it; so its input is continued by that much, and its image cut."""

    class Spoilt(torch.nn.Module):
        def forward(self, y: Tensor, first: Tensor) -> Tensor:
            x = torch.zeros_like(first)
            rim = 2 * prior._border.margin
            x[..., rim:-rim, rim:-rim] = first[..., rim:-rim, rim:-rim]
            return x

    physics = SuperResolution(SuperResolutionParameters(factor=2, boundary=boundary), ndim=2)
    y = 1 + torch.rand((1, 1, 12, 13), generator=torch.Generator().manual_seed(0))
    measurement = Measurement(y, physics, GaussianNoise(GaussianParameters(sigma=0.05)))
    prior = WPPNet(WPPNetParameters(reference_patches=100, steps=1, tile=8), ndim=2)
    jobs.run(prior.fit([Reference(torch.rand(1, 24, 24))], measurement=measurement))
    assert prior._border.margin > 0
    assert prior._border.circular == circular
    prior._net = Spoilt()
    x = jobs.run(prior.estimate(y))
    assert x.shape == (1, 1, 24, 26)
    expected = first_image(y, (2, 2))
    assert torch.allclose(x[..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4], atol=0.02)
    assert float(x.min()) > 0.5


@pytest.mark.parametrize("border", [(5.0, 0.0), (-1.0, 0.0), (1e9, 1.0)])
def test_a_saved_border_is_at_most_half_of_a_tile(border: tuple[float, float]) -> None:
    """More would have the data continued to any size."""
    prior, _ = trained((8, 8))
    fresh = WPPFlow(prior.parameters, ndim=2, channels=2)
    with pytest.raises(InvalidInput, match="0 to 4 data px are possible"):
        fresh.load_state(prior.state() | {"border": torch.tensor(border, dtype=torch.float64)})
    assert not fresh.is_fitted
