"""The five equations of the dense layer, and its locality."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait.activations import LeakyReLU, Linear
from npgait.backend import to_host
from npgait.initialisation import orthogonal
from npgait.inverse import InverseSolver
from npgait.layers import Dense
from tests.support import relative

pytestmark = pytest.mark.usefixtures("loops")  # compiled, and NumPy's

LU = InverseSolver(method="lu")


def square_layer(rng, n, used=None, f=None, dtype="float64", away=0.2, xp=np):
    W = orthogonal(rng, n, n) + away * rng.standard_normal((n, n)) / np.sqrt(n)
    b = rng.standard_normal(n)
    return Dense(
        xp.asarray(W, dtype=dtype), xp.asarray(b, dtype=dtype), used or n, f or LeakyReLU(0.1), "layer"
    )


@given(
    n_in=st.integers(1, 9),
    n_out=st.integers(1, 9),
    size=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_forward_is_the_sum_over_inputs(n_in, n_out, size, seed):
    rng = np.random.default_rng(seed)
    layer = Dense(rng.standard_normal((n_in, n_out)), rng.standard_normal(n_out))
    x = rng.standard_normal((size, n_in))
    a, y = layer.forward(x)
    for s in range(size):
        for o in range(n_out):
            expected = sum(x[s, i] * layer.W[i, o] for i in range(n_in)) + layer.b[o]
            assert a[s, o] == pytest.approx(expected, rel=1e-12, abs=1e-12)
            assert y[s, o] == pytest.approx(expected if expected > 0 else 0.1 * expected, abs=1e-12)


@given(n=st.integers(1, 24), size=st.integers(1, 6), slope=st.sampled_from([0.1, 0.5, 1.0, 3.0]))
def test_inverse_undoes_forward(n, size, slope):
    rng = np.random.default_rng(n * 31 + size)
    layer = square_layer(rng, n, f=LeakyReLU(slope), away=0.05)
    x = rng.standard_normal((size, n))
    _, y = layer.forward(x, auxiliary=True)
    assert relative(layer.inverse(y), x) < 1e-11


def test_inverse_undoes_forward_in_single_precision(device, rng):
    layer = square_layer(rng, 64, dtype="float32", away=0.05, xp=device.xp)
    x = device.xp.asarray(rng.standard_normal((9, 64)), dtype="float32")
    _, y = layer.forward(x, auxiliary=True)
    assert relative(to_host(layer.inverse(y)), to_host(x)) < 1e-4


@given(n=st.integers(2, 16), used=st.integers(1, 16), s=st.floats(0.01, 2.0))
def test_difference_inverse_is_the_difference_of_two_inverses(n, used, s):
    used = min(used, n)
    rng = np.random.default_rng(n * 100 + used)
    layer = square_layer(rng, n, used)
    x = rng.standard_normal((4, n))
    _, y = layer.forward(x, auxiliary=True)
    v = rng.standard_normal((4, used))
    nudged = y.copy()
    nudged[:, :used] -= s * v
    expected = (layer.inverse(y) - layer.inverse(nudged)) / s
    got = layer.difference_inverse(y[:, :used], v, s, solver=LU)
    assert relative(got, expected) < 1e-10


def test_forward_without_auxiliary_units_is_the_first_part_of_forward_with_them(dtype, rng):
    layer = square_layer(rng, 12, used=5, dtype=dtype)
    x = rng.standard_normal((3, 12)).astype(dtype)
    for part, whole in zip(layer.forward(x), layer.forward(x, auxiliary=True), strict=True):
        assert part.shape == (3, 5)
        assert part.dtype == dtype
        np.testing.assert_allclose(part, whole[:, :5], rtol=1e-5)


def test_transpose_applies_the_used_columns_or_the_feedback(rng):
    layer = square_layer(rng, 6, used=4)
    delta, B = rng.standard_normal((3, 4)), rng.standard_normal((6, 4))
    np.testing.assert_allclose(layer.transpose(delta), np.einsum("bo,io->bi", delta, layer.W[:, :4]))
    np.testing.assert_allclose(layer.transpose(delta, B), np.einsum("bo,io->bi", delta, B))


def test_local_update_is_zero_for_auxiliary_units_and_the_outer_product_for_the_rest(rng):
    layer = square_layer(rng, 6, used=4)
    x, error = rng.standard_normal((3, 6)), rng.standard_normal((3, 4))
    a, _ = layer.forward(x, auxiliary=True)
    dW, db = layer.local_update(x, a, error)
    delta = np.where(a[:, :4] >= 0, 1.0, 0.1) * error
    np.testing.assert_allclose(dW[:, :4], np.einsum("bi,bo->io", x, delta))
    np.testing.assert_allclose(db[:4], delta.sum(axis=0))
    assert dW.shape == layer.W.shape
    assert not dW[:, 4:].any()
    assert not db[4:].any()


def flat(result):
    parts = result if isinstance(result, tuple) else (result,)
    return np.concatenate([np.ravel(part) for part in parts])


METHODS = ["forward", "inverse", "difference_inverse", "transpose", "local_update"]
OWN_ARGUMENTS = {
    *("self", "x", "a", "y", "v", "s", "error", "delta"),  # this layer's own activity and error
    *("B", "G", "solver", "auxiliary"),  # its feedback, its W W^T, and how to compute
}


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_sees_only_its_own_arguments(method):
    assert set(inspect.signature(getattr(Dense, method)).parameters) <= OWN_ARGUMENTS


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_no_hidden_state(method, rng):
    """Called twice with other calls in between, a method returns the same, and changes no parameter."""
    layer = square_layer(rng, 6, used=4)
    x, delta = rng.standard_normal((3, 6)), rng.standard_normal((3, 4))
    a, y = layer.forward(x, auxiliary=True)
    calls = {
        "forward": lambda: layer.forward(x),
        "inverse": lambda: layer.inverse(y),
        "difference_inverse": lambda: layer.difference_inverse(y[:, :4], delta, 0.1, solver=LU),
        "transpose": lambda: layer.transpose(delta),
        "local_update": lambda: layer.local_update(x, a, delta),
    }
    before = layer.W.copy(), layer.b.copy(), x.copy(), a.copy(), y.copy(), delta.copy()
    first = flat(calls[method]())
    for call in calls.values():
        call()
    np.testing.assert_array_equal(flat(calls[method]()), first)
    for array, copy in zip((layer.W, layer.b, x, a, y, delta), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("W", "b", "used"),
    [((3, 4), (3,), -1), ((3, 4), (4,), 5), ((3, 4), (4,), 0), ((3, 4, 1), (4,), -1)],
)
def test_shapes_that_do_not_fit_are_refused(W, b, used):
    with pytest.raises(ValueError, match="dense"):
        Dense(np.zeros(W), np.zeros(b), used)


def test_a_layer_that_is_not_square_has_no_inverse_and_says_so(rng):
    layer = Dense(rng.standard_normal((5, 3)), np.zeros(3), f=Linear(), name="hidden2")
    with pytest.raises(ValueError, match=r"hidden2.*\(5, 3\)"):
        layer.inverse(np.ones((2, 3)))
