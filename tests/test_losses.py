"""Losses and their derivatives."""

from __future__ import annotations

import numpy as np
import pytest

from npgait.losses import softmax_cross_entropy, squared_error


@pytest.mark.parametrize("loss", [softmax_cross_entropy, squared_error])
def test_error_is_the_numerical_derivative_of_the_loss(loss, rng):
    y, labels = rng.standard_normal((4, 5)), np.array([0, 4, 2, 2])
    _, error = loss(y, labels)
    h = 1e-6
    for index in np.ndindex(y.shape):
        step = np.zeros_like(y)
        step[index] = h
        change = loss(y + step, labels)[0].sum() - loss(y - step, labels)[0].sum()
        assert error[index] == pytest.approx(change / (2 * h), abs=1e-8)


def test_cross_entropy_is_the_negative_log_of_the_label_s_probability(rng):
    y, labels = rng.standard_normal((3, 4)), np.array([1, 0, 3])
    p = np.exp(y) / np.exp(y).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax_cross_entropy(y, labels)[0], -np.log(p[range(3), labels]))


def test_cross_entropy_survives_huge_outputs(dtype):
    y = np.array([[1e30, 0, -1e30], [-1e30, 0, 1e30]], dtype)
    loss, error = softmax_cross_entropy(y, np.array([0, 0]))
    assert loss[0] == 0
    assert np.isfinite(loss).all()
    np.testing.assert_array_equal(error, [[0, 0, 0], [-1, 0, 1]])


@pytest.mark.parametrize("loss", [softmax_cross_entropy, squared_error])
def test_losses_keep_dtype_and_arguments(loss, dtype, device, rng):
    y = device.xp.asarray(rng.standard_normal((3, 4)), dtype=dtype)
    before = y.copy()
    value, error = loss(y, device.xp.asarray([0, 1, 2]))
    assert (value.dtype, error.dtype) == (dtype, dtype)
    assert (value.shape, error.shape) == ((3,), (3, 4))
    assert (y == before).all()


def test_a_perfect_output_has_no_squared_error():
    loss, error = squared_error(np.eye(3), np.arange(3))
    assert not loss.any()
    assert not error.any()


@pytest.mark.parametrize("loss", [softmax_cross_entropy, squared_error])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-1, 0], "from -1 to 0"),
        ([0, 3], "from 0 to 3"),
        ([[0], [1]], "shape"),
        ([0.0, 1.0], "integers"),
    ],
)
def test_labels_that_are_no_classes_are_refused(loss, labels, message):
    with pytest.raises(ValueError, match=message):
        loss(np.zeros((2, 3)), np.array(labels))
