"""Borders of flow-matching cells: exact curves, outlines that tile, surfaces, who touches whom."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.special import ndtr

from napari_invprior.transport.cells.atoms import Atoms
from napari_invprior.transport.cells.faces import cell_surfaces, faces
from napari_invprior.transport.cells.flow_matching import FlowMatching
from napari_invprior.transport.cells.neighbourhood import touching, unbounded
from napari_invprior.transport.cells.outlines import area, outlines
from napari_invprior.transport.cells.presets import PRESETS
from napari_invprior.transport.cells.separatrices import curves

EXTENT = 5.0


def atoms_of(ndim: int, count: int, seed: int) -> Atoms:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randn((ndim, count), generator=generator, dtype=torch.float64)
    return Atoms(positions, torch.rand(count, generator=generator) + 0.1 if seed % 2 else None)


def preset(name: str) -> Atoms:
    positions, weights = PRESETS[name].draw(8, 0)
    return Atoms(torch.from_numpy(positions.T.copy()), torch.from_numpy(weights))


def ring(corners: int, *others: tuple[float, float]) -> Atoms:
    angle = 2 * np.pi * np.arange(corners) / corners
    rows = np.vstack([np.stack([np.cos(angle), np.sin(angle)], 1), *[[o] for o in others]])
    return Atoms(torch.tensor(rows.T))


def lines_of(atoms: Atoms, extent: float = EXTENT):
    flow = FlowMatching(atoms)
    return flow, curves(flow, torch.from_numpy(touching(atoms)), extent)


def gaussian_mass(polygon: np.ndarray) -> float:
    """``oint (Phi(x) - 1/2) phi(y) dy`` over short pieces of the edges."""
    nodes, weights = np.polynomial.legendre.leggauss(6)
    share = (nodes + 1) / 2
    total = 0.0
    for start, stop in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        pieces = max(1, int(np.ceil(np.linalg.norm(stop - start) / 0.2)))
        marks = np.linspace(0, 1, pieces + 1)
        places = marks[:-1, None] + np.diff(marks)[:, None] * share
        x = start[0] + places * (stop - start)[0]
        y = start[1] + places * (stop - start)[1]
        density = (ndtr(x) - 0.5) * np.exp(-(y**2) / 2) / np.sqrt(2 * np.pi)
        total += float((density @ weights).sum() / 2 / pieces * (stop - start)[1])
    return total


@pytest.mark.parametrize(("count", "seed"), [(3, 0), (5, 1), (8, 2), (12, 3), (20, 4), (25, 5)])
def test_outlines_tile_the_window_with_the_masses_of_the_atoms(count: int, seed: int) -> None:
    atoms = atoms_of(2, count, seed)
    _, lines = lines_of(atoms)
    rings = outlines(atoms, lines, EXTENT)
    areas = [area(polygon) for polygon in rings]
    assert min(areas) >= 0 and sum(areas) == pytest.approx(4 * EXTENT**2, rel=1e-6)
    masses = np.array([gaussian_mass(polygon) for polygon in rings])
    assert np.abs(masses - atoms.weights.numpy()).max() < 1e-3


def dense(points: torch.Tensor) -> torch.Tensor:
    """The chords of a curve with many points on each."""
    share = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None, None]
    return (points[:-1] + share * (points[1:] - points[:-1])).reshape(-1, 2)


@pytest.mark.parametrize(("count", "seed"), [(4, 0), (9, 1), (15, 2)])
def test_points_beside_a_curve_belong_to_its_pair(count: int, seed: int) -> None:
    flow, lines = lines_of(atoms_of(2, count, seed))
    checked = 0
    for line in lines:
        points = line.points
        along = points[2:] - points[:-2]
        middle = points[1:-1]
        length = torch.linalg.vector_norm(along, dim=1)
        others = torch.cat([dense(o.points) for o in lines if o is not line])
        apart = torch.cdist(middle, others).amin(1) > 0.05
        used = (length > 1e-3) & (middle.abs().amax(1) < 2.5) & apart
        normal = torch.stack([-along[:, 1], along[:, 0]], 1) / length[:, None]
        for side, atom in zip((1, -1), line.pair, strict=True):
            beside = (middle + side * 5e-5 * normal)[used]
            label = flow.arrival(beside.T).label
            assert (label == atom).all()
            checked += len(label)
    assert checked > 100


def gabriel(sites: np.ndarray) -> set[tuple[int, int]]:
    """Pairs whose ball between them holds no other site, one by one."""
    found = set()
    for i, j in itertools.combinations(range(len(sites)), 2):
        middle, radius = (sites[i] + sites[j]) / 2, np.linalg.norm(sites[i] - sites[j]) / 2
        others = np.delete(sites, [i, j], 0)
        if not len(others) or np.linalg.norm(others - middle, axis=1).min() > radius:
            found.add((i, j))
    return found


@pytest.mark.parametrize(("ndim", "count"), [(2, 3), (2, 30), (3, 12), (5, 9)])
def test_touching_cells_are_neighbours_in_gabriels_graph(ndim: int, count: int) -> None:
    atoms = atoms_of(ndim, count, 7)
    assert set(map(tuple, touching(atoms).tolist())) == gabriel(atoms.sites.T.numpy())


def test_labels_that_meet_on_a_raster_touch() -> None:
    atoms = atoms_of(2, 15, 6)
    flow = FlowMatching(atoms)
    along = torch.linspace(-3, 3, 300, dtype=torch.float64)
    label = flow.arrival(torch.cartesian_prod(along, along).T).label.view(300, 300).numpy()
    meetings: dict[tuple[int, int], int] = {}
    for axis in (0, 1):
        low, high = np.delete(label, -1, axis), np.delete(label, 0, axis)
        for i, j in zip(low[low != high], high[low != high], strict=True):
            pair = (min(i, j), max(i, j))
            meetings[pair] = meetings.get(pair, 0) + 1
    pairs = set(map(tuple, touching(atoms).tolist()))
    # thin arms lie between samples, so cells meet on the raster that an arm parts
    strangers = {pair for pair, count in meetings.items() if count > 8 and pair not in pairs}
    hull = {int(k) for pair in strangers for k in pair}
    assert all(unbounded(atoms)[k] for k in hull), "only along arms that reach to infinity"
    assert len(pairs & meetings.keys()) > 0.8 * len(pairs)


def test_degenerate_sets_touch_across_sides_only() -> None:
    assert touching(ring(4)).tolist() == [[0, 1], [0, 3], [1, 2], [2, 3]]
    assert len(touching(preset("product_grid"))) == 7
    assert len(touching(preset("cube"))) == 12
    assert touching(Atoms(torch.tensor([[0.0, 1.0, 5.0], [0, 0, 0]]))).tolist() == [[0, 1], [1, 2]]
    many = Atoms(torch.randn((2, 600), generator=torch.Generator().manual_seed(0)).double())
    assert set(map(tuple, touching(many).tolist())) == gabriel(many.sites.T.numpy())


@pytest.mark.parametrize(("atoms", "inner", "endless"), [
    (ring(3, (0, 0)), 3, True), (ring(5, (0, 0)), 5, False), (ring(7, (0.1, 0.0)), 7, False),
    (preset("tetrahedron_with_centre"), 4, True),
])
def test_inner_cells_are_endless_where_the_angle_is_obtuse(atoms, inner, endless) -> None:
    free = unbounded(atoms)
    assert bool(free[inner]) == endless
    assert np.delete(free, inner).all()


@pytest.mark.parametrize("seed", range(4))
def test_endless_cells_are_those_whose_outline_reaches_the_window(seed: int) -> None:
    atoms = atoms_of(2, 12, seed)
    rings = outlines(atoms, lines_of(atoms, 8.0)[1], 8.0)
    reaches = [bool(np.abs(polygon).max() > 8 - 1e-9) for polygon in rings]
    assert reaches == unbounded(atoms).tolist()


def test_atoms_on_a_line_have_straight_borders() -> None:
    atoms = Atoms(torch.tensor([[0.0, 1.0, 3.0], [0.0, 1.0, 3.0]]))
    rings = outlines(atoms, lines_of(atoms)[1], EXTENT)
    assert sum(map(area, rings)) == pytest.approx(100)
    masses = [gaussian_mass(polygon) for polygon in rings]
    assert masses == pytest.approx([1 / 3] * 3, abs=1e-5)
    assert len(outlines(Atoms(torch.ones(2, 1)), [], 2.0)[0]) == 4


# ---- in space


def test_the_corners_of_a_cube_have_the_coordinate_planes() -> None:
    atoms = preset("cube")
    found = faces(FlowMatching(atoms), torch.from_numpy(touching(atoms)), 4.0)
    total = 0.0
    for face in found:
        axis = int(np.abs(face.vertices).max(0).argmin())
        assert np.abs(face.vertices[:, axis]).max() < 1e-9
        total += surface_area(face.vertices, face.triangles)
    assert len(found) == 12 and total == pytest.approx(12 * 16, rel=1e-6)


def surface_area(vertices: np.ndarray, triangles: np.ndarray) -> float:
    return float(np.linalg.norm(normals(vertices, triangles), axis=1).sum() / 2)


def normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    sides = vertices[triangles]
    return np.cross(sides[:, 1] - sides[:, 0], sides[:, 2] - sides[:, 0])


@pytest.mark.parametrize("atoms", [preset("tetrahedron_with_centre"), atoms_of(3, 6, 1)])
def test_points_beside_a_face_belong_to_its_pair(atoms: Atoms) -> None:
    flow = FlowMatching(atoms)
    found = faces(flow, torch.from_numpy(touching(atoms)), 3.0)
    right = total = 0.0
    for face in found:
        normal = normals(face.vertices, face.triangles)
        size = np.linalg.norm(normal, axis=1)
        middle = face.vertices[face.triangles].mean(1)
        others = np.concatenate([o.vertices[o.triangles].mean(1) for o in found if o is not face])
        apart = cKDTree(others).query(middle)[0] > 0.25
        used = (size > 1e-9) & (np.linalg.norm(middle, axis=1) < 2) & apart
        for side, atom in zip((-1, 1), face.pair, strict=True):
            beside = middle + side * 0.01 * normal / np.maximum(size, 1e-300)[:, None]
            label = flow.arrival(torch.from_numpy(beside[used].T.copy())).label.numpy()
            right += float(size[used][label == atom].sum())
            total += float(size[used].sum())
    assert total > 0.5 and right > 0.98 * total, "by area, away from the other faces"


def test_the_centre_of_a_tetrahedron_has_a_surface_of_its_symmetry() -> None:
    atoms = preset("tetrahedron_with_centre")
    assert touching(atoms).tolist() == [[0, 4], [1, 4], [2, 4], [3, 4]]
    surfaces = cell_surfaces(
        atoms, faces(FlowMatching(atoms), torch.from_numpy(touching(atoms)), 4.0)
    )
    vertices, triangles = surfaces[4]
    own = [surface_area(*surfaces[k]) for k in range(4)]
    assert own == pytest.approx([own[0]] * 4, rel=1e-2)
    assert surface_area(vertices, triangles) == pytest.approx(sum(own), rel=1e-9)
    outward = (normals(vertices, triangles) * vertices[triangles].mean(1)).sum(1)
    near = np.linalg.norm(vertices[triangles].mean(1), axis=1) < 0.8
    assert (outward[near] > 0).mean() > 0.99, "seen from outside"


def test_atoms_in_a_plane_and_on_a_line_have_walls() -> None:
    flat = torch.cat([atoms_of(2, 5, 3).positions, torch.zeros(1, 5)])
    atoms = Atoms(flat)
    found = faces(FlowMatching(atoms), torch.from_numpy(touching(atoms)), 3.0)
    assert {face.pair for face in found} and all(len(face.triangles) for face in found)
    for face in found:
        across = normals(face.vertices, face.triangles)
        assert np.abs(across[:, 2]).max() < 1e-9, "at right angles to the plane"
    line = Atoms(torch.tensor([[0.0, 1.0, 3.0]] * 3))
    for face in faces(FlowMatching(line), torch.from_numpy(touching(line)), 3.0):
        assert np.ptp(face.vertices.sum(1)) < 1e-9
