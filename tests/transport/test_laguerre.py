"""Laguerre cells of the Gaussian against closed forms, quadrature, Monte Carlo and invariances."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist
from scipy.special import ndtr, ndtri
from scipy.stats import chisquare, norm

from napari_invprior.errors import Cancelled, InvalidInput, JobError
from napari_invprior.transport.cells import dual_newton, gaussian_masses
from napari_invprior.transport.cells.atoms import Atoms
from napari_invprior.transport.cells.dual_newton import solve_potentials
from napari_invprior.transport.cells.gaussian_masses import cell_masses, cone, sector
from napari_invprior.transport.cells.laguerre import LaguerreCells


def drawn(seed, n, d, spread=0.0):
    """Atoms (n, d), weights (n,) over ``spread`` decades, as arrays."""
    rng = np.random.default_rng(seed)
    weights = 10 ** rng.uniform(-spread, 0, n)
    return rng.normal(size=(n, d)), weights / weights.sum()


def solved(positions, weights=None):
    weights = None if weights is None else torch.from_numpy(np.asarray(weights, float))
    return LaguerreCells.solve(Atoms(torch.from_numpy(np.asarray(positions, float)).T, weights))


def grid(values, d):
    return np.stack(np.meshgrid(*[values] * d, indexing="ij"), -1).reshape(-1, d)


def pairs_at_distance(positions, distance):
    apart = np.linalg.norm(positions[:, None] - positions, axis=2)
    return np.argwhere(np.triu(np.abs(apart - distance) < 1e-9)).tolist()


def area(polygon):
    x, y = polygon.T
    return (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def volume(corners, faces):
    return float(np.linalg.det(corners[faces]).sum() / 6) if len(faces) else 0.0


def test_sector_and_cone_of_boxes():
    """Boxes are products of intervals."""
    rng = np.random.default_rng(0)
    a, b, c = rng.uniform(0.01, 4, (3, 200))
    zero = np.zeros(200)
    p, q, r = (ndtr(v) - 0.5 for v in (a, b, c))
    assert np.allclose(sector(a, zero, b) + sector(b, zero, a), p * q, atol=1e-15)
    sides = [(a, b, c), (a, c, b), (b, a, c), (b, c, a), (c, a, b), (c, b, a)]
    total = sum(cone(h, g, zero, far) for h, g, far in sides)
    assert np.allclose(total, p * q * r, atol=1e-11)
    assert np.allclose(sector(a, -b, c), -sector(-a, -c, b), atol=1e-16)
    assert np.allclose(sector(a, -np.inf + zero, np.inf + zero), 0.5 - ndtr(-a), atol=1e-15)


@pytest.mark.parametrize(("seed", "n"), [(0, 3), (1, 6), (2, 15)])
def test_planar_masses_by_quadrature(seed, n):
    """One coordinate exactly, by the ends of every cell's chord; the other by a fine sum."""
    x, _ = drawn(seed, n, 2)
    psi = 0.3 * (x**2).sum(1)
    edges = np.linspace(-8, 8, 8001)
    middles = (edges[1:] + edges[:-1]) / 2
    level = middles * x[:, 1:] - psi[:, None]  # z_1 x_1 + level is greatest: an interval of z_1
    slope = x[:, :1] - x[:, 0]
    rise = level[None, :, :] - level[:, None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        meet = rise / slope[:, :, None]
    low = np.where(slope[:, :, None] > 0, meet, -np.inf).max(1)
    high = np.where(slope[:, :, None] < 0, meet, np.inf).min(1)
    chord = np.maximum(ndtr(high) - ndtr(low), 0)
    truth = chord @ (norm.pdf(middles) * (edges[1] - edges[0]))
    assert np.allclose(cell_masses(x, psi).masses, truth, atol=2e-6)


def test_spatial_masses_by_slices():
    """Slices of a cell in space are planar cells; their masses are exact."""
    x, _ = drawn(3, 10, 3)
    psi = 0.4 * (x**2).sum(1)
    at = np.linspace(-7, 7, 1401)
    slices = np.stack([cell_masses(x[:, :2], psi - c * x[:, 2]).masses for c in at])
    truth = (norm.pdf(at) * (at[1] - at[0])) @ slices
    assert np.allclose(cell_masses(x, psi).masses, truth, atol=1e-6)


def test_quadrature_has_converged(monkeypatch):
    x, _ = drawn(4, 40, 3)
    psi, _ = solve_potentials(x, np.full(40, 1 / 40))
    few = cell_masses(x, psi).masses
    monkeypatch.setattr(gaussian_masses, "NODES", 200)
    assert np.abs(few - cell_masses(x, psi).masses).max() < 1e-10


@pytest.mark.parametrize(("n", "d", "spread"), [(12, 2, 1.0), (20, 3, 1.0)])
def test_labels_have_the_weights(n, d, spread):
    x, weights = drawn(n, n, d, spread)
    cells = solved(x, weights)
    points = torch.from_numpy(np.random.default_rng(7).normal(size=(d, 200_000)))
    labels = cells.labels(points)
    assert labels.dtype == torch.long and labels.shape == (200_000,)
    counts = np.bincount(labels.numpy(), minlength=n)
    assert chisquare(counts, weights * 200_000).pvalue > 1e-3
    score = points.T @ cells.atoms.sites - cells.psi
    assert bool((labels == score.argmax(1)).all())


@pytest.mark.parametrize("d", [1, 2, 3])
def test_collinear_atoms_give_slabs(d):
    along = np.array([0.3, -2.0, 5.0, 1.0])
    direction = np.array([2.0, -1.0, 2.0])[:d]
    direction /= np.linalg.norm(direction)
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    cells = solved(7 + along[:, None] * direction, weights)
    assert np.allclose(cells.masses, weights, atol=1e-14)
    order = np.argsort(along)
    edges = ndtri(np.cumsum(weights[order])[:-1])
    t = np.linspace(-3, 3, 1000)
    points = t * direction[:, None]
    if d == 3:
        points += np.cross(direction, [5.0, 3, 1])[:, None]
    found = cells.labels(torch.from_numpy(points)).numpy()
    assert (found == order[np.searchsorted(edges, t)]).all()
    assert cells.neighbours().tolist() == [[0, 1], [0, 3], [2, 3]]
    assert cells.unbounded().tolist() == ([False, True, True, False] if d == 1 else [True] * 4)
    if d == 2:
        assert sum(map(area, cells.polygons(3.0))) == pytest.approx(36)
    if d == 3:
        assert sum(volume(*s) for s in cells.surfaces(3.0)) == pytest.approx(216)


def test_product_grid_gives_boxes():
    values, shares = np.array([-1.0, 0.5, 3.0]), np.array([0.2, 0.5, 0.3])
    x = grid(values, 2)
    cells = solved(x, np.outer(shares, shares).ravel())
    edges = np.r_[-4, ndtri(np.cumsum(shares)[:-1]), 4]
    for k, polygon in enumerate(cells.polygons(4.0)):
        i, j = divmod(k, 3)
        assert np.allclose(polygon.min(0), [edges[i], edges[j]], atol=1e-8)
        assert np.allclose(polygon.max(0), [edges[i + 1], edges[j + 1]], atol=1e-8)
        assert area(polygon) == pytest.approx(np.prod(np.ptp(polygon, axis=0)))
    steps = grid(np.arange(3.0), 2)
    assert cells.neighbours().tolist() == pairs_at_distance(steps, 1)
    assert cells.unbounded().tolist() == [True] * 4 + [False] + [True] * 4


@pytest.mark.parametrize("d", [2, 3])
def test_corners_give_orthants(d):
    x = grid(np.array([-1.0, 1.0]), d)
    cells = solved(x)
    points = np.random.default_rng(0).normal(size=(d, 1000))
    found = cells.labels(torch.from_numpy(points)).numpy()
    assert (x[found] == np.sign(points).T).all()
    assert cells.neighbours().tolist() == pairs_at_distance(x, 2)
    assert cells.unbounded().all()
    if d == 3:
        for (corners, _), sign in zip(cells.surfaces(2.0), x, strict=True):
            assert np.allclose(np.ptp(corners, axis=0), 2) and (corners * sign > -1e-9).all()


def test_grid_in_space_gives_boxes():
    x = grid(np.arange(3.0), 3)
    cells = solved(x)
    assert np.allclose(cells.masses, 1 / 27, atol=1e-9)
    edges = np.r_[-3, ndtri([1 / 3, 2 / 3]), 3]
    for (corners, _), index in zip(cells.surfaces(3.0), x.astype(int), strict=True):
        assert np.allclose(corners.min(0), edges[index], atol=1e-7)
        assert np.allclose(corners.max(0), edges[index + 1], atol=1e-7)
    assert cells.neighbours().tolist() == pairs_at_distance(x, 1)
    assert (~cells.unbounded()).nonzero()[0].tolist() == [13]


def test_regular_pentagon():
    turn = 2 * np.pi * np.arange(5) / 5 + 0.3
    x = np.c_[np.cos(turn), np.sin(turn)]
    cells = solved(x)
    points = np.random.default_rng(1).normal(size=(2, 1000))
    assert (cells.labels(torch.from_numpy(points)).numpy() == (x @ points).argmax(0)).all()
    assert len(cells.neighbours()) == 5


def test_triangle_with_its_centre():
    turn = np.deg2rad([90, 210, 330])
    cells = solved(np.r_[np.c_[np.cos(turn), np.sin(turn)], [[0, 0]]])
    centre = cells.polygons(10.0)[3]
    assert len(centre) == 3
    assert np.allclose(np.linalg.norm(centre, axis=1), 1.1972, atol=1e-4)
    middles = (centre + np.roll(centre, -1, axis=0)) / 2
    assert np.allclose(np.linalg.norm(middles, axis=1), 0.5986, atol=1e-4)
    assert cells.unbounded().tolist() == [True, True, True, False]
    assert cells.neighbours().tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]


