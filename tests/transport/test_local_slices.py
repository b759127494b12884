"""Local slices: adjoint, unit lines, periodic windows, coverage, two and three dimensions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_invprior.errors import InvalidInput
from napari_invprior.transport.sliced_flows.energy_distance import SlicedTarget, energy_gradient
from napari_invprior.transport.slices.directions import directions
from napari_invprior.transport.slices.draws import LocalDraw
from napari_invprior.transport.slices.local import WindowSlices, as_columns, as_images


def images(
    space: tuple[int, ...], channels: int = 1, count: int = 6, seed: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, channels, *space), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("layout", ["tiled", "stretched"])
@given(
    space=st.lists(st.integers(2, 9), min_size=2, max_size=3), channels=st.integers(1, 3),
    patch=st.integers(1, 4), scales=st.integers(1, 3), seed=st.integers(0, 5),
)
def test_scatter_is_the_gradient_of_the_weighted_sum(
    layout: str, space: list[int], channels: int, patch: int, scales: int, seed: int
) -> None:
    x = as_columns(images(tuple(space), channels)).requires_grad_()
    draw = LocalDraw(x.detach(), space, patch=patch, scales=scales, count=7, layout=layout)
    slices = draw(torch.Generator().manual_seed(seed))
    values = slices.project(x)
    pull = torch.randn(values.shape, generator=torch.Generator().manual_seed(1)).double()
    slices.weighted((values * pull).sum(1)).backward()
    assert torch.allclose(slices.scatter(pull), x.grad, atol=1e-12)
    pieces = list(slices.parts(1))
    assert torch.equal(torch.cat([piece.project(x) for piece in pieces]), values)


@pytest.mark.parametrize("layout", ["tiled", "stretched"])
@pytest.mark.parametrize("space", [(6, 9), (5, 6, 7)])
def test_windows_are_periodic_and_lines_of_unit_length(space: tuple[int, ...], layout: str) -> None:
    ndim, generator = len(space), torch.Generator().manual_seed(0)
    block, repeat = (2,) * ndim, 2
    lines = directions(6, 2 * 2**ndim, generator, dtype=torch.float64).view(2, 3, -1)
    starts = torch.stack([torch.tensor([4, 1])] * ndim, 1)
    shift = tuple(range(1, ndim + 1))

    def slices(where: torch.Tensor) -> WindowSlices:
        return WindowSlices(space, 2, block, repeat, where, lines, layout=layout)

    x = images(space, 2)
    rolled = x.roll(shift, tuple(range(2, ndim + 2)))
    here, there = slices(starts), slices(starts + torch.tensor(shift))
    assert torch.allclose(here.project(as_columns(x)), there.project(as_columns(rolled)))
    whole = here.project(torch.eye(2 * math.prod(space), dtype=torch.float64))
    assert torch.allclose(whole.norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_tiled_and_stretched_blocks() -> None:
    line = torch.tensor([0.6, 0.8]).view(1, 1, 2)
    shape = (1, 4), 1, (1, 2), 1
    plain = WindowSlices(*shape, torch.tensor([[0, 3]]), line)
    assert plain.project(torch.eye(4))[0].tolist() == pytest.approx([0.8, 0, 0, 0.6])
    found = {}
    for layout in ("tiled", "stretched"):
        pixels = WindowSlices(
            (2, 4), 1, (1, 2), 2, torch.tensor([[0, 0]]), line, layout=layout  # type: ignore[arg-type]
        )
        found[layout] = pixels.project(torch.eye(8)).view(2, 4)[0].tolist()
    assert found["tiled"] == pytest.approx([0.3, 0.4, 0.3, 0.4])
    assert found["stretched"] == pytest.approx([0.3, 0.3, 0.4, 0.4])


@pytest.mark.parametrize("space", [(12, 12), (6, 6, 6)])
def test_each_size_covers_the_image_once(space: tuple[int, ...]) -> None:
    x = as_columns(images(space))
    slices = LocalDraw(x, space, patch=3, count=30)(torch.Generator().manual_seed(0))
    assert len(slices.sizes) == 4 - (len(space) == 3) * 2
    for size in slices.sizes[:2]:
        covered = torch.bincount(size._index.flatten(), minlength=len(x))
        assert torch.equal(covered, torch.ones_like(covered))


def test_one_window_of_the_whole_image_is_the_energy_distance() -> None:
    x, y = (as_columns(images((4, 4), count=n, seed=n)) for n in (30, 25))
    draw = LocalDraw(y, (4, 4), patch=4, scales=1, count=20_000)
    slices = draw(torch.Generator().manual_seed(0))
    found = SlicedTarget(y, slices).gradient(x) / float(slices.sizes[0]._weight)
    exact = energy_gradient(x, y)
    assert float((found - exact).norm() / exact.norm()) < 1.3 * math.sqrt(16 / 20_000)


def test_images_and_columns() -> None:
    x = images((3, 4), 2)
    assert torch.equal(as_images(as_columns(x), (3, 4)), x)


@pytest.mark.parametrize(
    ("space", "options", "reason"),
    [
        ((5, 5), {}, "24 numbers"), ((4, 6), {"patch": 0}, "blocks of 0 px"),
        ((4, 6), {"scales": 0}, "at 0 sizes"),
    ],
)
def test_bad_windows_are_refused(
    space: tuple[int, ...], options: dict[str, int], reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason):
        LocalDraw(as_columns(images((4, 6))), space, **options)


def test_equal_images_are_refused() -> None:
    with pytest.raises(InvalidInput, match="all 3 targets are equal"):
        LocalDraw(torch.ones(36, 3), (6, 6))
