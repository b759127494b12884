"""Acceptance of sliced MMD flows (sheet 17), each figure beside its threshold."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import make_moons

from napari_invprior.jobs import run
from napari_invprior.numerics.patches import PatchGrid, gather_patches
from napari_invprior.priors.base import Reference
from napari_invprior.priors.patch_flow import PatchFlow, PatchFlowParameters
from napari_invprior.samples import photograph
from napari_invprior.transport.sliced_flows.displacement import Fitting
from napari_invprior.transport.sliced_flows.energy_distance import (
    energy_distance,
    energy_gradient,
    sliced_energy_gradient,
)
from napari_invprior.transport.sliced_flows.flow_chain import ChainPlan, FlowChain
from napari_invprior.transport.sliced_flows.particle_flow import ParticleFlow
from napari_invprior.transport.slices.directions import directions
from napari_invprior.transport.slices.draws import DirectionDraw
from tests.transport.vectors import VectorNet

pytestmark = pytest.mark.slow
Show = Callable[[str], None]


@pytest.mark.parametrize("dim", [10, 100, 784])
def test_error_of_the_sliced_gradient(dim: int, show: Show) -> None:  # check 3
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn((2, dim, 200), generator=generator, dtype=torch.float64)
    y = y + 0.3
    exact = energy_gradient(x, y)

    def error(count: int, kind: str) -> float:
        """Relative error, the root of its mean square over enough draws to tell kinds apart."""
        found = []
        for _ in range(max(4, 1024 // count)):
            xi = directions(count, dim, generator, kind, torch.float64)  # type: ignore[arg-type]
            found.append(float((sliced_energy_gradient(x, y, xi) - exact).square().sum()))
        return math.sqrt(sum(found) / len(found)) / float(exact.norm())

    for count in (16, 64, 256, 1024):
        iid, orthogonal = error(count, "iid"), error(count, "orthogonal")
        bound = 1.3 * math.sqrt(dim / count)
        show(
            f"d = {dim}, {count} lines: relative error {iid:.3f} (at most {bound:.2f}), "
            f"orthogonal {orthogonal:.3f} (at most iid)"
        )
        assert iid <= bound
        assert orthogonal <= iid


def moons(seed: int, count: int = 1000) -> torch.Tensor:
    points = make_moons(count, noise=0.05, random_state=seed)[0]
    return torch.from_numpy(points.T.copy()).float()


def test_two_moons(show: Show) -> None:  # check 5
    y = moons(0)
    start = torch.rand((2, 1000), generator=torch.Generator().manual_seed(1))
    draw = DirectionDraw(y, 100)
    draw.unit = 1.0  # the sheet's steps have no unit
    flow = ParticleFlow(start, y, draw)
    found = {}
    for steps, step, momentum in ((100, 1.0, 0.7), (300, 1.0, 0.7), (100, 0.1, 0.7)):
        for taken in flow.advance(steps, step, momentum):
            found[taken] = 0.0
        found[taken] = float(energy_distance(flow.particles, y))
    independent = float(energy_distance(moons(1), y))
    show(
        f"two moons: D^2 after 100 steps {found[100]:.2g} (at most 3e-5), after 500 "
        f"{found[500]:.2g} (at most 2e-6); an independent sample {independent:.2g}"
    )
    assert found[100] <= 3e-5
    assert found[500] <= 2e-6


def test_a_chain_of_networks_draws_two_moons(show: Show) -> None:
    y = moons(0)
    chain = FlowChain(lambda: VectorNet(2, 2, (64, 64)), (2,))
    plan = ChainPlan(blocks=12, first=8, growth=64, fitting=Fitting(800, 256, 3e-3))
    run(chain.train(y, plan=plan))
    drawn = sum(float(energy_distance(chain.sample(1000, 10 + s), y)) for s in range(5)) / 5
    start = float(energy_distance(chain.noise(1000, torch.Generator().manual_seed(3)), y))
    chance = ParticleFlow(y.clone(), y).chance
    show(
        f"{len(chain.networks)} networks, two moons: D^2 of new samples {drawn:.2g} (at most "
        f"{3 * chance:.2g}, three times that of independent points), of the noise {start:.2g}"
    )
    assert drawn <= 3 * chance


def gravel() -> tuple[Reference, torch.Tensor, torch.Tensor]:
    """The left half of the photograph, and two sets of 2000 patches of the right one."""
    left, right = (
        torch.from_numpy(photograph("gravel", part) / 255.0).float()[None]
        for part in ("reference", "test")
    )
    grid = PatchGrid(right.shape[1:], 16)
    order = torch.randperm(grid.count, generator=torch.Generator().manual_seed(0))[:4000]
    patches = gather_patches(right, grid, order)
    return Reference(left), patches[:, :2000], patches[:, 2000:]


def test_generated_patches_of_gravel(show: Show) -> None:
    reference, held_out, other = gravel()
    flow = PatchFlow(PatchFlowParameters(), ndim=2)
    run(flow.fit([reference]))
    patches = run(flow.generate(2000)).flatten(1).T
    some = torch.randperm(flow.targets.shape[1], generator=torch.Generator().manual_seed(1))[:2000]
    made = float(energy_distance(patches, held_out))
    real = float(energy_distance(flow.targets[:, some], held_out))
    same = float(energy_distance(other, held_out))
    own = float(energy_distance(patches, flow.targets))
    near = torch.cdist(patches.T, flow.targets.T).amin(1).median()
    usual = torch.cdist(held_out.T, flow.targets.T).amin(1).median()
    show(
        f"gravel, 2000 patches of 16 x 16: D^2 to held-out patches {made:.2g} (at most 1.3 x the "
        f"reference's own {real:.2g}), to the reference {own:.2g}; two real sets of one place "
        f"{same:.2g}; nearest reference patch {float(near):.2f}, of real ones {float(usual):.2f}"
    )
    assert made <= 1.3 * real
    assert float(near) > 0.5 * float(usual), "not copies"


def test_texture_of_gravel(show: Show) -> None:
    reference, _, _ = gravel()
    flow = PatchFlow(PatchFlowParameters(), ndim=2)
    run(flow.fit([reference]))
    image = run(flow.texture((96, 96)))
    grid, whole = PatchGrid((96, 96), 6), PatchGrid(reference.image.shape[1:], 6)
    found, real = grid.extract(image)[:, ::3], whole.extract(reference.image[None])[:, ::23]
    noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    white = float(energy_distance(real.mean() + real.std() * noise, real))
    made = float(energy_distance(found, real))
    show(f"texture of gravel: D^2 of 6 x 6 patches {made:.2g} (at most 0.1 x noise, {white:.2g})")
    assert made <= 0.1 * white
