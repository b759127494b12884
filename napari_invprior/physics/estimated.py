"""The operator itself, estimated from one registered pair: `estimate_operator`.

A good and a poor image of the same place obey, sample by sample,

    low_j = offset + gain sum_k h_k high[j * factor + k - before + shift] + noise,   sum_k h_k = 1,

which is linear in ``(gain h, offset)``: least squares over all coarse samples whose window lies
inside the good image, so that nothing is assumed about its border. The paper (WPPNets, arXiv
2201.08157) divides spectra instead, which needs periodic images and a cut-off by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import oaconvolve

from napari_invprior import jobs
from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Job, Message, Result, ShouldStop, check_stop, forward, never
from napari_invprior.numerics.kernel_regression import (
    SmoothRegression,
    Window,
    mean_square,
    moments,
    roughness,
)
from napari_invprior.numerics.registration import integer_shift
from napari_invprior.parameters import per_axis
from napari_invprior.physics.blocks import magnification
from napari_invprior.physics.convolution import checked_psf, samples_before

FOLDS = 4
"""Bands of the image; what is found on three is held against the fourth."""
PENALTIES = 10.0 ** np.arange(-8, 1.5, 0.5)
"""Smoothness that is tried, in units of the variance of the good image."""
MOST_TAPS = 2000
"""Least squares for more would take minutes."""
ROWS_PER_TAP = 2
"""Coarse samples that are needed for each tap."""
ALIKE = 1.002
"""Errors on held-out bands count as equal up to this factor, 0.01 dB."""
MOVE = 1.05
"""The window is moved onto a shift only where that lowers the error by this factor."""
LEAST_EXPLAINED = 0.1
"""Share of the poor image's variance that the good one must explain."""
FALL_OFF = 2.0
"""Least length over which a kernel is expected to fall off, fine samples."""


@dataclass(frozen=True)
class EstimatedOperator:
    """What `estimate_operator` found. Levels are in the unit of the poor image.

    Attributes
    ----------
    kernel : numpy.ndarray
        Taps (*kernel_size) on the good image's grid, of sum one.
    standard_error : numpy.ndarray
        Of each tap, from the noise alone: what smoothness hides is not in it.
    gain, offset : float
        ``low = offset + gain (h * high)``.
    factor : tuple of int
        Good samples per poor sample along each axis.
    shift : tuple of int
        Whole samples of the good image by which the pair is out of register, where held-out bands
        are predicted better by a window moved there. The kernel does not hold it: it belongs to
        the pair, not to the instrument. A shift for which the window has room is in the kernel.
    noise_sigma : float
        Standard deviation of what the operator does not explain.
    rmse, held_out_rmse : float
        Misfit on the pair itself, and on bands of it that the kernel had not seen.
    explained : float
        Share of the poor image's variance explained on those bands.
    penalty : float
        Weight of smoothness that predicted them best.
    nonnegative : bool
        Whether the taps were kept from being negative.
    """

    kernel: np.ndarray
    standard_error: np.ndarray
    gain: float
    offset: float
    factor: tuple[int, ...]
    shift: tuple[int, ...]
    noise_sigma: float
    rmse: float
    held_out_rmse: float
    explained: float
    penalty: float
    nonnegative: bool

    def predict(
        self, high: np.ndarray, low_shape: Sequence[int]
    ) -> tuple[np.ndarray, tuple[slice, ...]]:
        """The poor image of a good one (*space), where the whole kernel lies inside it.

        Returns
        -------
        values : numpy.ndarray
            Noise-free samples.
        place : tuple of slice
            Where they lie in a poor image of shape ``low_shape``.
        """
        window = _window(self.kernel.shape, self.factor, self.shift)
        places = window.valid(high.shape, low_shape)
        flipped = self.kernel[(slice(None, None, -1),) * self.kernel.ndim]
        filtered = oaconvolve(high.astype(np.float64), flipped, mode="valid")
        values = self.offset + self.gain * filtered[window.first(places)]
        return values, tuple(slice(r.start, r.stop) for r in places)


def estimate_operator(
    high: np.ndarray,
    low: np.ndarray,
    factor: int | Sequence[int],
    kernel_size: int | Sequence[int] | None = None,
    *,
    smoothness: float | None = None,
    nonnegative: bool | None = None,
) -> EstimatedOperator:
    """Kernel, gain and offset that make a poor image from a good one of the same place.

    Parameters
    ----------
    high, low : numpy.ndarray
        (*space) each, or with leading axes (frames, channels) that count as further equations.
        ``high`` has ``factor`` times the samples of ``low`` along each space axis.
    factor : int or sequence of int
        Good samples per poor sample; a sequence (one per axis) says how many axes are space.
    kernel_size : int or sequence of int, optional
        Taps, good samples; the factor and twelve more in 2D, six more in 3D by default.
    smoothness : float, optional
        Weight of the kernel's `roughness`, in units of the good image's variance; 0 is plain least
        squares. By default the one that predicts held-out bands best.
    nonnegative : bool, optional
        Keep taps from being negative; by default where that predicts held-out bands no worse.

    Raises
    ------
    InvalidInput
        If the images do not belong together (shapes, contrast, place), hold values that are not
        finite or no contrast, or are too small for so many taps.

    Examples
    --------
    >>> fine = np.random.default_rng(0).random((96, 96))
    >>> coarse = 10 + 3 * fine.reshape(48, 2, 48, 2).mean((1, 3))
    >>> found = estimate_operator(fine, coarse, 2, 4)
    >>> round(found.gain, 3), round(found.offset, 3), found.kernel.round(3)[1:3, 1:3].tolist()
    (3.0, 10.0, [[0.25, 0.25], [0.25, 0.25]])
    """
    found: EstimatedOperator = jobs.run(estimation(
        high, low, factor, kernel_size, smoothness=smoothness, nonnegative=nonnegative
    ))
    return found


