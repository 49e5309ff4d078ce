"""Products in pieces: the same as whole ones, whatever the shapes and the layout in memory."""

from __future__ import annotations

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait import products
from npgait.activations import Linear
from npgait.backend import to_host
from npgait.layers import Dense
from npgait.products import _in_place, column_sums, squared_norms, summed_product, tall_product
from tests.fake_cupy import FakeArray, fake_gpu  # noqa: F401 - a fixture
from tests.support import relative


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    """Pieces from shapes that a test can afford, also where BLAS would be no faster by them."""
    monkeypatch.setattr(products, "PIECE", 1000)
    monkeypatch.setattr(products, "LEAST_SUMMED", 8)
    monkeypatch.setattr(products, "_in_place", lambda: True)


def matrices(rows, m, u, dtype="float64"):
    rng = np.random.default_rng(rows + 1000 * m + 10**6 * u)
    return [rng.standard_normal(shape).astype(dtype) for shape in ((rows, m), (m, u), (rows, u))]


SIZES = {"rows": st.integers(1, 400), "m": st.integers(1, 40), "u": st.integers(1, 12)}


@given(**SIZES)
def test_a_product_in_pieces_is_the_product(rows, m, u):
    x, W, _ = matrices(rows, m, u)
    assert relative(tall_product(x, W), x @ W) < 1e-14
    out = np.full((rows, u), np.nan)
    assert tall_product(x, W, out=out) is out
    assert relative(out, x @ W) < 1e-14


@given(**SIZES)
def test_a_sum_of_outer_products_in_pieces_is_the_sum(rows, m, u):
    x, _, d = matrices(rows, m, u)
    assert relative(summed_product(d, x), np.einsum("nu,nm->um", d, x)) < 1e-12


@pytest.mark.parametrize("rows", [0, 1, 99, 100, 101, 203])
def test_matrices_may_be_views_and_keep_their_dtype(rows, dtype):
    x, W, d = matrices(rows, 20, 9, dtype)
    epsilon = 30 * np.finfo(dtype).eps
    for columns in (x[:, 3:], np.asfortranarray(x)[:, 3:]):
        for kernel in (W[3:, :5], W.T.copy().T[3:, :5]):
            got = tall_product(columns, kernel)
            assert got.dtype == dtype
            assert relative(got, columns @ kernel) < epsilon
        got = summed_product(d[:, :5], columns)
        assert got.dtype == dtype
        assert relative(got, d[:, :5].T @ columns) < epsilon


@pytest.mark.parametrize("shape", [(7, 40), (40, 7), (1, 9), (9, 1)])
def test_squared_norms_are_those_of_rows_however_they_lie(shape, dtype, fake_gpu, rng):  # noqa: F811
    x = rng.standard_normal(shape).astype(dtype)
    for laid in (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], fake_gpu.xp.asarray(x)):
        got = to_host(squared_norms(laid))
        assert got.dtype == dtype
        np.testing.assert_allclose(
            got, np.square(x.astype(float)).sum(1), rtol=100 * np.finfo(dtype).eps
        )


def test_pieces_are_as_long_as_blas_multiplies_in_place_and_none_are_made_where_it_does_not(monkeypatch):
    x = np.zeros((500, 10))
    assert products._piece(x, 40) == 24  # 25 of 40 multiplications each, and a multiple of four
    assert products._piece(x[:25], 40) == 0
    monkeypatch.setattr(products, "_in_place", lambda: False)
    assert products._piece(x, 40) == 0


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([("openblas", "SkylakeX")], True),
        ([("openblas", "Haswell")], False),
        ([("openblas", "Haswell"), ("openblas", "SapphireRapids")], True),  # SciPy brings its own
        ([("mkl", "Cooperlake")], False),
        ([], False),
    ],
)
def test_small_matrices_are_multiplied_in_place_by_an_openblas_for_avx_512(found, expected, monkeypatch):
    def select(internal_api):
        libraries = [types.SimpleNamespace(architecture=a) for api, a in found if api == internal_api]
        return types.SimpleNamespace(lib_controllers=libraries)

    monkeypatch.setattr(products, "controller", lambda: types.SimpleNamespace(select=select))
    assert _in_place.__wrapped__() is expected


def test_column_sums_are_sums_over_rows(dtype, rng):
    x = rng.standard_normal((57, 5)).astype(dtype)
    assert column_sums(x).dtype == dtype
    np.testing.assert_allclose(column_sums(x), x.sum(axis=0), rtol=100 * np.finfo(dtype).eps)


@given(rows=st.integers(0, 200), u=st.integers(1, 5))
def test_column_sums_on_a_device_are_the_same_in_stages(rows, u, fake_gpu):  # noqa: F811
    x = np.random.default_rng(rows).standard_normal((rows, u))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "STAGES", 8)
        patch.setattr(products, "LEAST_STAGED", 16)
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
    assert max(rows) <= products.LEAST_STAGED
