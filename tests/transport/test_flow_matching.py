"""Where source points go: exact truths, independent integrators, arms, paths, bad atoms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.special import ndtri, softmax

from napari_invprior.errors import InvalidInput
from napari_invprior.transport.cells import flow_matching
from napari_invprior.transport.cells.atoms import MOST_ATOMS, Atoms
from napari_invprior.transport.cells.flow_matching import FlowMatching
from napari_invprior.transport.cells.presets import PRESETS


def gaussian(ndim: int, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((ndim, count), generator=generator, dtype=torch.float64)


def atoms(rows, weights=None, **options) -> Atoms:
    given = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
    return Atoms(torch.tensor(np.asarray(rows, float).T), given, **options)


def random_atoms(ndim: int, count: int, seed: int) -> Atoms:
    generator = torch.Generator().manual_seed(seed)
    weights = 10 ** (-2 * torch.rand(count, generator=generator)) if seed % 2 else None
    return Atoms(gaussian(ndim, count, seed + 50), weights)


def agree(flow: FlowMatching, points: torch.Tensor, truth: np.ndarray) -> None:
    """Every decided point has its true label, and next to none is undecided."""
    label, decided = flow.arrival(points)
    assert float((~decided).double().mean()) < 1e-3
    assert np.array_equal(label[decided].numpy(), truth[decided.numpy()])


# ---- what is known exactly


def test_atoms_on_a_line_have_slabs_at_normal_quantiles() -> None:
    weights = np.array([0.1, 0.4, 0.3, 0.2])
    rows = [[-1, 0], [0.2, 0], [0.5, 0], [3, 0]]
    points = gaussian(2, 8000)
    truth = np.searchsorted(ndtri(weights.cumsum()[:-1]), points[0].numpy())
    agree(FlowMatching(atoms(rows, weights)), points, truth)


@pytest.mark.parametrize("third", [((0.0, 1.0),), ((1.0, 1.0),)])
def test_product_grids_have_boxes(third) -> None:
    sides = [((-1, 0.3, 2), (0.2, 0.5, 0.3)), ((0, 1), (0.35, 0.65)), ((-2, 1), (0.5, 0.5))]
    for ndim in (2, 3):
        axes = sides[:ndim]
        rows = np.stack(np.meshgrid(*(a for a, _ in axes), indexing="ij"), -1).reshape(-1, ndim)
        weights = np.ones(1)
        for _, shares in axes:
            weights = np.multiply.outer(weights, shares).ravel()
        points = gaussian(ndim, 6000, seed=ndim)
        truth = np.zeros(6000, int)
        for (_, shares), z in zip(axes, points.numpy(), strict=True):
            truth = len(shares) * truth + np.searchsorted(ndtri(np.cumsum(shares)[:-1]), z)
        agree(FlowMatching(atoms(rows, weights)), points, truth)


@pytest.mark.parametrize("name", ["pentagon", "cube"])
def test_regular_atoms_have_sectors_and_octants(name: str) -> None:
    rows, _ = PRESETS[name].draw(0, 0)
    points = gaussian(rows.shape[1], 8000)
    agree(FlowMatching(atoms(rows)), points, (rows @ points.numpy()).argmax(0))


@pytest.mark.parametrize("normalise", [True, False])
def test_shift_scale_and_rotation_change_nothing(normalise: bool) -> None:
    rows = gaussian(2, 7, 3).T.numpy()
    points = gaussian(2, 5000)
    label = FlowMatching(atoms(rows)).arrival(points).label
    turn = torch.linalg.qr(gaussian(2, 2, 9)).Q
    moved = FlowMatching(atoms(7.3 * rows + [3, -8], normalise=normalise)).arrival(points).label
    turned = FlowMatching(Atoms(turn @ torch.tensor(rows.T), normalise=normalise))
    assert (moved == label).double().mean() >= 0.9995
    assert (turned.arrival(turn @ points).label == label).double().mean() >= 0.9995
    far = FlowMatching(atoms(rows + 1e6)).arrival(points).label
    assert torch.equal(far, label)


# ---- independent integrators


def late_label(sites: np.ndarray, weights: np.ndarray, start: np.ndarray) -> int:
    """The atom by the plain equation in s, far beyond where labels are certain."""

    def logits(s, z):
        return np.log(weights) + s * sites @ z - s**2 * (sites**2).sum(1) / 2

    def field(s, z):
        return softmax(logits(s, z)) @ sites

    end = solve_ivp(field, (0, 60), start, method="DOP853", rtol=1e-9, atol=1e-11).y[:, -1]
    return int(logits(60, end).argmax())


@pytest.mark.parametrize(("ndim", "count", "seed"), [(2, 4, 0), (2, 9, 1), (3, 6, 3), (10, 8, 2)])
def test_certain_labels_are_those_of_a_long_integration(ndim, count, seed) -> None:
    chosen = random_atoms(ndim, count, seed)
    points = 1.5 * gaussian(ndim, 25, seed)
    label, decided = FlowMatching(chosen).arrival(points)
    assert decided.all()
    rows = chosen.positions.T.numpy()
    wanted = [late_label(rows, chosen.weights.numpy(), z) for z in points.T.numpy()]
    assert label.tolist() == wanted


def test_velocity_and_paths_are_those_of_the_formula_in_t() -> None:
    rows = 37 * gaussian(2, 5, 1).T.numpy() + 500
    chosen = atoms(rows, [0.1, 0.3, 0.2, 0.25, 0.15])
    flow = FlowMatching(chosen, tolerance=1e-9)

    def velocity(t, x):
        log = np.log(chosen.weights.numpy()) - ((x - t * rows) ** 2).sum(1) / (2 * (1 - t) ** 2)
        return (softmax(log) @ rows - x) / (1 - t)

    x = np.array([[3.0, -2.0], [250.0, 240.0]]).T
    found = flow.velocity_at(torch.tensor(x), 0.5)
    assert np.allclose(found.T, [velocity(0.5, place) for place in x.T], rtol=1e-8)
    starts = gaussian(2, 6, 4)
    times = torch.tensor([0.0, 0.01, 0.2, 0.7, 1.0], dtype=torch.float64)
    paths = flow.trajectories(starts, times).numpy()
    assert np.allclose(paths[0], starts)
    ends = rows[flow.arrival(starts).label]
    assert np.array_equal(paths[-1].T, ends)
    for k, start in enumerate(starts.T.numpy()):
        exact = solve_ivp(velocity, (0, 0.7), start, t_eval=[0.01, 0.2, 0.7], method="DOP853",
                          rtol=1e-11, atol=1e-11).y
        assert np.allclose(paths[1:4, :, k].T, exact, rtol=1e-5, atol=1e-4)


def test_paths_to_atoms_on_a_line_keep_what_is_across() -> None:
    flow = FlowMatching(atoms([[1, 1], [2, 2], [4, 4]]))
    starts = torch.tensor([[0.5], [-0.7]], dtype=torch.float64)
    halfway = flow.trajectories(starts, torch.tensor([0.5], dtype=torch.float64))[0, :, 0]
    assert float(halfway[0] - halfway[1]) == pytest.approx(0.5 * 1.2)


def test_few_relevant_atoms_give_the_labels_of_all(monkeypatch) -> None:
    chosen, points = random_atoms(2, 40, 1), gaussian(2, 500)
    whole = FlowMatching(chosen).arrival(points).label
    monkeypatch.setattr(flow_matching, "MANY", 5)
    assert torch.equal(FlowMatching(chosen).arrival(points).label, whole)


# ---- arms


def test_the_centre_of_a_triangle_has_three_arms() -> None:
    angles = np.deg2rad([90, 210, 330])
    rows = np.vstack([np.stack([np.cos(angles), np.sin(angles)], 1), [[0, 0]]])
    flow = FlowMatching(atoms(rows))
    first, second, third = rows[:3]
    places = np.array([-4 * first, -4 * second, 2 * third])
    assert flow.arrival(torch.tensor(places.T)).label.tolist() == [3, 3, 2]
    assert np.allclose(places[:2].mean(0), places[2]), "it is not convex"
    limits = {1: (0.1, 0.2), 2: (3e-3, 1e-2), 3: (1e-5, 3e-5), 4: (1e-10, 4e-10)}
    for radius, (low, high) in limits.items():
        narrow, wide = 1e-14, 1.0
        for _ in range(60):  # along the arm opposite to the first atom
            middle = (narrow * wide) ** 0.5
            place = torch.tensor([[middle], [-float(radius)]], dtype=torch.float64)
            if int(flow.arrival(place).label) == 3:
                narrow = middle
            else:
                wide = middle
        assert low <= narrow <= high


@pytest.mark.parametrize(("depth", "goes_to"), [(0.5, 3), (1.2, 1), (1.5, 1)])
def test_an_obtuse_angle_parts_two_cells(depth: float, goes_to: int) -> None:
    flow = FlowMatching(atoms([[-1, 0], [1, 0], [0, -4], [0, -depth]]))
    points = torch.tensor([[1e-3, 1e-4], [2.0, 2.5]], dtype=torch.float64)
    assert flow.arrival(points).label.tolist() == [goes_to] * 2


# ---- odd and bad atoms


def test_one_atom_takes_everything_and_near_ones_are_told_apart() -> None:
    assert FlowMatching(atoms([[3, 4]])).arrival(gaussian(2, 9)).label.sum() == 0
    close = FlowMatching(atoms([[0, 0], [1e-3, 0], [1, 1]]))
    label, decided = close.arrival(gaussian(2, 2000))
    shares = torch.bincount(label, minlength=3) / 2000
    assert (shares - 1 / 3).abs().max() < 0.04 and float((~decided).double().mean()) < 1e-3


def test_atoms_are_made_ready_without_touching_what_was_given() -> None:
    rows, weights = torch.rand(2, 5), torch.tensor([1.0, 2.0, 0.0, 3.0, 2.0])
    kept = rows.clone(), weights.clone()
    chosen = Atoms(rows, weights)
    assert torch.equal(rows, kept[0]) and torch.equal(weights, kept[1])
    assert chosen.index.tolist() == [0, 1, 3, 4] and float(chosen.weights.sum()) == 1
    assert "sum 8" in chosen.notes[0] and "atom 2 without weight" in chosen.notes[1]
    back = chosen.centre + chosen.scale * chosen.lift(chosen.sites)
    assert torch.allclose(back, rows.double()[:, chosen.index])


@pytest.mark.parametrize(("positions", "weights", "message"), [
    (torch.tensor([[0.0, torch.nan], [0.0, 1.0]]), None, "1 atoms have coordinates that are NaN"),
    (torch.tensor([[0.0, torch.inf], [0.0, 1.0]]), None, "NaN or infinite"),
    (torch.zeros(2, 0), None, "one column of coordinates"),
    (torch.zeros(2, 3), torch.ones(2), "2 weights for 3 atoms"),
    (torch.zeros(2, 2), torch.tensor([1.0, -1.0]), "weight -1 of atom 1"),
    (torch.zeros(2, 2), torch.tensor([1.0, torch.nan]), "weight nan of atom 1"),
    (torch.zeros(2, 2), torch.zeros(2), "all weights are zero"),
    (torch.zeros(2, MOST_ATOMS + 1), None, "at most 20000"),
])
def test_bad_atoms_are_refused(positions, weights, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Atoms(positions, weights)
