"""Least squares for a kernel: moments of the strided windows of an image, smooth solutions.

A row is one window of the fine image (its ``T`` samples), the coarse sample that belongs to it,
and a one. All that least squares needs of the rows is the sum of their outer products, of
``(T + 2, T + 2)`` numbers, whatever the size of the images; it is kept for each of a few blocks of
the image, so that a solution found on some can be held against the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.optimize import nnls

from napari_invprior.jobs import Job, Result, ShouldStop, Stage, check_stop, never

CHUNK = 2_000_000
"""Numbers in the windows that are copied at a time."""
TINY = 1e-13
"""Eigenvalues below this share of the largest are rounding errors."""


@dataclass(frozen=True)
class Window:
    """Which samples of the fine image belong to coarse sample j: ``j * factor + start + k``.

    Attributes
    ----------
    taps, factor, start : tuple of int
        Samples per axis; fine samples per coarse sample; first sample of the window of j = 0.
    """

    taps: tuple[int, ...]
    factor: tuple[int, ...]
    start: tuple[int, ...]

    def valid(self, fine: Sequence[int], coarse: Sequence[int]) -> tuple[range, ...]:
        """Coarse samples whose whole window lies inside a fine image of that shape.

        Examples
        --------
        >>> Window((5,), (2,), (-1,)).valid((10,), (5,))
        (range(1, 4),)
        """
        return tuple(
            range(max(0, -(s // f)), max(0, -(s // f), min(m, (n - k - s) // f + 1)))
            for n, m, k, f, s in zip(
                fine, coarse, self.taps, self.factor, self.start, strict=True
            )
        )

    def first(self, places: Sequence[range]) -> tuple[slice, ...]:
        """Where the windows of these coarse samples begin, as slices of the fine image."""
        return tuple(
            slice(r.start * f + s, (r.stop - 1) * f + s + 1, f)
            for r, f, s in zip(places, self.factor, self.start, strict=True)
        )


def moments(
    planes: Sequence[tuple[np.ndarray, np.ndarray]], window: Window, folds: int,
    should_stop: ShouldStop = never,
) -> Job:
    """Sums of outer products of the rows ``(window, coarse sample, 1)``, a job.

    Parameters
    ----------
    planes : sequence of (fine, coarse)
        Images of one shape; each is cut into ``folds`` bands along its first axis.
    window : Window
        Which fine samples belong to a coarse one; only those with a whole window count.

    Returns
    -------
    Job
        Its `Result` is (folds, T + 2, T + 2) float64, rows and columns in C order of the taps.
    """
    size = int(np.prod(window.taps)) + 2
    sums = torch.zeros((folds, size, size), dtype=torch.float64)
    places = window.valid(planes[0][0].shape, planes[0][1].shape)
    count = int(np.prod([len(r) for r in places]))
    stage, done = Stage("estimate", len(planes) * count), 0
    for fine, coarse in planes:
        windows = sliding_window_view(fine, window.taps)[window.first(places)]
        values = coarse[tuple(slice(r.start, r.stop) for r in places)].reshape(-1)
        for fold, rows in _chunks(count, folds, max(1, CHUNK // size)):
            check_stop(should_stop)
            block = np.ones((len(rows), size))
            picked = np.unravel_index(rows, windows.shape[: fine.ndim])
            block[:, :-2] = windows[picked].reshape(len(rows), -1)
            block[:, -2] = values[rows]
            matrix = torch.from_numpy(block)
            sums[fold].addmm_(matrix.T, matrix)
            done += len(rows)
            if stage.due():
                yield stage.progress(done)
    yield Result(sums.numpy())


def _chunks(count: int, folds: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Fold and consecutive rows, at most ``size`` at a time."""
    for fold in range(folds):
        low, high = fold * count // folds, (fold + 1) * count // folds
        for start in range(low, high, size):
            yield fold, np.arange(start, min(start + size, high))


