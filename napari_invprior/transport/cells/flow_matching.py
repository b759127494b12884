"""Exact flow matching from the standard Gaussian to atoms, and the atom each source point goes to.

On the path ``x_t = (1 - t) z0 + t X`` the exact velocity is singular at ``t = 1``. In the variables
``z = x / (1 - t)`` and ``s = t / (1 - t)`` it is not:

``dz/ds = sum_i w_i x_i``,  ``w = softmax_i(log p_i + s <z, x_i> - s^2 |x_i|^2 / 2)``,
``z(0) = z0``

and the right side stays in the convex hull of the atoms.

**Where a point goes is certain before it is there.** Let atom ``i`` have the largest weight,
``G_j = log(w_i / w_j)`` the gaps, ``d_j = |x_j - x_i|``, and ``E = sum_j exp(-G_j) d_j``, which
bounds the speed of ``u = z - s x_i``. With ``A_j = (G_j + log(p_j / p_i)) / s + s d_j^2 / 2``, the
derivative of ``G_j`` for resting ``u``, ``G_j' >= A_j - s d_j E``. If

``E < min_j d_j / 2``  and  ``A_j > s d_j E`` for all ``j``,

then ``A_j - s d_j E`` grows from here on, for its derivative is at least ``d_j (d_j - 2 E)``: all
gaps grow for ever, and the point ends at atom ``i``. For equal weights the first condition implies
the second.

Source: Pierret, Hertrich, Hurault and Delon, "Tessellations of Semi-Discrete Flow Matching" (2026).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from napari_invprior.jobs import ShouldStop, check_stop, never
from napari_invprior.transport.cells import dormand_prince, rosenbrock
from napari_invprior.transport.cells.adaptive import Attempt, first_step, integrate, resized
from napari_invprior.transport.cells.atoms import Atoms

TOLERANCE = 1e-6
LOG2_E = 1 / math.log(2)
LATEST, LATEST_GAPS = 1e3, 1e2
"""A point without a certain atom at this ``s``, or at so many times the inverse distance of the
closest atoms, is undecided: it lies on a border as far as can be told."""
BLOCK = {"cpu": 1 << 16, "cuda": 1 << 27}
"""Numbers in the matrix of weights: about half of the second-level cache, or enough to keep all of
an accelerator busy."""
FEWEST, MOST = 256, {"cpu": 8192, "cuda": 1 << 21}
"""Points that are integrated at a time."""
MANY, LOCAL = 2000, 64
"""From so many atoms on, only those are summed whose weight counts for one of so many neighbouring
points."""
EASY, LATE_TOLERANCE, LAYER = 8.0, 1e-6, 1e-2
"""Explicit steps are long enough up to this ``s``, in units of the inverse radius of the atoms. The
tolerance of the way back to there, and the share of the width over which weights change."""
CLEAR = 6.0
"""Gap at which a point that rests on its atom is far from the others."""
NEGLIGIBLE = 40.0
"""Gap from which on a weight is nothing in double precision."""


class Arrival(NamedTuple):
    """Where source points go.

    Attributes
    ----------
    label : Tensor
        (N,), number of the distinct atom; of an undecided point that with the largest weight.
    decided : Tensor
        (N,), whether that is certain.
    """

    label: Tensor
    decided: Tensor


class Shares(NamedTuple):
    """Weights over the largest one (n, N), and their sums (N,)."""

    ratios: Tensor
    total: Tensor


class FlowMatching:
    """The flow of atoms.

    Parameters
    ----------
    atoms : Atoms
        The target.
    tolerance : float
        Relative error of a step of the integrator; the absolute one is a hundredth of it.
    device : str or torch.device
        Where to compute; in double precision, because arms of cells may be 1e-10 wide.

    Examples
    --------
    Between two atoms the border lies in the middle.

    >>> flow = FlowMatching(Atoms(torch.tensor([[-1.0, 1.0], [0.0, 0.0]])))
    >>> flow.arrival(torch.tensor([[-2.0, 1e-3], [5.0, 0.0]])).label.tolist()
    [0, 1]
    """

    def __init__(
        self, atoms: Atoms, *, tolerance: float = TOLERANCE, device: str | torch.device = "cpu"
    ) -> None:
        self.atoms, self.rtol, self.atol = atoms, tolerance, tolerance / 100
        self._sites = atoms.sites.T.contiguous().to(device)
        self._squares = self._sites.square().sum(1)
        self._logs = atoms.weights.log().to(device)
        # times (s z, s^2) these rows, with the constant, are the logarithms of the weights, to the
        # base 2: powers of two are computed twice as fast
        self._rows = LOG2_E * torch.cat([self._sites, -self._squares[:, None] / 2], 1)
        self._constant = LOG2_E * self._logs[:, None]
        self._means = torch.cat([self._sites, torch.ones_like(self._constant)], 1).T.contiguous()
        products = self._sites[:, :, None] * self._sites[:, None]
        self._moments = torch.cat(
            [products.flatten(1), self._sites * self._squares[:, None], self._squares[:, None]], 1
        )
        self._nearest = _nearest_distances(self._sites)
        gap = float(self._nearest.min())
        spread = float(self._squares.max().sqrt())
        self._easy = EASY / max(spread, 1e-300)
        self.latest = max(LATEST, LATEST_GAPS / gap) if math.isfinite(gap) else LATEST
        self._unequal = bool((self._logs.max() - self._logs.min()) > 1e-12)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._sites.device

    # ---- the field

    def velocity(self, z: Tensor, s: Tensor) -> Tensor:
        """``dz/ds`` at points (r, N) of the span and times (N,)."""
        return self._field(z, s)[0]

    def _field(
        self, z: Tensor, s: Tensor, kept: Tensor | None = None
    ) -> tuple[Tensor, Shares]:
        """The velocity, and the weights it is made of; of some of the atoms only where told."""
        rows, constant, means = self._rows, self._constant, self._means
        if kept is not None:
            rows, constant, means = rows[kept], constant[kept], means[:, kept]
        ratios = torch.addmm(constant, rows, _lifted(z, s))
        ratios.sub_(ratios.amax(0)).exp2_()
        sums = means.mm(ratios)
        return sums[:-1] / sums[-1], Shares(ratios, sums[-1])

    def _relevant(self, z: Tensor, s: Tensor) -> Tensor:
        """Atoms whose weight counts for one of the points, now or before they have moved far."""
        logs = torch.addmm(self._constant, self._rows, _lifted(z, s))
        least = -2 * NEGLIGIBLE * LOG2_E
        return torch.nonzero((logs - logs.amax(0)).amax(1) > least)[:, 0]

    # ---- arrivals

    def arrival(self, points: Tensor, should_stop: ShouldStop = never) -> Arrival:
        """Where source points (d, N) go."""
        points = self.atoms.project(points.to(self._sites))
        count = points.shape[1]
        label = torch.zeros(count, dtype=torch.long, device=points.device)
        decided = torch.ones(count, dtype=torch.bool, device=points.device)
        if len(self.atoms) == 1 or count == 0:
            return Arrival(label, decided)
        truncated = len(self.atoms) > MANY and not points.is_cuda
        order = _along_a_curve(points) if truncated else torch.arange(count, device=points.device)
        kind = "cuda" if points.is_cuda else "cpu"
        usual = min(MOST[kind], max(FEWEST, BLOCK[kind] // len(self.atoms)))
        size = LOCAL if truncated else usual
        result = Arrival(label, decided)
        with torch.inference_mode():  # calls on few points cost a fifth less
            # without truncation, points that have arrived make room for new ones in one batch
            for batch in order.split(size) if truncated else (order,):
                self._settle(points, batch, size, result, should_stop)
        return result

    def _settle(
        self, points: Tensor, order: Tensor, size: int, result: Arrival, should_stop: ShouldStop
    ) -> None:
        """Integrate points in this order, ``size`` at a time, until all have arrived."""
        waiting = order.split(size)
        batch = _Batch.begin(self, points, waiting[0])
        queue = order[len(waiting[0]) :]
        while len(batch.place):
            check_stop(should_stop)
            kept = self._relevant(batch.z, batch.s) if size == LOCAL else None
            certain, late, shares = batch.advance(self, kept)
            ended = torch.nonzero(certain | late)[:, 0]
            if len(ended) == 0:
                continue
            where, largest = batch.place[ended], shares.ratios[:, ended].argmax(0)
            result.label[where] = largest if kept is None else kept[largest]
            result.decided[where] = certain[ended]
            batch.keep(torch.nonzero(~(certain | late))[:, 0])
            if len(queue) and len(batch.place) < size - size // 4:
                room = size - len(batch.place)
                batch.add(_Batch.begin(self, points, queue[:room]))
                queue = queue[room:]

    def certain(self, s: Tensor, shares: Shares, kept: Tensor | None = None) -> Tensor:
        """Which points (N,) end for certain at the atom that has the largest weight now."""
        result = torch.zeros_like(s, dtype=torch.bool)
        # E is at least the least distance times the sum of the other ratios
        near = torch.nonzero(shares.total < 1.5)[:, 0]
        if len(near) == 0:
            return result
        sites, logs, nearest = self._sites, self._logs, self._nearest
        if kept is not None:
            sites, logs, nearest = sites[kept], logs[kept], nearest[kept]
        ratios = shares.ratios[:, near]
        best = ratios.argmax(0)
        distance = torch.cdist(sites, sites[best])
        pull = (ratios * distance).sum(0)
        holds = pull < nearest[best] / 2
        if self._unequal:
            time = s[near]
            growth = (logs[:, None] - logs[best] - ratios.log()) / time
            growth += time * distance * (distance / 2 - pull)
            growth[best, torch.arange(len(best), device=best.device)] = torch.inf
            holds &= (growth > 0).all(0)
        result[near] = holds
        return result

    # ---- paths

    def carried(self, z: Tensor, start: Tensor | float, stop: Tensor | float) -> Tensor:
        """Points (r, N) of the span carried from ``start`` to ``stop``, one time or N."""

        def method(z: Tensor, s: Tensor, step: Tensor, slope: Tensor) -> Attempt:
            return dormand_prince.attempt(self._field, z, s, step, slope, self.rtol, self.atol)

        z = z.to(self._sites)
        begin, end = (torch.as_tensor(t).to(z).expand(z.shape[1]) for t in (start, stop))
        return integrate(method, dormand_prince.ORDER, z, self.velocity(z, begin), begin, end)

    def carried_back(self, z: Tensor, start: Tensor) -> Tensor:
        """Points (r, N) of the span carried from times ``start`` (N,) back to 0.

        Back, the flow contracts, at a rate that grows with ``s``: errors die away, and explicit
        steps would be short. The late part is done by implicit steps, and less exactly.
        """

        def method(z: Tensor, s: Tensor, step: Tensor, _: Tensor) -> Attempt:
            # weights change over distances of the inverse of s times that of the atoms
            allowed = torch.minimum(LATE_TOLERANCE * (1 + z.abs()), LAYER * self._easy / s)
            return rosenbrock.attempt(self.velocity, self.derivatives, z, s, step, allowed)

        z, start = z.to(self._sites), start.to(self._sites)
        middle = start.clamp_max(self._easy)
        late = integrate(method, rosenbrock.ORDER, z, torch.zeros_like(z), start, middle)
        return self.carried(late, middle, 0.0)

    def origins(self) -> Tensor:
        """A source point (r, n) in the cell of every atom: it stays on its atom when late."""
        handicap = float(self._logs.max() - self._logs.min())
        late = (2 * (CLEAR + handicap)) ** 0.5 / self._nearest
        with torch.inference_mode():
            points = self.carried_back(self._sites.T * late, late)
        return points.clone()

    def derivatives(self, z: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``dz/ds`` (r, N), its derivatives in ``z`` (N, r, r) and in ``s`` (r, N).

        The first is ``s`` times the covariance of the atoms under the weights, the second their
        covariance with ``<z, x> - s |x|^2``.
        """
        r = len(z)
        mean, shares = self._field(z, s)
        moments = self._moments.T.mm(shares.ratios).div_(shares.total)
        products, cubes, squares = moments.split([r * r, r, 1])
        second = products.view(r, r, -1)
        inner = (z * mean).sum(0) - s * squares[0]
        in_time = (second * z).sum(1) - s * cubes - mean * inner
        covariance = second - mean[:, None] * mean[None]
        return mean, (s * covariance).permute(2, 0, 1), in_time

    def trajectories(self, points: Tensor, times: Tensor) -> Tensor:
        """Paths ``x_t`` of source points (d, N) at increasing times (T,) in [0, 1], (T, d, N).

        In the user's units and coordinates: from the source point at 0 to its atom at 1.
        """
        points = points.to(self._sites)
        label = self.arrival(points).label
        goal = self.atoms.positions[:, self.atoms.index[label.cpu()]].to(points)
        centre = self.atoms.centre.to(points)
        start = z = self.atoms.project(points)
        paths, s = [], 0.0
        for time in times.tolist():
            if time >= 1:
                paths.append(goal)
                continue
            # atoms shifted by c move z by s c, and atoms scaled by a act like times scaled by a
            later = time / (1 - time)
            z, s = self.carried(z, s, later * self.atoms.scale), later * self.atoms.scale
            paths.append((1 - time) * (points + self.atoms.lift(z - start) + later * centre))
        return torch.stack(paths)

    def velocity_at(self, points: Tensor, time: float) -> Tensor:
        """``v(x, t) = (E[X | x_t = x] - x) / (1 - t)`` at points (d, N), in the user's units."""
        points = points.to(self._sites)
        centre, later = self.atoms.centre.to(points), time / (1 - time)
        z = self.atoms.project(points / (1 - time) - later * centre)
        mean = self.velocity(z, torch.full_like(z[0], later * self.atoms.scale))
        return (centre + self.atoms.scale * self.atoms.lift(mean) - points) / (1 - time)


