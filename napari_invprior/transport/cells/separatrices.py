"""Borders between flow-matching cells, exact at any width: carried back from where they end.

Late in the flow, the border of two neighbours ``i`` and ``j`` is the plane through the middle of
both: ``z = s (x_i + x_j) / 2 + v`` with ``v`` at right angles to ``x_j - x_i``, shifted for unequal
weights to where both have the same weight. Forward, the border repels; carried back from a late
time, points of that plane are drawn onto it and end at ``s = 0`` on the border of the cells of
source points, right to about 4e-5 with the usual tolerances. Every border is the image of a whole
plane (own derivation): in the plane a curve, in space a surface.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from napari_invprior.transport.cells.flow_matching import FlowMatching

SETTLED = 40.0
"""The way back is long enough for offsets from the border to sink by so many powers of e."""
LATEST, MOST_PASSED = 1e4, 20
"""Latest start; and how often a later meeting of three atoms is passed over."""
ABSENT, PRESENT = 40.0, 3.0
"""Gap to a third atom that is wanted at the start, and the least one."""
FIRST, LAST, COUNT = 1 / 16, 1e6, 26
"""Offsets in the plane at first: from this share of the atoms' distance to so many extents."""
FAR = 4.0
"""Extents to the ends of straight borders."""
ROUNDS = 10
FINEST, COARSEST, BEND = 1 / 2000, 1 / 40, math.radians(2)
"""Chords of a curve lie between these shares of the window's edge; longer than the first they turn
by less than the angle."""


@dataclass(frozen=True)
class Curve:
    """The border between two cells in the plane.

    Attributes
    ----------
    pair : (int, int)
        The distinct atoms whose cells lie on its left and on its right.
    points : Tensor
        (k, 2), source points. Each end is a corner of cells or lies far outside the window.
    """

    pair: tuple[int, int]
    points: Tensor


