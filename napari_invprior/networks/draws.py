"""Patches to train on and patches held out, split by blocks of the image.

Neighbouring patches share most of their samples: a random tenth would be held out in name only,
because each held-out patch would have a near copy among the training patches, and the held-out
figure could not show overfitting. So whole blocks are held out, and no training patch touches one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from napari_invprior.memory import require
from napari_invprior.numerics.patches import PatchGrid, gather_patches

HELD_OUT = 0.1
PATCH_COPIES = 3
"""Float32 copies of a draw that are held at a time: gathered, joined, turned to columns."""
_CHUNK = 65536
_CELLS_PER_AXIS = {2: (3, 10), 3: (2, 5)}
_CORNER_CELLS = 27


@dataclass(frozen=True)
class Draws:
    """Patches as rows, so that drawing by index reads whole cache lines.

    Attributes
    ----------
    train, held_out : Tensor
        (M, d) and (H, d).
    distinct : int
        All patch positions inside the picked regions.
    """

    train: Tensor
    held_out: Tensor
    distinct: int


def valid_positions(image: Tensor, mask: Tensor | None, grid: PatchGrid) -> Tensor:
    """Positions whose patch is finite and wholly inside the mask: boolean, ``grid.counts``."""
    outside = ~torch.isfinite(image).all(0)
    if mask is not None:
        outside = outside | ~mask.to(outside.device)
    return _pool(outside, grid.patch) == 0


def split_positions(
    valid: Tensor, patch: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Boolean maps of the training and of the held-out positions of one image.

    The box of valid positions is cut into cells (10 per axis in a large image, 3 in a small one);
    random cells are held out until they hold a tenth. Where there are few cells, those at the
    corners come first: their rim, which is lost to both sides, is smallest.

    Examples
    --------
    >>> valid = torch.ones(27, 27, dtype=torch.bool)
    >>> train, held_out = split_positions(valid, (6, 6), torch.Generator().manual_seed(0))
    >>> int(train.sum()), int(held_out.sum())
    (533, 81)
    """
    places = valid.nonzero()
    start, stop = places.amin(0), places.amax(0) + 1
    fewest, most = _CELLS_PER_AXIS[valid.ndim]
    edges = [
        torch.linspace(int(a), int(b), min(most, max(fewest, (int(b) - int(a)) // (8 * p))) + 1)
        .round()
        .long()
        .tolist()
        for a, b, p in zip(start, stop, patch, strict=True)
    ]
    cells = list(itertools.product(*(itertools.pairwise(edge) for edge in edges)))
    order = [cells[i] for i in torch.randperm(len(cells), generator=generator).tolist()]
    if len(cells) <= _CORNER_CELLS:
        order.sort(key=lambda cell: -_borders(cell, edges))
    held_out = torch.zeros_like(valid)
    for cell in order:
        if int(held_out.sum()) >= HELD_OUT * len(places):
            break
        window = tuple(slice(a, b) for a, b in cell)
        held_out[window] = valid[window]
    reach = [2 * p - 1 for p in patch]
    near = _pool(functional.pad(held_out, [p - 1 for p in reversed(patch) for _ in "ab"]), reach)
    return valid & (near == 0), held_out


def require_patches(count: int, dim: int) -> None:
    """Refuse so many patches if they cannot be held, with the copies that training makes."""
    require(
        PATCH_COPIES * 4 * count * dim, f"a draw of {count} patches of {dim} samples",
        "draw fewer patches, or choose a smaller patch_size",
    )


def draw_patches(
    images: Sequence[tuple[Tensor, Tensor | None]],
    patch: Sequence[int],
    generator: torch.Generator,
    most: int,
) -> Draws:
    """Split every image ``(C, *space)`` with its mask, and gather at most ``most`` patches.

    Images smaller than the patch are passed over. Above ``most`` a uniform random choice of
    positions is kept, so that memory does not grow with the picked regions.
    """
    kept: tuple[list[Tensor], list[Tensor]] = ([], [])
    sites, distinct = [], 0
    for image, mask in images:
        if any(n < p for n, p in zip(image.shape[1:], patch, strict=True)):
            continue
        grid = PatchGrid(tuple(image.shape[1:]), patch)
        valid = valid_positions(image, mask, grid)
        if bool(valid.any()):
            sites.append((image, grid, split_positions(valid, patch, generator)))
            distinct += int(valid.sum())
    dim = math.prod(patch) * (images[0][0].shape[0] if images else 1)
    require_patches(min(most, distinct), dim)
    share = min(1.0, most / max(1, distinct))
    for image, grid, split in sites:
        for rows, chosen in zip(kept, split, strict=True):
            positions = chosen.flatten().nonzero()[:, 0]
            if share < 1:
                order = torch.randperm(len(positions), generator=generator)
                positions = positions[order[: int(share * len(order))].sort().values]
            rows.append(_gather_rows(image, grid, positions))
    train, held_out = (torch.cat(rows) if rows else torch.empty(0, dim) for rows in kept)
    return Draws(train, held_out, distinct)


def _gather_rows(image: Tensor, grid: PatchGrid, positions: Tensor) -> Tensor:
    rows = image.new_empty(len(positions), image.shape[0] * math.prod(grid.patch))
    for part, place in zip(rows.split(_CHUNK), positions.split(_CHUNK), strict=True):
        part.copy_(gather_patches(image, grid, place).T)
    return rows


def _pool(flags: Tensor, size: Sequence[int]) -> Tensor:
    """Whether any flag is set in the window of ``size`` that starts at each place."""
    pool = functional.max_pool2d if flags.ndim == 2 else functional.max_pool3d
    return pool(flags[None, None].float(), tuple(size), stride=1)[0, 0]


def _borders(cell: Sequence[tuple[int, int]], edges: Sequence[Sequence[int]]) -> int:
    """How many sides of a cell lie on the rim of the box."""
    return sum((a == edge[0]) + (b == edge[-1]) for (a, b), edge in zip(cell, edges, strict=True))