class _Batch:
    """Points on their way: positions, times, steps, slopes, and which points they are."""

    def __init__(self, z: Tensor, s: Tensor, step: Tensor, slope: Tensor, place: Tensor) -> None:
        self.z, self.s, self.step, self.slope, self.place = z, s, step, slope, place

    @classmethod
    def begin(cls, flow: FlowMatching, points: Tensor, place: Tensor) -> _Batch:
        z = points[:, place]
        s = torch.zeros_like(z[0])
        return cls(z, s, first_step(z), flow.velocity(z, s), place)

    def advance(
        self, flow: FlowMatching, kept: Tensor | None
    ) -> tuple[Tensor, Tensor, Shares]:
        """Try a step; which points have a certain atom, which are late, and the weights."""

        def field(z: Tensor, s: Tensor) -> tuple[Tensor, Shares]:
            return flow._field(z, s, kept)

        tried = dormand_prince.attempt(
            field, self.z, self.s, self.step, self.slope, flow.rtol, flow.atol
        )
        good = tried.error <= 1
        self.z = torch.where(good, tried.end, self.z)
        self.slope = torch.where(good, tried.slope, self.slope)
        self.s = torch.where(good, self.s + self.step, self.s)
        self.step = resized(self.step, tried.error, dormand_prince.ORDER)
        certain = good & flow.certain(self.s, tried.found, kept)
        late = good & ~certain & (self.s > flow.latest)
        return certain, late, tried.found

    def keep(self, index: Tensor) -> None:
        self.z, self.slope = self.z[:, index], self.slope[:, index]
        self.s, self.step, self.place = self.s[index], self.step[index], self.place[index]

    def add(self, other: _Batch) -> None:
        self.z = torch.cat([self.z, other.z], 1)
        self.slope = torch.cat([self.slope, other.slope], 1)
        self.s = torch.cat([self.s, other.s])
        self.step = torch.cat([self.step, other.step])
        self.place = torch.cat([self.place, other.place])


def _lifted(z: Tensor, s: Tensor) -> Tensor:
    """``(s z, s^2)``, (r + 1, N)."""
    return torch.cat([z, s[None]]).mul_(s)


def _nearest_distances(sites: Tensor) -> Tensor:
    """Distance from each row to the nearest other one; infinite where there is none."""
    rows = sites.cpu().numpy()
    found = cKDTree(rows).query(rows, k=2)[0][:, 1]
    return torch.from_numpy(found).to(sites)


def _along_a_curve(points: Tensor) -> Tensor:
    """An order of points (r, N) in which neighbours in the list are close: Morton's curve."""
    axes = min(3, len(points))
    bits = 60 // axes
    low, high = points[:axes].amin(1, keepdim=True), points[:axes].amax(1, keepdim=True)
    cell = ((points[:axes] - low) / (high - low).clamp_min(1e-300) * (2**bits - 1)).long()
    key = torch.zeros_like(cell[0])
    for bit in range(bits):
        for axis in range(axes):
            key |= ((cell[axis] >> bit) & 1) << (bit * axes + axis)
    return key.argsort()
