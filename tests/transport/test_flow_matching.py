"""Flow-matching cells against closed forms, SciPy's integrators, invariances and special input."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.spatial.distance import pdist
from scipy.special import logsumexp, ndtri

from napari_invprior.errors import Cancelled, InvalidInput
from napari_invprior.transport.cells import flow_matching
from napari_invprior.transport.cells.atoms import MOST_ATOMS, Atoms
from napari_invprior.transport.cells.flow_matching import FlowMatching, Shares


def atoms_of(positions, weights=None, **options):
    """Atoms from rows of coordinates."""
    weights = None if weights is None else torch.from_numpy(np.asarray(weights, float))
    return Atoms(torch.from_numpy(np.asarray(positions, float)).T, weights, **options)


def flow_of(positions, weights=None, **options):
    return FlowMatching(atoms_of(positions, weights, **options))


def arrivals(flow, points):
    """Labels of rows of points as the given atoms are numbered, and which are decided."""
    found = flow.arrival(torch.from_numpy(np.asarray(points, float)).T)
    return flow.atoms.index[found.label].numpy(), found.decided.numpy()


def normal(seed, count, d):
    return np.random.default_rng(seed).normal(size=(count, d))


def drawn(seed, n, d, decades=0.0):
    rng = np.random.default_rng(seed)
    weights = 10 ** rng.uniform(-decades, 0, n)
    return rng.normal(size=(n, d)), weights / weights.sum()


def ring(corners, *more):
    angles = np.pi / 2 + 2 * np.pi * np.arange(corners) / corners
    return np.r_[np.c_[np.cos(angles), np.sin(angles)], np.array(more, float).reshape(-1, 2)]


def check_all(flow, points, right):
    """Every decided point is right, and hardly any is undecided."""
    label, decided = arrivals(flow, points)
    assert (label[decided] == right[decided]).all()
    assert (~decided).mean() < 1e-3


# ---- references, in plain NumPy, from the formulas


def shares_in_s(sites, weights, z, s):
    """Weights (n, N) of rows of sites at points (d, N)."""
    logs = np.log(weights)[:, None] + s * sites @ z - s**2 * (sites**2).sum(1)[:, None] / 2
    return np.exp(logs - logsumexp(logs, axis=0))


def labels_in_s(sites, weights, points, stop):
    def slope(s, z):
        return (sites.T @ shares_in_s(sites, weights, z.reshape(sites.shape[1], -1), s)).ravel()

    path = solve_ivp(slope, (0, stop), points.T.ravel(), method="DOP853", rtol=1e-10, atol=1e-10)
    end = path.y[:, -1].reshape(sites.shape[1], -1)
    return shares_in_s(sites, weights, end, stop).argmax(0)


def shares_in_t(positions, weights, x, t):
    squares = ((x[None] - t * positions[:, :, None]) ** 2).sum(1)
    logs = np.log(weights)[:, None] - squares / (2 * (1 - t) ** 2)
    return np.exp(logs - logsumexp(logs, axis=0))


def paths_in_t(positions, weights, points, times):
    """Positions (T, d, N) by the velocity (D(x, t) - x) / (1 - t)."""

    def velocity(t, flat):
        x = flat.reshape(positions.shape[1], -1)
        return ((positions.T @ shares_in_t(positions, weights, x, t) - x) / (1 - t)).ravel()

    path = solve_ivp(velocity, (0, times[-1]), points.T.ravel(), method="DOP853", rtol=1e-10,
                     atol=1e-10 * np.abs(positions).max(), t_eval=times)
    return path.y.T.reshape(len(times), positions.shape[1], -1)


# ---- closed forms


def test_collinear_atoms_give_slabs():
    along, weights = np.array([-1, 0.2, 0.5, 3]), np.array([0.1, 0.4, 0.3, 0.2])
    points = normal(0, 40_000, 2)
    right = np.searchsorted(ndtri(np.cumsum(weights)[:-1]), points[:, 0])
    check_all(flow_of(np.c_[along, 0 * along], weights), points, right)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    check_all(flow_of(np.c_[along, 0 * along] @ turn.T + 3, weights), points @ turn.T, right)


def test_product_grid_gives_boxes():
    values, shares = ([-1, 0.3, 2], [0, 1]), ([0.2, 0.5, 0.3], [0.35, 0.65])
    positions = np.stack(np.meshgrid(*values, indexing="ij"), -1).reshape(-1, 2)
    points = normal(1, 40_000, 2)
    cut = [np.searchsorted(ndtri(np.cumsum(p)[:-1]), z)
           for p, z in zip(shares, points.T, strict=True)]
    check_all(flow_of(positions, np.outer(*shares).ravel()), points, 2 * cut[0] + cut[1])


def test_product_grid_in_space_gives_boxes():
    values = ([-1, 0.3, 2], [0, 1], [-2, 0.5, 1])
    shares = ([0.2, 0.5, 0.3], [0.35, 0.65], [0.1, 0.6, 0.3])
    positions = np.stack(np.meshgrid(*values, indexing="ij"), -1).reshape(-1, 3)
    points = normal(2, 20_000, 3)
    cut = [np.searchsorted(ndtri(np.cumsum(p)[:-1]), z)
           for p, z in zip(shares, points.T, strict=True)]
    weights = np.einsum("i,j,k", *shares).ravel()
    check_all(flow_of(positions, weights), points, np.ravel_multi_index(cut, (3, 2, 3)))


@pytest.mark.parametrize("corners", [3, 4, 5, 8])
def test_regular_polygons_give_sectors(corners):
    positions, points = ring(corners), normal(3, 20_000, 2)
    check_all(flow_of(positions), points, (positions @ points.T).argmax(0))


def test_cube_corners_give_octants():
    corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3, indexing="ij"), -1).reshape(-1, 3)
    points = normal(4, 20_000, 3)
    check_all(flow_of(corners), points, (corners @ points.T).argmax(0))


# ---- invariances


@pytest.mark.parametrize("normalise", [True, False])
def test_shift_scale_and_rotation(normalise):
    positions, weights = drawn(5, 7, 2, 1)
    points, turn = normal(6, 20_000, 2), np.linalg.qr(normal(7, 2, 2))[0]
    right = arrivals(flow_of(positions, weights), points)[0]
    for moved, seen in (
        (positions, points),
        (7.3 * positions, points),
        (7.3 * positions + [2, -1], points),
        (0.2 * positions + [2, -1], points),
        (positions @ turn.T, points @ turn.T),
    ):
        check_all(flow_of(moved, weights, normalise=normalise), seen, right)


def test_far_atoms_of_small_spread():
    """In binary fractions, so that a million added loses no digit."""
    grid = np.random.default_rng(8).integers(-4096, 4096, (9, 2))
    points = normal(9, 5000, 2)
    right = arrivals(flow_of(grid), points)[0]
    for size in (1.0, 1 / 4096, 1 / 2**20):
        check_all(flow_of(grid * size + 2.0**20), points, right)
        check_all(flow_of(grid * size + [1e6, -(2.0**20)]), points, right)


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e30, 1e200])
def test_tiny_and_huge_units(size):
    positions, points = drawn(10, 6, 2)[0], normal(11, 2000, 2)
    check_all(flow_of(positions * size), points, arrivals(flow_of(positions), points)[0])


# ---- the certificate and the integrator

SETS = [(0, 5, 2, 0.0), (1, 12, 2, 0.0), (2, 12, 2, 4.0), (3, 8, 3, 0.0), (4, 30, 3, 3.0),
        (5, 12, 10, 0.0), (6, 40, 10, 6.0)]


def late(flow):
    """60, or later where atoms are close: by then hardly a weight is between 0 and 1."""
    return 60 / min(1.0, float(flow._nearest.min()))


@pytest.mark.parametrize("drawn_set", SETS)
def test_labels_by_scipy(drawn_set):
    seed, _, d, _ = drawn_set
    positions, weights = drawn(*drawn_set)
    points = normal(100 + seed, 40, d)
    found, decided = arrivals(flow_of(positions, weights), points)
    assert decided.all() and len(np.unique(found)) > 2
    # in s, for atoms as the code normalises them and as given
    flow = flow_of(positions, weights)
    sites = flow.atoms.sites.T.numpy()
    assert (labels_in_s(sites, weights, points, late(flow)) == found).all()
    assert (labels_in_s(positions, weights, points, late(flow)) == found).all()
    # in t, from the velocity that is singular at 1
    end = paths_in_t(positions, weights, points, [0.5, 0.999])[-1]
    assert (shares_in_t(positions, weights, end, 0.999).argmax(0) == found).all()


@given(st.integers(0, 10**6), st.integers(2, 20), st.sampled_from([2, 3, 10]), st.floats(0, 8))
def test_a_certain_label_is_final(seed, n, d, decades):
    """It is still that of the largest weight much later."""
    positions, weights = drawn(seed, n, d, decades)
    flow = flow_of(positions, weights)
    points = torch.from_numpy(normal(seed + 1, 300, d).T)
    found, stop = flow.arrival(points), late(flow)
    end = flow.carried(flow.atoms.project(points), 0.0, stop)
    ratios = flow._field(end, torch.full_like(end[0], stop))[1].ratios
    assert found.decided.all()
    assert torch.equal(ratios.argmax(0), found.label)


@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([1, 2, 3]),
       st.sampled_from([0.0, 0.5, 3.0, 8.0]))
def test_the_certificate_is_sound_anywhere(seed, n, d, decades):
    """Also at points and times to which no path from the source leads."""
    positions, weights = drawn(seed, n + d, d, decades)
    flow, rng = flow_of(positions, weights), np.random.default_rng(seed)
    count = 400
    s = torch.from_numpy(10 ** rng.uniform(-1.5, 1.5, count))
    sites = flow.atoms.sites
    near = sites[:, torch.from_numpy(rng.integers(0, n + d, count))]
    z = s * near + torch.from_numpy(rng.normal(size=(d, count)) * 10 ** rng.uniform(-1, 1, count))
    shares = flow._field(z, s)[1]
    certain = flow.certain(s, shares)
    stop = s + late(flow)
    end = flow._field(flow.carried(z, s, stop), stop)[1].ratios
    best = shares.ratios.argmax(0)
    assert torch.equal(end.argmax(0)[certain], best[certain])
    # not only at the end: the lead over each other atom grows all the time
    lead = -shares.ratios[:, certain].clamp_min(1e-300).log()
    for ahead in (1e-3, 0.3):
        soon = s * (1 + ahead)
        ratios = flow._field(flow.carried(z, s, soon), soon)[1].ratios
        later = -ratios[:, certain].clamp_min(1e-300).log()
        assert bool((later >= lead * (1 - 1e-6) - 1e-6).all())
        lead = later


def test_the_certificate_is_of_use():
    """It holds long before the paths are at s = 60."""
    positions, weights = drawn(1, 12, 2, 2)
    flow = flow_of(positions, weights)
    points = torch.from_numpy(normal(0, 1000, 2).T)
    s = torch.full((1000,), 6.0, dtype=torch.float64)
    certain = flow.certain(s, flow._field(flow.carried(points, 0.0, s), s)[1])
    assert certain.double().mean() > 0.5


def test_certificate_needs_its_first_condition():
    """Equal weights: a far third atom draws the point on, towards one in the same direction."""
    sites = np.array([[0.0, 0], [1, 0], [4.9, 1]])
    flow = flow_of(sites, normalise=False)
    s, u = torch.tensor([2.0]).double(), np.array([0.0, 4.9**2 + 1 - 0.55])
    z = torch.from_numpy(u)[:, None]
    shares = flow._field(z, s)[1]
    assert (-shares.ratios[:, 0].log()).tolist() == pytest.approx([0, 2, 1.1])
    soon = flow._field(z + 1e-4 * flow.velocity(z, s), s + 1e-4)[1]
    assert soon.ratios[1, 0] > shares.ratios[1, 0]  # a lead that falls
    assert flow.certain(s, shares).tolist() == [False]


def test_certificate_needs_its_second_condition():
    """A heavy atom behind keeps no point for which a light one in front gains on it."""
    flow = FlowMatching(Atoms(torch.tensor([[0.0, 1.0]]), torch.tensor([1.0, 1e-12])))
    low, high = flow.atoms.sites[0]
    s = torch.tensor([0.5], dtype=torch.float64)
    z = torch.tensor([[26.6]], dtype=torch.float64)  # far on the side of the light one
    shares = flow._field(z, s)[1]
    assert shares.ratios.argmax(0).tolist() == [0]
    assert float(shares.ratios[1, 0] * (high - low)) < float(high - low) / 2
    assert flow.certain(s, shares).tolist() == [False]
    assert flow.arrival(z).label.tolist() == [1]


def test_a_symmetric_point_is_undecided():
    flow = flow_of([[1, 0], [0, 1], [-1, 0], [0, -1]])
    found = flow.arrival(torch.tensor([[0.0, 1.0, 0.3], [0.0, 1.0, 0.1]]))
    assert found.decided.tolist() == [False, False, True]
    exact = FlowMatching(Atoms(torch.tensor([[-1.0, 1.0], [0.0, 0.0]])))
    assert exact.arrival(torch.tensor([[0.0], [2.0]])).decided.tolist() == [False]


# ---- what the sheet measured


def test_star_of_the_triangle():
    positions = ring(3, [0, 0])
    flow = flow_of(positions)
    a, b, c = positions[:3]
    label, _ = arrivals(flow, [-4 * a + 1e-12, -4 * b, 2 * c])
    assert label.tolist() == [3, 3, 2]
    for radius, least, most in ((1, 0.1, 0.2), (2, 3e-3, 1e-2), (3, 1e-5, 3e-5),
                                (4, 1e-10, 4e-10)):
        assert least <= half_width(flow, radius) <= most


def half_width(flow, radius):
    """How far from the ray at ``-radius A`` the arm of the centre ends."""
    low, high = np.log(1e-13), 0.0
    for _ in range(40):
        middle = (low + high) / 2
        inside = arrivals(flow, [[np.exp(middle), -radius]])[0][0] == 3
        low, high = (middle, high) if inside else (low, middle)
    return np.exp(low)


@pytest.mark.parametrize(("depth", "label"), [(0.5, 3), (1.2, 1), (1.5, 1)])
def test_obtuse_angles_give_arms(depth, label):
    flow = flow_of([[-1, 0], [1, 0], [0, -4], [0, -depth]])
    assert arrivals(flow, [[1e-3, 2], [1e-4, 2.5]])[0].tolist() == [label, label]


def test_arms_beside_the_middle():
    """The sheet's widths on the line y = 2, for atoms off-centre."""
    at = np.c_[np.linspace(-0.6, 0.6, 2401), np.full(2401, 2.0)]
    step = at[1, 0] - at[0, 0]
    for middle, width in (((0.4, -0.5), 0.0149), ((0.6, -0.3), 0.075), ((0.8, -0.9), 0),
                          ((0.3, -1.2), 0)):
        label = arrivals(flow_of([[-1, 0], [1, 0], [0, -4], middle]), at)[0]
        assert (label == 3).sum() * step == pytest.approx(width, abs=2 * step)


