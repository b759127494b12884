"""Blocks tile the image, whatever the shapes, and see all the data they need."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_invprior.blocks.grid import BlockGrid
from napari_invprior.errors import InvalidInput


@st.composite
def grids(draw: st.DrawFn) -> BlockGrid:
    ndim = draw(st.sampled_from([2, 3]))
    axes = range(ndim)
    data = tuple(draw(st.integers(1, 40 if ndim == 2 else 14)) for _ in axes)
    factor = tuple(draw(st.integers(1, 3)) for _ in axes)
    extra = draw(st.integers(0, 4))  # samples of a valid operator behind the last data sample
    cut = tuple(draw(st.booleans()) for _ in axes)
    core = tuple(draw(st.integers(1, 12)) if c else n for c, n in zip(cut, data, strict=True))
    halo = tuple(draw(st.integers(0, 9)) for _ in axes)
    image = tuple(n * f + extra for n, f in zip(data, factor, strict=True))
    return BlockGrid(
        draw(st.integers(1, 3)), data, image, factor, core, halo, draw(st.integers(1, 4)), cut
    )


@given(grids())
def test_targets_tile_the_image(grid: BlockGrid) -> None:
    met = np.zeros((grid.frames, *grid.image), int)
    for block in grid:
        met[(block.frame, *block.target)] += 1
    assert (met == 1).all()


@given(grids())
def test_windows_hold_the_core_and_its_halo(grid: BlockGrid) -> None:
    for block in grid:
        for axis, (core, window) in enumerate(zip(block.core, block.window, strict=True)):
            halo, n = grid.halo[axis], grid.data[axis]
            assert window.start <= max(0, core.start - halo)
            assert window.stop == min(n, core.stop + halo)
            assert window.start % grid.period == 0
            assert block.start[axis] == window.start * grid.factor[axis]
            assert block.inner[axis].start >= 0
    largest = max(np.prod([w.stop - w.start for w in b.window]) for b in grid)
    assert largest <= grid.largest_window


def test_what_cannot_be_a_grid_is_refused() -> None:
    for core, halo, cut in (((0, 4), (1, 1), True), ((4, 4), (-1, 0), True), ((4, 4), (0, 0), 0)):
        with pytest.raises(InvalidInput, match="blocks of"):
            BlockGrid(1, (9, 9), (9, 9), (1, 1), core, halo, 1, (bool(cut), True))
    with pytest.raises(InvalidInput, match="block 9"):
        BlockGrid(1, (9, 9), (9, 9), (1, 1), (3, 3), (0, 0), 1, (True, True)).block(9)
