"""Sums over rows, and the lengths of rows, whatever the shapes and the layout in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait import sums
from npgait.activations import Linear
from npgait.backend import to_host
from npgait.layers import Dense
from npgait.sums import column_sums, norms, squared_norms
from tests.fake_cupy import FakeArray, fake_gpu  # noqa: F401 - a fixture
from tests.support import relative


@pytest.mark.parametrize("shape", [(7, 40), (40, 7), (1, 9), (9, 1)])
def test_squared_norms_are_those_of_rows_however_they_lie(shape, dtype, fake_gpu, rng):  # noqa: F811
    x = rng.standard_normal(shape).astype(dtype)
    for laid in (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], fake_gpu.xp.asarray(x)):
        got = to_host(squared_norms(laid))
        assert got.dtype == dtype
        np.testing.assert_allclose(
            got, np.square(x.astype(float)).sum(1), rtol=100 * np.finfo(dtype).eps
        )


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e-19, 1.0, 1e25])
def test_norms_of_rows_are_exact_where_their_squares_would_not_be(scale, dtype, fake_gpu, rng):  # noqa: F811
    x = (rng.standard_normal((6, 40)) * scale).astype(dtype)
    x[2], x[3] = 0, x[3] / scale
    for got in (norms(x), to_host(norms(fake_gpu.xp.asarray(x)))):
        assert got.dtype == np.float64
        expected = np.sqrt(np.square(x.astype(float)).sum(1))
        np.testing.assert_allclose(got, expected, rtol=100 * np.finfo(dtype).eps)


def test_column_sums_are_sums_over_rows(dtype, rng):
    x = rng.standard_normal((57, 5)).astype(dtype)
    assert column_sums(x).dtype == dtype
    np.testing.assert_allclose(column_sums(x), x.sum(axis=0), rtol=100 * np.finfo(dtype).eps)


@given(rows=st.integers(0, 200), u=st.integers(1, 5))
def test_column_sums_on_a_device_are_the_same_in_stages(rows, u, fake_gpu):  # noqa: F811
    x = np.random.default_rng(rows).standard_normal((rows, u))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "STAGES", 8)
        patch.setattr(sums, "LEAST_STAGED", 16)
        for on_device in (fake_gpu.xp.asarray(x), fake_gpu.xp.asarray(x.T.copy()).T):
            np.testing.assert_allclose(to_host(column_sums(on_device)), x.sum(axis=0), atol=1e-12)


@pytest.mark.parametrize("shape", [(4096, 30), (50176, 4), (300000, 2)])
def test_no_stage_on_a_device_sums_many_rows(shape, fake_gpu, monkeypatch, rng):  # noqa: F811
    """As the biases of dense layers and of convolutions ask: CuPy has as few blocks as columns."""
    rows, own = [], FakeArray.sum

    def counted(x, axis):
        rows.append(len(x))
        return own(x, axis=axis)

    monkeypatch.setattr(FakeArray, "sum", counted)
    delta = rng.standard_normal(shape)
    on_device = fake_gpu.xp.asarray(delta)
    layer = Dense(fake_gpu.xp.zeros((1, shape[1])), fake_gpu.xp.zeros(shape[1]), f=Linear())
    _, db = layer.local_update(fake_gpu.xp.ones((len(delta), 1)), on_device, on_device)
    for got in (db, column_sums(on_device)):
        assert relative(to_host(got), delta.sum(axis=0)) < 1e-10
    assert max(rows) <= sums.LEAST_STAGED
