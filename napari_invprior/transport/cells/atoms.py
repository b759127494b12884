"""Atoms of a target measure, made ready for computing their cells."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from napari_invprior.errors import InvalidInput

SAME = 1e-9
"""Atoms closer than this share of their spread are one."""
FLAT = 1e-10
"""Directions in which the atoms spread less than this share of the largest spread do not count."""
MOST_ATOMS = 20_000


class Atoms:
    """Distinct atoms with positive weights, in coordinates that suit the computation.

    Cells do not change when all atoms are shifted or scaled, and a source point counts only through
    its part in the span of the atoms' differences. So the atoms are centred, divided by the root
    mean square of their distance to the centre, and, where they lie in a smaller space, expressed
    in orthonormal coordinates of that space. Atoms at one place are one atom of their joint weight;
    an atom without weight has no cell.

    Parameters
    ----------
    positions : Tensor
        (d, N), one column per atom, in the user's units.
    weights : Tensor, optional
        (N,), not negative, not all zero; divided by their sum. Equal by default.
    normalise : bool
        Shift and scale. Only a test of the invariance has a reason to say no.

    Attributes
    ----------
    positions : Tensor
        (d, N), float64, as given.
    index : Tensor
        (n,), which of the given atoms each distinct atom is; labels are these numbers.
    sites : Tensor
        (r, n), float64, the distinct atoms in normalised coordinates, ``r <= d``.
    weights : Tensor
        (n,), of the distinct atoms, positive, with sum 1.
    centre, scale : Tensor, float
        An atom as given is ``centre + scale * lift(site)``.
    notes : tuple of str
        What was changed, for the user.

    Raises
    ------
    InvalidInput
        If a coordinate or a weight cannot be used, or there are too many atoms.

    Examples
    --------
    >>> atoms = Atoms(torch.tensor([[0.0, 4.0, 4.0], [1.0, 1.0, 1.0]]))
    >>> atoms.sites.shape, atoms.index.tolist(), [round(w, 3) for w in atoms.weights.tolist()]
    (torch.Size([1, 2]), [0, 1], [0.333, 0.667])
    >>> atoms.notes
    ('atoms 1 and 2 lie at one place; they share the cell of 1',)
    """

    def __init__(
        self, positions: Tensor, weights: Tensor | None = None, *, normalise: bool = True
    ) -> None:
        positions = _usable(positions)
        shares, notes = _shares(weights, positions.shape[1])
        kept = torch.nonzero(shares > 0)[:, 0]
        centred, scale = _centred(positions, kept)
        first, owner = _distinct(centred[:, kept])
        self.positions = positions
        self.index = kept[first]
        self.weights = torch.zeros(len(first), dtype=torch.float64).index_add(
            0, owner, shares[kept]
        )
        self.notes = (*notes, *_shared(kept, self.index, owner))
        sites = centred[:, self.index]
        self._basis = _span(sites)
        if normalise:
            sites = sites - sites.mean(1, keepdim=True)
            rms = float(sites.square().sum(0).mean().sqrt()) or 1.0
            sites, self.scale = sites / rms, scale * rms
        else:
            sites, self.scale = positions[:, self.index], 1.0
        self.sites = sites if self._basis is None else self._basis.T @ sites
        self.centre = positions[:, self.index[:1]] - self.scale * self.lift(self.sites[:, :1])

    def __len__(self) -> int:
        """How many distinct atoms there are."""
        return len(self.index)

    @property
    def given(self) -> int:
        """How many atoms were given."""
        return self.positions.shape[1]

    @property
    def ndim(self) -> int:
        """Coordinates of a source point, and of an atom as given."""
        return self.positions.shape[0]

    @property
    def rank(self) -> int:
        """Dimension of the smallest plane that holds the atoms."""
        return self.sites.shape[0]

    def project(self, points: Tensor) -> Tensor:
        """The part of source points (d, N) that counts, (r, N)."""
        points = points.to(torch.float64)
        return points if self._basis is None else self._basis.to(points).T @ points

    def lift(self, points: Tensor) -> Tensor:
        """Points (r, N) of the span as source points (d, N)."""
        return points if self._basis is None else self._basis.to(points) @ points


def _usable(positions: Tensor) -> Tensor:
    if positions.ndim != 2 or 0 in positions.shape or positions.is_complex():
        raise InvalidInput(
            f"atoms of shape {tuple(positions.shape)}: give one column of coordinates for each"
        )
    positions = positions.detach().to("cpu", torch.float64)
    broken = int((~positions.isfinite()).any(0).sum())
    if broken:
        raise InvalidInput(f"{broken} atoms have coordinates that are NaN or infinite; remove them")
    if positions.shape[1] > MOST_ATOMS:
        raise InvalidInput(
            f"{positions.shape[1]} atoms; cells are computed for at most {MOST_ATOMS}: draw a "
            "sample of them, or give cluster centres with weights"
        )
    return positions


def _shares(weights: Tensor | None, count: int) -> tuple[Tensor, list[str]]:
    """Weights of sum 1, and what was changed."""
    if weights is None:
        return torch.full((count,), 1 / count, dtype=torch.float64), []
    weights = weights.detach().to("cpu", torch.float64).reshape(-1)
    if len(weights) != count:
        raise InvalidInput(f"{len(weights)} weights for {count} atoms: give one for each atom")
    wrong = torch.nonzero(~(weights >= 0) | weights.isinf())[:, 0].tolist()
    if wrong:
        raise InvalidInput(
            f"weight {weights[wrong[0]]:g} of atom {wrong[0]}: weights are finite and not negative"
        )
    largest = float(weights.max())
    if largest == 0:
        raise InvalidInput("all weights are zero; give at least one atom a positive weight")
    scaled = weights / largest
    total, notes = float(scaled.sum()), []
    if abs(total * largest - 1) > 1e-6:
        notes.append(f"the weights have sum {total * largest:.4g}; they are divided by it")
    empty = torch.nonzero(weights == 0)[:, 0].tolist()
    if empty:
        notes.append(f"{_named(empty)} without weight: no cell")
    return scaled / total, notes


def _centred(positions: Tensor, kept: Tensor) -> tuple[Tensor, float]:
    """Positions about the middle of the kept ones, in units of their largest offset."""
    largest = float(positions[:, kept].abs().max()) or 1.0
    scaled = positions / largest
    low, high = scaled[:, kept].amin(1, keepdim=True), scaled[:, kept].amax(1, keepdim=True)
    centred = scaled - (low + high) / 2
    reach = float(centred[:, kept].abs().max()) or 1.0
    return centred / reach, largest * reach


def _distinct(points: Tensor) -> tuple[Tensor, Tensor]:
    """First of each group of equal columns (n,), and the group of every column (N,)."""
    # equal ones first: a tree would list every pair of them
    rows, first, group = np.unique(points.T.numpy(), axis=0, return_index=True, return_inverse=True)
    leader = first.copy()
    for low, high in sorted(cKDTree(rows).query_pairs(SAME)):
        leader[[low, high]] = min(leader[low], leader[high])
    first, owner = np.unique(leader[group.reshape(-1)], return_inverse=True)
    return torch.from_numpy(first), torch.from_numpy(owner)


def _shared(kept: Tensor, index: Tensor, owner: Tensor) -> list[str]:
    """Which atoms lie at one place."""
    counts = torch.bincount(owner)
    return [
        f"{_named(kept[owner == group].tolist())} lie at one place; they share the cell of "
        f"{int(index[group])}"
        for group in torch.nonzero(counts > 1)[:, 0].tolist()
    ]


def _named(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"atom {numbers[0]}"
    if len(numbers) > 6:
        return f"{len(numbers)} atoms ({', '.join(map(str, numbers[:3]))}, …)"
    return f"atoms {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _span(sites: Tensor) -> Tensor | None:
    """Orthonormal columns (d, r) that span the differences; None where they span everything."""
    spread = sites - sites.mean(1, keepdim=True)
    basis, sizes, _ = torch.linalg.svd(spread, full_matrices=False)
    rank = max(1, int((sizes > FLAT * max(float(sizes[0]), 1e-300)).sum()))
    return None if rank == len(sites) else basis[:, :rank]
