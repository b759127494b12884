"""Projectors and back-projection: closed forms, scikit-image, and the matched pair."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.transform import radon

from napari_invprior.numerics.backprojection import angular_weights, back_projection
from napari_invprior.numerics.projector import Families, Projector, joseph_matrix
from napari_invprior.numerics.rays import Scan
from napari_invprior.phantoms import ellipses, shepp_logan

HALF = tuple(np.arange(60) * math.pi / 60)
TURN = tuple(np.arange(72) * math.pi / 36)
SCANS = {
    "parallel": Scan(HALF, 61),
    "axis off": Scan(HALF, 61, centre=2.3),
    "limited": Scan(HALF[:40], 61, spacing=1.3),
    "no order": Scan((0.1, 2.0, 0.7, 0.7, -1.3), 61),
    "fan": Scan(TURN, 81, spacing=1.6, centre=-0.4, source=100.0, detector=160.0),
    "short fan": Scan(TURN[:45], 81, spacing=1.2, source=100.0, detector=100.0),
}


def ellipse_integrals(
    scan: Scan, half: tuple[float, float], centre: tuple[float, float], turn: float
) -> np.ndarray:
    """Chord lengths through an ellipse (column, row), in closed form."""
    across, down, offset = scan.lines()
    offset = offset - across * centre[0] - down * centre[1]
    along = across * math.cos(turn) + down * math.sin(turn)
    beside = down * math.cos(turn) - across * math.sin(turn)
    reach = (half[0] * along) ** 2 + (half[1] * beside) ** 2
    chord: np.ndarray = (
        2 * half[0] * half[1] * np.sqrt(np.clip(reach - offset**2, 0, None)) / reach
    )
    return chord


def ellipse_image(size: int, half: tuple[float, float], centre: tuple[float, float], turn: float):
    """Area of each pixel inside the ellipse, from 8 x 8 samples."""
    line = (np.arange(8 * size) + 0.5) / 8 - size / 2
    x, y = line[None] - centre[0], line[:, None] - centre[1]
    a, b = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    inside = ((a / half[0]) ** 2 + (b / half[1]) ** 2 <= 1).astype(float)
    return torch.from_numpy(inside.reshape(size, 8, size, 8).mean((1, 3)))


def enlarged(scan: Scan, factor: int) -> Scan:
    """The same scan of an image with more pixels."""
    if scan.source is None or scan.detector is None:
        return replace(scan, spacing=factor * scan.spacing)
    return replace(
        scan, spacing=factor * scan.spacing, source=factor * scan.source,
        detector=factor * scan.detector,
    )


@pytest.mark.parametrize("name", SCANS)
def test_an_ellipse_casts_its_closed_form(name):
    """Pixels blur the border: 3 % apart on 60 pixels, 1 % where they are three times finer."""
    errors = []
    for factor in (1, 3):
        scan = enlarged(SCANS[name], factor)
        half, centre, turn = (14.0 * factor, 9.0 * factor), (5.0 * factor, -4.0 * factor), 0.6
        edge = 60 * factor
        image = ellipse_image(edge, half, centre, turn)
        y = Projector(scan, (edge, edge), torch.float64)(image[None])[0].numpy()
        expected = ellipse_integrals(scan, half, centre, turn)
        errors.append(float(np.linalg.norm(y - expected) / np.linalg.norm(expected)))
    assert errors[0] < 0.03
    assert errors[1] < 0.01


def test_data_are_those_of_scikit_image():
    """Same phantom, odd size (their axis is then ours): 1.5 % apart, both interpolate."""
    image = ellipses(129, 3).astype(np.float64)
    degrees = np.arange(0, 180, 3)
    theirs = radon(image, degrees, circle=True).T
    scan = Scan(tuple(np.deg2rad(degrees)), 129)
    ours = Projector(scan, (129, 129), torch.float64)(torch.from_numpy(image)[None])[0].numpy()
    assert np.linalg.norm(ours - theirs) < 0.015 * np.linalg.norm(theirs)


@pytest.mark.parametrize("shape", [(33, 33), (25, 34)])
@pytest.mark.parametrize("name", SCANS)
def test_families_kept_and_remade_matrices_are_one_operator(name, shape):
    scan = SCANS[name]
    kept = Projector(scan, shape, torch.float64)
    remade = Projector(scan, shape, torch.float64, matrix_bytes=0)
    assert kept.is_kept and not remade.is_kept
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((3, *shape), generator=generator, dtype=torch.float64)
    y = kept(x)
    plain = joseph_matrix(scan.lines(), shape, np.dtype(float))
    assert np.allclose((plain @ x[1].numpy().ravel()).reshape(y[1].shape), y[1], atol=1e-10)
    v = torch.rand(y.shape, generator=generator, dtype=torch.float64)
    assert abs(float((y * v).sum() - (x * kept.adjoint(v)).sum())) < 1e-10 * float(y.norm())
    assert torch.allclose(remade(x), y, atol=1e-10)
    assert torch.allclose(remade.adjoint(v), kept.adjoint(v), atol=1e-10)
    single = Projector(scan, shape)
    left = float((single(x.float()) * v.float()).double().sum())
    right = float((x.float() * single.adjoint(v.float())).double().sum())
    assert abs(left - right) < 1e-6 * float(y.norm() * v.norm())


def test_symmetry_is_found_where_it_is():
    full = Families(Scan(tuple(np.arange(180) * math.pi / 180), 64).lines(), (64, 64))
    assert (len(full.lines[0]), len(full.turns)) == (46, 4)
    fan = Families(Scan(TURN, 64, source=200.0, detector=200.0).lines(), (64, 64))
    assert (len(fan.lines[0]), len(fan.turns)) == (18, 4)
    none = Families(Scan((0.1, 0.2, 0.35), 64).lines(), (64, 64))
    assert len(none.lines[0]) == 3


@pytest.mark.parametrize(
    ("name", "scan", "at_least"),
    [
        ("parallel", Scan(tuple(np.arange(256) * math.pi / 256), 128), 28),
        ("wide", Scan(tuple(np.arange(256) * math.pi / 256), 150, centre=2.5), 28),
        ("fan", Scan(tuple(np.arange(360) * math.pi / 180), 200, source=250.0, detector=250.0), 28),
        (
            "short fan",
            Scan(tuple(np.arange(460) * math.pi / 360), 200, source=250.0, detector=250.0), 28,
        ),
        ("half a fan", Scan(tuple(np.arange(360) * math.pi / 360), 200, source=250.0,
                            detector=250.0), 20),
    ],
)
def test_many_angles_give_the_image_back(name, scan, at_least):
    image = torch.from_numpy(shepp_logan(128))[None]
    y = Projector(scan, (128, 128))(image)
    found = back_projection(y, scan, (128, 128), "ram-lak")
    error = float(((found.clamp(0, 1) - image) ** 2).mean())
    assert -10 * math.log10(error) > at_least
    assert float(found.mean()) == pytest.approx(float(image.mean()), rel=0.02)


def test_any_order_and_repetition_of_angles_gives_the_same_image():
    scan = Scan(tuple(np.arange(90) * math.pi / 90), 64)
    image = torch.from_numpy(shepp_logan(64))[None]
    y = Projector(scan, (64, 64))(image)
    found = back_projection(y, scan, (64, 64))
    order = np.random.default_rng(0).permutation(90)
    order = np.append(order, order[:5])
    mixed = Scan(tuple(np.asarray(scan.angles)[order]), 64)
    again = back_projection(y[:, order], mixed, (64, 64))
    assert float((again - found).norm()) < 2e-3 * float(found.norm())


def test_angular_weights_share_the_circle():
    uneven = (0.0, 0.1, 0.2, 1.5, 3.0)
    weights = angular_weights(uneven, math.pi)
    assert weights.min() > 0
    even = angular_weights(tuple(np.arange(7) * math.pi / 7), math.pi)
    assert np.allclose(even, math.pi / 7)