@pytest.mark.parametrize("d", [1, 2, 3])
def test_one_atom(d):
    cells = solved(np.ones((1, d)))
    assert cells.masses.tolist() == [1] and cells.unbounded().tolist() == [True]
    assert cells.neighbours().shape == (0, 2)
    assert cells.labels(torch.zeros(d, 3)).tolist() == [0, 0, 0]
    if d == 2:
        assert area(cells.polygons(2.0)[0]) == 16
    if d == 3:
        assert volume(*cells.surfaces(2.0)[0]) == pytest.approx(64)


def test_plane_in_space_gives_prisms():
    x, _ = drawn(5, 7, 2)
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 2)))
    cells = solved(x @ basis.T)
    assert cells.atoms.rank == 2 and cells.unbounded().all()
    assert np.allclose(cells.masses, 1 / 7, atol=1e-9)
    flat = solved(x)
    points = np.random.default_rng(1).normal(size=(3, 500))
    labels = cells.labels(torch.from_numpy(points)), flat.labels(torch.from_numpy(basis.T @ points))
    assert torch.equal(*labels)
    assert sum(volume(*s) for s in cells.surfaces(2.0)) == pytest.approx(64)


def test_empty_cell_has_no_mass_and_no_polygon():
    x = np.array([[1.0, 0], [-1, 1], [-1, -1], [0, 0]])
    cells = LaguerreCells(Atoms(torch.from_numpy(x).T), torch.tensor([0.0, 0, 0, 9]))
    assert cells.masses[3] == 0 and cells.masses.sum() == pytest.approx(1)
    assert cells.polygons(3.0)[3].shape == (0, 2)
    assert sum(map(area, cells.polygons(3.0))) == pytest.approx(36)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("close", [1e-3, 1e-6])
