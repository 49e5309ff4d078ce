"""Initialisation, the regulariser and the product with W^-1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait.backend import to_host
from npgait.initialisation import glorot_normal, orthogonal
from npgait.orthogonality import (
    DEFAULT_TOLERANCE,
    InverseSolver,
    SingularWeightsError,
    conformal_gradient,
    gram,
    orthogonal_gradient,
    orthonormal_gradient,
    residual,
    scale_of,
    spectral_norm,
)
from tests.support import relative

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def near_orthogonal(rng, n, away, dtype="float64"):
    """W with ||I - W W^T||_2 of about 2 `away`."""
    E = rng.standard_normal((n, n))
    return (orthogonal(rng, n, n) + away * E / np.linalg.norm(E, 2)).astype(dtype)


# --- initialisation -----------------------------------------------------------------------------------


@given(n_in=st.integers(1, 30), n_out=st.integers(1, 30), seed=st.integers(0, 99))
def test_orthogonal_weights_have_orthonormal_rows_or_columns(n_in, n_out, seed):
    W = orthogonal(np.random.default_rng(seed), n_in, n_out)
    assert W.shape == (n_in, n_out)
    small = W.T @ W if n_in >= n_out else W @ W.T
    np.testing.assert_allclose(small, np.eye(min(n_in, n_out)), atol=1e-13)


def test_orthogonal_weights_are_uniform_over_the_orthogonal_group():
    """Their trace has mean 0 and variance 1; without the signs of R it has not."""
    rng = np.random.default_rng(0)
    traces = [np.trace(orthogonal(rng, 5, 5)) for _ in range(2000)]
    assert abs(np.mean(traces)) < 0.1
    assert np.var(traces) == pytest.approx(1.0, abs=0.15)


def test_glorot_weights_have_the_variance_of_the_paper():
    W = glorot_normal(np.random.default_rng(0), 300, 500)
    assert W.var() == pytest.approx(2 / 800, rel=0.02)
    assert abs(W.mean()) < 1e-3


# --- the regulariser ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradient", "penalty"),
    [
        (orthonormal_gradient, lambda G: ((G - np.eye(len(G))) ** 2).sum()),
        (orthogonal_gradient, lambda G: ((G - np.diag(np.diag(G))) ** 2).sum()),
    ],
)
def test_regulariser_gradient_is_the_numerical_derivative_of_its_penalty(gradient, penalty, rng):
    W = rng.standard_normal((5, 5))
    got, h = gradient(W, gram(W)), 1e-5
    for index in np.ndindex(W.shape):
        step = np.zeros_like(W)
        step[index] = h
        numerical = (penalty(gram(W + step)) - penalty(gram(W - step))) / (2 * h)
        assert got[index] == pytest.approx(numerical, rel=1e-6, abs=1e-6)


def test_conformal_gradient_is_that_of_its_penalty_with_the_size_held(rng):
    W = rng.standard_normal((5, 5))
    c2 = scale_of(gram(W))
    got, h = conformal_gradient(W, gram(W)), 1e-5
    for index in np.ndindex(W.shape):
        step = np.zeros_like(W)
        step[index] = h
        above, below = (((gram(w) / c2 - np.eye(5)) ** 2).sum() for w in (W + step, W - step))
        assert got[index] == pytest.approx(c2 * (above - below) / (2 * h), rel=1e-6, abs=1e-6)


def test_orthogonal_weights_are_left_alone_by_every_regulariser(rng):
    W = orthogonal(rng, 20, 20)
    assert np.abs(orthonormal_gradient(W, gram(W))).max() < 1e-13
    assert np.abs(orthogonal_gradient(3 * W, gram(3 * W))).max() < 1e-12
    assert np.abs(conformal_gradient(3 * W, gram(3 * W))).max() < 1e-12


@pytest.mark.parametrize("gradient", [orthonormal_gradient, orthogonal_gradient, conformal_gradient])
def test_strength_multiplies_a_regulariser_and_leaves_the_gram_matrix_as_it_was(gradient, dtype, rng):
    W = rng.standard_normal((7, 7)).astype(dtype)
    G = gram(W)
    before = G.copy()
    once, thrice = gradient(W, G), gradient(W, G, 3.0)
    assert thrice.dtype == dtype
    assert relative(thrice, 3 * once.astype(np.float64)) < 20 * np.finfo(dtype).eps
    np.testing.assert_array_equal(G, before)


def test_the_conformal_regulariser_holds_the_shape_and_leaves_the_size(rng):
    W = 3 * near_orthogonal(rng, 30, 0.1)
    size = scale_of(gram(W))
    for _ in range(60):
        W -= conformal_gradient(W, gram(W), 0.25 / 4)
    assert scale_of(gram(W)) == pytest.approx(size, rel=0.05)
    assert spectral_norm(residual(gram(W), scale_of(gram(W)))) < 1e-6


@pytest.mark.parametrize("n", [3, 64, 300])
def test_spectral_norm_is_the_largest_singular_value(n, device, rng):
    W = near_orthogonal(rng, n, 0.1)
    R = residual(gram(device.xp.asarray(W)))
    expected = np.linalg.norm(np.eye(n) - W @ W.T, 2)
    assert spectral_norm(R) == pytest.approx(expected, rel=0.02)


def test_spectral_norm_of_weights_that_are_not_finite_is_infinite():
    assert spectral_norm(np.full((4, 4), np.nan)) == np.inf


# --- the product with W^-1 ----------------------------------------------------------------------------


@given(
    n=st.integers(1, 40),
    used=st.integers(1, 40),
    size=st.integers(1, 10),
    away=st.sampled_from([0.0, 0.01, 0.2, 2.0]),
    method=st.sampled_from(["auto", "lu", "series"]),
    given_gram=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_product_with_the_inverse_is_within_tolerance(n, used, size, away, method, given_gram, dtype):
    used = min(used, n)
    rng = np.random.default_rng(n * 100 + used)
    W = near_orthogonal(rng, n, away, dtype)
    d = rng.standard_normal((size, used)).astype(dtype)
    z = InverseSolver(method=method)(d, W, gram(W) if given_gram else None)
    padded = np.zeros((size, n))
    padded[:, :used] = d
    expected = np.linalg.solve(W.astype(np.float64).T, padded.T).T
    condition = np.linalg.cond(W.astype(np.float64))
    allowed = TOLERANCE[dtype] + 10 * n * np.finfo(dtype).eps * condition
    assert z.dtype == dtype
    assert relative(z, expected) < allowed


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-9])
def test_the_series_stops_at_the_tolerance_it_is_asked_for(tolerance, rng):
    W = near_orthogonal(rng, 200, 0.02)
    d = rng.standard_normal((10, 200))
    reports = []
    z = InverseSolver(tolerance, reports=reports)(d, W, gram(W))
    error = relative(z, np.linalg.solve(W.T, d.T).T)
    assert reports[0].method == "series"
    assert reports[0].residual == pytest.approx(np.linalg.norm(z @ W - d) / np.linalg.norm(d))
    assert error <= tolerance * 1.5
    assert reports[0].terms <= np.ceil(np.log(tolerance) / np.log(0.05)) + 1


def test_orthogonal_weights_take_no_term_at_all(rng):
    W = orthogonal(rng, 64, 64)
    reports = []
    InverseSolver(reports=reports)(rng.standard_normal((5, 64)), W, gram(W))
    assert (reports[0].method, reports[0].terms) == ("series", 0)


@pytest.mark.parametrize(("away", "batch"), [(0.6, 4), (3.0, 4), (0.1, 1000)])
def test_lu_takes_over_where_the_series_diverges_or_does_not_pay(away, batch, rng):
    W = near_orthogonal(rng, 50, away)
    reports = []
    InverseSolver(reports=reports)(rng.standard_normal((batch, 50)), W, gram(W))
    assert (reports[0].method, reports[0].terms) == ("lu", 0)
    assert reports[0].residual < 1e-10


def test_without_the_gram_matrix_near_orthogonal_weights_are_refined(dtype, device, rng):
    W = near_orthogonal(rng, 200, 0.02, dtype) * dtype.type(3.7)  # up to any factor
    for u in (200, 7):
        d = rng.standard_normal((2, 3, u)).astype(dtype)
        reports = []
        W_, d_ = device.xp.asarray(W), device.xp.asarray(d)
        z = InverseSolver(reports=reports)(d_, W_)
        padded = np.zeros((6, 200))
        padded[:, :u] = d.reshape(6, u)
        expected = np.linalg.solve(W.T.astype(np.float64), padded.T).T.reshape(2, 3, 200)
        assert reports[0].method == "refinement"
        assert relative(to_host(z), expected) < 2 * DEFAULT_TOLERANCE[str(dtype)]


@pytest.mark.parametrize(("away", "batch"), [(0.6, 4), (3.0, 4), (0.1, 1000)])
def test_without_the_gram_matrix_lu_is_taken_where_refinement_does_not_pay(away, batch, rng):
    reports = []
    W, d = near_orthogonal(rng, 50, away), rng.standard_normal((batch, 50))
    z = InverseSolver(reports=reports)(d, W)
    assert reports[0].method == "lu"
    assert relative(z @ W, d) < 1e-10


def test_the_series_knows_the_size_of_the_weights(rng):
    reports = []
    W = 0.3 * near_orthogonal(rng, 100, 0.02)
    d = rng.standard_normal((5, 100))
    z = InverseSolver(reports=reports)(d, W, gram(W))
    assert reports[0].method == "series"
    assert relative(z @ W, d) < 1e-11


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


def test_weights_that_are_not_finite_are_an_error_that_names_the_layer(rng):
    W = rng.standard_normal((4, 4))
    W[1, 2] = np.nan
    with pytest.raises(SingularWeightsError, match="hidden1 are not finite"):
        InverseSolver()(np.ones((1, 4)), W, name="hidden1")


def test_errors_that_are_not_finite_are_not_blamed_on_the_weights(rng):
    with pytest.raises(ValueError, match="errors that reach hidden1"):
        InverseSolver()(np.full((1, 4), np.nan), rng.standard_normal((4, 4)), name="hidden1")


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"tolerance": 2.0}, {"method": "guess"}])
def test_solver_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        InverseSolver(**options)
