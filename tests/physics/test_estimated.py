"""The operator estimated from one pair: known kernels, an independent reference, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from napari_invprior.errors import Cancelled, InvalidInput
from napari_invprior.jobs import Message, run
from napari_invprior.physics.convolution import checked_psf, samples_before
from napari_invprior.physics.estimated import EstimatedOperator, estimate_operator, estimation
from napari_invprior.physics.superresolution import SuperResolution, SuperResolutionParameters
from napari_invprior.samples import grey_volume, load_sample, pair_kernel


def measured(
    high: np.ndarray, kernel: np.ndarray, factor: tuple[int, ...], *, gain: float = 1.0,
    offset: float = 0.0, sigma: float = 0.0, shift: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Data by their definition, window by window; the image is mirrored beyond its border."""
    before = samples_before(kernel.shape, factor)
    shift = (0,) * high.ndim if shift is None else shift
    margin = [(b + 8, k + 8) for b, k in zip(before, kernel.shape, strict=True)]
    padded = np.pad(high, margin, mode="symmetric")
    windows = sliding_window_view(padded, kernel.shape)[
        tuple(slice(8 + s, 8 + s + n, f) for s, n, f in zip(shift, high.shape, factor, strict=True))
    ]
    blurred = np.tensordot(windows, kernel, kernel.ndim)
    noise = sigma * np.random.default_rng(1).standard_normal(blurred.shape)
    return offset + gain * (blurred + noise)


def kernel_error(found: EstimatedOperator, kernel: np.ndarray) -> float:
    return float(np.linalg.norm(found.kernel - kernel) / np.linalg.norm(kernel))


def sharpening() -> np.ndarray:
    """A kernel with negative lobes, as resampled images have them."""
    y, x = np.mgrid[-7:8, -7:8]
    kernel = np.exp(-(y**2 + x**2) / 4.5) - 0.2 * np.exp(-(y**2 + x**2) / 18)
    return kernel / kernel.sum()


def smear() -> np.ndarray:
    """A short streak with a hook: neither symmetric nor Gaussian."""
    line = np.zeros((15, 15))
    line[7, 3:12], line[4:8, 11] = 1, 1.5
    spread = np.exp(-np.arange(-2, 3) ** 2 / 2.0)
    for axis in (0, 1):
        line = np.apply_along_axis(np.convolve, axis, line, spread, "same")
    return line / line.sum()


# --- the sheet's check 5 --------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["gravel", "grass"])
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("kernel", [pair_kernel(), smear(), sharpening()], ids=["pair", "smear",
                                                                               "sharpening"])
def test_a_known_kernel(image: str, factor: int, kernel: np.ndarray) -> None:
    high = load_sample(image)[:256, :256] / 255.0
    low = measured(high, kernel, (factor,) * 2, sigma=0.005)
    found = estimate_operator(high, low, factor, 15)
    assert kernel_error(found, kernel) <= 0.10
    values, place = found.predict(high, low.shape)
    assert -10 * np.log10(np.mean((values - low[place]) ** 2)) >= 40
    assert found.noise_sigma == pytest.approx(0.005, rel=0.05)
    assert found.nonnegative == (kernel.min() >= 0)
    # the standard error is about what the error is, where smoothness hides nothing
    assert np.linalg.norm(found.standard_error) < 2 * np.linalg.norm(found.kernel - kernel)


def test_forcing_the_sign_or_plain_least_squares_is_worse() -> None:
    high, kernel = load_sample("gravel")[:256, :256] / 255.0, sharpening()
    low = measured(high, kernel, (2, 2), sigma=0.005)
    best = kernel_error(estimate_operator(high, low, 2, 15), kernel)
    bound = estimate_operator(high, low, 2, 15, nonnegative=True)
    assert bound.kernel.min() >= 0
    assert kernel_error(bound, kernel) > 4 * best
    assert kernel_error(estimate_operator(high, low, 2, 15, smoothness=0.0), kernel) > 2 * best


