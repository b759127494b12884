"""Line integrals of images as a sparse matrix, and its exact adjoint.

An entry is Joseph's: the ray meets each row (or each column, whichever it crosses more steeply)
between two samples, which count by linear interpolation, times the length of the step. Turning
and mirroring the image by multiples of 90 degrees maps many angles onto each other; the matrix
holds one of each such family and is applied to the turned copies side by side, so that it is
read once for up to eight angles and for all slices.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from napari_invprior.numerics.rays import Lines, Scan

MATRIX_BYTES = 2 * 2**30
"""A larger matrix is not kept; its rows are then made again, angle by angle, in each product."""

ENTRY_BYTES = 16
"""Index and value of an entry, in the matrix and in its transpose."""

Turn = tuple[bool, bool, bool]
"""Transpose, then mirror the columns, then mirror the rows."""

TURNS: tuple[Turn, ...] = tuple(itertools.product((False, True), (False, True), (False, True)))


def turned(x: Tensor, turn: Turn) -> Tensor:
    """The images (n, H, W), turned."""
    transpose, columns, rows = turn
    x = x.transpose(1, 2) if transpose else x
    flips = [axis for axis, wanted in ((2, columns), (1, rows)) if wanted]
    return x.flip(flips) if flips else x


def turned_back(x: Tensor, turn: Turn) -> Tensor:
    """The inverse (and adjoint) of `turned`."""
    transpose, columns, rows = turn
    flips = [axis for axis, wanted in ((2, columns), (1, rows)) if wanted]
    x = x.flip(flips) if flips else x
    return x.transpose(1, 2) if transpose else x


def turned_lines(lines: Lines, turn: Turn) -> Lines:
    """The lines that see in a turned image what ``lines`` see in the image."""
    across, down, offset = lines
    transpose, columns, rows = turn
    if transpose:
        across, down = down, across
    return (-across if columns else across), (-down if rows else down), offset


class Families:
    """The angles of a scan, sorted into families that turns of the image map onto each other.

    Attributes
    ----------
    lines : Lines
        Of one angle per family.
    turns : list of Turn
        The turns in use.
    place : ndarray of int
        Per angle of the scan: ``family * len(turns) + turn``.
    """

    def __init__(self, lines: Lines, shape: tuple[int, int]) -> None:
        square = shape[0] == shape[1]
        usable = [t for t in TURNS if square or not t[0]]
        groups = [usable, [t for t in usable if sum(t) % 2 == 0], usable[:1]]
        found = [self._sorted(lines, group) for group in groups]
        # The matrix is read once, its product with each turned copy costs about half as much.
        families, self.turns, self.place = min(
            found, key=lambda f: len(f[0]) * (2 + len(f[1]))
        )
        self.lines: Lines = tuple(np.stack(part) for part in zip(*families, strict=True))  # type: ignore[assignment]

    @staticmethod
    def _sorted(
        lines: Lines, group: Sequence[Turn]
    ) -> tuple[list[Lines], list[Turn], np.ndarray]:
        """Lines per family, turns in use and places, for turns of one group."""
        middle = lines[0].shape[1] // 2
        # The turn that brings a ray nearest to the middle of the sector that the group leaves.
        sector = math.pi / 8 if len(group) == 8 else math.pi / 4
        towards = math.cos(sector), -math.sin(sector)
        known: dict[bytes, int] = {}
        families: list[Lines] = []
        member: list[tuple[int, Turn]] = []
        for angle in range(len(lines[0])):
            line: Lines = tuple(part[angle] for part in lines)  # type: ignore[assignment]
            copies = [turned_lines(line, turn) for turn in group]
            scores = [
                round(c[0][middle] * towards[0] + c[1][middle] * towards[1], 9) for c in copies
            ]
            best = scores.index(max(scores))
            key = (np.round(np.stack(copies[best]), 9) + 0.0).tobytes()
            if key not in known:
                known[key] = len(families)
                families.append(copies[best])
            member.append((known[key], group[best]))
        turns = sorted({turn for _, turn in member})
        place = np.array([f * len(turns) + turns.index(turn) for f, turn in member])
        return families, turns, place


def joseph_entries(lines: Lines, shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Entries of the matrix for rays (n,): pixel index, value, and the count per ray."""
    across, down, offset = (part[:, None] for part in lines)
    height, width = shape
    steep = np.abs(across) >= np.abs(down)  # crosses rows: one step per row
    main, other = np.where(steep, across, down), np.where(steep, down, across)
    steps, samples = np.where(steep, height, width), np.where(steep, width, height)
    step = np.arange(max(shape))[None]
    position = (offset - (step - (steps - 1) / 2) * other) / main + (samples - 1) / 2
    low = np.floor(position)
    upper = position - low
    sample = np.stack([low, low + 1], -1).astype(np.int64)
    value = np.stack([1 - upper, upper], -1) / np.abs(main)[..., None]
    met = (sample >= 0) & (sample < samples[..., None]) & (value > 0)
    met &= (step < steps)[..., None]
    stride = np.where(steep, width, 1)[..., None], np.where(steep, 1, width)[..., None]
    index = step[..., None] * stride[0] + sample * stride[1]
    return index[met], value[met], met.sum((1, 2))