def on_border(flow: FlowMatching, pairs: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Source points on the borders of pairs of cells.

    Parameters
    ----------
    pairs : Tensor
        (N, 2), distinct atoms whose cells touch.
    offsets : Tensor
        (r, N), at right angles to the line between the atoms of each pair, in the span.

    Returns
    -------
    Tensor
        (r, N), in the span of the atoms.
    Tensor
        (N,), whether the place is to be trusted; not where the way back would be too long.
    """
    sites, logs = flow.atoms.sites, flow.atoms.weights.log()
    start = _Start(sites, pairs, offsets)
    for _ in range(MOST_PASSED):
        beyond = torch.nonzero(start.needed >= LATEST)[:, 0]
        if len(sites) != 2 or len(beyond) == 0:
            break
        pairs, offsets = start.passed(beyond)
        start = _Start(sites, pairs, offsets)
    late = torch.maximum(start.wanted.clamp_max(LATEST), (8 * SETTLED / start.squared).sqrt())
    # both weights are equal where <z - s middle, axis> = log(p_i / p_j) / s
    shift = (logs[pairs[:, 0]] - logs[pairs[:, 1]]) / (late * start.squared)
    begin = late * start.middle + offsets + shift * start.axis
    return flow.carried_back(begin, late), start.needed < LATEST


class _Start:
    """Where the way back begins: at a time at which no third atom counts.

    Attributes
    ----------
    wanted, needed : Tensor
        (N,), times from which on a third atom is absent, and is not present.
    """

    def __init__(self, sites: Tensor, pairs: Tensor, offsets: Tensor) -> None:
        self.sites, self.pairs, self.offsets = sites, pairs, offsets
        first, second = sites[:, pairs[:, 0]], sites[:, pairs[:, 1]]
        self.middle, self.axis = (first + second) / 2, second - first
        self.squared = self.axis.square().sum(0)
        self.wanted, self.needed = torch.zeros_like(self.squared), torch.zeros_like(self.squared)
        self._third = torch.zeros_like(pairs[:, 0])
        for columns in torch.arange(len(pairs)).split(max(1, (1 << 20) // sites.shape[1])):
            away = sites[:, :, None] - self.middle[:, None, columns]
            excess = away.square().sum(0) - self.squared[columns] / 4
            lead = (away * offsets[:, None, columns]).sum(0)
            outside = excess > 1e-9 * self.squared[columns]
            for gap, times in ((ABSENT, self.wanted), (PRESENT, self.needed)):
                # s^2 excess / 2 - s lead = gap
                root = (lead + (lead.square() + 2 * gap * excess.clamp_min(0)).sqrt()) / excess
                times[columns], self._third[columns] = torch.where(outside, root, 0).max(0)

    def passed(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs and offsets before some points met their last third atom, in the plane.

        There the two atoms and the third are equally near. Where one of them sees the others under
        an obtuse angle, those two drew the point before.
        """
        corners = torch.cat([self.pairs[which], self._third[which, None]], 1)
        places = self.sites[:, corners]
        angles = [
            ((places[..., (k + 1) % 3] - places[..., k])
             * (places[..., (k + 2) % 3] - places[..., k])).sum(0)
            for k in range(3)
        ]
        blunt = torch.stack(angles).min(0)
        rows, k = torch.arange(len(which)), blunt.indices
        others = torch.stack([corners[rows, (k + 1) % 3], corners[rows, (k + 2) % 3]], 1)
        time = self.needed[which]
        point = time * self.middle[:, which] + self.offsets[:, which]
        first, second = self.sites[:, others[:, 0]], self.sites[:, others[:, 1]]
        axis, offset = second - first, point - time * (first + second) / 2
        offset = offset - (offset * axis).sum(0) / axis.square().sum(0) * axis
        pairs, offsets = self.pairs.clone(), self.offsets.clone()
        obtuse = blunt.values < 0  # else the way ends in a corner, which nearer points show
        pairs[which[obtuse]], offsets[:, which[obtuse]] = others[obtuse], offset[:, obtuse]
        return pairs, offsets


def curves(flow: FlowMatching, pairs: Tensor, extent: float) -> list[Curve]:
    """The borders in the plane, fine where they bend.

    Parameters
    ----------
    pairs : Tensor
        (m, 2), the cells that touch.
    extent : float
        Half the edge of the window in which the curves are smooth.

    Examples
    --------
    >>> from napari_invprior.transport.cells.atoms import Atoms
    >>> flow = FlowMatching(Atoms(torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])))
    >>> curve = curves(flow, torch.tensor([[0, 1]]), 4.0)[0]
    >>> curve.pair, bool(curve.points[:, 0].abs().max() < 1e-9)
    ((0, 1), True)
    """
    sites = flow.atoms.sites
    if len(pairs) == 0:
        return []
    if len(sites) == 1:
        return _straight(flow, pairs, extent)
    axis = sites[:, pairs[:, 1]] - sites[:, pairs[:, 0]]
    across = torch.stack([-axis[1], axis[0]])  # along it, the first atom is on the left
    fine = Fineness(math.sqrt(2) * extent, 2 * extent * FINEST, 2 * extent * COARSEST, BEND)
    owner, _, place = sampled(flow, pairs, across, extent, fine)
    parts = place.T.split(torch.bincount(owner, minlength=len(pairs)).tolist())
    return [
        Curve((int(i), int(j)), part) for (i, j), part in zip(pairs.tolist(), parts, strict=True)
    ]


@dataclass(frozen=True)
class Fineness:
    """When the chords of a sampled line are short enough.

    Attributes
    ----------
    radius : float
        Only those within this distance of the middle count.
    finest, coarsest : float
        Chords longer than the second are halved, and those longer than the first that turn by more
        than ``bend``.
    """

    radius: float
    finest: float
    coarsest: float
    bend: float


def sampled(
    flow: FlowMatching, pairs: Tensor, ways: Tensor, extent: float, fine: Fineness, *,
    both: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lines on borders: the images of lines through the middles of pairs, finely sampled.

    Parameters
    ----------
    pairs, ways : Tensor
        (L, 2), and (r, L): the pair and the direction of each line, at right angles to the line
        between the atoms.
    both : bool
        Both ways from the middle, or only along ``ways``.

    Returns
    -------
    Tensor, Tensor, Tensor
        Sorted along the lines: which line (N,), the offset in units of the direction (N,), and the
        place (r, N), in the span.
    """
    owner, offset, place = _begun(flow, pairs, ways, extent, both)
    for left in reversed(range(ROUNDS + 1)):
        order = torch.from_numpy(np.lexsort((offset.numpy(), owner.numpy())))
        owner, offset, place = owner[order], offset[order], place[:, order]
        coarse = torch.nonzero(_too_coarse(owner, place, fine))[:, 0]
        if len(coarse) == 0 or left == 0:
            break
        whose, between = owner[coarse], _between(offset[coarse], offset[coarse + 1])
        new, told = on_border(flow, pairs[whose], ways[:, whose] * between)
        owner, offset = torch.cat([owner, whose[told]]), torch.cat([offset, between[told]])
        place = torch.cat([place, new[:, told]], 1)
    return owner, offset, place


def _straight(flow: FlowMatching, pairs: Tensor, extent: float) -> list[Curve]:
    """Borders of atoms on a line: straight, across the line."""
    atoms = flow.atoms
    feet, _ = on_border(flow, pairs, torch.zeros((1, len(pairs)), dtype=torch.float64))
    along = atoms.lift(torch.ones((1, 1), dtype=torch.float64))[:, 0]
    across = FAR * extent * torch.stack([-along[1], along[0]])
    found = []
    for (i, j), foot in zip(pairs.tolist(), feet[0], strict=True):
        left, right = (i, j) if atoms.sites[0, i] < atoms.sites[0, j] else (j, i)
        found.append(Curve((left, right), torch.stack([foot * along - across,
                                                       foot * along + across])))
    return found


def _begun(
    flow: FlowMatching, pairs: Tensor, ways: Tensor, extent: float, both: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A few points of every line, from end to end: whose they are, their offsets and places."""
    distance = torch.linalg.vector_norm(ways, dim=0)[:, None]
    share = torch.linspace(0, 1, COUNT, dtype=torch.float64)
    sizes = FIRST * (LAST * extent / distance / FIRST).clamp_min(2) ** share  # in distances
    back = -sizes.flip(1) if both else sizes[:, :0]
    steps = torch.cat([back, torch.zeros_like(distance), sizes], 1)
    owner, offset = torch.arange(len(pairs)).repeat_interleave(steps.shape[1]), steps.flatten()
    place, told = on_border(flow, pairs[owner], ways[:, owner] * offset)
    return owner[told], offset[told], place[:, told]


def _between(low: Tensor, high: Tensor) -> Tensor:
    """Offsets between neighbours: the geometric mean where they are of one sign."""
    same = low * high > 0
    return torch.where(same, low.sign() * (low * high).abs().sqrt(), (low + high) / 2)


def _too_coarse(owner: Tensor, place: Tensor, fine: Fineness) -> Tensor:
    """Which chords (N - 1,) from each point (r, N) to the next are to be halved."""
    chord = place[:, 1:] - place[:, :-1]
    length = torch.linalg.vector_norm(chord, dim=0)
    along = (-(place[:, :-1] * chord).sum(0) / length.square().clamp_min(1e-300)).clamp(0, 1)
    distance = torch.linalg.vector_norm(place[:, :-1] + along * chord, dim=0)
    direction = chord / length.clamp_min(1e-300)
    turn = torch.acos((direction[:, 1:] * direction[:, :-1]).sum(0).clamp(-1, 1))
    turn = torch.where(owner[2:] == owner[:-2], turn, 0)
    bent = torch.zeros_like(length)
    bent[1:] = turn
    bent[:-1] = torch.maximum(bent[:-1], turn)
    seen = (owner[1:] == owner[:-1]) & (distance < 1.1 * fine.radius)
    return seen & ((length > fine.coarsest) | ((bent > fine.bend) & (length > fine.finest)))
