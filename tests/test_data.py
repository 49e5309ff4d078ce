"""Batches from arrays, and the scaling of pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait.data import Scaling, array_data, scaling_of
from npgait.streams import random_streams


@given(n=st.integers(1, 20), size=st.integers(1, 25), start=st.integers(0, 5), seed=st.integers(0, 9))
def test_batches_are_the_samples_in_order_each_once(n, size, start, seed):
    x = np.arange(2 * n).reshape(n, 2)
    order = np.random.default_rng(seed).permutation(n)
    batches = list(array_data(x, np.arange(n)).batches(size, order, start=start))
    labels = np.concatenate([b for _, b in batches]) if batches else np.array([])
    np.testing.assert_array_equal(labels, order[start * size :])
    for values, own in batches:
        np.testing.assert_array_equal(values, x[own])
        assert len(own) <= size


def test_images_are_flattened_scaled_and_cast(dtype, rng):
    images = rng.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    data = array_data(images, np.zeros(6, int), scaling=scaling_of(images, "standard"), dtype=dtype)
    ((x, _),) = data.batches(6)
    assert x.dtype == dtype
    assert x.shape == (6, 60)
    channels = x.reshape(-1, 3)
    np.testing.assert_allclose(channels.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(channels.std(axis=0), 1, rtol=1e-5)
    assert images.dtype == np.uint8


@pytest.mark.parametrize("given", [np.uint8, np.float64])
def test_one_shift_or_one_scale_does_for_all_channels(given, loops, dtype, rng):
    x = rng.integers(0, 200, (5, 4, 6, 3)).astype(given)
    of_channels = rng.uniform(1, 9, 3)
    for shift, scale in ((of_channels, 0.5), (7.0, of_channels)):
        got = Scaling(shift, scale).apply(x, dtype)
        expected = (x - shift) * scale
        np.testing.assert_allclose(got, expected, rtol=0, atol=8 * np.finfo(dtype).eps * 2000)


def test_unit_scaling_divides_by_the_largest_value():
    data = array_data(np.full((1, 2), 16, np.uint8), [0], scaling=scaling_of(None, "unit", max_value=16))
    assert next(data.batches(1))[0].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_standard_scaling_of_many_images_is_that_of_all_of_them(dtype, rng):
    images = rng.integers(0, 256, (2500, 3, 3)).astype(dtype)
    scaling = scaling_of(images, "standard")
    assert scaling.shift == pytest.approx(images.mean())
    assert scaling.scale == pytest.approx(1 / images.std())


@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 600), st.integers(1, 4)),
        st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5)),
        st.tuples(st.integers(1, 300), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    ),
    lowest=st.sampled_from([0, 254, 255]),
)
def test_bytes_are_scaled_as_other_numbers_are(shape, lowest):
    x = np.random.default_rng(shape[0]).integers(lowest, 256, shape, dtype=np.uint8)
    got, expected = scaling_of(x, "standard"), scaling_of(x.astype(float), "standard")
    for one, other in ((got.shift, expected.shift), (got.scale, expected.scale)):
        assert np.shape(one) == np.shape(other)
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_a_channel_that_varies_little_is_scaled_all_the_same():
    images = np.array([7, 8], np.uint8).reshape(2, 1, 1)
    assert (scaling_of(images, "standard").shift, scaling_of(images, "standard").scale) == (7.5, 2.0)


def test_a_constant_channel_is_not_divided_by_zero():
    scaling = scaling_of(np.full((3, 2, 2, 3), 7, np.uint8), "standard")
    np.testing.assert_array_equal(scaling.scale, 1.0)


def test_the_callers_array_is_left_alone(rng):
    x = rng.standard_normal((4, 3)).astype(np.float32)
    before = x.copy()
    list(array_data(x, [0, 1, 0, 1], scaling=scaling_of(x, "standard")).batches(2))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (np.zeros(3), [0, 0, 0], "shape"),
        (np.zeros((0, 3)), np.zeros(0, int), "N > 0"),
        (np.zeros((2, 3)), [0], r"expected \(2,\)"),
        (np.zeros((2, 3)), [0.0, 1.0], "integers"),
        (np.zeros((2, 3)), [0, 5], "0..5"),
        (np.zeros((2, 3)), [-1, 0], "-1..0"),
        (np.array([["a"], ["b"]]), [0, 1], "real numbers"),
        (np.full((2, 3), np.nan), [0, 1], "NaN"),
    ],
)
def test_arrays_that_are_not_samples_and_labels_are_refused(x, labels, message):
    with pytest.raises((TypeError, ValueError), match=message):
        array_data(x, labels, n_classes=3)


@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 16, 16, 1)])
def test_images_with_and_without_an_axis_of_channels_are_augmented(shape, rng):
    data = array_data(rng.random(shape), np.zeros(4, int), augmentation="crop")
    (x, _), (own, _) = next(data.shuffled(4, random_streams(0))), next(data.batches(4))
    assert x.shape == own.shape
    assert (x == 0).any()  # of the padding


def test_what_the_networks_dtype_cannot_hold_is_refused_before_training():
    x, labels = np.full((4, 3), 1e39), np.zeros(4, int)
    with pytest.raises(ValueError, match=r"float32 ends at 3.4e\+38: scale x down"):
        array_data(x, labels)
    assert len(array_data(x, labels, dtype="float64")) == 4


@pytest.mark.parametrize("shape", [(50, 6), (50, 4, 5), (50, 4, 5, 3)])
def test_halves_are_scaled_as_other_numbers_are(shape, rng):
    x = (1000 + 500 * rng.standard_normal(shape)).astype(np.float16)
    got, expected = scaling_of(x, "standard"), scaling_of(x.astype(np.float64), "standard")
    np.testing.assert_allclose(got.scale, expected.scale, rtol=1e-12)


@pytest.mark.parametrize("factor", [1.01, -1.01, np.inf, -np.inf, np.nan])
def test_one_value_that_the_dtype_cannot_hold_is_enough_to_refuse_all(factor):
    x, largest = np.zeros((4, 3)), float(np.finfo(np.float32).max)
    x[2, 1] = factor * largest
    with pytest.raises(ValueError, match=r"finite|scale x down"):
        array_data(x, np.zeros(4, int))
    x[2, 1] = np.copysign(largest, factor)
    assert len(array_data(x, np.zeros(4, int))) == 4


@pytest.mark.parametrize("dtype", ["float16", "int32", np.uint8])
def test_batches_are_of_no_dtype_that_networks_are_not_of(dtype):
    with pytest.raises(ValueError, match="use float32 or float64"):
        array_data(np.zeros((4, 3)), np.zeros(4, int), dtype=dtype)


def test_an_unknown_normalisation_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'standart' is unknown; use one of none, unit, standard"):
        scaling_of(np.zeros((2, 3)), "standart")
