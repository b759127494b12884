"""Laws that every registered forward operator obeys, in 2D and 3D."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from napari_invprior import registry
from napari_invprior.geometry import Geometry
from napari_invprior.physics.base import Physics
from napari_invprior.physics.piece import take_piece

ODD = {2: (25, 18), 3: (13, 10, 12)}

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "superresolution": [
        {"factor": 3, "blur_sigma": 1.0, "boundary": b, "psf": p, "pixel_average": a}
        for b in ("reflect", "circular", "valid")
        for p, a in ((False, False), (False, True), (True, False))
    ]
    + [{"factor": 1}, {"factor": 2, "boundary": "circular", "anchor": "centre"}],
    "blur": [
        {"blur_sigma": 0.8, "boundary": b, "psf": p}
        for b in ("reflect", "circular", "valid")
        for p in (False, True)
    ],
    "inpainting": [{"mask": True}],
    "denoising": [{}],
    "tomography": [
        {"angle_count": 12},
        {"angle_count": 11, "angle_range": 360, "geometry": "fan", "source_to_centre": 40,
         "source_to_detector": 60, "centre": 0.7},
        {"angles": (0.0, 0.3, 0.3, 1.0, 2.5), "image_size": (10, 9), "detector_spacing": 0.8},
        {"angle_count": 9, "angle_range": 120, "detector_spacing": 1.7, "pixel_size": 0.1},
    ],
}


def operators(*without: str) -> list[Any]:
    """Every registered operator in all its variants, in 2D and 3D."""
    listed = []
    for method in registry.methods("physics"):
        if method.name in without or not method.cls.informative:
            continue  # no data: every law about them holds trivially
        for ndim in method.dimensions:
            for number, options in enumerate(VARIANTS[method.name]):
                listed.append(
                    pytest.param(method, ndim, options, id=f"{method.name}-{ndim}d-{number}")
                )
    return listed


def build(method: registry.Method, ndim: int, options: dict[str, Any]) -> Physics:
    generator = torch.Generator().manual_seed(3)
    arrays = {}
    options = dict(options)
    if options.pop("psf", False):
        arrays["psf"] = torch.rand((4, 5, 3)[:ndim], generator=generator, dtype=torch.float64)
    if options.pop("mask", False):
        arrays["mask"] = torch.rand(ODD[ndim], generator=generator) > 0.4
    return method.cls(method.parameters(**options), ndim, **arrays)


def image(physics: Physics, ndim: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    space = physics.fitting_shape(ODD[ndim])
    generator = torch.Generator().manual_seed(1)
    return torch.rand((2, 3, *space), generator=generator, dtype=dtype)


@pytest.mark.parametrize(("method", "ndim", "options"), operators())
def test_adjoint(method: registry.Method, ndim: int, options: dict[str, Any]) -> None:
    physics = build(method, ndim, options)
    x = image(physics, ndim)
    y = physics.A(x)
    assert tuple(y.shape[2:]) == physics.out_shape(x.shape[2:])
    assert physics.in_shape(y.shape[2:]) == tuple(x.shape[2:])
    v = torch.randn_like(y)
    mismatch = abs((y * v).sum() - (x * physics.A_adjoint(v)).sum()) / (y.norm() * v.norm())
    assert float(mismatch) < 1e-10


@pytest.mark.parametrize(("method", "ndim", "options"), operators())
def test_prox_is_optimal(method: registry.Method, ndim: int, options: dict[str, Any]) -> None:
    physics = build(method, ndim, options)
    z = image(physics, ndim)
    y = torch.rand_like(physics.A(z))
    mu = 0.3
    physics.prox_tolerance = 1e-5  # within a solver an operator may stop earlier
    x = physics.prox(z, y, mu)
    gradient = physics.A_adjoint(physics.A(x) - y) + mu * (x - z)
    assert float(gradient.abs().max()) < 1e-4 * float(z.abs().max())


@pytest.mark.parametrize(("method", "ndim", "options"), operators())
def test_norm_and_pseudo_inverse(
    method: registry.Method, ndim: int, options: dict[str, Any]
) -> None:
    physics = build(method, ndim, options)
    x = image(physics, ndim)
    norm = physics.norm(x.shape[2:])
    y = physics.A(x)
    assert float(y.norm()) <= norm * float(x.norm()) * (1 + 1e-6)
    power = x[:1, :1]
    for _ in range(200):
        power = physics.A_adjoint(physics.A(power))
        power /= power.norm()
    assert float(physics.A(power).norm()) == pytest.approx(norm, rel=2e-2)
    again = physics.A(physics.A_dagger(y))
    assert float((again - y).norm()) < 2e-2 * float(y.norm())


@pytest.mark.parametrize(("method", "ndim", "options"), operators())
def test_any_strides_and_single_precision(
    method: registry.Method, ndim: int, options: dict[str, Any]
) -> None:
    physics = build(method, ndim, options)
    x = image(physics, ndim)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1).flip(-1).flip(-1)
    before = strided.clone()
    # a product may sum in another order for other strides
    assert torch.allclose(physics.A(strided), physics.A(x), rtol=0, atol=1e-12)
    assert torch.equal(strided, before)
    single = physics.A(x.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), physics.A(x), atol=1e-5)


@pytest.mark.parametrize(("method", "ndim", "options"), operators())
def test_grid_and_data_grid_are_inverse(
    method: registry.Method, ndim: int, options: dict[str, Any]
) -> None:
    physics = build(method, ndim, options)
    scale = (2.0, 0.5, 1.0)[:ndim]
    if method.name == "tomography":  # pixels of a slice are square
        scale = (*scale[:-2], 0.5, 0.5)
    geometry = Geometry(scale, (3.0, -1.0, 0.0)[:ndim])
    again = physics.grid(physics.data_grid(geometry))
    assert again.scale == pytest.approx(geometry.scale)
    assert again.translate == pytest.approx(geometry.translate)


@pytest.mark.parametrize(("method", "ndim", "options"), operators("inpainting", "tomography"))
def test_a_spot_is_seen_where_it_lies(
    method: registry.Method, ndim: int, options: dict[str, Any]
) -> None:
    """The centre of mass of a smooth spot is the same in image and data world coordinates."""
    physics = build(method, ndim, options)
    space = physics.fitting_shape((48, 45, 42)[:ndim])
    corner = getattr(physics, "before", (1,))[0] == 0 and physics.reach() != (1,) * ndim
    middle = [n / 2 + (max(physics.reach()) / 2 if corner else 0) * 0.3 for n in space]
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in space), indexing="ij")
    spot = torch.exp(-sum((a - m) ** 2 for a, m in zip(axes, middle, strict=True)) / 18)
    y = physics.A(spot[None, None])[0, 0]
    grid = physics.grid(Geometry.identity(ndim))
    for axis in range(ndim):
        line = y.sum([a for a in range(ndim) if a != axis])
        centre = float((line * torch.arange(len(line))).sum() / line.sum())
        world = grid.translate[axis] + grid.scale[axis] * middle[axis]
        assert centre == pytest.approx(world, abs=0.05)


@pytest.mark.parametrize(("method", "ndim", "options"), operators())
def test_a_piece_explains_its_data(
    method: registry.Method, ndim: int, options: dict[str, Any]
) -> None:
    physics = build(method, ndim, options)
    x = image(physics, ndim)
    y = physics.A(x)
    window = tuple(
        slice(n // 3, n // 3 + max(1, n // 3)) if cut else slice(0, n)
        for n, cut in zip(y.shape[2:], physics.divisible(), strict=True)
    )
    piece = take_piece(physics, window, tuple(y.shape[2:]))
    index = [
        torch.arange(a, a + n) % size
        for a, n, size in zip(piece.image_start, piece.image_shape, x.shape[2:], strict=True)
    ]
    if getattr(physics, "boundary", "") != "circular":
        assert piece.lies_inside(tuple(x.shape[2:]))
    part = x[(slice(None), slice(None), *torch.meshgrid(*index, indexing="ij"))]
    assert torch.allclose(piece.physics.A(part), y[piece.data_index], atol=1e-10)
