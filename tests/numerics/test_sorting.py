"""Sorted and merged rows against torch's own sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_invprior.numerics.sorting import argsort_rows, merge_rows, sorted_rows

both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def rows(p: int, n: int, seed: int, dtype: torch.dtype, levels: int = 0) -> torch.Tensor:
    """Normal numbers; few distinct ones where ``levels`` are given."""
    x = torch.randn((p, n), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return (x * levels).round() / levels if levels else x


@both
@given(p=st.integers(1, 4), n=st.integers(1, 40), m=st.integers(1, 40), levels=st.integers(0, 3))
def test_rows_are_sorted_and_merged(
    dtype: torch.dtype, p: int, n: int, m: int, levels: int
) -> None:
    x, y = rows(p, n, 0, dtype, levels), rows(p, m, 1, dtype, levels)
    before = x.clone()
    assert torch.equal(sorted_rows(x), x.sort(1).values)
    values, columns = argsort_rows(x)
    assert torch.equal(values, x.sort(1).values)
    assert torch.equal(x.gather(1, columns), values)
    assert torch.equal(columns.sort(1).values, torch.arange(n).expand(p, n))
    merged = merge_rows(x, sorted_rows(y))
    assert torch.equal(merged.values, torch.cat([x, y], 1).sort(1).values)
    ours = merged.columns < n
    assert torch.equal(ours.sum(1), torch.full((p,), n))
    padded = torch.cat([x, torch.full((p, 1), torch.nan, dtype=dtype)], 1)
    assert torch.equal(merged.values[ours], padded.gather(1, merged.columns)[ours])
    assert torch.equal(x, before)


@both
def test_extremes_and_both_zeros(dtype: torch.dtype) -> None:
    huge = torch.finfo(dtype).max
    x = torch.tensor([[huge, -0.0, 1e-42, -torch.inf, 0.0, -1e-42, -huge]], dtype=dtype)
    values, _ = argsort_rows(x)
    assert torch.equal(values, x.sort(1).values)
    assert torch.equal(sorted_rows(x), x.sort(1).values)


@both
def test_strides_do_not_matter(dtype: torch.dtype) -> None:
    x = rows(6, 9, 0, dtype)
    for view in (x.T, x[::2, ::3], x[:1].expand(4, 9)):
        assert torch.equal(argsort_rows(view)[0], view.sort(1).values)
        assert torch.equal(sorted_rows(view), view.sort(1).values)
