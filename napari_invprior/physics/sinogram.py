"""Is this a sinogram of that scan? Faults that its own consistency gives away."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from napari_invprior.jobs import Message
from napari_invprior.numerics.rays import Scan
from napari_invprior.physics.base import Inspection

RING_SPREADS, RING_SHARE, RING_ANGLES = 8.0, 0.02, 0.7
"""A bin is off when it leaves its neighbours by so many spreads of all bins, by this share
of the range, and to one side at so many more of the angles than to the other."""

MAX_MASKED = 0.5
"""Where more of the detector looks bad, the checks are wrong and nothing is masked."""

ROW_SUMS = 0.05
"""Row sums of a complete parallel scan may vary by this share."""


def inspect_sinogram(y: np.ndarray, scan: Scan) -> Inspection:
    """Messages about sinograms (B, C, (Z,) angles, bins), and the samples that should not count.

    Examples
    --------
    >>> scan = Scan(tuple(np.arange(90) * math.pi / 90), bins=31)
    >>> disc = np.sqrt(np.clip(100 - scan.coordinates() ** 2, 0, None))
    >>> inspect_sinogram(np.tile(disc, (1, 1, 90, 1)), scan).messages
    ()
    """
    space = y.shape[2:]
    stacks = y.reshape(-1, math.prod(space[:-2]), *space[-2:]).astype(np.float64)
    finite = np.isfinite(stacks)
    if min(space[-2:]) < 8 or not finite.any():
        return Inspection()
    stacks = np.where(finite, stacks, 0)
    messages: list[Message] = []
    bad = np.zeros(stacks.shape[1:], bool)
    columns = np.zeros((stacks.shape[1], space[-1]), bool)
    for stack in stacks:
        bad |= _saturated(stack)
        for number, plane in enumerate(stack):
            columns[number] |= _bad_bins(plane)
    if columns.mean() <= MAX_MASKED and columns.any():
        messages.append(Message(f"{_listed(columns)} and count as unobserved", "warning"))
        bad |= columns[:, None, :]
    elif columns.any():
        messages.append(Message(
            f"{100 * columns.mean():.0f} % of the detector bins look dead or off; check the "
            "flat-field correction", "warning",
        ))
    saturated = int((bad & ~columns[:, None, :]).sum())
    if saturated:
        messages.append(Message(
            f"{saturated} samples share the largest value: they seem to be saturated and count as "
            "unobserved", "warning",
        ))
    planes = np.concatenate(list(np.where(bad, np.nan, stacks)))
    middle = _repaired(planes[len(planes) // 2])
    messages += [Message(text, "warning") for text in _doubts(middle, scan)]
    if not bad.any() or bad.all():
        return Inspection(tuple(messages))
    return Inspection(tuple(messages), torch.from_numpy(~bad.reshape(space)))


def _bad_bins(plane: np.ndarray) -> np.ndarray:
    """Bins that do not change with the angle although both sides do, and bins that make rings."""
    span = float(np.ptp(plane))
    alive = np.ptp(plane, axis=0) > 1e-6 * span
    inside = np.maximum.accumulate(alive) & np.maximum.accumulate(alive[::-1])[::-1]
    dead = ~alive & inside
    # Between the middle two of its four neighbours a bin is in order, on slopes too.
    beside = np.array([[True, True, False, True, True]])
    ranks = [ndimage.rank_filter(plane, r, footprint=beside, mode="nearest") for r in (1, 2)]
    off = plane - np.clip(plane, *ranks)
    typical = np.median(off, 0)
    spread = 1.4826 * float(np.median(np.abs(typical)))
    above, below = (off > 0).mean(0), (off < 0).mean(0)
    one_side = np.abs(above - below) > RING_ANGLES
    ring = one_side & (np.abs(typical) > max(RING_SPREADS * spread, RING_SHARE * span))
    found: np.ndarray = dead | ring
    return found


def _saturated(stack: np.ndarray) -> np.ndarray:
    """Samples that share the largest value, where many do, three and more side by side.

    The single largest bin of each row is no sign: that of a centred disc is the same at all angles.
    """
    top = stack == stack.max()
    inside = int((top[..., 1:-1] & top[..., 2:] & top[..., :-2]).sum())
    clipped = inside > max(8, stack.size // 4000) and top.sum() < stack.size // 2
    return top if clipped else np.zeros_like(top)


def _listed(columns: np.ndarray) -> str:
    """Which bins are bad, in words."""
    bins = np.flatnonzero(columns.any(0))
    shown = ", ".join(map(str, bins[:8])) + (", ..." if len(bins) > 8 else "")
    where = "" if len(columns) == 1 else f" of {int(columns.any(1).sum())} slices"
    return f"detector bins {shown}{where} are dead or off (they would make rings)"


def _repaired(plane: np.ndarray) -> np.ndarray:
    """Bad samples from their neighbours in the row."""
    place = np.arange(plane.shape[1])
    rows = []
    for row in plane:
        good = np.isfinite(row)
        rows.append(np.interp(place, place[good], row[good]) if good.any() else 0 * place)
    return np.array(rows)


@dataclass(frozen=True)
class _Outline:
    """Levels of a sinogram.

    Attributes
    ----------
    border, top : float
        Mean of the outermost bins, and the 99th percentile.
    noise : float
        Standard deviation of the noise, from second differences along the rows.
    """

    border: float
    top: float
    noise: float

    @classmethod
    def of(cls, plane: np.ndarray) -> _Outline:
        edge = max(1, plane.shape[1] // 40)
        border = float(np.concatenate([plane[:, :edge], plane[:, -edge:]], 1).mean())
        second = np.diff(plane, 2, axis=1)
        noise = 1.4826 * float(np.median(np.abs(second))) / math.sqrt(6)
        return cls(border, float(np.percentile(plane, 99)), noise)


def _doubts(plane: np.ndarray, scan: Scan) -> Iterator[str]:
    """What one plane says about units, orientation and the axis."""
    outline = _Outline.of(plane)
    low = float(np.percentile(plane, 0.5))
    middle = float(plane[:, plane.shape[1] // 4 : -(plane.shape[1] // 4)].mean())
    if low >= -3 * outline.noise and outline.border > max(0.8 * outline.top, 1.2 * middle):
        yield (
            "the sinogram is brightest where rays miss the object: it seems to hold counts; give "
            "line integrals, -log(counts / counts without object)"
        )
        return
    if low < -max(5 * outline.noise, 0.02 * outline.top):
        yield (
            f"the sinogram is negative (down to {low:.3g}), which attenuation never is; check the "
            "flat-field correction and the sign of the logarithm"
        )
    if not scan.is_fan and _is_transposed(plane):
        yield "the sinogram seems to be transposed: rows must be angles, columns bins"
        return
    if outline.border > 0.2 * outline.top:
        yield (
            "the object is wider than the detector: expect errors towards the rim (its rotation "
            "axis cannot be checked)"
        )
        return
    if scan.is_fan:
        yield from _fan_axis(plane, scan)
    else:
        yield from _parallel_consistency(plane, scan)


def _is_transposed(plane: np.ndarray) -> bool:
    """Whether the column sums are as constant as the row sums of a parallel scan are."""
    rows, columns = plane.sum(1), plane.sum(0)
    if min(rows.mean(), columns.mean()) <= 0:
        return False
    varies = float(columns.std() / columns.mean())
    return varies < min(ROW_SUMS, float(rows.std() / rows.mean()) / 3)


def _parallel_consistency(plane: np.ndarray, scan: Scan) -> Iterator[str]:
    """Helgason and Ludwig: row sums are constant, first moments are a sinusoid of the angle."""
    rows = plane.sum(1)
    if rows.mean() <= 0:
        return
    varies = float(rows.std() / rows.mean())
    if varies > ROW_SUMS:
        yield (
            f"the row sums of the sinogram vary by {100 * varies:.0f} %, those of a complete "
            "parallel scan are equal: check the geometry, the angles and the flat-field correction"
        )
        return
    moment = (plane * scan.coordinates()).sum(1) / rows
    angles = np.asarray(scan.angles)
    design = np.stack([np.cos(angles), np.sin(angles), np.ones_like(angles)], 1)
    covered = len(angles) > 8 and np.linalg.cond(design) < 30
    if not covered:
        return
    solution, *_ = np.linalg.lstsq(design, moment, rcond=None)
    rest = moment - design @ solution
    error = float(rest.std() * math.sqrt(np.linalg.inv(design.T @ design)[2, 2]))
    yield from _off_axis(float(solution[2]), error, scan)


def _fan_axis(plane: np.ndarray, scan: Scan) -> Iterator[str]:
    """Over a full turn every line is met from both ends: the mean row is even about the axis."""
    angles = np.asarray(scan.angles)
    steps = np.diff(np.sort(np.mod(angles, 2 * math.pi)), append=2 * math.pi + angles.min())
    if len(angles) < 16 or steps.max() > math.radians(10):
        return
    profile = plane.mean(0)
    if profile.sum() <= 0:
        return
    shift = float((profile * scan.coordinates()).sum() / profile.sum())
    yield from _off_axis(shift, 0.0, scan)


def _off_axis(shift: float, error: float, scan: Scan) -> Iterator[str]:
    """Offer the place of the axis where it lies half a bin or more from where it should."""
    bins, spread = shift / scan.axis_spacing, error / scan.axis_spacing
    if abs(bins) > max(0.5, 4 * spread):
        yield (
            f"the rotation axis seems to lie {bins:+.2f} bins from where it is assumed; set "
            f"physics.centre to {scan.centre + bins:.2f}"
        )
