"""The product with W^-1: within tolerance by every way it is made, or an error that names the layer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait.backend import to_host
from npgait.initialisation import orthogonal
from npgait.inverse import (
    DEFAULT_TOLERANCE,
    ErrorsNotFiniteError,
    InverseSolver,
    SingularWeightsError,
)
from npgait.orthogonality import gram
from tests.support import near_orthogonal, relative

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


@given(
    n=st.integers(1, 40),
    used=st.integers(1, 40),
    size=st.integers(1, 10),
    away=st.sampled_from([0.0, 0.01, 0.2, 2.0]),
    method=st.sampled_from(["auto", "lu", "series"]),
    given_gram=st.booleans(),
    spread=st.sampled_from([1.0, 10.0]),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_product_with_the_inverse_is_within_tolerance(
    n, used, size, away, method, given_gram, spread, dtype
):
    used = min(used, n)
    rng = np.random.default_rng(n * 100 + used)
    W = near_orthogonal(rng, n, away, dtype)
    W *= np.geomspace(1, spread, n, dtype=dtype)[:, None]
    d = rng.standard_normal((size, used)).astype(dtype)
    z = InverseSolver(method=method)(d, W, gram(W) if given_gram else None)
    padded = np.zeros((size, n))
    padded[:, :used] = d
    expected = np.linalg.solve(W.astype(np.float64).T, padded.T).T
    condition = np.linalg.cond(W.astype(np.float64))
    allowed = TOLERANCE[dtype] + 10 * n * np.finfo(dtype).eps * condition
    assert z.dtype == dtype
    assert relative(z, expected) < allowed


def test_zero_errors_stay_zero(dtype, device, rng):
    W = device.xp.asarray(near_orthogonal(rng, 8, 0.1, dtype))
    d = device.xp.zeros((3, 5), dtype)
    for method in ("auto", "lu", "series"):
        assert not to_host(InverseSolver(method=method)(d, W, gram(W))).any()


@pytest.mark.parametrize("method", ["auto", "lu", "series"])
@pytest.mark.parametrize("kind", ["zero", "rank", "nearly", "projector"])
def test_singular_weights_are_an_error_that_names_the_layer(kind, method, device, dtype, rng):
    W = rng.standard_normal((20, 20))
    if kind == "zero":
        W[:] = 0
    elif kind == "projector":  # orthogonal but for one direction, which the series cannot see
        Q = orthogonal(rng, 20, 20)
        W = Q[:, :-1] @ Q[:, :-1].T
    else:
        W[:, -1] = W[:, :-1] @ rng.standard_normal(19)
        W[:, -1] += (1e-9 if kind == "nearly" else 0) * np.finfo(dtype).eps * rng.standard_normal(20)
    W, d = (device.xp.asarray(a, dtype=dtype) for a in (W, rng.standard_normal((3, 20))))
    with pytest.raises(SingularWeightsError, match="hidden3 have no inverse"):
        InverseSolver(method=method)(d, W, gram(W), name="hidden3")


@pytest.mark.parametrize("given_gram", [True, False])
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_errors_that_are_not_finite_are_an_error_that_names_the_layer(value, given_gram, dtype, rng):
    W, d = near_orthogonal(rng, 8, 0.001, dtype), np.ones((3, 8), dtype)
    d[1, 2] = value
    with pytest.raises(ErrorsNotFiniteError, match="errors that reach hidden2 are not finite"):
        InverseSolver()(d, W, gram(W) if given_gram else None, name="hidden2")


def test_weights_that_are_not_finite_are_an_error_that_names_the_layer(rng):
    W = rng.standard_normal((4, 4))
    W[1, 2] = np.nan
    with pytest.raises(SingularWeightsError, match="hidden1 are not finite"):
        InverseSolver()(np.ones((1, 4)), W, name="hidden1")


def test_errors_that_are_not_finite_are_not_blamed_on_the_weights(rng):
    with pytest.raises(ErrorsNotFiniteError, match="errors that reach hidden1"):
        InverseSolver()(np.full((1, 4), np.nan), rng.standard_normal((4, 4)), name="hidden1")


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"tolerance": 2.0}, {"method": "guess"}])
def test_solver_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        InverseSolver(**options)


# --- implicit auxiliary units: a tall W -----------------------------------------------------------


def tall(rng, n, m, away, dtype="float64"):
    """W (n, m), near orthonormal columns."""
    E = rng.standard_normal((n, m))
    return (orthogonal(rng, n, m) + away * E / np.linalg.norm(E, 2)).astype(dtype)


def completed(W):
    """W with the orthonormal columns that implicit auxiliary units stand for."""
    m = W.shape[1]
    return np.hstack([W, np.linalg.qr(W.astype(np.float64), mode="complete")[0][:, m:]])


@given(
    n=st.integers(2, 40),
    m=st.integers(1, 40),
    size=st.integers(1, 10),
    away=st.sampled_from([0.0, 0.01, 0.2, 2.0]),
    method=st.sampled_from(["auto", "lu", "series"]),
    given_gram=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_implicit_auxiliary_units_give_the_inverse_of_the_completed_weights(
    n, m, size, away, method, given_gram, dtype
):
    m = min(m, n - 1)
    rng = np.random.default_rng(n * 100 + m)
    W = tall(rng, n, m, away, dtype)
    d = rng.standard_normal((size, m)).astype(dtype)
    z = InverseSolver(method=method)(d, W, gram(W) if given_gram else None)
    padded = np.hstack([d, np.zeros((size, n - m))])
    expected = np.linalg.solve(completed(W).T, padded.T).T
    condition = np.linalg.cond(W.astype(np.float64))
    # The series works with W^T W, whose condition is the square.
    allowed = TOLERANCE[dtype] + 10 * n * np.finfo(dtype).eps * condition**2
    assert z.dtype == dtype
    assert relative(z, expected) < allowed


@pytest.mark.parametrize("given_gram", [False, True])
def test_a_tall_matrix_takes_the_series_near_orthogonality_and_normal_equations_away_from_it(
    given_gram, device, dtype, rng
):
    near = "series" if given_gram else "refinement"
    for away, method in ((0.01, near), (2.0, "normal")):
        W = tall(rng, 90, 30, away, dtype)
        reports = []
        d = rng.standard_normal((4, 30)).astype(dtype)
        on_device = device.xp.asarray(W)
        G = gram(on_device) if given_gram else None
        z = InverseSolver(reports=reports)(device.xp.asarray(d), on_device, G)
        tolerance = 10 * DEFAULT_TOLERANCE[str(dtype)]
        assert reports[0].method == method
        assert reports[0].residual < tolerance
        expected = d.astype(np.float64) @ np.linalg.pinv(W.astype(np.float64))
        assert relative(to_host(z), expected) < tolerance * np.linalg.cond(W)


def test_normal_equations_that_lose_too_many_digits_give_way_to_qr(device, dtype, rng):
    # Of condition 1 / sqrt(eps): W^T W then has no digit left of its least singular values.
    sizes = np.geomspace(1, np.sqrt(np.finfo(dtype).eps), 30)
    W = (tall(rng, 90, 30, 0.0) * sizes @ orthogonal(rng, 30, 30)).astype(dtype)
    d = rng.standard_normal((4, 30)).astype(dtype)
    on_device, reports = device.xp.asarray(W), []
    InverseSolver(reports=reports)(device.xp.asarray(d), on_device, gram(on_device))
    assert (reports[0].method, reports[0].terms) == ("qr", 0)


def test_lu_of_a_tall_matrix_means_qr(rng):
    reports = []
    W = tall(rng, 90, 30, 2.0)
    InverseSolver(method="lu", reports=reports)(rng.standard_normal((4, 30)), W, gram(W))
    assert reports[0].method == "qr"


def test_the_series_is_within_tolerance_where_columns_differ_in_length(rng):
    """The terms are summed before W^T is multiplied: what counts is how long they are after it."""
    for _ in range(30):
        W = tall(rng, 30, 12, 0.01, "float32") * np.geomspace(1, 10, 12, dtype=np.float32)
        d = rng.standard_normal((5, 12)).astype(np.float32)
        reports = []
        z = InverseSolver(reports=reports)(d, W, gram(W))
        assert reports[0].method == "series"
        expected = d.astype(np.float64) @ np.linalg.pinv(W.astype(np.float64))
        assert relative(z, expected) < DEFAULT_TOLERANCE["float32"]


def test_a_tall_matrix_without_full_rank_is_an_error_that_names_the_layer(dtype, rng):
    W = rng.standard_normal((20, 6)).astype(dtype)
    W[:, 3] = W[:, 1]
    with pytest.raises(SingularWeightsError, match="hidden2"):
        InverseSolver()(rng.standard_normal((4, 6)).astype(dtype), W, name="hidden2")


def test_a_wide_matrix_has_no_inverse(rng):
    with pytest.raises(ValueError, match="add auxiliary units"):
        InverseSolver()(rng.standard_normal((4, 6)), rng.standard_normal((5, 6)))


@pytest.mark.parametrize("shape", [(20, 20), (20, 12)])
@pytest.mark.parametrize("given_gram", [True, False])
def test_errors_that_overflow_are_not_blamed_on_the_weights(shape, given_gram, rng):
    W = near_orthogonal(rng, 20, 0.1, "float32")[:, : shape[1]]
    d = np.full((4, shape[1]), 1e30, np.float32)
    with (
        np.errstate(all="ignore"),
        pytest.raises(ErrorsNotFiniteError, match=r"reach hidden1 .*overflow"),
    ):
        InverseSolver()(d, W, gram(W) if given_gram else None, name="hidden1")


@pytest.mark.parametrize("method", ["auto", "lu", "series"])
@pytest.mark.parametrize("used", [1, 2, 10])
def test_singular_weights_are_found_however_few_units_are_used(used, method, device, dtype, rng):
    """z of the used units' equations alone may seem to solve them."""
    for _ in range(10):
        W, v = orthogonal(rng, 100, 100), rng.standard_normal(100)
        v /= np.linalg.norm(v)
        W -= np.outer(W @ v, v)
        W, d = (device.xp.asarray(a, dtype=dtype) for a in (W, rng.standard_normal((3, used))))
        with pytest.raises(SingularWeightsError, match="hidden3 have no inverse"):
            InverseSolver(method=method)(d, W, gram(W), name="hidden3")