# ---- trajectories


@pytest.mark.parametrize("kind", ["plain", "scaled", "collinear", "space"])
def test_trajectories_by_scipy(kind):
    positions, weights = drawn(12, 6, 3 if kind == "space" else 2, 1)
    if kind == "collinear":
        positions = np.array([[2.0, -1]]) * positions[:, :1] + 4
    if kind in ("scaled", "space"):
        positions = 37 * positions + 500
    d, flow = positions.shape[1], flow_of(positions, weights)
    points = normal(13, 30, d)
    times = np.array([0, 0.1, 0.5, 0.8, 0.95])
    found = flow.trajectories(torch.from_numpy(points.T), torch.tensor([*times, 1.0])).numpy()
    assert found.shape == (6, d, 30)
    assert np.allclose(found[0], points.T, atol=1e-9)
    assert (found[-1] == positions[arrivals(flow, points)[0]].T).all()
    right = paths_in_t(positions, weights, points, times)
    assert np.abs(found[:-1] - right).max() < 2e-5 * flow.atoms.scale
    assert np.abs(found[-1] - found[-2]).max() < np.abs(found[-1] - found[0]).max()


def test_trajectories_end_with_any_times():
    flow = flow_of(ring(5))
    paths = flow.trajectories(torch.from_numpy(normal(0, 4, 2).T), torch.tensor([0.0, 1.0]))
    assert paths.shape == (2, 2, 4)
    assert (torch.linalg.vector_norm(paths[-1], dim=0) - 1).abs().max() < 1e-12


