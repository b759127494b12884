"""Cells on a grid: refinement finds what the plain grid finds, and computes little."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_invprior.errors import Cancelled, InvalidInput
from napari_invprior.jobs import Preview
from napari_invprior.transport.cells.atoms import Atoms
from napari_invprior.transport.cells.flow_matching import FlowMatching
from napari_invprior.transport.cells.presets import PRESETS
from napari_invprior.transport.cells.raster import Grid, rasterise


def atoms_of(ndim: int, count: int, seed: int, **options) -> Atoms:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randn((ndim, count), generator=generator, dtype=torch.float64)
    weights = torch.rand(count, generator=generator) + 0.02 if seed % 2 else None
    return Atoms(positions, weights, **options)


def plain(flow: FlowMatching, grid: Grid) -> torch.Tensor:
    return torch.cat([flow.arrival(p).label for _, p in grid.all_points()]).view(grid.shape)


@pytest.mark.parametrize(("ndim", "count", "resolution", "seed"), [
    (2, 4, 256, 0), (2, 12, 200, 1), (2, 30, 333, 2), (3, 5, 48, 3), (3, 12, 40, 4),
])
def test_refined_cells_are_those_of_the_plain_grid(ndim, count, resolution, seed) -> None:
    flow, grid = FlowMatching(atoms_of(ndim, count, seed)), Grid(4.0, resolution, ndim)
    *events, last = rasterise(flow, grid)
    image = last.value
    assert torch.equal(image.label.long(), plain(flow, grid))
    assert not image.undecided.any()
    assert image.computed < grid.resolution**ndim * (0.4 if ndim == 2 else 0.7)
    sizes = [event.array.shape[0] for event in events if isinstance(event, Preview)]
    assert sizes == sorted(sizes) and sizes[0] < resolution


def test_a_cell_smaller_than_the_coarse_grid_is_found() -> None:
    angle = 2 * torch.pi * torch.arange(5, dtype=torch.float64) / 5
    rim = torch.stack([angle.cos(), angle.sin()])
    positions = torch.cat([rim, torch.tensor([[0.03], [0.02]])], 1)
    flow = FlowMatching(Atoms(positions, torch.tensor([1.0] * 5 + [1e-3])))
    grid = Grid(4.0, 512, 2)
    image = list(rasterise(flow, grid))[-1].value
    assert 0 < int((image.label == 5).sum()) < 64, "one sample of the coarse grid stands for 64"
    assert torch.equal(image.label.long(), plain(flow, grid))


def test_every_sample_that_touches_another_label_was_computed(monkeypatch) -> None:
    flow, grid = FlowMatching(atoms_of(2, 9, 5)), Grid(4.0, 128, 2)
    seen: list[torch.Tensor] = []
    arrival = flow.arrival
    monkeypatch.setattr(flow, "arrival", lambda p, s: seen.append(p) or arrival(p, s))
    label = list(rasterise(flow, grid))[-1].value.label.numpy()
    index = ((torch.cat(seen, 1) + 4.0) / grid.spacing).floor().long().numpy()
    known = np.zeros(grid.shape, bool)
    known[tuple(index)] = True
    for axis in range(2):
        differs = np.diff(label, axis=axis) != 0
        low = np.take(known, range(127), axis)
        high = np.take(known, range(1, 128), axis)
        assert low[differs].all() and high[differs].all()


def test_numbers_count_the_given_atoms_and_undecided_samples_have_none() -> None:
    atoms = Atoms(torch.tensor([[5.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]),
                  torch.tensor([0.0, 1.0, 1.0, 1.0]))
    image = list(rasterise(FlowMatching(atoms), Grid(4.0, 64, 2)))[-1].value
    assert set(np.unique(image.numbered(atoms))) == {2, 3}
    image.undecided[0, 0] = True
    assert image.numbered(atoms)[0, 0] == 0


def test_a_grid_that_cannot_be_held_is_refused_and_a_run_stops() -> None:
    with pytest.raises(InvalidInput, match="at most 8192 along each of 2"):
        Grid(4.0, 9000, 2)
    with pytest.raises(InvalidInput, match="at most 406 along each of 3"):
        Grid(4.0, 512, 3)
    with pytest.raises(Cancelled):
        list(rasterise(FlowMatching(atoms_of(2, 5, 0)), Grid(4.0, 64, 2), should_stop=lambda: True))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_atoms(name: str) -> None:
    preset = PRESETS[name]
    positions, weights = preset.draw(7, 0)
    atoms = Atoms(torch.from_numpy(positions.T.copy()), torch.from_numpy(weights))
    assert atoms.ndim == preset.ndim and not atoms.notes and preset.about.endswith(".")
