"""Sample data that work offline: generated volumes and photographs shipped with scikit-image.

The volumes are level sets of smoothed noise: two phases with a smooth border ("binary"), or two
phases that each carry a texture of their own ("grey"). They are periodic unless cropped from a
larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import skimage.data
import skimage.io
from scipy.ndimage import gaussian_filter
from scipy.special import expit

from napari_invprior.errors import InvalidInput, nearest
from napari_invprior.phantoms import KINDS, shepp_logan

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Width = float | Sequence[float]


def _unit(field: np.ndarray) -> np.ndarray:
    """The field divided by its standard deviation."""
    scaled: np.ndarray = field / field.std()
    return scaled


def binary_volume(
    shape: Sequence[int] = (48, 48, 48), seed: int = 0, *, width: Width = 2.0, edge: float = 0.05
) -> FloatArray:
    """Two phases of grey value .1 and .9 with smooth borders, periodic.

    ``.1 + .8 logistic(f / edge)`` with ``f`` unit-variance white noise smoothed by a Gaussian.

    Parameters
    ----------
    shape : sequence of int
        Samples per axis; 2D shapes work too.
    seed : int
        Seed of the noise.
    width : float or sequence of float
        Standard deviation of the smoothing, samples; per axis for anisotropic voxels.
    edge : float
        Softness of the borders, in standard deviations of ``f``.

    Examples
    --------
    >>> volume = binary_volume((12, 14, 16), seed=1)
    >>> volume.shape, bool(volume.min() >= 0.1), bool(volume.max() <= 0.9)
    ((12, 14, 16), True, True)
    """
    noise = np.random.default_rng(seed).standard_normal(tuple(shape))
    field = _unit(gaussian_filter(noise, width, mode="wrap"))
    return (0.1 + 0.8 * expit(field / edge)).astype(np.float32)


def grey_volume(
    shape: Sequence[int] = (48, 48, 48), seed: int = 0, *, width: Width = 2.5, edge: float = 0.15
) -> FloatArray:
    """Two textured phases, periodic, values in [.1, .9].

    ``.3 + .4 q + .03 (1 - q) t0 + .05 q t1`` with the phase fraction ``q`` of a smoothed noise
    field and two unit-variance textures, differences of noise smoothed by .7 and 1.5, and by 1 and
    2.5 samples.

    Examples
    --------
    >>> grey_volume((8, 9, 10), seed=3).dtype
    dtype('float32')
    """
    generator = np.random.default_rng(seed)

    def smooth(width: Width) -> np.ndarray:
        """A new white noise field, smoothed."""
        smoothed: np.ndarray = gaussian_filter(
            generator.standard_normal(tuple(shape)), width, mode="wrap"
        )
        return smoothed

    fraction = expit(_unit(smooth(width)) / edge)
    first, second = _unit(smooth(0.7) - smooth(1.5)), _unit(smooth(1.0) - smooth(2.5))
    volume = 0.3 + 0.4 * fraction + 0.03 * (1 - fraction) * first + 0.05 * fraction * second
    return np.clip(volume, 0.1, 0.9).astype(np.float32)


def photograph(name: str, part: str = "") -> np.ndarray:
    """A texture photograph that scikit-image ships (CC0): 512 x 512, uint8.

    Parameters
    ----------
    name : {"brick", "grass", "gravel"}
        Which photograph.
    part : {"", "reference", "test"}
        The whole picture, its left half or its right half.

    Raises
    ------
    InvalidInput
        If this installation of scikit-image lacks the file (nothing is ever downloaded).
    """
    path = Path(skimage.data.__file__).parent / f"{name}.png"
    if not path.is_file():
        raise InvalidInput(
            f"sample {name!r}: this installation of scikit-image has no {path.name}; choose a "
            "generated sample such as 'binary-volume'"
        )
    picture: np.ndarray = skimage.io.imread(path)
    half = picture.shape[1] // 2
    return {"": picture, "reference": picture[:, :half], "test": picture[:, half:]}[part]


PAIR_GAIN, PAIR_OFFSET, PAIR_SIGMA = 1.6, -0.2, 0.005
"""Brightness scale and noise of the poor image of `registered_pair`."""


def pair_kernel() -> np.ndarray:
    """The kernel of `registered_pair`: 15 x 15, two skew Gaussians off the middle, sum one."""
    y, x = np.mgrid[-7:8, -7:8].astype(float)
    core = np.exp(-((y + x - 0.6) ** 2) / 8 - (y - x) ** 2 / 24)
    tail = np.exp(-((y - 3) ** 2 + (x + 2) ** 2) / 10)
    kernel: np.ndarray = core + 0.4 * tail
    return kernel / kernel.sum()


def registered_pair(part: str) -> FloatArray:
    """A photograph of gravel and the same place measured poorly, by an operator that is known.

    ``poor_j = offset + gain sum_k h_k photograph[2 j + k - 6] + noise`` with `pair_kernel`, gain
    1.6, offset -0.2 and noise .005 on the photograph's scale of 0 to 1.

    Parameters
    ----------
    part : {"good", "poor"}
        256 x 256 or 128 x 128 samples.

    Examples
    --------
    >>> registered_pair("good").shape, registered_pair("poor").shape
    ((256, 256), (128, 128))
    """
    rim, edge = 8, 256
    whole = photograph("gravel")[128 - rim : 128 + edge + rim, 256 - rim :] / 255.0
    whole = np.pad(whole, ((0, 0), (0, rim)), mode="reflect")
    if part == "good":
        return whole[rim:-rim, rim:-rim].astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (15, 15))
    blurred = np.tensordot(windows[2 : 2 + edge : 2, 2 : 2 + edge : 2], pair_kernel(), 2)
    noise = PAIR_SIGMA * np.random.default_rng(0).standard_normal(blurred.shape)
    return (PAIR_OFFSET + PAIR_GAIN * (blurred + noise)).astype(np.float32)


@dataclass(frozen=True)
class Sample:
    """One entry of the sample table.

    Attributes
    ----------
    name, title : str
        Name used in recipes; title shown to people.
    ndim : int
        Space dimensions.
    about : str
        What it is, one sentence.
    make : callable
        Builds the array.
    """

    name: str
    title: str
    ndim: int
    about: str
    make: Callable[[], np.ndarray]


def _photographs() -> list[Sample]:
    parts = {"": "", "reference": ", left half", "test": ", right half"}
    return [
        Sample(
            f"{name}-{part}" if part else name,
            f"{name.capitalize()}{note}",
            2,
            f"Photograph of {name} (CC0, shipped with scikit-image){note}.",
            partial(photograph, name, part),
        )
        for name in ("brick", "grass", "gravel")
        for part, note in parts.items()
    ]


def _volumes() -> list[Sample]:
    kinds: dict[str, tuple[str, Callable[..., FloatArray]]] = {
        "binary-volume": ("Two phases with thin borders", partial(binary_volume, width=2.0)),
        "coarse-volume": ("Two coarser phases", partial(binary_volume, width=3.0)),
        "grey-volume": ("Two textured phases", grey_volume),
    }
    return [
        Sample(
            f"{name}-{part}",
            f"{about}, {part}",
            3,
            f"{about}: generated periodic volume of 48 x 48 x 48 voxels, seed {seed}.",
            partial(make, (48, 48, 48), seed),
        )
        for name, (about, make) in kinds.items()
        for seed, part in enumerate(("reference", "test"))
    ]


def _phantoms() -> list[Sample]:
    titles = {
        "ellipses": "Ellipses in a round sample", "foam": "Foam with a textured matrix",
    }
    found = [
        Sample(
            f"{kind}-phantom-{part}",
            f"{titles[kind]}, {part}",
            2,
            f"{titles[kind]}: generated slice of 128 x 128 pixels, seed {seed}.",
            partial(KINDS[kind], 128, seed),
        )
        for kind in KINDS
        for seed, part in enumerate(("reference", "reference-2", "reference-3", "test"))
    ]
    head = "Head phantom of Shepp and Logan, 128 x 128 pixels."
    return [*found, Sample("shepp-logan", "Shepp-Logan phantom", 2, head, shepp_logan)]


def _pair() -> list[Sample]:
    about = "Gravel and the same place at half the resolution, by a known 15 x 15 kernel, {} image."
    return [
        Sample(f"pair-{part}", f"Registered pair, {part} image", 2, about.format(part),
               partial(registered_pair, part))
        for part in ("good", "poor")
    ]


SAMPLES: dict[str, Sample] = {
    s.name: s for s in (*_photographs(), *_volumes(), *_phantoms(), *_pair())
}
"""Every sample by name; ``-reference`` and ``-test`` parts never overlap."""


def load_sample(name: str) -> np.ndarray:
    """The array of one sample.

    Raises
    ------
    InvalidInput
        If there is none of that name; the message lists the known names.

    Examples
    --------
    >>> load_sample("gravel-test").shape
    (512, 256)
    """
    if name not in SAMPLES:
        raise InvalidInput(
            f"unknown sample {name!r}{nearest(name, SAMPLES)} (known: {', '.join(SAMPLES)})"
        )
    return SAMPLES[name].make()
