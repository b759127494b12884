"""Potentials of Laguerre cells with given Gaussian masses: damped Newton steps on the dual."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, csc_array, diags_array
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from scipy.special import ndtri

from napari_invprior.errors import JobError
from napari_invprior.jobs import ShouldStop, check_stop, never
from napari_invprior.transport.cells.gaussian_masses import Masses, cell_masses
from napari_invprior.transport.cells.lower_hull import Floats, Ints

WANTED = 1e-11
"""Largest error of a mass at which the steps end."""
ENOUGH = 1e-7
"""Largest error with which they may end where rounding allows no better step."""
ROUGH = 0.05
"""Error, as a share of the smallest weight, that is good enough for a coarse set of atoms."""
MOST_STEPS = 300
HALVINGS = 30
REACH = 1.5
"""Radius of the first cells' centres: where the Gaussian has mass."""
COARSER = 8.0
"""A set of atoms is at least so many times coarser than the next one."""
FLAT = 1e-10
BLOCK = 2_000_000


def solve_potentials(
    sites: Floats, weights: Floats, should_stop: ShouldStop = never
) -> tuple[Floats, int]:
    r"""Potentials psi (n,) whose cells have the masses ``weights``, and the steps that it took.

    The dual :math:`\sum_i p_i\psi_i + E\max_i(\langle z, x_i\rangle - \psi_i)` is convex with
    gradient ``p - masses``; its Hessian is a graph Laplacian of the cells. Newton steps are halved
    until no cell gets too small (Kitagawa, Mérigot, Thibert, J. Eur. Math. Soc. 2019), and start
    from the solution for ever finer subsets of the atoms (Mérigot, Comput. Graph. Forum 2011),
    without which clusters of close atoms begin with cells too small to move.

    Parameters
    ----------
    sites : ndarray
        (n, r), distinct, spanning r <= 3 dimensions.
    weights : ndarray
        (n,), positive, sum 1.

    Raises
    ------
    JobError
        If the steps end before the masses are right.

    Examples
    --------
    >>> psi, _ = solve_potentials(np.array([[0.0], [2.0]]), np.array([0.5, 0.5]))
    >>> np.allclose(psi, 0)
    True
    """
    n, rank = sites.shape
    if n == 1:
        return np.zeros(1), 0
    if rank == 1:
        return _sorted_potentials(sites[:, 0], weights), 0
    psi: Floats | None = None
    steps, before = 0, np.zeros(0, np.intp)
    order, apart = _farthest_first(sites)
    for count in _levels(apart):
        chosen = order[:count]
        _, owner = cKDTree(sites[chosen]).query(sites)
        shares = np.bincount(owner, weights, count).astype(float)
        flat = _flattened(sites[chosen])
        start = _first(flat) if psi is None else _refined(sites[before], psi, sites[chosen])
        tolerance = WANTED if count == n else ROUGH * float(shares.min())
        try:
            found, taken = _newton(flat, shares, start, tolerance, should_stop)
        except JobError:
            if count == n:
                raise
            continue  # a finer set can do without
        psi, before, steps = found, chosen, steps + taken
    assert psi is not None
    result = np.empty(n)
    result[order] = psi
    return result - weights @ result, steps


def _sorted_potentials(x: Floats, weights: Floats) -> Floats:
    """In one dimension the cells are intervals between quantiles."""
    order = np.argsort(x)
    below = np.cumsum(weights[order])[:-1]
    above = np.cumsum(weights[order][::-1])[::-1][1:]
    edges = np.where(below < 0.5, ndtri(below), -ndtri(above))
    psi = np.empty(len(x))
    psi[order] = np.r_[0, np.cumsum(edges * np.diff(x[order]))]
    return psi - weights @ psi


def _first(sites: Floats) -> Floats:
    """Voronoi cells of the atoms, scaled to where the Gaussian has mass; none is empty."""
    squares = np.square(sites - sites.mean(0)).sum(1)
    return REACH * squares / (2 * np.sqrt(squares.max()))


def _newton(
    sites: Floats, weights: Floats, psi: Floats, tolerance: float, should_stop: ShouldStop
) -> tuple[Floats, int]:
    now = cell_masses(sites, psi)
    least = min(float(now.masses.min()), float(weights.min())) / 2
    for step in range(MOST_STEPS):
        check_stop(should_stop)
        error = float(np.abs(now.masses - weights).max())
        if error <= tolerance:
            return psi, step
        found = _step(sites, weights, psi, now, least)
        if found is None:
            if error <= min(ENOUGH, float(weights.min()) / 1000):
                return psi, step
            break
        psi, now = found
    raise JobError(
        f"the Laguerre cells of {len(weights)} atoms were not found (a mass is off by "
        f"{error:.2g}): some atoms lie very close to each other or have very small "
        "weights; merge or remove them"
    )