# --- an independent reference ---------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "factor", "taps"), [
    ((30, 26), (1, 1), (3, 4)), ((40, 36), (2, 3), (5, 3)), ((12, 14, 15), (1, 2, 3), (2, 3, 3)),
])
def test_without_smoothness_it_is_least_squares(
    shape: tuple[int, ...], factor: tuple[int, ...], taps: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    high = rng.random((2, *shape))  # two channels: further equations
    coarse = tuple(n // f for n, f in zip(shape, factor, strict=True))
    kernel = rng.random(taps)
    low = np.stack([measured(h, kernel, factor) for h in high]) + 0.1 * rng.random((2, *coarse))
    found = estimate_operator(high, low, factor, taps, smoothness=0.0, nonnegative=False)
    before = samples_before(taps, factor)
    rows, values = [], []
    for h, v in zip(high, low, strict=True):
        for place in np.ndindex(coarse):
            start = [j * f - b for j, f, b in zip(place, factor, before, strict=True)]
            if min(start) >= 0 and all(
                s + k <= n for s, k, n in zip(start, taps, shape, strict=True)
            ):
                part = tuple(slice(s, s + k) for s, k in zip(start, taps, strict=True))
                rows.append([*h[part].ravel(), 1.0])
                values.append(v[place])
    expected = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    assert found.gain * found.kernel.ravel() == pytest.approx(expected[:-1], abs=1e-10)
    assert found.offset == pytest.approx(expected[-1], abs=1e-9)
    residual = np.array(rows) @ expected - values
    assert found.rmse == pytest.approx(np.sqrt(np.mean(residual**2)), rel=1e-8)
    variance = (residual**2).sum() / (len(values) - len(expected))
    covariance = variance * np.linalg.inv(np.array(rows).T @ np.array(rows))
    expected_error = np.sqrt(np.diag(covariance)[:-1]) / found.gain
    assert found.standard_error.ravel() == pytest.approx(expected_error, rel=1e-6)


def test_it_is_the_operator_of_the_physics() -> None:
    high = load_sample("grass")[:128, :128] / 255.0
    low = measured(high, pair_kernel(), (2, 2), gain=2.0, offset=0.3)
    found = estimate_operator(high, low, 2, 15)
    physics = SuperResolution(
        SuperResolutionParameters(factor=2), 2, torch.from_numpy(found.kernel)
    )
    data = physics.A(torch.from_numpy(high)[None, None])[0, 0].numpy()
    values, place = found.predict(high, low.shape)
    assert found.offset + found.gain * data[place] == pytest.approx(values, abs=1e-9)


# --- gain, offset, shift, volumes -----------------------------------------------------------------


def test_a_volume_with_a_factor_per_axis() -> None:
    high = grey_volume((30, 44, 46), seed=2).astype(float)
    kernel = np.ones((3, 4, 4))
    kernel[1, 1:3, 1:3] = 4
    kernel /= kernel.sum()
    low = measured(high, kernel, (1, 2, 2), gain=300.0, offset=-40.0, sigma=0.002)
    found = estimate_operator(high, low, (1, 2, 2), (3, 4, 4))
    assert found.gain == pytest.approx(300, rel=0.01)
    assert found.offset == pytest.approx(-40, abs=2)
    assert kernel_error(found, kernel) < 0.1
    assert found.noise_sigma == pytest.approx(0.6, rel=0.1)
    assert found.shift == (0, 0, 0)


@pytest.mark.parametrize("shift", [(1, -1), (3, -5), (-6, 0), (0, 9)])
@pytest.mark.parametrize("factor", [1, 2])
def test_a_shifted_pair(shift: tuple[int, int], factor: int) -> None:
    high = load_sample("gravel")[:192, :192] / 255.0
    y, x = np.mgrid[-4:5, -4:5]
    kernel = np.exp(-(y**2 + x**2) / 6.0)
    kernel /= kernel.sum()
    low = measured(high, kernel, (factor,) * 2, sigma=0.002, shift=shift)
    events = list(estimation(high, low, factor, 13))
    found = events[-1].value
    warned = [e.text for e in events if isinstance(e, Message)]
    if max(map(abs, shift)) <= 1:  # the window of 13 has room for 9 taps
        assert found.shift == (0, 0)
        assert not warned
    else:
        # what the shift leaves over, up to a sample, is in the kernel
        assert max(abs(a - b) for a, b in zip(found.shift, shift, strict=True)) <= 1
        assert str(found.shift) in warned[0]
    middle = [
        float(np.arange(13) @ found.kernel.sum(1 - axis)) - b + s
        for axis, (b, s) in enumerate(zip(
            samples_before((13, 13), (factor,) * 2), found.shift, strict=True
        ))
    ]
    own = 4 - samples_before((9, 9), (factor,) * 2)[0]
    assert middle == pytest.approx([own + s for s in shift], abs=0.05)
    values, place = found.predict(high, low.shape)
    assert np.sqrt(np.mean((values - low[place]) ** 2)) < 0.0025


# --- refusals -------------------------------------------------------------------------------------


GOOD = load_sample("grass")[:64, :64] / 255.0
POOR = measured(GOOD, np.full((2, 2), 0.25), (2, 2))


@pytest.mark.parametrize(
    ("high", "low", "size", "words"),
    [
        (GOOD[:63], POOR, 4, r"whole multiple"),
        (GOOD[:32], POOR[:8], 4, r"must have \(16, 64\)"),
        (np.where(GOOD > 0.8, np.nan, GOOD), POOR, 4, "good image holds .* NaN"),
        (GOOD, POOR * np.inf, 4, "poor image holds"),
        (np.ones_like(GOOD), POOR, 4, "good image is constant"),
        (GOOD, np.ones_like(POOR), 4, "poor image is constant"),
        (GOOD, POOR, 40, "only 144 samples .* 3200 are needed .2 per tap.: choose a smaller"),
        (GOOD, POOR, 24, "only 400 samples .* at least 1152"),
        (GOOD, 1 - POOR, 4, "invert one|same place|beyond the kernel's window"),
        (GOOD, np.random.default_rng(0).random(POOR.shape), 4, "same one|same place"),
        (GOOD, POOR[::-1, ::-1].copy(), 4, "same one|same place"),
        (GOOD, np.roll(POOR, 12, 0), 8, r"shift of \(-?24, 0\)"),
        (GOOD[0], POOR[0], 3, "2 or 3 space axes"),
    ],
)
def test_bad_pairs(high: np.ndarray, low: np.ndarray, size: int, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        estimate_operator(high, low, 2, size)


def test_too_many_taps() -> None:
    big = np.random.default_rng(0).random((200, 200))
    with pytest.raises(InvalidInput, match="at most 2000"):
        estimate_operator(big, big, 1, 50)


def test_it_stops_when_asked() -> None:
    with pytest.raises(Cancelled):
        run(estimation(GOOD, POOR, 2, 4, should_stop=lambda: True))


@given(
    ndim=st.integers(1, 4), factor=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    size=st.lists(st.integers(1, 6), min_size=1, max_size=3), edge=st.integers(0, 14),
    more=st.integers(0, 1), seed=st.integers(0, 5),
)
def test_any_shapes_run_or_are_refused(
    ndim: int, factor: list[int], size: list[int], edge: int, more: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    low = rng.random([edge + a for a in range(ndim)])
    high = low
    for axis, f in enumerate(factor[-ndim:]):
        high = np.repeat(high, f, axis=axis)
    if more:
        high = np.concatenate([high, high[:1]])
    try:
        found = estimate_operator(high, low, factor, size)
    except InvalidInput as error:
        assert "\n" not in str(error)
    else:
        assert found.kernel.shape == (tuple(size) if len(size) > 1 else found.kernel.shape)
        assert found.kernel.sum() == pytest.approx(1)
        assert np.isfinite(found.kernel).all()
        assert found.gain > 0
        assert found.noise_sigma >= 0


def test_kernels_with_negative_lobes_are_admitted_and_derivatives_refused() -> None:
    lobes = torch.from_numpy(sharpening())
    assert float(checked_psf(3 * lobes, 2).sum()) == pytest.approx(1)
    derivative = torch.tensor([[-1.0, 0.0, 1.1]], dtype=torch.float64)
    with pytest.raises(InvalidInput, match=r"sum to 0\.1, their magnitudes to 2\.1"):
        checked_psf(derivative, 2)
