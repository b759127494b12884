"""Sample data: shapes, seeds, what they are made of, and that nothing is downloaded."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import skimage.data
from scipy.ndimage import gaussian_filter

from napari_invprior import samples
from napari_invprior.errors import InvalidInput
from napari_invprior.samples import SAMPLES, binary_volume, grey_volume, load_sample


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a sample opened a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_sample_loads_offline_and_is_an_image(name, no_network):
    sample = SAMPLES[name]
    array = load_sample(name)
    assert sample.name == name
    assert array.ndim == sample.ndim
    assert sample.title
    assert sample.about.endswith(".")
    assert np.isfinite(array).all()
    assert array.std() > 0.02 * (255 if array.dtype == np.uint8 else 1)


def test_photographs_are_those_of_scikit_image_and_their_halves_do_not_overlap():
    whole = load_sample("gravel")
    assert np.array_equal(whole, skimage.data.gravel())
    halves = [load_sample("gravel-reference"), load_sample("gravel-test")]
    assert np.array_equal(np.concatenate(halves, axis=1), whole)


def test_binary_volume_is_the_generator_of_the_findings():
    noise = np.random.default_rng(7).standard_normal((20, 22, 24))
    field = gaussian_filter(noise, 2.0, mode="wrap")
    expected = 0.1 + 0.8 / (1 + np.exp(-field / field.std() / 0.05))
    assert binary_volume((20, 22, 24), 7) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("make", [binary_volume, grey_volume])
def test_volumes_are_seeded_periodic_and_of_any_shape(make):
    volume = make((20, 26, 33), 3)
    assert volume.shape == (20, 26, 33)
    assert volume.dtype == np.float32
    assert np.array_equal(volume, make((20, 26, 33), 3))
    assert not np.array_equal(volume, make((20, 26, 33), 4))
    for axis in range(3):
        inner = np.abs(np.diff(volume, axis=axis)).mean()
        seam = np.abs(volume.take(0, axis) - volume.take(-1, axis)).mean()
        assert seam < 1.6 * inner


def test_phases_have_the_stated_grey_values():
    coarse = binary_volume((40, 40, 40), 0, width=3.0)
    assert np.median(coarse[coarse < 0.5]) == pytest.approx(0.1, abs=0.01)
    assert np.median(coarse[coarse > 0.5]) == pytest.approx(0.9, abs=0.01)
    grey = grey_volume((40, 40, 40), 0)
    assert np.median(grey[grey < 0.5]) == pytest.approx(0.3, abs=0.03)
    assert np.median(grey[grey > 0.5]) == pytest.approx(0.7, abs=0.03)


def test_anisotropic_width_makes_structures_longer_along_that_axis():
    volume = binary_volume((40, 40, 40), 0, width=(1.5, 4.0, 4.0))
    steps = [np.abs(np.diff(volume, axis=axis)).mean() for axis in range(3)]
    assert steps[0] > 1.7 * steps[1]
    assert steps[1] == pytest.approx(steps[2], rel=0.2)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InvalidInput, match="did you mean 'gravel'"):
        load_sample("gravell")


def test_a_missing_photograph_is_refused_and_not_downloaded(monkeypatch, tmp_path, no_network):
    monkeypatch.setattr(samples.skimage.data, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(InvalidInput, match=r"no brick\.png"):
        load_sample("brick")