def test_clusters_and_outliers(d, close):
    rng = np.random.default_rng(0)
    weights = 10 ** rng.uniform(-3, 0, 33)
    weights /= weights.sum()
    tight = (rng.normal(size=(4, 1, d)) + close * rng.normal(size=(4, 8, d))).reshape(-1, d)
    cells = solved(np.r_[tight, np.full((1, d), 50.0)], weights)
    assert np.abs(cells.masses.numpy() - weights).max() < 1e-9 * max(1, 1e-5 / close)


def test_nearly_collinear_atoms():
    x, weights = drawn(6, 20, 3, 1)
    x[:, 1] *= 1e-7
    x[:, 2] *= 1e-5
    cells = solved(x, weights)
    assert cells.atoms.rank == 3
    assert np.allclose(cells.masses, weights, atol=1e-9)


def test_three_thousand_atoms():
    x, weights = drawn(8, 3000, 2, 2)
    cells = solved(x, weights)
    assert np.abs(cells.masses.numpy() - weights).max() < 1e-9 and cells.iterations < 100


def test_coarse_sets_earn_their_place(monkeypatch):
    rng = np.random.default_rng(0)
    tight = (rng.normal(size=(4, 1, 2)) + 1e-6 * rng.normal(size=(4, 8, 2))).reshape(-1, 2)
    solve_potentials(tight, np.full(32, 1 / 32))
    monkeypatch.setattr(dual_newton, "COARSER", 1e30)
    with pytest.raises(JobError, match="32 atoms were not found"):
        solve_potentials(tight, np.full(32, 1 / 32))