def joseph_matrix(lines: Lines, shape: tuple[int, int], dtype: np.dtype) -> sparse.csr_matrix:
    """The matrix of rays (angles, bins) on images of ``shape``, bins running fastest."""
    bins = lines[0].shape[1]
    parts = [
        joseph_entries(tuple(part[angle] for part in lines), shape)  # type: ignore[arg-type]
        for angle in range(len(lines[0]))
    ]
    counts = np.concatenate([count for _, _, count in parts])
    total = int(counts.sum())
    kind = np.int32 if max(total, math.prod(shape)) < 2**31 else np.int64
    start = np.concatenate([[0], np.cumsum(counts)]).astype(kind)
    index = np.concatenate([i.astype(kind) for i, _, _ in parts])
    value = np.concatenate([v.astype(dtype) for _, v, _ in parts])
    size = len(lines[0]) * bins, math.prod(shape)
    return sparse.csr_matrix((value, index, start), shape=size)


class Projector:
    """Line integrals (in pixels) of images ``(n, H, W)``, and the exact adjoint.

    Parameters
    ----------
    scan : Scan
        The rays.
    shape : tuple of int
        Rows and columns of the image.
    dtype : torch.dtype
        Of images and data.
    device : torch.device
        Where they lie. Devices without sparse products hand the work to the CPU.
    matrix_bytes : int
        Largest matrix that is kept.

    Examples
    --------
    >>> scan = Scan(angles=(0.0, math.pi / 2), bins=4)
    >>> forward = Projector(scan, (4, 4))
    >>> forward(torch.ones(1, 4, 4)).tolist()
    [[[4.0, 4.0, 4.0, 4.0], [4.0, 4.0, 4.0, 4.0]]]
    """

    def __init__(
        self,
        scan: Scan,
        shape: tuple[int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        matrix_bytes: int = MATRIX_BYTES,
    ) -> None:
        self.scan, self.shape = scan, shape
        device = torch.device(device)
        self._device = device if device.type == "cuda" else torch.device("cpu")
        self._families = Families(scan.lines(), shape)
        self._place = torch.from_numpy(self._families.place).to(self._device)
        self._type = torch.empty(0, dtype=dtype).numpy().dtype
        entries = self._families.lines[0].size * 2 * max(shape)
        self.is_kept = entries * ENTRY_BYTES <= matrix_bytes
        if self.is_kept:
            matrix = joseph_matrix(self._families.lines, shape, self._type)
            self._matrix = _on(matrix, self._device)
            self._transpose = _on(matrix.T.tocsr(), self._device)

    def __call__(self, x: Tensor) -> Tensor:
        """Data (n, angles, bins) of images (n, H, W)."""
        count, device = len(x), x.device
        columns = self._columns(x.to(self._device))
        if self.is_kept:
            found = _product(self._matrix, columns)
        else:
            parts = [_product(_on(m, self._device), columns) for _, m in self._rows()]
            found = torch.cat(parts)
        turns = len(self._families.turns)
        found = found.view(-1, self.scan.bins, turns, count).permute(3, 0, 2, 1)
        return found.reshape(count, -1, self.scan.bins)[:, self._place].to(device)

    def adjoint(self, y: Tensor) -> Tensor:
        """Images (n, H, W) of data (n, angles, bins)."""
        count, device = len(y), y.device
        turns = len(self._families.turns)
        families = len(self._families.lines[0])
        data = y.to(self._device).permute(1, 2, 0).contiguous()
        spread = data.new_zeros((families * turns, self.scan.bins, count))
        spread.index_add_(0, self._place, data)
        spread = spread.view(families, turns, self.scan.bins, count).transpose(1, 2)
        columns = spread.reshape(-1, turns * count)
        if self.is_kept:
            found = _product(self._transpose, columns)
        else:
            found = columns.new_zeros((math.prod(self.shape), turns * count))
            for rows, m in self._rows():
                found += _product(_on(m.T.tocsr(), self._device), columns[rows])
        stack = found.view(*self.shape, turns, count).permute(2, 3, 0, 1)
        image = torch.zeros_like(stack[0])
        for turn, part in zip(self._families.turns, stack, strict=True):
            image += turned_back(part, turn)
        return image.contiguous().to(device)

    def _columns(self, x: Tensor) -> Tensor:
        """The turned copies of all images, one per column."""
        turns = self._families.turns
        columns = x.new_empty((*self.shape, len(turns), len(x)))
        for number, turn in enumerate(turns):
            columns[:, :, number] = turned(x, turn).permute(1, 2, 0)
        return columns.view(math.prod(self.shape), -1)

    def _rows(self) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """The matrix in blocks of one family, made one after the other."""
        bins = self.scan.bins
        for family in range(len(self._families.lines[0])):
            lines: Lines = tuple(p[family : family + 1] for p in self._families.lines)  # type: ignore[assignment]
            rows = slice(family * bins, (family + 1) * bins)
            yield rows, joseph_matrix(lines, self.shape, self._type)


@lru_cache(maxsize=8)
def projector(
    scan: Scan, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Projector:
    """The projector of a geometry; the last eight are kept."""
    return Projector(scan, shape, dtype, device)


def _on(matrix: sparse.csr_matrix, device: torch.device) -> Tensor:
    """The matrix as a tensor; on the CPU it shares the memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "sparse support is in beta state"
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr),
            torch.from_numpy(matrix.indices),
            torch.from_numpy(matrix.data),
            matrix.shape,
            check_invariants=False,
        ).to(device)


def _product(matrix: Tensor, columns: Tensor) -> Tensor:
    """Sparse times dense; a single column is faster as a vector, and not every CPU has MKL."""
    if matrix.device.type == "cpu" and not torch.backends.mkl.is_available():
        parts = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
        plain = sparse.csr_matrix(tuple(p.numpy() for p in parts), shape=tuple(matrix.shape))
        return torch.from_numpy(plain @ columns.numpy())
    if columns.shape[1] == 1:
        return (matrix @ columns[:, 0])[:, None]
    return matrix @ columns
