"""Seeded phantoms for tomography: slices of a round sample in air, values in [0, 1].

Every seed gives another slice of the same material, so that priors can learn from some and be
tried on others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

FILL = 0.94
"""Diameter of the round sample as a share of the image's edge."""


def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column coordinates from -1 to 1."""
    line = (np.arange(size) - (size - 1) / 2) * 2 / size
    return line[:, None], line[None]


def _soft(distance: np.ndarray, size: int) -> np.ndarray:
    """One inside (distance < 0), zero outside, with a border one pixel wide."""
    inside: np.ndarray = np.clip(0.5 - distance * size / 2, 0, 1)
    return inside


def _texture(generator: np.random.Generator, size: int, fine: float, coarse: float) -> np.ndarray:
    """Unit-variance noise between two widths of smoothing."""
    noise = generator.standard_normal((size, size))
    field = gaussian_filter(noise, fine, mode="wrap") - gaussian_filter(noise, coarse, mode="wrap")
    scaled: np.ndarray = field / field.std()
    return scaled


def ellipses(size: int = 128, seed: int = 0) -> FloatArray:
    """Random ellipses that lie over each other in a round sample.

    Examples
    --------
    >>> ellipses(32, seed=1).shape
    (32, 32)
    """
    generator = np.random.default_rng(seed)
    row, column = _axes(size)
    image = np.full((size, size), 0.35)
    for _ in range(18):
        radius, turn = 0.75 * np.sqrt(generator.random()), 2 * np.pi * generator.random()
        centre = radius * np.sin(turn), radius * np.cos(turn)
        half = generator.uniform(0.04, 0.3, 2)
        angle = np.pi * generator.random()
        y, x = row - centre[0], column - centre[1]
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        distance = (np.hypot(along / half[0], across / half[1]) - 1) * half.min()
        inside = _soft(distance, size)
        image = image * (1 - inside) + inside * generator.uniform(0.1, 0.9)
    image *= _soft(np.hypot(row, column) - FILL, size)
    return image.astype(np.float32)


def foam(size: int = 128, seed: int = 0) -> FloatArray:
    """A foam: round pores of many sizes in a matrix with a texture, and some dense grains.

    Pores are at least 5 pixels wide and do not touch; the matrix is a network of two finely
    mixed phases.

    Examples
    --------
    >>> image = foam(64, seed=1)
    >>> image.dtype, bool(image.min() == 0), bool(image.max() <= 1)
    (dtype('float32'), True, True)
    """
    generator = np.random.default_rng(seed)
    row, column = _axes(size)
    mixture = np.tanh(2.5 * _texture(generator, size, 1.1, 3.0))
    image = 0.55 + 0.12 * mixture
    placed: list[tuple[float, float, float]] = []
    pixel = 2 / size
    for radius in np.sort(generator.uniform(2.5, 9.0, 400))[::-1] * pixel:
        far = (FILL - radius - 2 * pixel) * np.sqrt(generator.random())
        turn = 2 * np.pi * generator.random()
        y, x = far * np.sin(turn), far * np.cos(turn)
        gap = 1.5 * pixel
        if all(np.hypot(y - b, x - a) > radius + r + gap for b, a, r in placed):
            placed.append((y, x, radius))
    for number, (y, x, radius) in enumerate(placed):
        inside = _soft(np.hypot(row - y, column - x) - radius, size)
        image = image * (1 - inside) + inside * (0.9 if number % 6 == 5 else 0.05)
    image *= _soft(np.hypot(row, column) - FILL, size)
    return np.clip(image, 0, 1).astype(np.float32)


def shepp_logan(size: int = 128) -> FloatArray:
    """The head phantom of Shepp and Logan with the contrasts of Toft, from its ten ellipses.

    Examples
    --------
    >>> float(shepp_logan(64).max())
    1.0
    """
    row, column = _axes(4 * size)
    image = np.zeros((4 * size, 4 * size))
    for value, across, along, x, y, degrees in HEAD:
        angle = np.deg2rad(degrees)
        a, b = column - x, -row - y
        inside = (
            ((a * np.cos(angle) + b * np.sin(angle)) / across) ** 2
            + ((b * np.cos(angle) - a * np.sin(angle)) / along) ** 2
        ) <= 1
        image += value * inside
    mean = image.reshape(size, 4, size, 4).mean((1, 3))
    return np.clip(mean, 0, 1).astype(np.float32)


HEAD = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.8740, 0.0, -0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)
"""Value, half axes across and along, centre (x to the right, y upwards), turn in degrees."""

KINDS: dict[str, Callable[..., FloatArray]] = {"ellipses": ellipses, "foam": foam}


def phantoms(kind: str, count: int, size: int = 128, first_seed: int = 0) -> list[FloatArray]:
    """So many different slices of one material, ``"ellipses"`` or ``"foam"``.

    Examples
    --------
    >>> len(phantoms("foam", 2, size=32))
    2
    """
    return [KINDS[kind](size, seed) for seed in range(first_seed, first_seed + count)]
