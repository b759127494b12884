"""Cells of semi-discrete optimal transport from the standard Gaussian to weighted atoms."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import ShouldStop, never
from napari_invprior.transport.cells.atoms import Atoms
from napari_invprior.transport.cells.clipping import clipped_polygon, clipped_surface
from napari_invprior.transport.cells.dual_newton import solve_potentials
from napari_invprior.transport.cells.gaussian_masses import cell_masses
from napari_invprior.transport.cells.lower_hull import Floats, Ints, laguerre_diagram
from napari_invprior.transport.semi_discrete.nearest import Sites

MOST_DIMENSIONS = 3
BLOCK = 2**17
"""Points that are labelled at a time."""
CONTACT = 1e-6
"""Faces seen under a smaller angle are contacts in a point or a line, widened by rounding."""


class LaguerreCells:
    r"""Cells in which the Gaussian goes to each atom under optimal transport.

    The map from N(0, I) to atoms :math:`x_i` of weights :math:`p_i` that moves the mass over the
    least mean square distance sends the cell

    .. math:: L_i = \{z : \langle z, x_i\rangle - \psi_i
              \ge \langle z, x_k\rangle - \psi_k \text{ for all } k\}

    to :math:`x_i`, with potentials such that the Gaussian mass of :math:`L_i` is :math:`p_i`. They
    are found by damped Newton steps (Kitagawa, Mérigot, Thibert, *Convergence of a Newton algorithm
    for semi-discrete optimal transport*, J. Eur. Math. Soc. 2019) on exact masses: normal quantiles
    in rank 1, Owen's T function in rank 2, one smooth integral along every edge in rank 3.

    Atoms are counted as the distinct ones, 0 to n - 1; ``atoms.index`` says which those are.

    Parameters
    ----------
    atoms : Atoms
        Atoms that span at most three dimensions.
    psi : Tensor
        (n,), potentials for ``atoms.sites``; see `solve`.
    iterations : int
        Newton steps that it took to find them.

    Attributes
    ----------
    psi : Tensor
        (n,), float64.
    masses : Tensor
        (n,), float64, Gaussian masses of the cells.

    Raises
    ------
    InvalidInput
        If the atoms span more than three dimensions.

    Examples
    --------
    >>> cells = LaguerreCells.solve(Atoms(torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])))
    >>> cells.masses.numpy().round(6).tolist(), cells.neighbours().tolist()
    ([0.333333, 0.333333, 0.333333], [[0, 1], [1, 2]])
    >>> cells.labels(torch.tensor([[-0.44, -0.42, 2.0], [9.0, 0.0, 0.0]])).tolist()
    [0, 1, 2]
    """

    def __init__(self, atoms: Atoms, psi: Tensor, *, iterations: int = 0) -> None:
        _check_rank(atoms)
        if psi.shape != (len(atoms),):
            raise InvalidInput(
                f"potentials of shape {tuple(psi.shape)} for {len(atoms)} atoms: give one for each"
            )
        self.atoms = atoms
        self.psi = psi.detach().to("cpu", torch.float64)
        self.iterations = iterations
        self._sites: Floats = atoms.sites.T.numpy()
        found = cell_masses(self._sites, self.psi.numpy())
        self.masses = torch.from_numpy(found.masses)
        self._touching, self._angles = found.pairs, found.angles

    @classmethod
    def solve(cls, atoms: Atoms, *, should_stop: ShouldStop = never) -> LaguerreCells:
        """Find the cells whose masses are the weights of the atoms.

        Raises
        ------
        JobError
            If the steps end before the masses are right.
        Cancelled
            If ``should_stop`` says so; it is asked before each step.
        """
        _check_rank(atoms)
        psi, steps = solve_potentials(atoms.sites.T.numpy(), atoms.weights.numpy(), should_stop)
        return cls(atoms, torch.from_numpy(psi), iterations=steps)

    def labels(self, points: Tensor) -> Tensor:
        """Cell (N,) of each source point (d, N); on a boundary, any of the cells that meet."""
        if points.ndim != 2 or len(points) != self.atoms.ndim:
            raise InvalidInput(
                f"points of shape {tuple(points.shape)}: give one column of {self.atoms.ndim} "
                "coordinates for each"
            )
        # <z, x> - psi is greatest where |z - x|^2 - (|x|^2 - 2 psi) is least
        sites = Sites(self.atoms.sites)
        potential = self.atoms.sites.square().sum(0) - 2 * self.psi
        found = [
            sites.nearest(self.atoms.project(part.cpu()), potential)[1]
            for part in points.split(BLOCK, dim=1)
        ]
        return torch.cat(found)

    def neighbours(self) -> Ints:
        """Pairs (m, 2), ``i < j``, of cells with a common face: more than a point or a line."""
        pairs = self._touching[self._angles > CONTACT]
        return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]

    def unbounded(self) -> NDArray[np.bool_]:
        """Whether each cell (n,) reaches to infinity."""
        n, rank = self._sites.shape
        if n == 1 or rank < self.atoms.ndim:
            return np.ones(n, np.bool_)
        outer = np.zeros(n, np.bool_)
        if rank == 1:
            outer[[self._sites.argmin(), self._sites.argmax()]] = True
            return outer
        diagram = laguerre_diagram(self._sites, self.psi.numpy())
        outer[diagram.ridges[diagram.ends[:, 1] < 0]] = True
        return outer

    def polygons(self, extent: float) -> list[Floats]:
        """Corners (k, 2) of each cell within ``[-extent, extent]^2``, counter-clockwise.

        For source points in the plane; (0, 2) where a cell lies outside.
        """
        self._check_box(2, extent)
        return [clipped_polygon(*half, extent) for half in self._half_spaces()]

    def surfaces(self, extent: float) -> list[tuple[Floats, Ints]]:
        """Boundary of each cell within ``[-extent, extent]^3``: corners (k, 3), triangles (m, 3).

        For source points in space. Triangles are counter-clockwise as seen from outside the cell;
        there are none where a cell lies outside the box.
        """
        self._check_box(3, extent)
        return [clipped_surface(*half, extent) for half in self._half_spaces()]

    def _half_spaces(self) -> list[tuple[Floats, Floats]]:
        """Normals (k, d) and levels (k,) of the half-spaces that make each cell."""
        n, d = len(self.atoms), self.atoms.ndim
        points, psi = self.atoms.lift(self.atoms.sites).T.numpy(), self.psi.numpy()
        here = np.r_[self._touching[:, 0], self._touching[:, 1]]
        there = np.r_[self._touching[:, 1], self._touching[:, 0]]
        order = np.argsort(here, kind="stable")
        groups = np.split(there[order], np.searchsorted(here[order], np.arange(1, n)))
        halves = [(points[k] - points[i], psi[k] - psi[i]) for i, k in enumerate(groups)]
        # an atom above the lower hull touches nothing: its cell is empty
        axis = np.eye(1, d)
        closed = np.vstack([axis, -axis]), np.array([-1.0, -1.0])
        return [half if len(half[1]) or n == 1 else closed for half in halves]

    def _check_box(self, ndim: int, extent: float) -> None:
        if self.atoms.ndim != ndim:
            raise InvalidInput(
                f"source points have {self.atoms.ndim} coordinates; polygons are drawn for 2, "
                "surfaces for 3"
            )
        if not 0 < extent < np.inf:
            raise InvalidInput(f"an extent of {extent:g}: give a positive number, for example 4")


def _check_rank(atoms: Atoms) -> None:
    if atoms.rank > MOST_DIMENSIONS:
        raise InvalidInput(
            "Laguerre cells are computed for atoms that span at most three dimensions; these span "
            f"{atoms.rank}. Flow-matching cells have no such limit"
        )
