"""Borders between flow-matching cells in space, as triangles: images of the planes between atoms.

Around the middle of two atoms, rays of the plane between them are carried back to the source; their
images are cut where they leave the cube or come to rest, and points on neighbouring rays are joined
by triangles. Where the atoms lie in a plane or on a line, faces are straight along what is missing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from napari_invprior.transport.cells.atoms import Atoms
from napari_invprior.transport.cells.flow_matching import FlowMatching
from napari_invprior.transport.cells.separatrices import Fineness, curves, on_border, sampled

FEW_FACES, FINE, COARSE = 12, (72, 40), (36, 24)
"""Rays of a face and points of a ray, for so many faces at most, and for more."""
BEYOND = 1.02 * math.sqrt(3)
"""Rays are cut at a sphere of so many extents, which holds the cube."""
FINEST, COARSEST, BEND = 1 / 200, 1 / 10, math.radians(8)


@dataclass(frozen=True)
class Face:
    """The border between two cells in space.

    Attributes
    ----------
    pair : (int, int)
        Distinct atoms; seen from the cell of the second, triangles run counter-clockwise.
    vertices : numpy.ndarray
        (k, 3), source points.
    triangles : numpy.ndarray
        (m, 3), of vertices.
    """

    pair: tuple[int, int]
    vertices: np.ndarray
    triangles: np.ndarray


def faces(flow: FlowMatching, pairs: Tensor, extent: float) -> list[Face]:
    """The borders in space, cut to the cube ``[-extent, extent]^3``.

    Parameters
    ----------
    pairs : Tensor
        (m, 2), the cells that touch.

    Examples
    --------
    >>> flow = FlowMatching(Atoms(torch.tensor([[-1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])))
    >>> plane = faces(flow, torch.tensor([[0, 1]]), 2.0)[0]
    >>> bool(abs(plane.vertices[:, 0]).max() < 1e-9), float(abs(plane.vertices[:, 1]).max())
    (True, 2.0)
    """
    if len(pairs) == 0:
        return []
    build = {1: _planes, 2: _walls, 3: _sheets}[flow.atoms.rank]
    return [_cut(face, extent) for face in build(flow, pairs, extent)]


def cell_surfaces(
    atoms: Atoms, borders: Sequence[Face]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The faces of each cell together: vertices (k, 3) and triangles (m, 3), seen from outside.

    They are open where the cube cuts them.
    """
    parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(len(atoms))]
    for face in borders:
        first, second = face.pair
        parts[first].append((face.vertices, face.triangles))
        parts[second].append((face.vertices, face.triangles[:, ::-1]))
    return [_joined(part) for part in parts]


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in parts)])
    vertices = [np.empty((0, 3)), *(v for v, _ in parts)]
    triangles = [t + start for (_, t), start in zip(parts, starts[:-1], strict=True)]
    return np.concatenate(vertices), np.concatenate([np.empty((0, 3), int), *triangles])


# ---- atoms that span the space