def _step(
    sites: Floats, weights: Floats, psi: Floats, now: Masses, least: float
) -> tuple[Floats, Masses] | None:
    """The longest of the halved Newton steps that keeps every cell and lowers the error."""
    wrong = now.masses - weights
    error, largest = float(np.linalg.norm(wrong)), float(np.abs(wrong).max())
    change = _direction(now, wrong)
    if change is None:
        return None
    share = 1.0
    for _ in range(HALVINGS):
        after = cell_masses(sites, psi + share * change)
        missing = after.masses - weights
        if after.masses.min() >= least and (
            np.linalg.norm(missing) <= (1 - share / 2) * error
            # near the end rounding leaves no room for more than that
            or (share == 1 and np.abs(missing).max() < largest < ENOUGH)
        ):
            return psi + share * change, after
        share /= 2
    return None


def _direction(now: Masses, wrong: Floats) -> Floats | None:
    """Solve the Laplacian with the first potential held."""
    n = len(wrong)
    first, second = now.pairs.T
    joint = coo_array((now.flux, (first, second)), (n, n))
    joint = joint + joint.T
    laplacian = csc_array(diags_array(joint.sum(1)) - joint)[1:, 1:]
    try:
        factors = splu(csc_array(laplacian), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0)
    except RuntimeError:  # singular: a cell is held by nothing but rounding
        return None
    change = np.r_[0, factors.solve(wrong[1:])]
    return change if np.isfinite(change).all() else None


def _farthest_first(sites: Floats) -> tuple[Ints, Floats]:
    """Atoms, each as far as possible from all before it, and that distance."""
    n = len(sites)
    order, apart = np.zeros(n, np.intp), np.full(n, np.inf)
    nearest = np.square(sites - sites[0]).sum(1)
    for k in range(1, n):
        order[k] = here = nearest.argmax()
        apart[k] = nearest[here]
        np.minimum(nearest, np.square(sites - sites[here]).sum(1), out=nearest)
        nearest[order[: k + 1]] = -1
    return order, np.sqrt(apart)


def _levels(apart: Floats) -> list[int]:
    """How many of the atoms, farthest first, each finer set has; the last one has all."""
    counts, limit = {len(apart)}, float(apart[1]) / COARSER
    while apart[-1] < limit / COARSER:
        counts.add(int(np.searchsorted(-apart, -limit, side="right")))
        limit /= COARSER
    return sorted(counts - {1})


def _flattened(sites: Floats) -> Floats:
    """Coordinates (n, r') in the span of the atoms, where they span less than before."""
    centred = sites - sites.mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    rank = max(1, int((sizes > FLAT * sizes[0]).sum()))
    return sites if rank == sites.shape[1] else centred @ axes[:rank].T


def _refined(coarse: Floats, psi: Floats, fine: Floats) -> Floats:
    """First potentials of a finer set: cells of close atoms share their coarse atom's cell.

    The potential is a convex function of the place, which keeps every cell from being empty: the
    greatest of one function for each coarse atom. That one has its slope in the middle of the
    coarse cell, varying over a ball inside it within the reach of the atoms that it stands for.
    """
    middle, inner = _balls(coarse, psi)
    distance, owner = cKDTree(coarse).query(fine)
    reach = np.zeros(len(coarse))
    np.maximum.at(reach, owner, distance)
    start = np.empty(len(fine))
    width = max(1, BLOCK // len(coarse))
    for low in range(0, len(fine), width):
        offset = fine[low : low + width, None] - coarse
        away = np.linalg.norm(offset, axis=2)
        value = psi + np.einsum("fcr,cr->fc", offset, middle)
        # bent everywhere, and nowhere steeper than the ball is wide
        value += inner * (np.hypot(away, reach) - reach)
        start[low : low + width] = value.max(1)
    return start + 1e-3 * _first(fine)


def _balls(sites: Floats, psi: Floats) -> tuple[Floats, Floats]:
    """Gaussian mean of each cell (n, r), and the radius of a ball about it inside the cell (n,)."""
    now = cell_masses(_flattened(sites), psi)
    first, second = now.pairs.T
    across = sites[second] - sites[first]
    middle = np.zeros_like(sites)
    # divergence theorem: the mean is minus the flux of the density through the faces
    np.subtract.at(middle, first, now.flux[:, None] * across)
    np.add.at(middle, second, now.flux[:, None] * across)
    middle /= np.maximum(now.masses, 1e-300)[:, None]
    size = np.linalg.norm(across, axis=1)
    radius = np.ones(len(sites))
    for here, sign in ((first, 1.0), (second, -1.0)):
        slope = np.einsum("kr,kr->k", middle[here], across)
        np.minimum.at(radius, here, sign * (psi[second] - psi[first] - slope) / size)
    return middle, np.maximum(radius, 0) / 2
