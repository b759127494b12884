"""Colours of cells: distinct, of about equal lightness, and the same for an atom everywhere."""

from __future__ import annotations

import numpy as np

GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))
LIGHTNESS, CHROMA = (0.78, 0.70, 0.84), (0.10, 0.12, 0.085)
"""In the space OKLCH; three rings, so that neighbours in hue differ in lightness."""
FIRST_HUE = 0.9

LAB_TO_LMS = np.array([
    [1.0, 0.3963377774, 0.2158037573],
    [1.0, -0.1055613458, -0.0638541728],
    [1.0, -0.0894841775, -1.2914855480],
])
LMS_TO_RGB = np.array([
    [4.0767416621, -3.3077115913, 0.2309699292],
    [-1.2684380046, 2.6097574011, -0.3413193965],
    [-0.0041960863, -0.7034186147, 1.7076147010],
])


def cell_colours(count: int) -> np.ndarray:
    """Colours (count, 3) in [0, 1], sRGB; that of an atom does not depend on the count.

    Examples
    --------
    >>> colours = cell_colours(60)
    >>> bool((colours[:5] == cell_colours(5)).all())
    True
    """
    number = np.arange(count)
    hue = FIRST_HUE + GOLDEN_ANGLE * number
    light, chroma = np.take(LIGHTNESS, number % 3), np.take(CHROMA, number % 3)
    lab = np.stack([light, chroma * np.cos(hue), chroma * np.sin(hue)], 1)
    linear = np.clip((lab @ LAB_TO_LMS.T) ** 3 @ LMS_TO_RGB.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
