"""OME-Zarr as others see it: what is written here they read, and what they write is read here.

References: ``ome-zarr`` (of the specification's authors), ``ngff-zarr`` (which also holds the
metadata against the JSON schemas of the specification), and napari's own reader.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari_builtins.io
import ngff_zarr
import numpy as np
import ome_zarr.format
import ome_zarr.io
import ome_zarr.reader
import ome_zarr.writer
import pytest
import zarr

from napari_invprior import jobs
from napari_invprior.blocks.job import start
from napari_invprior.geometry import Geometry
from napari_invprior.io import omezarr
from napari_invprior.io.images import load
from napari_invprior.io.omezarr import read_image, write_image
from napari_invprior.io.omezarr_read import open_pyramid
from napari_invprior.samples import grey_volume
from napari_invprior.sources import Source

Levels = list[tuple[np.ndarray, tuple[float, ...], tuple[float, ...]]]
"""Samples, scale and translation of each level, without what belongs to channels and frames."""

SCALE, SHIFT = (0.5, 0.25, 0.125), (1.0, -2.0, 3.0)


def placed(ndim: int) -> Geometry:
    return Geometry(SCALE[-ndim:], SHIFT[-ndim:], ("micrometer",) * ndim, tuple("zyx"[-ndim:]))


# --- what is written here -----------------------------------------------------------------------


def by_ome_zarr(path: Path, ndim: int) -> Levels:
    location = ome_zarr.io.parse_url(str(path))
    assert location is not None
    assert location.fmt.version == "0.5"
    (node,) = ome_zarr.reader.Reader(location)()
    axes = node.metadata["axes"]
    assert [axis["name"] for axis in axes[-ndim:]] == list("zyx"[-ndim:])
    assert {axis["unit"] for axis in axes[-ndim:]} == {"micrometer"}
    found = []
    for data, (scale, shift) in zip(
        node.data, node.metadata["coordinateTransformations"], strict=True
    ):
        array = np.asarray(data)
        found.append(
            (array, tuple(scale["scale"][-ndim:]), tuple(shift["translation"][-ndim:]))
        )
    return found


def by_ngff_zarr(path: Path, ndim: int) -> Levels:
    multiscales = ngff_zarr.from_ngff_zarr(path, validate=True)
    axes = "zyx"[-ndim:]
    found = []
    for image in multiscales.images:
        assert tuple(image.dims)[-ndim:] == tuple(axes)
        assert {image.axes_units[axis] for axis in axes} == {"micrometer"}
        place = (tuple(facts[axis] for axis in axes) for facts in (image.scale, image.translation))
        found.append((np.asarray(image.data), *place))
    return found


READERS = [by_ome_zarr, by_ngff_zarr]


def assert_read(path: Path, array: np.ndarray, ndim: int, read: Callable[..., Levels]) -> None:
    """The first level is the array in its place; the corners of all levels coincide."""
    levels = read(path, ndim)
    samples, scale, shift = levels[0]
    np.testing.assert_array_equal(samples, array)
    assert samples.dtype == array.dtype
    assert (scale, shift) == (SCALE[-ndim:], SHIFT[-ndim:])
    for coarse, s, t in levels[1:]:
        assert coarse.ndim == array.ndim
        corner = np.subtract(t, np.divide(s, 2))
        np.testing.assert_allclose(corner, np.subtract(shift, np.divide(scale, 2)))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("shape", "ndim", "told"),
    [
        ((300, 41), 2, {}),
        ((2, 70, 33), 2, {"channels": ["a", "b"]}),
        ((3, 70, 33), 2, {}),
        ((70, 40, 33), 3, {}),
        ((2, 3, 70, 20, 33), 3, {"channels": ["a", "b", "c"]}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_others_read_what_is_written(
    tmp_path: Path, shape: tuple[int, ...], ndim: int, told: dict[str, Any], dtype: str, read: Any
) -> None:
    array = np.random.default_rng(0).integers(0, 999, shape).astype(dtype)
    path = tmp_path / "r.ome.zarr" / "x"
    write_image(path, array, placed(ndim), attributes={"seed": 1}, **told)
    assert_read(path, array, ndim, read)


@pytest.mark.parametrize("read", READERS)
def test_others_read_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    monkeypatch.setattr(omezarr, "SHARD_AT", 1000)
    monkeypatch.setitem(omezarr.CHUNK, 3, 16)
    array = np.random.default_rng(0).random((130, 45, 20), np.float32)
    path = tmp_path / "r.ome.zarr" / "x"
    write_image(path, array, placed(3))
    assert zarr.open_group(path, mode="r")["0"].shards is not None
    assert_read(path, array, 3, read)


def by_napari(path: Path) -> list[np.ndarray]:
    """Levels, as napari shows them without any plugin."""
    (layer,) = napari_builtins.io.napari_get_reader(str(path))(str(path))
    return [np.asarray(level) for level in layer[0]]


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job in eight blocks."""
    folder = tmp_path_factory.mktemp("blocked")
    volume = grey_volume((100, 72, 70), seed=3)
    write_image(folder / "in.ome.zarr" / "volume", volume, placed(3), value_range=(0, 1))
    np.save(folder / "reference.npy", grey_volume((32, 32, 32), seed=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "napari_invprior.blocks.catalogue.user_data_path", lambda *_, **__: folder / "known"
        )
        jobs.run(start({
            "observation": {"path": str(folder / "in.ome.zarr")},
            "references": [{"path": str(folder / "reference.npy")}],
            "physics": {"kind": "denoising"}, "noise": {"kind": "gaussian", "sigma": 0.05},
            "prior": {"kind": "gmm", "components": 2, "steps": 2, "patch_size": 4},
            "solver": {"kind": "half_quadratic", "steps": 2, "weight": 1.0},
            "blocks": {"edge": 64, "tolerance": 1e-3},
        }, folder / "job"))
    return folder / "job" / "result.ome.zarr"


@pytest.mark.parametrize("read", READERS)
def test_others_read_the_result_of_blocks(blocked: Path, read: Any) -> None:
    path = blocked / "reconstruction"
    array = read_image(path).array[0, 0]
    assert array.shape == (100, 72, 70)
    assert np.isfinite(array).all()
    assert_read(path, array, 3, read)


def test_napari_reads_the_result_of_blocks(blocked: Path) -> None:
    levels = by_napari(blocked)
    assert [level.shape for level in levels] == [(100, 72, 70), (50, 36, 35)]
    np.testing.assert_array_equal(levels[0], read_image(blocked, "reconstruction").array[0, 0])


# --- what others write --------------------------------------------------------------------------


def with_ome_zarr(path: Path, array: np.ndarray, axes: str, version: str) -> None:
    """Two levels; the second one is every second sample."""
    formats = {"0.4": ome_zarr.format.FormatV04, "0.5": ome_zarr.format.FormatV05}
    fmt = formats[version]()
    kinds = {"t": "time", "c": "channel"}
    described = [
        {"name": a, "type": kinds.get(a, "space")} | ({} if a in kinds else {"unit": "micrometer"})
        for a in axes
    ]
    others = len(axes) - 3
    ome_zarr.writer.write_multiscale(
        [array, array[..., ::2, ::2, ::2]],
        zarr.open_group(path, mode="w", zarr_format=fmt.zarr_format), fmt=fmt, axes=described,
        coordinate_transformations=[[
            {"type": "scale", "scale": [1.0] * others + [factor * s for s in SCALE]},
            {"type": "translation", "translation": [0.0] * others + list(SHIFT)},
        ] for factor in (1, 2)],
    )


def with_ngff_zarr(path: Path, array: np.ndarray, axes: str, version: str) -> None:
    space = axes[-3:]
    image = ngff_zarr.to_ngff_image(
        array, dims=list(axes), scale=dict(zip(space, SCALE, strict=True)),
        translation=dict(zip(space, SHIFT, strict=True)),
        axes_units=dict.fromkeys(space, "micrometer"),
    )
    multiscales = ngff_zarr.to_multiscales(image, scale_factors=[], axis_order="preserve")
    ngff_zarr.to_ngff_zarr(path, multiscales, version=version)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("write", [with_ome_zarr, with_ngff_zarr])
@pytest.mark.parametrize("axes", ["zyx", "czyx", "tczyx"])
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_what_others_write_is_read(
    tmp_path: Path, write: Any, axes: str, version: str, dtype: str
) -> None:
    shape = (2, 3, 20, 24, 28)[-len(axes) :]
    array = np.random.default_rng(0).integers(0, 999, shape).astype(dtype)
    write(tmp_path / "x.ome.zarr", array, axes, version)
    image = load(Source(path=str(tmp_path / "x.ome.zarr")))
    np.testing.assert_array_equal(image.array.ravel(), array.ravel())
    assert image.array.dtype == array.dtype
    assert image.geometry == placed(3)
    _, levels = open_pyramid(tmp_path / "x.ome.zarr", None)
    for level, coarse in zip(levels, (array, array[..., ::2, ::2, ::2]), strict=False):
        np.testing.assert_array_equal(level[...], coarse)