def estimation(
    high: np.ndarray,
    low: np.ndarray,
    factor: int | Sequence[int],
    kernel_size: int | Sequence[int] | None = None,
    *,
    smoothness: float | None = None,
    nonnegative: bool | None = None,
    should_stop: ShouldStop = never,
) -> Job:
    """`estimate_operator` as a job; its `Result` is the `EstimatedOperator`."""
    ndim = high.ndim if isinstance(factor, int) else len(factor)
    factor = per_axis(factor if isinstance(factor, int) else tuple(factor), ndim, "factor")
    if kernel_size is None:
        kernel_size = tuple(f + (12 if ndim == 2 else 6) for f in factor)
    taps = per_axis(
        kernel_size if isinstance(kernel_size, int) else tuple(kernel_size), ndim, "kernel_size"
    )
    pair = _checked(high, low, factor)
    planes, (mean, spread), (low_mean, low_spread) = _standardised(*pair, ndim)
    best = max(planes, key=lambda plane: float(plane[0].std() * plane[1].std()))
    shift = _checked_shift(integer_shift(*best, factor), taps)
    rough = roughness(taps, [max(FALL_OFF, f) for f in factor])
    penalties = PENALTIES if smoothness is None else np.array([smoothness])
    job = _fit(planes, _window(taps, factor, (0,) * ndim), rough, penalties, should_stop)
    fit: _Fit = yield from forward(job)
    if any(shift):
        job = _fit(planes, _window(taps, factor, shift), rough, penalties, should_stop)
        moved: _Fit = yield from forward(job)
        if MOVE * moved.error < fit.error:
            fit = moved
            yield Message(
                f"the pair is out of register by {shift} px of the good image; the kernel was "
                "estimated at that place and does not hold the shift", "warning",
            )
    shift = tuple(a + b for a, b in zip(
        fit.window.start, samples_before(taps, factor), strict=True
    ))
    sums, parts, error, penalty = fit.sums, fit.parts, fit.error, fit.penalty
    check_stop(should_stop)
    whole = SmoothRegression(sums.sum(0), rough)
    h = whole.solve(np.array([penalty]))[:, 0]
    positive = False
    if nonnegative is not False and h.min() < 0:
        tried = [part.solve_nonnegative(penalty)[:, None] for part in parts]
        bound = float(_held_out(parts, sums, tried)[0])
        positive = bool(nonnegative) or bound <= ALIKE * error
        if positive:
            h, error = whole.solve_nonnegative(penalty), bound
    misfit = float(mean_square(sums.sum(0), h[:, None], whole.constant(h))[0])
    rows = whole.count
    variance = misfit * rows / max(rows - whole.freedom(penalty) - 1, 1)
    gain = _checked_gain(h, error, spread, low_spread)
    kernel = checked_psf(torch.from_numpy(h.reshape(taps)), ndim).numpy()
    constant = low_mean + low_spread * float(whole.constant(h))
    yield Result(EstimatedOperator(
        kernel=kernel,
        standard_error=np.sqrt(variance * whole.variances(penalty)).reshape(taps) / h.sum(),
        gain=gain,
        offset=constant - gain * mean,
        factor=factor,
        shift=shift,
        noise_sigma=math.sqrt(variance) * low_spread,
        rmse=math.sqrt(misfit) * low_spread,
        held_out_rmse=math.sqrt(error) * low_spread,
        explained=1 - error,
        penalty=penalty,
        nonnegative=positive or bool(h.min() >= 0),
    ))


@dataclass(frozen=True)
class _Fit:
    """Least squares on all bands but one, for each of them, at the penalty that fits best."""

    window: Window
    sums: np.ndarray
    parts: list[SmoothRegression]
    penalty: float
    error: float


