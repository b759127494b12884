"""Generated patches and textures from references, with and without networks."""

from __future__ import annotations

import pytest
import torch

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Message, Preview, Result, run
from napari_invprior.parameters import validate
from napari_invprior.priors.base import Reference
from napari_invprior.priors.patch_flow import PatchFlow, PatchFlowParameters
from napari_invprior.samples import binary_volume
from napari_invprior.transport.sliced_flows.energy_distance import energy_distance

QUICK = {"patch_size": 8, "particles": 150, "steps": 60}
NETS = {"train_networks": True, "networks": 2, "network_steps": 5}


def reference(ndim: int = 2, channels: int = 1) -> Reference:
    edge = 48 if ndim == 2 else 16
    planes = [binary_volume((edge,) * ndim, seed, width=2.0) for seed in range(channels)]
    return Reference(torch.stack([torch.from_numpy(plane) for plane in planes]))


def fitted(ndim: int = 2, channels: int = 1, **options: object) -> PatchFlow:
    chosen = PatchFlowParameters(**{**QUICK, **options})  # type: ignore[arg-type]
    flow = PatchFlow(chosen, ndim=ndim, channels=channels)
    return run(flow.fit([reference(ndim, channels)]))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("ndim", "channels", "patch"), [(2, 1, 8), (2, 2, 8), (3, 1, 4), (2, 1, (9, 5))]
)
def test_generated_patches_are_like_the_references(
    ndim: int, channels: int, patch: int | tuple[int, int]
) -> None:
    flow = fitted(ndim, channels, patch_size=patch)
    patches = run(flow.generate(150, seed=1))
    assert patches.shape == (150, channels, *flow.patch)
    white = torch.randn(patches.shape, generator=torch.Generator().manual_seed(0))
    white = (flow.targets.mean() + flow.targets.std() * white).flatten(1).T
    far, near = (float(energy_distance(x, flow.targets)) for x in (white, patches.flatten(1).T))
    assert near < 0.3 * far
    assert torch.equal(run(flow.generate(20, seed=1)), run(flow.generate(20, seed=1)))


def test_the_job_shows_patches_and_compares_them_with_held_out_ones() -> None:
    events = list(fitted().generate(100))
    shown = [e for e in events if isinstance(e, Preview)]
    assert shown[-1].kind == "patches"
    assert shown[-1].array.shape == (64, 1, 8, 8)
    texts = [e.text for e in events if isinstance(e, Message)]
    assert "distance to held-out patches: generated" in texts[-1]
    assert isinstance(events[-1], Result)


def test_networks_draw_at_once_and_are_saved() -> None:
    flow = fitted(**NETS)
    assert len(flow.chain.networks) == 2
    patches = run(flow.generate(5, seed=3))
    second = PatchFlow(flow.parameters, ndim=2)
    second.load_state(flow.state())
    assert torch.equal(run(second.generate(5, seed=3)), patches)
    run(second.fit([reference()], seed=1))
    assert len(second.chain.networks) == 4


@pytest.mark.parametrize("ndim", [2, 3])
def test_textures(ndim: int) -> None:
    flow = fitted(ndim, patch_size=4, steps=10)
    image = run(flow.texture((12, 10, 8)[:ndim]))
    assert image.shape == (1, 1, *(12, 10, 8)[:ndim])
    assert bool(torch.isfinite(image).all())


def test_bad_references_and_states_are_refused() -> None:
    flow = PatchFlow(PatchFlowParameters(**QUICK), ndim=2)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="at least 100 are needed"):
        run(flow.fit([Reference(torch.rand(1, 9, 9))]))
    with pytest.raises(InvalidInput, match="constant"):
        run(flow.fit([Reference(torch.ones(1, 40, 40))]))
    with pytest.raises(InvalidInput, match="knows no patches yet"):
        run(flow.generate(5))
    flow = fitted()
    with pytest.raises(InvalidInput, match="0 patches"):
        run(flow.generate(0))
    state = flow.state()
    with pytest.raises(InvalidInput, match=r"'targets' has shape \(3, 4\), expected \(64, count\)"):
        flow.load_state({**state, "targets": torch.zeros(3, 4)})
    with pytest.raises(InvalidInput, match="'held_out' holds NaN"):
        flow.load_state({**state, "held_out": state["held_out"] * torch.nan})
    with pytest.raises(InvalidInput, match=r"patch_size.* = 1"):
        validate(PatchFlowParameters, {"patch_size": 1})


def test_masks_and_broken_samples_are_left_out() -> None:
    image = reference().image.clone()
    image[:, :, 30:] = torch.nan
    mask = torch.ones(48, 48, dtype=torch.bool)
    mask[20:] = False
    flow = run(PatchFlow(PatchFlowParameters(**QUICK), ndim=2).fit([Reference(image, mask)]))
    assert bool(torch.isfinite(flow.targets).all())
