"""Patch operators against brute force, over random shapes, sizes, strides and offsets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_invprior.errors import InvalidInput
from napari_invprior.numerics.patches import (
    PatchGrid,
    extract_patches,
    flat_index,
    gather_patches,
    positions_inside,
    random_offset,
    symmetries,
)


@st.composite
def grids(draw: st.DrawFn) -> tuple[PatchGrid, int, int]:
    """A grid that fits its image, a batch size and a channel count."""
    ndim = draw(st.integers(2, 3))
    patch = [draw(st.integers(1, 4)) for _ in range(ndim)]
    stride = [draw(st.integers(1, 4)) for _ in range(ndim)]
    offset = [draw(st.integers(0, 3)) for _ in range(ndim)]
    space = [p + o + draw(st.integers(0, 5)) for p, o in zip(patch, offset, strict=True)]
    return PatchGrid(space, patch, stride, offset), draw(st.integers(1, 2)), draw(st.integers(1, 3))


def brute(x: np.ndarray, grid: PatchGrid) -> np.ndarray:
    """Patches one by one, as numpy slices."""
    columns = []
    for plane in x:
        for place in itertools.product(*map(range, grid.counts)):
            start = [o + i * s for o, i, s in zip(grid.offset, place, grid.stride, strict=True)]
            window = tuple(slice(a, a + p) for a, p in zip(start, grid.patch, strict=True))
            columns.append(plane[(slice(None), *window)].ravel())
    return np.stack(columns, 1)


@given(grids())
def test_extraction_equals_brute_force(case: tuple[PatchGrid, int, int]) -> None:
    grid, batch, channels = case
    x = torch.rand((batch, channels, *grid.space), dtype=torch.float64)
    assert np.array_equal(grid.extract(x).numpy(), brute(x.numpy(), grid))
    strided = torch.rand((channels, batch, *grid.space[::-1]), dtype=torch.float64)
    turned = strided.permute(1, 0, *range(strided.ndim - 1, 1, -1))
    assert np.array_equal(grid.extract(turned).numpy(), brute(turned.numpy(), grid))


@given(grids())
def test_adjoint_is_exact(case: tuple[PatchGrid, int, int]) -> None:
    grid, batch, channels = case
    x = torch.rand((batch, channels, *grid.space), dtype=torch.float64)
    patches = grid.extract(x)
    p = torch.rand_like(patches)
    left, right = float((patches * p).sum()), float((x * grid.adjoint(p)).sum())
    assert left == pytest.approx(right, rel=1e-12)
    single = float((grid.extract(x.float()) * p.float()).sum())
    assert single == pytest.approx(float((x.float() * grid.adjoint(p.float())).sum()), rel=1e-5)


@given(grids())
def test_adjoint_of_extraction_is_the_multiplicity(case: tuple[PatchGrid, int, int]) -> None:
    grid, batch, channels = case
    x = torch.rand((batch, channels, *grid.space), dtype=torch.float64)
    count = grid.multiplicity(dtype=torch.float64)
    assert torch.allclose(grid.adjoint(grid.extract(x)), x * count, rtol=1e-12)


@given(grids())
def test_gather_and_flat_index_agree_with_extraction(case: tuple[PatchGrid, int, int]) -> None:
    grid, _, channels = case
    x = torch.rand((channels, *grid.space))
    everything = torch.arange(grid.count)
    assert torch.equal(gather_patches(x, grid, everything), grid.extract(x[None]))
    assert flat_index(grid, channels, everything).max() < x.numel()


@given(grids())
def test_autograd_uses_the_adjoint(case: tuple[PatchGrid, int, int]) -> None:
    grid, _, _ = case
    x = torch.rand((1, 1, *grid.space), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: extract_patches(v, grid), x)


def test_buffers_are_reused_and_results_written_into_them() -> None:
    grid = PatchGrid((9, 8), 3)
    x = torch.rand(1, 1, 9, 8)
    buffer = grid.buffer(x)
    out = grid.extract(x, buffer)
    assert out.data_ptr() == buffer.data_ptr() == grid.buffer(x).data_ptr()
    image = torch.full_like(x, 7)
    assert grid.adjoint(out, image).data_ptr() == image.data_ptr()
    assert torch.equal(image, grid.adjoint(out))


@given(
    st.lists(st.booleans(), min_size=30, max_size=30), st.integers(1, 3), st.integers(1, 3)
)
def test_positions_inside_a_mask(flags: list[bool], height: int, width: int) -> None:
    mask = torch.tensor(flags).view(5, 6)
    grid = PatchGrid((5, 6), (height, width))
    inside = grid.extract(mask[None, None].float()).min(0).values > 0
    assert torch.equal(positions_inside(mask, (height, width)), inside.nonzero().flatten())


def test_random_offsets_cover_the_cell_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [random_offset((20, 20), (4, 4), (3, 3), generator) for _ in range(1800)]
    counts = np.bincount([3 * a + b for a, b in drawn], minlength=9)
    assert counts.min() > 150
    assert counts.max() < 250


@pytest.mark.parametrize(("patch", "count"), [((3, 3), 8), ((2, 3), 4), ((3, 3, 3), 48)])
def test_symmetries_form_a_group(patch: tuple[int, ...], count: int) -> None:
    group = symmetries(patch, channels=2)
    assert group.shape == (count, 2 * int(np.prod(patch)))
    rows = {tuple(row.tolist()) for row in group}
    assert len(rows) == count
    for a, b in itertools.product(group[:5], group[-5:]):
        assert tuple(a[b].tolist()) in rows


@pytest.mark.parametrize("bad", [0, -1, (3,), (9, 3)])
def test_bad_sizes_are_refused(bad: int | tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="patch_size"):
        PatchGrid((8, 8), bad)
