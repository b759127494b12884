"""Load an image from a file, a layer, or the built-in samples: `load`.

Examples
--------
>>> image = load(Source(sample="gravel-test", crop=((0, 40), (0, 30))))
>>> image.array.shape, image.value_range
((1, 1, 40, 30), (0.0, 255.0))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from napari_invprior.errors import FileRefused, InvalidInput, nearest
from napari_invprior.image import Image
from napari_invprior.io.arrays import Axes, image_from_array, selection, valid_range
from napari_invprior.io.files import (
    PICKLED,
    existing,
    local_path,
    refusing,
    retrying,
    within_limit,
)
from napari_invprior.io.raw import Raw, cropped, image_from_raw, scaled
from napari_invprior.sources import Source

__all__ = ["load", "image_from_array"]

KINDS = "PNG, TIFF, NPY, NPZ and OME-Zarr"
Arrays = Mapping[str, Image | Raw]
"""Arrays in memory, or not read yet, by the name that sources give them."""
NOTHING: Arrays = MappingProxyType({})


def load(
    source: Source,
    arrays: Arrays = NOTHING,
    *,
    limit: int | None = None,
    folder: Path | None = None,
) -> Image:
    """Load what a source names; the part it asks for, where the format allows.

    Parameters
    ----------
    source : Source
        A file, a layer or a sample, with crop, channel, scale and value range.
    arrays : mapping of str to Image or Raw
        What ``{"layer": name}`` refers to.
    limit : int, optional
        Bytes that the array may take; a quarter of the free memory by default.
    folder : Path, optional
        Where relative paths start; the working folder by default.

    Returns
    -------
    Image
        ``facts["notes"]`` holds sentences that the user should see (without the image's name).

    Raises
    ------
    InvalidInput
        If there is no such thing, or it does not fit the source.
    FileRefused
        If a file is damaged, unsafe, too large or of an unknown kind.
    """
    if source.layer is not None:
        if source.layer not in arrays:
            known = ", ".join(repr(name) for name in arrays) or "none"
            raise InvalidInput(
                f"no layer {source.layer!r}{nearest(source.layer, arrays)} (given: {known})"
            )
        given = arrays[source.layer]
        if isinstance(given, Raw):
            return image_from_raw(given, source, source.layer, limit)
        return part_of(given, source)
    if source.sample is not None:
        from napari_invprior import samples

        array = samples.load_sample(source.sample)
        image = image_from_array(array, name=source.sample, ndim=array.ndim)
        return part_of(image, source)
    assert source.path is not None
    path = existing(local_path(source.path, folder=folder))
    with refusing(path.name):
        image = retrying(
            lambda: image_from_raw(_open(path, source, limit), source, path.name, limit)
        )
    image.facts["path"] = str(path.absolute())
    return image


def opened(
    source: Source, arrays: Arrays = NOTHING, *, folder: Path | None = None
) -> tuple[Raw, str]:
    """What a source names, not read yet, and its name for messages.

    Raises
    ------
    InvalidInput, FileRefused
        As `load`, except that it may be of any size.
    """
    if source.path is not None:
        path = existing(local_path(source.path, folder=folder))
        with refusing(path.name):
            return retrying(lambda: _open(path, source, None)), path.name
    found = arrays.get(source.layer or "")
    if isinstance(found, Raw):
        return found, source.layer or ""
    whole = source.model_copy(update={"crop": None, "channel": None})
    return raw_of(load(whole, arrays)), source.layer or source.sample or ""


def raw_of(image: Image) -> Raw:
    """An image in memory as a file would hand it over, without axes of length one that it made."""
    labels, array = "TCZYX"[-image.array.ndim :] if image.ndim == 3 else "TCYX", image.array
    if image.channel_axis is None:
        array, labels = array[:, 0], labels.replace("C", "")
    elif image.rgb:
        array, labels = np.moveaxis(array, 1, -1), labels.replace("C", "") + "S"
    if not image.frame_axes:
        array, labels = array[0], labels.removeprefix("T")
    return Raw(array, labels=labels, geometry=image.geometry, value_range=image.value_range,
               notes=image.facts.get("notes", ()))


def load_list(source: Source, arrays: Arrays) -> np.ndarray:
    """The numbers of a source as a list: NPY, NPZ, text with one number per line, or a layer.

    Raises
    ------
    InvalidInput
        If it holds no list of real numbers.
    """
    if source.path is None:
        values = load(source, arrays).array
        name = source.layer or source.sample or ""
    else:
        path = existing(local_path(source.path))
        name = path.name
        with refusing(name):
            if path.suffix.lower() in (".txt", ".csv"):
                within_limit(name, 8 * path.stat().st_size, None)
                values = np.loadtxt(path, delimiter="," if path.suffix == ".csv" else None, ndmin=1)
            else:
                values = np.array(_open(path, source, None).array)
    numbers = values.squeeze()
    if numbers.ndim > 1 or numbers.size == 0 or numbers.dtype.kind not in "iuf":
        raise InvalidInput(f"{name}: shape {values.shape} is no list of numbers; give one axis")
    return np.atleast_1d(numbers).astype(np.float64)


def part_of(image: Image, source: Source) -> Image:
    """Crop, channel, scale and value range of a source, taken from an image in memory.

    The value range stays that of the whole image: a part is not rescaled.
    """
    space = tuple(range(2, image.array.ndim))
    axes = Axes((0,), 1, space, image.rgb)
    slices, start, notes = selection(
        image.array.shape, axes, source.crop, source.channel, image.name
    )
    placed = cropped(scaled(image.geometry, source.scale, image.name), start)
    if source.channel is not None:
        image = replace(image, rgb=False, channel_axis=None)
    return replace(
        image,
        array=image.array[slices],
        geometry=placed,
        value_range=valid_range(source.dtype_range, image.name) or image.value_range,
        facts={**image.facts, "notes": (*image.facts.get("notes", ()), *notes)},
    )


def _open(path: Path, source: Source, limit: int | None) -> Raw:
    """Choose the reader by what the file begins with, not by its name."""
    from napari_invprior.io import formats, omezarr_read, tiff, tiff_folder

    if path.is_dir():
        if source.key is None and not omezarr_read.is_store(path) and tiff_folder.slices_in(path):
            return tiff_folder.read_folder(path, limit)
        return omezarr_read.open_level(path, source.key, limit)
    with path.open("rb") as file:
        head = file.read(8)
    readers: dict[bytes, Callable[[], Raw]] = {
        b"\x89PNG\r\n\x1a\n": lambda: formats.read_png(path, limit),
        b"\x93NUMPY": lambda: formats.read_npy(path, limit),
        b"II*\0": lambda: tiff.read_tiff(path, limit),
        b"MM\0*": lambda: tiff.read_tiff(path, limit),
        b"II+\0": lambda: tiff.read_tiff(path, limit),
        b"MM\0+": lambda: tiff.read_tiff(path, limit),
    }
    if path.suffix.lower() in PICKLED or head[:1] == b"\x80":
        raise FileRefused(f"{path.name}: pickled files may run code and are never opened")
    if head[:4] == b"PK\3\4":
        return formats.read_npz(path, limit, source.key)
    for magic, reader in readers.items():
        if head.startswith(magic):
            if source.key is not None:
                raise InvalidInput(f"{path.name}: holds one image; 'key' is for NPZ and OME-Zarr")
            return reader()
    what = "is empty" if not head else "is of an unknown kind"
    raise FileRefused(f"{path.name}: {what}; {KINDS} can be read")
