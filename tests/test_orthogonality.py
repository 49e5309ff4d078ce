"""Initialisation and the regulariser."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait.initialisation import glorot_normal, orthogonal
from npgait.orthogonality import (
    REGULARISERS,
    conformal_gradient,
    gram,
    grams,
    orthogonal_gradient,
    orthonormal_gradient,
    residual,
    scale_of,
    spectral_norm,
    zero_diagonal,
)
from tests.support import near_orthogonal, relative

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


def test_no_regulariser_makes_anything_of_weights_that_are_all_zero():
    W = np.zeros((5, 5))
    for gradient in REGULARISERS.values():
        np.testing.assert_array_equal(gradient(W, gram(W)), W)


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


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-10, 1e15, 1e30])
def test_spectral_norm_of_small_and_large_matrices_neither_vanishes_nor_overflows(size, dtype, rng):
    A = rng.standard_normal((300, 300))
    R = (A + A.T) / np.linalg.norm(A + A.T, 2) * size
    assert spectral_norm(R.astype(dtype)) == pytest.approx(size, rel=0.02)


def test_spectral_norm_of_weights_that_are_not_finite_is_infinite():
    assert spectral_norm(np.full((4, 4), np.nan)) == np.inf
    one = np.eye(4)
    one[2, 2] = np.inf
    assert spectral_norm(one) == np.inf


def test_of_a_tall_matrix_the_columns_are_held_orthonormal(rng):
    W = orthogonal(rng, 30, 12) + 0.05 * rng.standard_normal((30, 12))
    penalty = lambda W: ((W.T @ W - np.eye(12)) ** 2).sum()  # noqa: E731
    got, h = orthonormal_gradient(W, gram(W)), 1e-5
    for index in ((0, 0), (7, 3), (29, 11)):
        step = np.zeros_like(W)
        step[index] = h
        numerical = (penalty(W + step) - penalty(W - step)) / (2 * h)
        assert got[index] == pytest.approx(numerical, rel=1e-6, abs=1e-8)
    for _ in range(40):
        W -= orthonormal_gradient(W, gram(W), 0.25 / 4)
    np.testing.assert_allclose(W.T @ W, np.eye(12), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (11, 11), (9, 20), (20, 9), (300, 280), (12, 8)])
def test_products_with_the_transpose_are_symmetric(shape, dtype, rng, loops):
    W = rng.standard_normal(shape).astype(dtype)
    rows = W if shape[0] <= shape[1] else W.T
    G, (first, none, second) = gram(W), grams([W, None, 2 * W])
    bound = (rows.shape[1] + 2) * np.finfo(dtype).eps * (np.abs(rows) @ np.abs(rows.T))
    assert (np.abs(G - rows.astype(float) @ rows.T.astype(float)) <= bound).all()
    np.testing.assert_array_equal(G, G.T)
    np.testing.assert_array_equal(first, G)
    assert none is None
    assert grams([None]) == [None]
    np.testing.assert_array_equal(second, 4 * G)  # a power of two: to the bit


@pytest.mark.parametrize("gradient", [orthonormal_gradient, orthogonal_gradient, conformal_gradient])
@pytest.mark.parametrize("shape", [(20, 20), (20, 12)])
def test_a_regulariser_may_be_added_to_an_update_in_place(gradient, shape, dtype, rng, loops):
    W, dW = rng.standard_normal((2, *shape)).astype(dtype)
    expected = dW + gradient(W, gram(W), 0.3)
    got = gradient(W, gram(W), 0.3, add_to=dW, overwrite=True)
    assert got is dW
    assert relative(got, expected) < 20 * np.finfo(dtype).eps


@pytest.mark.parametrize("order", ["C", "F"])
def test_g_is_as_it_was_after_its_diagonal_was_zero(order, rng):
    G = np.array(gram(rng.standard_normal((6, 6))), order=order)
    before = G.copy()
    with pytest.raises(KeyboardInterrupt), zero_diagonal(G) as off:
        np.testing.assert_array_equal(off, before * (1 - np.eye(6)))
        raise KeyboardInterrupt
    np.testing.assert_array_equal(G, before)


@pytest.mark.parametrize("gradient", [orthonormal_gradient, orthogonal_gradient, conformal_gradient])
@pytest.mark.parametrize("lies", [np.asfortranarray, lambda G: np.pad(G, 1)[1:-1, 1:-1]])
def test_g_may_lie_in_memory_in_any_order(gradient, lies, rng):
    W = rng.standard_normal((6, 6))
    expected, G = gradient(W, gram(W)), gram(W)
    np.testing.assert_allclose(gradient(W, lies(G), overwrite=True), expected, atol=1e-12)
    np.testing.assert_allclose(residual(lies(G)), np.eye(6) - W @ W.T, atol=1e-12)