def test_refusals_and_stop():
    atoms = Atoms(torch.from_numpy(drawn(0, 9, 4)[0].T))
    with pytest.raises(InvalidInput, match="at most three dimensions; these span 4"):
        LaguerreCells.solve(atoms)
    flat = Atoms(torch.from_numpy(drawn(0, 9, 2)[0].T))
    with pytest.raises(Cancelled):
        LaguerreCells.solve(flat, should_stop=lambda: True)
    with pytest.raises(InvalidInput, match="one for each"):
        LaguerreCells(flat, torch.zeros(3))
    cells = LaguerreCells.solve(flat)
    with pytest.raises(InvalidInput, match="surfaces for 3"):
        cells.surfaces(1.0)
    with pytest.raises(InvalidInput, match="positive number"):
        cells.polygons(0.0)
    with pytest.raises(InvalidInput, match="one column of 2"):
        cells.labels(torch.zeros(3, 1))


SETS = st.tuples(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 3), st.floats(0, 3))


@given(SETS)
def test_random_sets(drawn_set):
    seed, n, d, spread = drawn_set
    x, weights = drawn(seed, n, d, spread)
    cells = solved(x, weights)
    assert float(cells.masses.sum()) == pytest.approx(1, abs=1e-12)
    assert np.allclose(cells.masses, weights, atol=1e-6)
    if d == 2:
        parts = cells.polygons(3.0)
        assert sum(area(p) for p in parts if len(p)) == pytest.approx(36)
        assert all(area(p) > -1e-12 for p in parts if len(p))
    if d == cells.atoms.rank > 1:
        outer = np.zeros(n, bool)
        outer[ConvexHull(x).vertices] = True
        assert (cells.unbounded() == outer).all()
    if d > 1 and n > 1:
        turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))
        turned = solved(3 * x @ turn + 5, weights)
        assert np.allclose(turned.psi, cells.psi, atol=1e-6)
        points = np.random.default_rng(1).normal(size=(50, d))
        same = turned.labels(torch.from_numpy(points @ turn).T) == cells.labels(
            torch.from_numpy(points).T
        )
        assert bool(same.all())


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_surfaces_fill_the_cube(seed, n):
    x, _ = drawn(seed, n, 3)
    cells = solved(x)
    volumes = [volume(*s) for s in cells.surfaces(2.0)]
    assert min(volumes) >= 0 and sum(volumes) == pytest.approx(64)
    for k, (corners, faces) in enumerate(cells.surfaces(2.0)):
        middle = torch.from_numpy(corners.mean(0))[:, None]
        assert cells.labels(middle).tolist() == [k] or not len(faces)


@given(SETS)
def test_flux_is_the_derivative(drawn_set):
    seed, n, r, _ = drawn_set
    n += r
    x, _ = drawn(seed, n, r)
    # moving one potential a little must change no cell much
    assume(n == 1 or pdist(x).min() > 0.1)
    psi = 0.3 * (x**2).sum(1)
    now, step = cell_masses(x, psi), 1e-5
    matrix = np.zeros((n, n))
    matrix[tuple(now.pairs.T)] = now.flux
    matrix += matrix.T
    matrix -= np.diag(matrix.sum(0))
    for k in range(n):
        moved = [cell_masses(x, psi + s * step * np.eye(n)[k]).masses for s in (1, -1)]
        assert np.allclose((moved[0] - moved[1]) / (2 * step), matrix[k], atol=1e-5)