class SmoothRegression:
    """``argmin_h mean (v - c - w . h)^2 + penalty h^T P h``, for many penalties at once.

    One generalised eigen-decomposition ``G u = s P u`` of the covariance of the windows gives the
    solution of every penalty, ``h = sum_i u_i (u_i . b) / (s_i + penalty)``.

    Parameters
    ----------
    sums : numpy.ndarray
        (T + 2, T + 2) from `moments`, added over its folds.
    roughness : numpy.ndarray
        ``P``, (T, T), symmetric and positive definite.
    """

    def __init__(self, sums: np.ndarray, roughness: np.ndarray) -> None:
        self.count = float(sums[-1, -1])
        self._means = sums[-1, :-1] / self.count
        covariance = sums[:-1, :-1] / self.count - np.outer(self._means, self._means)
        self._gram, self._product = covariance[:-1, :-1], covariance[:-1, -1]
        self._roughness = roughness
        # torch, because its number of threads is what a caller has chosen
        root = torch.linalg.cholesky(torch.from_numpy(roughness))
        half = torch.linalg.solve_triangular(root, torch.from_numpy(self._gram), upper=False)
        inner = torch.linalg.solve_triangular(root, half.T, upper=False)
        values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        self._vectors = torch.linalg.solve_triangular(root.T, vectors, upper=True).numpy()
        self._values = values.clamp_min(float(values[-1]) * TINY).numpy()

    def solve(self, penalties: np.ndarray) -> np.ndarray:
        """Taps for each penalty, (T, P)."""
        shares = (self._vectors.T @ self._product)[:, None] / (
            self._values[:, None] + penalties[None]
        )
        solution: np.ndarray = self._vectors @ shares
        return solution

    def solve_nonnegative(self, penalty: float) -> np.ndarray:
        """Taps of one penalty, none of them negative, (T,)."""
        # a hair of the trace keeps the factor of an exactly singular system finite
        hair = penalty + TINY * float(np.trace(self._gram)) / len(self._gram)
        root = torch.linalg.cholesky(torch.from_numpy(self._gram + hair * self._roughness))
        target = torch.linalg.solve_triangular(
            root, torch.from_numpy(self._product)[:, None], upper=False
        )
        taps, _ = nnls(root.T.numpy(), target[:, 0].numpy(), maxiter=30 * len(self._gram))
        found: np.ndarray = taps
        return found

    def constant(self, taps: np.ndarray) -> np.ndarray:
        """The ``c`` that belongs to taps (T, P) or (T,)."""
        constant: np.ndarray = self._means[-1] - self._means[:-1] @ taps
        return constant

    def freedom(self, penalty: float) -> float:
        """Effective number of taps, ``sum s / (s + penalty)``."""
        return float((self._values / (self._values + penalty)).sum())

    def variances(self, penalty: float) -> np.ndarray:
        """Variance of each tap for noise of variance one, (T,)."""
        gains = self._values / (self._values + penalty) ** 2 / self.count
        variances: np.ndarray = (self._vectors**2) @ gains
        return variances


def mean_square(sums: np.ndarray, taps: np.ndarray, constant: np.ndarray) -> np.ndarray:
    """Mean of ``(v - c - w . h)^2`` over the rows of ``sums``, for taps (T, P): (P,)."""
    weights = np.vstack([-taps, np.ones_like(taps[:1]), -np.atleast_1d(constant)[None]])
    squares: np.ndarray = np.einsum("ip,ij,jp->p", weights, sums, weights, optimize=True)
    return np.maximum(squares, 0) / sums[-1, -1]


def roughness(taps: Sequence[int], unit: Sequence[float]) -> np.ndarray:
    """``P = S L S``: the taps' Dirichlet energy, dearer with the distance from the middle.

    ``L`` is the Laplacian with zeros beyond the window, ``S = sqrt(1 + |r|^2)`` with the distance
    ``r`` from the middle in ``unit``: a kernel is smooth, and small where the window ends.

    Parameters
    ----------
    taps : sequence of int
        Shape of the window.
    unit : sequence of float
        Length along each axis over which a kernel is expected to fall off, in samples.
    """
    size = int(np.prod(taps))
    matrix = np.zeros((size, size))
    square = np.zeros(tuple(taps))
    for axis, (n, u) in enumerate(zip(taps, unit, strict=True)):
        line = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
        before, after = int(np.prod(taps[:axis])), int(np.prod(taps[axis + 1 :]))
        matrix += np.kron(np.kron(np.eye(before), line), np.eye(after))
        place = ((np.arange(n) - (n - 1) / 2) / u) ** 2
        square += place.reshape([-1 if a == axis else 1 for a in range(len(taps))])
    scale = np.sqrt(1 + square).reshape(-1)
    rough: np.ndarray = scale[:, None] * matrix * scale
    return rough
