"""Exact Gaussian masses of Laguerre cells in one, two and three dimensions.

Every cell is put together, with signs, from parts seen from the origin: a sector for each edge in
the plane, a cone for each face in space, and the share of directions in which it is unbounded. In
the plane that is Owen's T function in closed form; in space one smooth integral along every edge is
left, which few Gauss-Legendre nodes give to rounding. Two cells that share a part count it with
opposite signs, so the masses have sum 1 whatever happens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import erf, gammainc, ndtr, owens_t

from napari_invprior.transport.cells.lower_hull import (
    Diagram,
    Floats,
    Ints,
    laguerre_diagram,
)

NODES = 32
"""Gauss-Legendre nodes along an edge in space."""
NEAR = 1e-4
"""Below this share a difference quotient is replaced by the derivative in the middle."""
TURN = 2 * np.pi
TINY = 1e-300


@dataclass(frozen=True)
class Masses:
    """What Newton's method needs to know about cells.

    Attributes
    ----------
    masses : ndarray
        (n,), Gaussian mass of each cell, sum 1.
    pairs : ndarray
        (k, 2), ``i < j``: cells that touch, if only in a point.
    flux : ndarray
        (k,), ``d mass_i / d psi_j``: Gaussian measure of the common face over ``|x_i - x_j|``.
    angles : ndarray
        (k,), size of the common face: the angle (rank 2) or solid angle (rank 3) under which it is
        seen from a unit above the foot of the perpendicular from the origin.
    """

    masses: Floats
    pairs: Ints
    flux: Floats
    angles: Floats


def cell_masses(sites: Floats, psi: Floats) -> Masses:
    """Masses of the cells of sites (n, r) with potentials psi (n,), and their derivative.

    Examples
    --------
    >>> half = cell_masses(np.array([[-1.0], [1.0]]), np.zeros(2))
    >>> half.masses.tolist(), half.pairs.tolist(), round(float(half.flux[0]), 4)
    ([0.5, 0.5], [[0, 1]], 0.1995)
    """
    if len(sites) == 1:
        return Masses(np.ones(1), np.zeros((0, 2), np.intp), np.zeros(0), np.zeros(0))
    rank = sites.shape[1]
    diagram = laguerre_diagram(sites, psi)
    return (_on_line, _in_plane, _in_space)[rank - 1](sites, psi, diagram)


def _on_line(sites: Floats, psi: Floats, diagram: Diagram) -> Masses:
    x, pairs = sites[:, 0], np.sort(diagram.simplices, axis=1)
    gap = x[pairs[:, 1]] - x[pairs[:, 0]]
    edge = (psi[pairs[:, 1]] - psi[pairs[:, 0]]) / gap
    masses = _exchanged(len(x), pairs, np.sign(gap) * ndtr(edge))
    masses[x.argmax()] += 1
    return Masses(masses, pairs, _density(edge) / np.abs(gap), np.ones(len(pairs)))


def _in_plane(sites: Floats, psi: Floats, diagram: Diagram) -> Masses:
    pairs = diagram.ridges
    gap, normal, height = _planes(sites, psi, pairs)
    along = normal[:, ::-1] * [-1.0, 1.0]
    outward = along * _outward(sites, pairs, along)[:, None]
    low, high = _span(diagram, along, outward)
    masses = _exchanged(len(sites), pairs, sector(height, low, high))
    rays = diagram.ends[:, 1] < 0
    corner, opening = _openings(pairs[rays].T.reshape(-1), np.tile(outward[rays], (2, 1)))
    masses[corner] += opening / TURN
    flux = _density(height) * _between(low, high) / gap
    return Masses(masses, pairs, flux, np.arctan(high) - np.arctan(low))


def _in_space(sites: Floats, psi: Floats, diagram: Diagram) -> Masses:
    n, triples = len(sites), diagram.ridges
    along = np.cross(
        sites[triples[:, 1]] - sites[triples[:, 0]], sites[triples[:, 2]] - sites[triples[:, 0]]
    )
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), TINY)
    outward = along * _outward(sites, triples, along)[:, None]
    low, high = _span(diagram, along, outward)
    # each edge of the diagram lies in three faces, once for each pair of its three atoms
    first, second, third = (triples[:, k].T.reshape(-1) for k in ([0, 0, 1], [1, 2, 2], [2, 1, 0]))
    low, high = np.tile(low, 3), np.tile(high, 3)
    pairs, face = np.unique(first * n + second, return_inverse=True)
    pairs = np.c_[pairs // n, pairs % n]
    gap, normal, height = _planes(sites, psi, pairs)
    offset = _in_face(sites, psi, (first, third), normal[face], height[face])
    rays = diagram.ends[:, 1] < 0
    edge, opening = _openings(face[np.tile(rays, 3)], np.tile(outward[rays], (3, 1)))

    def of_faces(parts: Floats, of_turn: Floats) -> Floats:
        total = np.bincount(face, parts, len(pairs)).astype(float)
        total[edge] += of_turn[edge] * opening / TURN
        return total

    ones = np.ones(len(pairs))
    masses = _exchanged(
        n, pairs, of_faces(cone(height[face], offset, low, high), ndtr(height) - 0.5)
    )
    masses += _corners(sites, triples[rays]) / (2 * TURN)
    flux = _density(height) * of_faces(sector(offset, low, high), ones) / gap
    return Masses(masses, pairs, flux, of_faces(_solid(offset, low, high), TURN * ones))


def _planes(sites: Floats, psi: Floats, pairs: Ints) -> tuple[Floats, Floats, Floats]:
    """Distance of two atoms, unit vector from the first, and height of their cells' plane."""
    across = sites[pairs[:, 1]] - sites[pairs[:, 0]]
    gap = np.linalg.norm(across, axis=1)
    return gap, across / gap[:, None], (psi[pairs[:, 1]] - psi[pairs[:, 0]]) / gap