def _sheets(flow: FlowMatching, pairs: Tensor, extent: float) -> list[Face]:
    """Rays around the middle of every pair, joined to sheets."""
    rays, along = FINE if len(pairs) <= FEW_FACES else COARSE
    sites, count = flow.atoms.sites, len(pairs)
    ways = _ways(sites[:, pairs[:, 1]] - sites[:, pairs[:, 0]], rays)
    whose = torch.arange(count).repeat_interleave(rays)
    fine = Fineness(BEYOND * extent, 2 * extent * FINEST, 2 * extent * COARSEST, BEND)
    owner, offset, place = sampled(flow, pairs[whose], ways, extent, fine, both=False)
    sizes = torch.stack([
        _radii(offset[mine], owner[mine] - rays * k, place[:, mine], along, BEYOND * extent)
        for k, mine in enumerate(_parts(owner // rays, count))
    ])
    radii = sizes.repeat_interleave(rays, 0).reshape(-1)
    lines = torch.arange(count * rays).repeat_interleave(along)
    exact, told = on_border(flow, pairs[whose[lines]], ways[:, lines] * radii)
    places = exact.T.reshape(count, rays * along, 3).numpy()
    trusted = told.reshape(count, rays * along).numpy()
    wheel = _wheel(rays, along)
    return [
        Face((int(i), int(j)), place, wheel[good[wheel].all(1)])
        for (i, j), place, good in zip(pairs.tolist(), places, trusted, strict=True)
    ]


def _parts(owner: Tensor, count: int) -> list[slice]:
    """Where each of so many owners stands in a sorted list."""
    bounds = torch.searchsorted(owner, torch.arange(count + 1)).tolist()
    return [slice(begin, end) for begin, end in itertools.pairwise(bounds)]


def _radii(offset: Tensor, ray: Tensor, place: Tensor, count: int, radius: float) -> Tensor:
    """Offsets (count,) for all rays of a face, even along the ray that moves most, in a sphere.

    The same for all: a grid in the plane has an image without folds.
    """
    levels = torch.unique(offset)
    lengths = torch.zeros_like(levels)
    for mine in _parts(ray, int(ray[-1]) + 1):
        points, own = place[:, mine], offset[mine]
        inside = torch.linalg.vector_norm(points, dim=0) < radius
        step = torch.linalg.vector_norm(points.diff(dim=1), dim=0) * (inside[1:] | inside[:-1])
        along = torch.cat([step.new_zeros(1), step.cumsum(0)])
        here = torch.from_numpy(np.interp(levels.numpy(), own.numpy(), along.numpy()))
        lengths[1:] = torch.maximum(lengths[1:], here.diff())
    total = lengths.cumsum(0)
    marks = np.linspace(0, float(total[-1]), count)
    return torch.from_numpy(np.interp(marks, total.numpy(), levels.numpy()))


def _ways(axis: Tensor, rays: int) -> Tensor:
    """Directions (3, pairs * rays) at right angles to axes (3, pairs), counter-clockwise."""
    length = torch.linalg.vector_norm(axis, dim=0)
    unit = axis / length
    helper = torch.zeros_like(unit)
    helper[unit.abs().argmin(0), torch.arange(unit.shape[1])] = 1
    first = torch.linalg.cross(unit, helper, dim=0)
    first /= torch.linalg.vector_norm(first, dim=0)
    second = torch.linalg.cross(unit, first, dim=0)
    angle = 2 * math.pi * torch.arange(rays, dtype=torch.float64) / rays
    ways = first[..., None] * angle.cos() + second[..., None] * angle.sin()
    return (length[:, None] * ways).reshape(3, -1)


def _wheel(rays: int, along: int) -> np.ndarray:
    """Triangles between neighbouring rays that begin in one point, counter-clockwise."""
    ray, step = np.meshgrid(np.arange(rays), np.arange(along - 1), indexing="ij")
    here, there = ray * along + step, (ray + 1) % rays * along + step
    both = np.stack([
        np.stack([here, here + 1, there + 1], -1), np.stack([here, there + 1, there], -1)
    ])
    return both.reshape(-1, 3)


# ---- atoms in a plane or on a line


def _walls(flow: FlowMatching, pairs: Tensor, extent: float) -> list[Face]:
    """Curves in the plane of the atoms, drawn out at right angles to it."""
    atoms = flow.atoms
    basis = atoms.lift(torch.eye(2, dtype=torch.float64))
    normal = torch.linalg.cross(basis[:, 0], basis[:, 1], dim=0).numpy() * BEYOND * extent
    found = []
    for curve in curves(flow, pairs, BEYOND * extent):
        points, count = atoms.lift(curve.points.T).T.numpy(), len(curve.points)
        low = np.arange(count - 1)
        triangles = np.concatenate([
            np.stack([low, low + count, low + 1], 1),
            np.stack([low + 1, low + count, low + count + 1], 1),
        ])
        found.append(Face(curve.pair, np.concatenate([points - normal, points + normal]),
                          triangles))
    return found


def _planes(flow: FlowMatching, pairs: Tensor, extent: float) -> list[Face]:
    """Planes across the line of the atoms."""
    atoms = flow.atoms
    feet, _ = on_border(flow, pairs, torch.zeros((1, len(pairs)), dtype=torch.float64))
    middles = atoms.lift(feet)
    axis = atoms.lift(atoms.sites[:, pairs[:, 1]] - atoms.sites[:, pairs[:, 0]])
    corners = _ways(axis / torch.linalg.vector_norm(axis, dim=0), 4).reshape(3, len(pairs), 4)
    size = 2 * BEYOND * extent
    return [
        Face((int(i), int(j)), (middles[:, k, None] + size * corners[:, k]).T.numpy(),
             np.array([[0, 1, 2], [0, 2, 3]]))
        for k, (i, j) in enumerate(pairs.tolist())
    ]


# ---- the cube


def _cut(face: Face, extent: float) -> Face:
    """The part of a face in the cube: triangles are cut at its six sides."""
    corners = face.vertices[face.triangles]
    for axis in range(3):
        for sign in (1.0, -1.0):
            corners = _below(corners, sign * corners[..., axis] - extent)
    vertices, index = np.unique(corners.reshape(-1, 3), axis=0, return_inverse=True)
    triangles = index.reshape(-1, 3)
    thin = (triangles == np.roll(triangles, 1, 1)).any(1)
    return replace(face, vertices=vertices, triangles=triangles[~thin])


def _below(corners: np.ndarray, over: np.ndarray) -> np.ndarray:
    """The parts of triangles (m, 3, 3) where a linear function, given at corners, is negative."""
    outside = over > 0
    count = outside.sum(1)
    found = [corners[count == 0]]
    for number in (1, 2):
        some = count == number
        # turn each so that the odd corner is the first
        odd = (outside if number == 1 else ~outside)[some].argmax(1)
        order = (odd[:, None] + np.arange(3)) % 3
        points = np.take_along_axis(corners[some], order[..., None], 1)
        values = np.take_along_axis(over[some], order, 1)
        share = values[:, :1] / (values[:, :1] - values[:, 1:])
        cuts = points[:, :1] + share[..., None] * (points[:, 1:] - points[:, :1])
        if number == 1:
            found.append(np.stack([cuts[:, 0], points[:, 1], points[:, 2]], 1))
            found.append(np.stack([cuts[:, 0], points[:, 2], cuts[:, 1]], 1))
        else:
            found.append(np.stack([points[:, 0], cuts[:, 0], cuts[:, 1]], 1))
    return np.concatenate(found)