# ---- many atoms


@pytest.mark.parametrize(("d", "decades"), [(2, 0.0), (2, 4.0), (3, 1.0)])
def test_summing_some_atoms_only_changes_no_label(d, decades, monkeypatch):
    positions, weights = drawn(14, 200, d, decades)
    flow, points = flow_of(positions, weights), normal(15, 500, d)
    right, decided = arrivals(flow, points)
    assert decided.all()
    monkeypatch.setattr(flow_matching, "MANY", 5)
    monkeypatch.setattr(flow_matching, "LOCAL", 8)
    used, relevant = [], FlowMatching._relevant

    def noted(self, z, s):
        kept = relevant(self, z, s)
        used.append(len(kept))
        return kept

    monkeypatch.setattr(FlowMatching, "_relevant", noted)
    label, decided = arrivals(flow, points)
    assert decided.all() and (label == right).all()
    assert min(used) < 20 and np.mean(used) < 190


# ---- special input


def test_duplicates_share_a_cell():
    positions, points = ring(5), normal(16, 3000, 2)
    twice = positions[[0, 1, 2, 1, 3, 4, 1]]
    flow = flow_of(twice)
    assert flow.atoms.index.tolist() == [0, 1, 2, 4, 5]
    assert flow.atoms.weights.tolist() == pytest.approx([1 / 7, 3 / 7, 1 / 7, 1 / 7, 1 / 7])
    assert flow.atoms.notes == ("atoms 1, 3 and 6 lie at one place; they share the cell of 1",)
    one = arrivals(flow_of(positions, [1, 3, 1, 1, 1]), points)[0]
    assert (arrivals(flow, points)[0] == np.array([0, 1, 2, 4, 5])[one]).all()


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_one_place(d, copies):
    flow = flow_of(np.full((copies, d), 7.0))
    points = normal(0, 5, d)
    label, decided = arrivals(flow, points)
    assert label.tolist() == [0] * 5 and decided.all()
    paths = flow.trajectories(torch.from_numpy(points.T), torch.tensor([0.0, 0.25, 1.0])).numpy()
    for path, t in zip(paths, (0, 0.25, 1), strict=True):
        assert np.allclose(path, (1 - t) * points.T + 7 * t, atol=1e-12)


