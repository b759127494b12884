"""Faults of sinograms, each put into a good one, and what the check says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from napari_invprior.numerics.projector import Projector
from napari_invprior.numerics.rays import Scan
from napari_invprior.phantoms import ellipses, foam, shepp_logan
from napari_invprior.physics.base import Inspection
from napari_invprior.physics.sinogram import inspect_sinogram

ANGLES = tuple(np.arange(96) * math.pi / 96)
PARALLEL = Scan(ANGLES, 128)
FAN = Scan(tuple(np.arange(120) * math.pi / 60), 150, 1.4, source=300.0, detector=400.0)


def sinogram(scan: Scan = PARALLEL, image: np.ndarray | None = None, noise: float = 0.3):
    image = foam(128, 5) if image is None else image
    y = Projector(scan, image.shape)(torch.from_numpy(image)[None]).numpy()[0]
    return y + noise * np.random.default_rng(0).standard_normal(y.shape)


def inspected(y: np.ndarray, scan: Scan = PARALLEL) -> Inspection:
    return inspect_sinogram(y[None, None], scan)


def said(y: np.ndarray, scan: Scan = PARALLEL) -> str:
    return " | ".join(m.text for m in inspected(y, scan).messages)


@pytest.mark.parametrize("scan", [PARALLEL, FAN, Scan(ANGLES[:64], 128), Scan(ANGLES[::4], 128)])
@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("make", [ellipses, foam, lambda size, seed: shepp_logan(size)])
def test_a_good_sinogram_raises_no_doubt(make, noise, scan):
    found = inspected(sinogram(scan, make(128, 2), noise), scan)
    assert found.messages == ()
    assert found.observed is None


def test_a_transposed_sinogram_of_equal_edges():  # row 24
    square = Scan(tuple(np.arange(128) * math.pi / 128), 128)
    assert "transposed" in said(sinogram(square).T.copy(), square)


@pytest.mark.parametrize("shift", [-3.4, -1.0, 0.8, 5.25])
@pytest.mark.parametrize("scan", [PARALLEL, FAN])
def test_the_rotation_axis_is_found(shift, scan):  # row 24
    """To a fifth of a bin on a clean scan; the number is offered as physics.centre."""
    moved = Scan(scan.angles, scan.bins, scan.spacing, shift, scan.source, scan.detector)
    text = said(sinogram(moved, 0.8 * ellipses(128, 2), 0.1), scan)
    assert "physics.centre" in text
    assert float(text.split("physics.centre to ")[1]) == pytest.approx(shift, abs=0.2)
    assert said(sinogram(moved, ellipses(128, 2), 0.1), moved) == ""


def test_counts_instead_of_line_integrals():  # row 24
    counts = 4096 * np.exp(-0.03 * sinogram())
    assert "counts" in said(counts)


def test_negative_line_integrals():  # row 24
    assert "negative" in said(sinogram() - 6.0)
    assert "negative" in said(-sinogram())


def test_an_object_wider_than_the_detector():
    narrow = Scan(ANGLES, 90)
    assert "wider than the detector" in said(sinogram(narrow), narrow)


@pytest.mark.parametrize("value", [0.0, 12.0])
def test_dead_bins_are_found_and_proposed_as_mask(value):  # row 25
    y = sinogram()
    y[:, [40, 71]] = value
    found = inspected(y)
    assert "40, 71" in found.messages[0].text
    assert found.observed is not None
    assert np.flatnonzero(~found.observed.numpy().all(0)).tolist() == [40, 71]


@pytest.mark.parametrize("offset", [4.0, -4.0])
def test_a_ring_is_found(offset):  # row 25
    """5 % of the largest line integral, in a foam whose neighbours differ by 2 %."""
    y = sinogram()
    y[:, 55] += offset
    found = inspected(y)
    assert "55" in found.messages[0].text
    assert found.observed is not None and not found.observed[:, 55].any()


def test_saturated_samples_are_found():  # row 25
    y = np.minimum(sinogram(), 0.85 * sinogram().max())
    found = inspected(y)
    assert "saturated" in found.messages[0].text
    assert found.observed is not None and not found.observed[y == y.max()].any()


def test_a_ruined_detector_is_told_and_not_masked():
    y = sinogram()
    y[:, 10:118:2] = 0
    y[:, 11:118:4] = 1
    found = inspected(y)
    assert "flat-field" in found.messages[0].text


def test_in_a_stack_only_the_slice_with_the_fault_is_masked():
    stack = np.stack([sinogram(), sinogram()])
    stack[1, :, 64] = 0
    found = inspect_sinogram(stack[None, None], PARALLEL)
    assert found.observed is not None
    assert found.observed[0].all() and not found.observed[1, :, 64].any()