def _fit(
    planes: Sequence[tuple[np.ndarray, np.ndarray]], window: Window, rough: np.ndarray,
    penalties: np.ndarray, should_stop: ShouldStop,
) -> Job:
    """A `_Fit` for one place of the window, a job."""
    _enough(window, planes)
    sums = yield from forward(moments(planes, window, FOLDS, should_stop))
    parts = []
    for fold in sums:
        check_stop(should_stop)
        parts.append(SmoothRegression(sums.sum(0) - fold, rough))
    errors = _held_out(parts, sums, [part.solve(penalties) for part in parts])
    best = int(np.argmin(errors))
    yield Result(_Fit(window, sums, parts, float(penalties[best]), float(errors[best])))


def _window(
    taps: Sequence[int], factor: Sequence[int], shift: Sequence[int]
) -> Window:
    before = samples_before(taps, factor)
    start = tuple(s - b for s, b in zip(shift, before, strict=True))
    return Window(tuple(taps), tuple(factor), start)


def _held_out(
    parts: Sequence[SmoothRegression], sums: np.ndarray, solutions: Sequence[np.ndarray]
) -> np.ndarray:
    """Mean square error of solutions (T, P), one per fold, on the rows of their fold: (P,)."""
    counts = sums[:, -1, -1]
    total = sum(
        count * mean_square(fold, taps, part.constant(taps))
        for part, fold, taps, count in zip(parts, sums, solutions, counts, strict=True)
    )
    errors: np.ndarray = np.asarray(total) / counts.sum()
    return errors


# --- what is refused ----------------------------------------------------------------------------


def _checked(
    high: np.ndarray, low: np.ndarray, factor: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Float64 copies whose shapes belong together."""
    ndim = len(factor)
    if ndim not in (2, 3) or min(high.ndim, low.ndim) < ndim:
        raise InvalidInput(
            f"images of {high.ndim} and {low.ndim} axes with {ndim} space axes; give 2 or 3 space "
            "axes and a factor for each of them"
        )
    fine, coarse = high.shape[-ndim:], low.shape[-ndim:]
    if magnification(fine, coarse) != tuple(factor) or high.shape[:-ndim] != low.shape[:-ndim]:
        wanted = (*low.shape[:-ndim], *(n * f for n, f in zip(coarse, factor, strict=True)))
        raise InvalidInput(
            f"the good image has shape {high.shape}, the poor one {low.shape}; with factor "
            f"{tuple(factor)} the good one must have {wanted}"
            ": crop both to the same place, or change the factor"
        )
    for name, image in (("good", high), ("poor", low)):
        if not np.isfinite(image).all():
            raise InvalidInput(
                f"the {name} image holds {int((~np.isfinite(image)).sum())} NaN or infinite "
                "values; crop the pair to a part without them"
            )
        if image.size == 0 or image.min() == image.max():
            raise InvalidInput(
                f"the {name} image is constant or empty; an operator shows only where there is "
                "structure: choose another part"
            )
    return high.astype(np.float64), low.astype(np.float64)


Level = tuple[float, float]


def _standardised(
    high: np.ndarray, low: np.ndarray, ndim: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], Level, Level]:
    """The planes with mean 0 and spread 1, and (mean, spread) of both images."""
    levels = [(float(image.mean()), float(image.std())) for image in (high, low)]
    scaled = [
        ((image - mean) / spread).reshape(-1, *image.shape[-ndim:])
        for image, (mean, spread) in zip((high, low), levels, strict=True)
    ]
    return list(zip(*scaled, strict=True)), levels[0], levels[1]


def _checked_shift(shift: tuple[int, ...], taps: Sequence[int]) -> tuple[int, ...]:
    if any(abs(s) > k for s, k in zip(shift, taps, strict=True)):
        raise InvalidInput(
            f"the images fit best at a shift of {shift} px, which is beyond the kernel's window of "
            f"{tuple(taps)} px: crop both to the same place, or check that they show the same one"
        )
    return shift


def _enough(window: Window, planes: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    taps = int(np.prod(window.taps))
    places = window.valid(planes[0][0].shape, planes[0][1].shape)
    rows = len(planes) * int(np.prod([len(r) for r in places]))
    if taps > MOST_TAPS:
        raise InvalidInput(
            f"a kernel of {window.taps} has {taps} taps; at most {MOST_TAPS} can be estimated: "
            "choose a smaller kernel"
        )
    if rows < ROWS_PER_TAP * taps:
        raise InvalidInput(
            f"only {rows} samples of the poor image see a whole window of {window.taps} px; at "
            f"least {ROWS_PER_TAP * taps} are needed ({ROWS_PER_TAP} per tap): choose a smaller "
            "kernel or a larger pair"
        )


def _checked_gain(h: np.ndarray, error: float, spread: float, low_spread: float) -> float:
    if 1 - error < LEAST_EXPLAINED:
        raise InvalidInput(
            f"the good image explains {max(0.0, 1 - error):.0%} of the poor one's variance, at "
            f"least {LEAST_EXPLAINED:.0%} is needed: check that both show the same place"
        )
    gain = float(h.sum()) * low_spread / spread
    if gain <= 0:
        raise InvalidInput(
            f"the gain is {gain:.3g} and must be positive: the poor image is dark where the good "
            "one is bright; invert one of them"
        )
    return gain