def _in_face(
    sites: Floats, psi: Floats, atoms: tuple[Ints, Ints], normal: Floats, height: Floats
) -> Floats:
    """Signed distance of an edge of a face from the foot of the origin; 0 for flat triangles."""
    first, third = atoms
    across = sites[third] - sites[first]
    rise = np.einsum("kr,kr->k", across, normal)
    size = np.linalg.norm(across - rise[:, None] * normal, axis=1)
    flat = size <= 1e-14 * np.abs(rise)
    return np.where(flat, 0.0, (psi[third] - psi[first] - height * rise) / np.where(flat, 1, size))


def _outward(sites: Floats, ridges: Ints, along: Floats) -> Floats:
    """Sign that turns ``along`` away from the middle of the atoms."""
    side = np.einsum("kr,kr->k", sites[ridges[:, 0]] - sites.mean(0), along)
    return np.where(side < 0, -1.0, 1.0)


def _span(diagram: Diagram, along: Floats, outward: Floats) -> tuple[Floats, Floats]:
    """Where each line of the diagram begins and ends, along it; rays are infinite at one end."""
    ends = np.einsum("kcr,kr->kc", diagram.vertices[diagram.ends], along)
    up = np.einsum("kr,kr->k", along, outward)
    ends[:, 1] = np.where(diagram.ends[:, 1] < 0, up * np.inf, ends[:, 1])
    return ends.min(1), ends.max(1)


def _openings(keys: Ints, rays: Floats) -> tuple[Ints, Floats]:
    """Angle between the two rays that have the same key, and that key."""
    order = np.argsort(keys, kind="stable")
    keys, rays = keys[order], rays[order]
    first = np.flatnonzero(keys[1:] == keys[:-1])
    apart, joint = rays[first + 1] - rays[first], rays[first + 1] + rays[first]
    angles = 2 * np.arctan2(np.linalg.norm(apart, axis=1), np.linalg.norm(joint, axis=1))
    return keys[first], angles


def _corners(sites: Floats, triangles: Ints) -> Floats:
    """Solid angle in which each cell is unbounded: what the hull's angles lack to a full turn."""
    lack = np.zeros(len(sites))
    lack[np.unique(triangles)] = TURN
    for k in range(3):
        here, left, right = (sites[triangles[:, (k + s) % 3]] for s in range(3))
        left, right = left - here, right - here
        sine = np.linalg.norm(np.cross(left, right), axis=1)
        angle = np.arctan2(sine, np.einsum("kr,kr->k", left, right))
        np.subtract.at(lack, triangles[:, k], angle)
    return lack