def test_no_points():
    assert flow_of(ring(3)).arrival(torch.zeros(2, 0)).label.shape == (0,)


def test_zero_weights_have_no_cell():
    positions, points = ring(5), normal(17, 3000, 2)
    flow = flow_of(np.r_[[[50.0, 9]], positions], [0, 1, 1, 1, 1, 1])
    assert flow.atoms.index.tolist() == [1, 2, 3, 4, 5]
    assert "atom 0 without weight: no cell" in flow.atoms.notes
    assert (arrivals(flow, points)[0] == 1 + arrivals(flow_of(positions), points)[0]).all()


def test_weights_are_divided_by_their_sum():
    positions, weights = drawn(18, 6, 2, 1)
    points = normal(19, 3000, 2)
    right = arrivals(flow_of(positions, weights), points)[0]
    for factor in (1e-300, 5.0, 1e300):
        flow = flow_of(positions, weights * factor)
        assert (arrivals(flow, points)[0] == right).all()
        assert np.allclose(flow.atoms.weights, weights, atol=1e-15)
        assert any(f"the weights have sum {factor:.4g}" in note for note in flow.atoms.notes)
    assert flow_of(positions, weights).atoms.notes == ()


@pytest.mark.parametrize("plane", [1, 2])
def test_atoms_in_a_plane_of_space(plane):
    """Coordinates across the plane do not count."""
    low, weights = drawn(20, 6, plane, 1)
    basis = np.linalg.qr(normal(21, 3, 3))[0]
    points = normal(22, 3000, 3)
    flow = flow_of(low @ basis[:, :plane].T + 40, weights)
    assert flow.atoms.rank == plane
    right = arrivals(flow_of(low, weights), points @ basis[:, :plane])[0]
    assert (arrivals(flow, points)[0] == right).all()