def test_the_residual_counts_auxiliary_units(rng):
    W, d = near_orthogonal(rng, 200, 0.02), rng.standard_normal((5, 10))
    reports = []
    z = InverseSolver(0.1, reports=reports)(d, W)
    padded = np.pad(d, ((0, 0), (0, 190)))
    assert reports[0].residual == pytest.approx(np.linalg.norm(z @ W - padded) / np.linalg.norm(d))


@pytest.mark.parametrize("method", ["auto", "lu", "series"])
@pytest.mark.parametrize("given_gram", [True, False])
@pytest.mark.parametrize("exponent", [-30, -75, -80, -90, -140, -1000])
def test_errors_whose_squares_underflow_are_inverted_as_others_are(
    exponent, given_gram, method, device, dtype, rng
):
    if exponent < np.finfo(dtype).minexp - 20:
        pytest.skip(f"{dtype} has no such number")
    if device.is_gpu and exponent < np.finfo(dtype).minexp:
        pytest.skip("subnormal numbers of float32 are 0 to CuPy's kernels, compiled with -ftz=true")
    W = near_orthogonal(rng, 64, 0.03, dtype)
    d = rng.integers(-99, 99, (4, 64)).astype(dtype)  # whose products with 2^-140 are numbers of float32
    d[1, 2] = 0
    W_, lifted, small = (device.xp.asarray(a) for a in (W, d, d * dtype.type(2.0**exponent)))
    G = gram(W_) if given_gram else None
    expected = to_host(InverseSolver(method=method)(lifted, W_, G)).astype(np.float64) * 2.0**exponent
    got = to_host(InverseSolver(method=method)(small, W_, G))
    rounding = 1e-6 * np.abs(expected).max() + float(np.finfo(dtype).smallest_subnormal)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=rounding)


def test_a_gram_matrix_that_is_read_only_is_read(rng):
    W, d = near_orthogonal(rng, 30, 0.02), rng.standard_normal((5, 30))
    G = gram(W)
    expected = InverseSolver()(d, W, G)
    G.setflags(write=False)
    np.testing.assert_array_equal(InverseSolver()(d, W, G), expected)