def _exchanged(n: int, pairs: Ints, parts: Floats) -> Floats:
    """Sum of the parts of each cell; the first of a pair adds what the second loses."""
    gained, lost = (np.bincount(side, parts, n).astype(float) for side in pairs.T)
    return gained - lost


def _density(x: Floats) -> Floats:
    return np.exp(-np.square(x) / 2) / np.sqrt(TURN)


def _between(low: Floats, high: Floats) -> Floats:
    """Normal mass of an interval, without loss in the upper tail."""
    flip = low > 0
    return ndtr(np.where(flip, -low, high)) - ndtr(np.where(flip, -high, low))


def _angles(height: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats, Floats]:
    away = np.maximum(np.abs(height), TINY)
    return away, np.arctan2(low, away), np.arctan2(high, away)


def sector(height: Floats, low: Floats, high: Floats) -> Floats:
    r"""Gaussian mass of the triangle between the origin and an edge, with the sign of its height.

    .. math:: \mathrm{sign}(h) \Bigl[\frac{\theta_2 - \theta_1}{2\pi} - T(|h|, a_2 / |h|)
              + T(|h|, a_1 / |h|)\Bigr], \qquad \tan\theta_i = a_i / |h|

    for an edge on the line at signed distance h, between the tangential offsets a1 and a2, which
    may be infinite; T is Owen's function.

    Examples
    --------
    >>> unit = np.array([1.0])
    >>> round(float(8 * sector(unit, 0 * unit, unit)[0]), 6)  # the square [-1, 1]^2
    0.466065
    """
    away, start, stop = _angles(height, low, high)
    with np.errstate(over="ignore"):
        inside = owens_t(away, high / away) - owens_t(away, low / away)
    return np.sign(height) * ((stop - start) / TURN - inside)


def _solid(height: Floats, low: Floats, high: Floats) -> Floats:
    """Solid angle of that triangle, seen from a unit above the origin."""
    _, start, stop = _angles(height, low, high)
    root = np.hypot(1, height)
    inner = np.arcsin(np.sin(stop) / root) - np.arcsin(np.sin(start) / root)
    return np.sign(height) * (stop - start - inner)


def cone(height: Floats, offset: Floats, low: Floats, high: Floats) -> Floats:
    r"""Gaussian mass of the cone from the origin over the triangle that an edge makes in its face.

    The face lies at height h, its foot is nearest to the origin, the edge at distance g from the
    foot. With polar coordinates in the plane and the radial integral in closed form the mass is

    .. math:: \frac{h g}{2\pi} \int_{a_1}^{a_2} \frac{E(h^2) - E(h^2 + g^2 + a^2)}{g^2 + a^2}\,da,
              \qquad E(q^2) = \frac{\Phi(q) - 1/2}{q}.

    The integrand is entire; ``a = L tan t`` with ``L^2 = 2 (1 + h^2 + g^2)`` makes rays finite.

    Examples
    --------
    >>> unit = np.array([1.0])
    >>> round(float(48 * cone(unit, unit, 0 * unit, unit)[0]), 6)  # the cube [-1, 1]^3
    0.318178
    """
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    scale = np.sqrt(2 * (1 + height**2 + offset**2))
    start, stop = np.arctan(low / scale), np.arctan(high / scale)
    total = np.zeros_like(height)
    for node, weight in zip(nodes, weights, strict=True):
        angle = start + (stop - start) * (node + 1) / 2
        a = scale * np.tan(angle)
        total += weight * _quotient(height**2, offset**2 + a**2) * (scale + a**2 / scale)
    return height * offset / TURN * total * (stop - start) / 2


def _quotient(base: Floats, more: Floats) -> Floats:
    """``(E(base) - E(base + more)) / more``, also where ``more`` is small."""
    result = (_entire(base) - _entire(base + more)) / np.maximum(more, TINY)
    near = more < NEAR * (1 + base)
    half = np.maximum((base[near] + more[near] / 2) / 2, 1e-30)
    # minus the derivative, by the incomplete gamma function
    result[near] = gammainc(1.5, half) / (8 * np.sqrt(2) * half**1.5)
    return result


def _entire(square: Floats) -> Floats:
    """``E(q^2) = (Phi(q) - 1/2) / q``."""
    root = np.sqrt(np.maximum(square, 1e-30))
    return erf(root / np.sqrt(2)) / (2 * root)