def test_close_atoms():
    """A pair at a small distance is cut in its middle, far later than the others part."""
    for apart in (1e-3, 1e-6):
        flow = flow_of([[-1, 0], [1, 0], [1 + apart, 0]])
        points = normal(23, 2000, 2)
        right = np.searchsorted(ndtri([1 / 3, 2 / 3]), points[:, 0])
        check_all(flow, points, right)


@pytest.mark.parametrize(
    ("positions", "weights", "message"),
    [
        (torch.zeros(3), None, r"atoms of shape \(3,\): give one column"),
        (torch.zeros(2, 0), None, r"atoms of shape \(2, 0\)"),
        (torch.zeros(0, 2), None, r"atoms of shape \(0, 2\)"),
        (torch.zeros(2, 3, dtype=torch.complex64), None, "atoms of shape"),
        (torch.tensor([[0.0, torch.nan, 1]]), None, "1 atoms have coordinates that are NaN"),
        (torch.tensor([[torch.inf, torch.nan, 1]]), None, "2 atoms have .* infinite; remove"),
        (torch.zeros(2, MOST_ATOMS + 1), None, "20001 atoms; .* at most 20000"),
        (torch.eye(3), torch.ones(2), "2 weights for 3 atoms: give one for each"),
        (torch.eye(3), torch.tensor([1.0, -0.5, 1]), "weight -0.5 of atom 1"),
        (torch.eye(3), torch.tensor([1.0, 1, torch.nan]), "weight nan of atom 2"),
        (torch.eye(3), torch.tensor([torch.inf, 1, 1]), "weight inf of atom 0"),
        (torch.eye(3), torch.zeros(3), "all weights are zero"),
    ],
)
def test_refusals(positions, weights, message):
    with pytest.raises(InvalidInput) as refused:
        Atoms(positions, weights)
    assert re.search(message, str(refused.value))


