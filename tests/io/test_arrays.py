"""What axes mean, which values are black and white, and how images are placed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.io.arrays import axes_of, image_from_array, named_axes


@pytest.mark.parametrize(
    ("shape", "told", "expected"),
    [
        ((20, 30), {}, (1, 1, 20, 30)),
        ((20, 30, 3), {}, (1, 3, 20, 30)),
        ((20, 30, 4), {}, (1, 3, 20, 30)),
        ((20, 30, 3), {"ndim": 2}, (1, 3, 20, 30)),
        ((20, 30, 3), {"ndim": 3}, (1, 1, 20, 30, 3)),
        ((20, 30, 40), {}, (1, 1, 20, 30, 40)),
        ((20, 30, 40), {"ndim": 2}, (20, 1, 30, 40)),
        ((3, 30, 40), {"ndim": 3}, (1, 1, 3, 30, 40)),
        ((3, 30, 40), {"channel_axis": 0}, (1, 3, 30, 40)),
        ((1, 30, 40), {}, (1, 1, 30, 40)),
        ((5, 1, 30, 40), {"ndim": 3}, (5, 1, 30, 40)),
        ((5, 2, 30, 40), {"channel_axis": 1, "ndim": 2}, (5, 2, 30, 40)),
        ((5, 6, 30, 40), {"ndim": 2}, (30, 1, 30, 40)),
        ((5, 20, 30, 3), {"rgb": True, "ndim": 2}, (5, 3, 20, 30)),
        ((1, 50), {}, (1, 1, 1, 50)),
    ],
)
def test_shapes_become_frames_channels_and_space(shape, told, expected):
    array = np.random.default_rng(0).random(shape)
    image = image_from_array(array, name="x", **told)
    assert image.array.shape == expected
    assert len(image.geometry.scale) == image.ndim


@pytest.mark.parametrize(
    ("shape", "told", "words"),
    [
        ((), {}, "no image"),
        ((30,), {}, "no image"),
        ((1, 1), {}, "single sample"),
        ((1, 1, 1), {}, "single sample"),
        ((3, 30, 40), {}, "first 3 channels or slices"),
        ((5, 6, 30, 40), {}, "ambiguous"),
        ((20, 30), {"ndim": 3}, "fewer than 3"),
        ((20, 30), {"ndim": 1}, "two or three"),
        ((20, 30), {"channel_axis": 5}, "channel axis 5"),
        ((0, 30), {}, "no sample"),
    ],
)
def test_what_cannot_be_an_image_is_refused_with_the_way_out(shape, told, words):
    with pytest.raises(InvalidInput, match=words):
        image_from_array(np.zeros(shape), name="x", **told)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((9, 9), complex),
        np.array([[object()] * 9] * 9),
        np.full((9, 9), "a"),
        np.zeros((9, 9), "datetime64[s]"),
        np.zeros((9, 9), [("a", "f4")]),
        None,
        "text",
    ],
)
def test_samples_that_are_no_intensities_are_refused(array):
    with pytest.raises(InvalidInput, match="x:"):
        image_from_array(array, name="x")


def test_channels_keep_their_samples():
    array = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    image = image_from_array(array, name="x")
    assert image.rgb
    assert image.channel_axis == 2
    np.testing.assert_array_equal(np.moveaxis(image.array[0], 0, -1), array)


def test_frames_keep_their_order():
    array = np.random.default_rng(0).random((4, 3, 2, 20, 30))
    image = image_from_array(array, name="x", channel_axis=2, ndim=2)
    assert image.frame_axes == (4, 3)
    np.testing.assert_array_equal(image.array.reshape(array.shape), array)


@pytest.mark.parametrize("shape", [(9, 9), (9, 8, 3), (1, 9, 9)])
def test_the_user_array_is_never_written_to(shape):
    array = np.zeros(shape)
    image = image_from_array(array, name="x")
    assert array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        image.array[...] = 1


@given(
    arrays.arrays(
        st.sampled_from(["<u2", ">u2", "<f4", ">f4", "<f8", "<f2", "i2", "i8", "u1", "?"]),
        arrays.array_shapes(min_dims=2, max_dims=3, min_side=5, max_side=9),
    ),
    st.sampled_from(["C", "reversed", "strided", "read-only"]),
)
def test_any_type_and_layout_gives_the_same_numbers(array, layout):
    given_array = {
        "C": array,
        "reversed": array[::-1, ::-1],
        "strided": array[::2, 1::2],
        "read-only": array.copy(),
    }[layout]
    given_array.flags.writeable = layout != "read-only"
    if np.isfinite(given_array.astype(float)).any():
        image = image_from_array(given_array, name="x", ndim=array.ndim)
        assert image.array.dtype.isnative
        np.testing.assert_array_equal(image.array[0, 0], given_array)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 1], [1, 0]], bool), (0, 1)),
        (np.array([[3, 7], [4, 5]], np.uint8), (0, 255)),
        (np.array([[0.2, 0.3], [0.4, 0.5]]), (0, 1)),
        (np.array([[-0.1, 1.05], [0.4, 0.5]]), (0, 1)),
        (np.full((4, 4), 7, np.uint16), (7, 8)),
        (np.where(np.eye(4) > 0, np.nan, 0.5), (0, 1)),
    ],
)
def test_value_range(array, expected):
    assert image_from_array(array, name="x").value_range == expected


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
def test_value_range_of_other_numbers_is_robust_percentiles(dtype):
    values = np.random.default_rng(0).integers(100, 4000, (200, 200)).astype(dtype)
    values[3, 4] = 32000  # one hot pixel
    low, high = image_from_array(values, name="x").value_range
    assert 100 <= low < 110
    assert 3980 < high <= 4000


def test_a_rare_value_is_seen_where_hardly_anything_else_is():
    values = np.zeros((100, 100), np.uint16)
    values[0, 0] = 5
    assert image_from_array(values, name="x").value_range == (0, 5)


def test_nothing_finite_is_refused_and_nan_is_kept():
    with pytest.raises(InvalidInput, match="finite"):
        image_from_array(np.full((9, 9), np.nan), name="x")
    array = np.zeros((9, 9))
    array[1, 2], array[3, 4] = np.nan, np.inf
    np.testing.assert_array_equal(image_from_array(array, name="x").array[0, 0], array)


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, np.nan), (-np.inf, 1)])
def test_impossible_value_ranges_are_refused(value_range):
    with pytest.raises(InvalidInput, match="value range"):
        image_from_array(np.zeros((9, 9)), name="x", value_range=value_range)


def test_notes_name_what_was_changed():
    notes = image_from_array(np.zeros((1, 9, 8)), name="x").facts["notes"]
    assert notes == ("one slice only; used as an image of 9 x 8",)
    notes = image_from_array(np.zeros((9, 8, 4)), name="x").facts["notes"]
    assert "transparency" in notes[0]
    assert image_from_array(np.zeros((9, 8, 3)), name="x").facts["notes"] == ()


def test_a_flat_axis_takes_its_placement_with_it():
    placed = Geometry((4.0, 2.0, 3.0), (7.0, 8.0, 9.0), ("um", "nm", "mm"), ("z", "y", "x"))
    image = image_from_array(np.zeros((9, 1, 8)), name="x", geometry=placed)
    assert image.geometry == Geometry((4.0, 3.0), (7.0, 9.0), ("um", "mm"), ("z", "x"))


def test_the_last_axes_of_a_placement_count():
    rotate = np.diag([1.0, 2.0, 3.0])
    affine = np.arange(16.0).reshape(4, 4)
    placed = Geometry((5.0, 2.0, 3.0), (7.0, 8.0, 9.0), rotate=rotate, affine=affine,
                      shear=np.array([0.1, 0.2, 0.3]))  # fmt: skip
    found = image_from_array(np.zeros((6, 9, 8)), name="x", ndim=2, geometry=placed).geometry
    assert found.scale == (2.0, 3.0)
    np.testing.assert_array_equal(found.rotate, np.diag([2.0, 3.0]))
    np.testing.assert_array_equal(found.affine, affine[1:, 1:])
    np.testing.assert_array_equal(found.shear, [0.3])


def test_a_placement_with_too_few_axes_is_refused():
    with pytest.raises(InvalidInput, match="placement"):
        image_from_array(np.zeros((9, 8, 7)), name="x", geometry=Geometry.identity(2))


@pytest.mark.parametrize("labels", ["QYX", "YX", "TYC", "YXZT", ""])
def test_letters_that_do_not_say_enough_are_not_trusted(labels):
    assert named_axes(labels, (5, 6, 7)) is None


def test_letters_win_over_the_shape():
    axes = named_axes("CYXS", (2, 20, 30, 3))
    assert axes is not None
    assert (axes.frames, axes.channel, axes.space, axes.rgb) == ((0,), 3, (1, 2), True)
    assert axes_of((60, 70, 80), name="x").space == (0, 1, 2)
