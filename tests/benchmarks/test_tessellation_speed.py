"""Cells by refinement beside the plain grid with the same integrator, as ratios in one run."""

from __future__ import annotations

import pytest
import torch

from napari_invprior.transport.cells.atoms import Atoms
from napari_invprior.transport.cells.flow_matching import FlowMatching
from napari_invprior.transport.cells.raster import Grid, rasterise
from tests.benchmarks.test_mixture_speed import best

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("resolution", "count"), [(512, 4), (512, 50), (256, 20)])
def test_refinement(benchmark, capsys, resolution: int, count: int) -> None:
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(0)
    flow = FlowMatching(Atoms(torch.randn((2, count), generator=generator, dtype=torch.float64)))
    grid = Grid(4.0, resolution, 2)

    def refined() -> torch.Tensor:
        return list(rasterise(flow, grid))[-1].value.label

    def plain() -> torch.Tensor:
        parts = [flow.arrival(points).label for _, points in grid.all_points()]
        return torch.cat(parts).view(grid.shape)

    assert torch.equal(refined().long(), plain())
    ours, theirs = best(refined, 5), best(plain, 3)
    benchmark.pedantic(refined, rounds=3)
    with capsys.disabled():
        print(f"\n{resolution}^2, n = {count}: {ours:.0f} ms refined, {theirs:.0f} ms "
              f"plain, ratio {theirs / ours:.1f}")
