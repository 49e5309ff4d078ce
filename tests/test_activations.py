"""f, f^-1, f' and the difference quotient of f^-1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from npgait.activations import LeakyReLU, Linear

pytestmark = pytest.mark.usefixtures("loops")  # compiled, and NumPy's

SLOPES = [0.01, 0.1, 1.0, 2.5]
ordinary = st.floats(-1e3, 1e3).map(lambda v: v if abs(v) > 1e-6 else 0.0)
vectors = arrays(np.float64, (3, 5), elements=ordinary)


@pytest.mark.parametrize("f", [Linear(), *map(LeakyReLU, SLOPES)])
@given(a=vectors)
def test_inverse_undoes_forward(f, a):
    np.testing.assert_allclose(f.inverse(f(a)), a, rtol=4e-16)


@pytest.mark.parametrize("f", [Linear(), *map(LeakyReLU, SLOPES)])
@given(a=arrays(np.float64, (3, 5), elements=st.floats(1e-3, 1e3)), sign=st.sampled_from([-1, 1]))
def test_derivative_is_the_slope_on_each_side_of_the_kink(f, a, sign):
    a, h = sign * a, 1e-6
    np.testing.assert_allclose((f(a + h) - f(a - h)) / (2 * h), f.derivative(a), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("f", [Linear(), *map(LeakyReLU, SLOPES)])
def test_integers_give_what_floats_of_their_values_give(f):
    a = np.array([[-3, -1, 0, 2]])
    for equation in (f, f.derivative, f.inverse):
        np.testing.assert_array_equal(equation(a), equation(a.astype(np.float64)))
    for equation in (f.times_derivative, lambda y, v: f.difference(y, v, 0.5)):
        np.testing.assert_array_equal(equation(a, a), equation(a.astype(np.float64), a))


@given(
    slope=st.floats(1e-6, 1e3), a=st.floats(1e-30, 1e30), dtype=st.sampled_from(["float32", "float64"])
)
def test_derivative_is_one_or_the_slope_to_the_last_digit(slope, a, dtype):
    f_prime = LeakyReLU(slope).derivative(np.array([a, -a, 0.0], dtype))
    slope = np.dtype(dtype).type(slope)
    np.testing.assert_array_equal(f_prime, [1, slope, 1])
    assert f_prime.dtype == dtype


@pytest.mark.parametrize("slope", SLOPES)
@given(y=vectors, v=vectors, s=st.floats(1e-3, 10.0))
def test_difference_is_the_quotient_of_inverses_where_that_has_digits(slope, y, v, s):
    f = LeakyReLU(slope)
    direct = (f.inverse(y) - f.inverse(y - s * v)) / s
    # The direct form cancels: its rounding is that of the inverses, over s.
    rounding = 1e-15 * (np.abs(y) + s * np.abs(v)) / min(slope, 1.0) / s
    assert (np.abs(f.difference(y, v, s) - direct) <= rounding + 1e-15 * np.abs(direct)).all()


@pytest.mark.parametrize("slope", SLOPES)
def test_difference_has_all_its_digits_where_the_direct_quotient_has_none(slope):
    f = LeakyReLU(slope)
    y, v = np.array([[3.0, -3.0]]), np.array([[0.7, 0.7]])
    np.testing.assert_allclose(f.difference(y, v, 1e-30), [[0.7, 0.7 / slope]], rtol=1e-15)


def test_difference_crosses_the_kink_with_both_slopes():
    f = LeakyReLU(0.1)
    # From y = 0.2 to -0.3: 0.2 of the way on the upper side, 0.3 on the lower, where f^-1 is 10 y.
    np.testing.assert_allclose(
        f.difference(np.array([[0.2]]), np.array([[1.0]]), 0.5), [[(0.2 + 3.0) / 0.5]]
    )
    assert f.crossed(np.array([[0.2, 0.2]]), np.array([[1.0, 0.1]]), 0.5).tolist() == [[True, False]]
    assert not Linear().crossed(np.array([[0.2]]), np.array([[1.0]]), 0.5).any()


def test_difference_of_size_zero_is_the_limit(dtype):
    y, v = np.array([[1.0, -1.0, 0.0]], dtype), np.array([[2.0, 2.0, 2.0]], dtype)
    d = LeakyReLU(0.5).difference(y, v, np.zeros((1, 1), dtype))
    assert d.dtype == dtype
    np.testing.assert_array_equal(d, [[2.0, 4.0, 2.0]])


@pytest.mark.parametrize("slope", SLOPES)
def test_the_kink_itself_counts_as_positive_as_in_the_published_codes(slope):
    f = LeakyReLU(slope)
    zero, v = np.zeros((1, 2)), np.array([[1.0, -1.0]])
    assert (f(zero) == 0).all()
    assert (f.derivative(zero) == 1).all()
    # Down from zero the nudge is all on the lower side, up from it all on the upper.
    assert f.crossed(zero, v, 0.5).tolist() == [[True, False]]
    np.testing.assert_allclose(f.difference(zero, v, 0.5), [[1 / slope, -1.0]])


def test_results_keep_the_dtype(dtype):
    a = np.array([[1.0, -1.0]], dtype)
    f = LeakyReLU(0.1)
    for result in (
        f(a),
        f.inverse(a),
        f.derivative(a),
        f.difference(a, a, 0.5),
        f.difference(a, a, 3.0),
    ):
        assert result.dtype == dtype


@pytest.mark.parametrize("slope", [0.0, -0.1, float("nan"), float("inf")])
def test_a_slope_without_an_inverse_is_refused(slope):
    with pytest.raises(ValueError, match="slope"):
        LeakyReLU(slope)


@pytest.mark.parametrize("slope", ["0.1", True, None])
def test_a_slope_that_is_no_number_is_refused(slope):
    with pytest.raises(TypeError, match="slope of the leaky ReLU is"):
        LeakyReLU(slope)


def test_the_slope_is_the_published_one_unless_another_is_given():
    assert LeakyReLU() == LeakyReLU(0.1)
