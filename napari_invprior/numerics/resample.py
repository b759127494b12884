"""Spline interpolation between two regular grids (scipy), with the shift between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


def spline_resample(
    y: Tensor,
    shape: Sequence[int],
    factor: Sequence[float],
    offset: Sequence[float],
    mode: str = "nearest",
    order: int = 3,
) -> Tensor:
    """Values of ``y`` (B, C, *space) at the samples of a finer grid of space ``shape``.

    Sample ``i`` of the fine grid lies at ``(i - offset) / factor`` on the grid of ``y``.

    Parameters
    ----------
    mode : str
        Boundary rule of `scipy.ndimage`: ``"nearest"`` or ``"grid-wrap"``.
    order : int
        Spline order, 3 is cubic.

    Examples
    --------
    >>> y = torch.arange(4.0).reshape(1, 1, 1, 4)
    >>> spline_resample(y, (1, 4), (1, 1), (0, 0)).flatten().round(decimals=6).tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    values = y.detach().cpu().numpy()
    scale = [1 / f for f in factor]
    shift = [-o / f for o, f in zip(offset, factor, strict=True)]
    fine = np.stack(
        [
            ndimage.affine_transform(
                plane, scale, shift, output_shape=tuple(shape), order=order, mode=mode
            )
            for plane in values.reshape(-1, *values.shape[2:])
        ]
    )
    result = torch.from_numpy(fine.astype(values.dtype, copy=False))
    return result.reshape(*values.shape[:2], *shape).to(y.device)