def test_most_atoms_are_taken():
    atoms = Atoms(torch.from_numpy(normal(24, MOST_ATOMS, 2).T))
    assert len(atoms) == MOST_ATOMS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_given_tensors_are_not_written_to(dtype):
    positions = torch.tensor([[0, 3, 1, 1], [1, 2, 5, 5]], dtype=dtype)
    weights, points = torch.tensor([2, 0, 1, 1], dtype=dtype), torch.eye(2, dtype=dtype)
    before = positions.clone(), weights.clone(), points.clone()
    flow = FlowMatching(Atoms(positions, weights))
    flow.arrival(points)
    flow.trajectories(points, torch.tensor([0.0, 0.5, 1.0])).zero_()
    assert all(map(torch.equal, (positions, weights, points), before))
    assert flow.atoms.positions.double().equal(positions.double())


def test_stop():
    with pytest.raises(Cancelled):
        flow_of(ring(5)).arrival(torch.zeros(2, 5), should_stop=lambda: True)


def test_far_points():
    """A source point at 1e6 goes where the direction leads, or is undecided."""
    flow = flow_of(ring(5))
    points = 1e6 * normal(25, 200, 2)
    label, decided = arrivals(flow, points)
    assert (label[decided] == (ring(5) @ points.T).argmax(0)[decided]).all()
    assert decided.mean() > 0.9


def test_distances_of_close_pairs():
    positions = drawn(26, 30, 3)[0]
    flow = flow_of(positions)
    least = pdist(flow.atoms.sites.T.numpy()).min()
    assert float(flow._nearest.min()) == pytest.approx(least)
    assert isinstance(flow._field(torch.zeros(3, 1).double(), torch.ones(1).double())[1], Shares)
