"""The whole-sample shift between an image and a coarser one of the same place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from napari_invprior.numerics.resample import spline_resample


def integer_shift(high: np.ndarray, low: np.ndarray, factor: Sequence[int]) -> tuple[int, ...]:
    """Where the fine samples of ``low`` are found in ``high``, in samples of ``high``.

    Phase correlation of ``high`` with the spline of ``low`` at its block centres, over the
    frequencies that the coarse grid can carry: beyond them there is nothing but noise. Both
    images fade out towards their borders, so that opposite ones do not meet.

    Parameters
    ----------
    high : numpy.ndarray
        (*space) of the good image.
    low : numpy.ndarray
        (*space) of the poor one, ``high.shape / factor``.
    factor : sequence of int
        Fine samples per coarse sample along each axis.

    Returns
    -------
    tuple of int
        ``s``: coarse sample j shows the surroundings of ``high[j * factor + (f - 1) / 2 + s]``.

    Examples
    --------
    >>> fine = np.random.default_rng(0).random((40, 48))
    >>> integer_shift(np.roll(fine, (3, -2), (0, 1)), fine, (1, 1))
    (3, -2)
    """
    offset = [(f - 1) / 2 for f in factor]
    coarse = torch.from_numpy(np.ascontiguousarray(low, dtype=np.float64))[None, None]
    fine = spline_resample(coarse, high.shape, factor, offset)[0, 0].numpy()
    spectra = [np.fft.rfftn(_faded(image)) for image in (high, fine)]
    product = spectra[0] * spectra[1].conj() * _carried(high.shape, factor)
    size = np.abs(product)
    surface = np.fft.irfftn(product / np.maximum(size, 1e-12 * size.max()), s=high.shape,
                            axes=range(high.ndim))
    place = np.unravel_index(int(np.argmax(surface)), surface.shape)
    return tuple(
        int(p) - (n if p > n // 2 else 0) for p, n in zip(place, surface.shape, strict=True)
    )


def _faded(image: np.ndarray) -> np.ndarray:
    faded = image - image.mean()
    for axis, n in enumerate(image.shape):
        window = np.hanning(n + 2)[1:-1]
        faded = faded * window.reshape([-1 if a == axis else 1 for a in range(image.ndim)])
    return faded


def _carried(shape: Sequence[int], factor: Sequence[int]) -> np.ndarray:
    """One where every axis is below the coarse grid's highest frequency, laid out as `rfftn`."""
    lines = [
        (np.fft.rfftfreq(n) if axis == len(shape) - 1 else np.abs(np.fft.fftfreq(n))) <= 0.5 / f
        for axis, (n, f) in enumerate(zip(shape, factor, strict=True))
    ]
    mask: np.ndarray = np.ones(1)
    for line in lines:
        mask = np.multiply.outer(mask, line)
    return mask[0]
