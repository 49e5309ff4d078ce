"""Calls of NumPy's own BLAS: the products that NumPy makes in several passes, wherever matrices lie."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait import blas
from npgait.blas import gemm, symmetric_products

needs_openblas = pytest.mark.skipif(
    blas.function("gemm", np.dtype(np.float32)) is None,
    reason="NumPy's BLAS is not OpenBLAS or MKL, or NPGAIT_LOOPS=numpy is set",
)
LAYOUTS = ("rows", "columns", "rows of a larger", "columns of a larger", "every second", "backwards")


def laid_out(values, layout):
    """The same values in memory of another order; around them NaN that must not be touched."""
    n, m = values.shape
    if layout == "columns":
        return np.asfortranarray(values)
    if layout.endswith("larger"):
        around = np.full((n + 3, m + 5), np.nan, values.dtype, "F" if layout[0] == "c" else "C")
        inside = around[1 : n + 1, 2 : m + 2]
    elif layout == "every second":
        inside = np.full((n, 2 * m), np.nan, values.dtype)[:, ::2]
    elif layout == "backwards":
        inside = np.full((n, m), np.nan, values.dtype)[::-1]
    else:
        return values.copy()
    inside[...] = values
    return inside


def untouched(C):
    """How many values around a view are still NaN."""
    return np.isnan(C.base).sum() if C.base is not None else 0


@given(
    sizes=st.tuples(*[st.integers(1, 40)] * 3),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
    alpha=st.sampled_from([1.0, -0.25, 3.0]),
    beta=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
)
def test_gemm_is_alpha_a_b_plus_beta_c_in_place(sizes, layouts, alpha, beta, seed, dtype, loops):
    rng, (n, k, m) = np.random.default_rng(seed), sizes
    A, B, C = (rng.standard_normal(shape).astype(dtype) for shape in ((n, k), (k, m), (n, m)))
    exact = alpha * A.astype(float) @ B.astype(float) + beta * C
    bound = (k + 3) * np.finfo(dtype).eps * (abs(alpha) * np.abs(A) @ np.abs(B) + beta * np.abs(C))
    A, B, C = (laid_out(M, layout) for M, layout in zip((A, B, C), layouts, strict=True))
    around = untouched(C)
    got = gemm(alpha, A, B, C, beta=beta)
    assert got is C
    assert (np.abs(C - exact) <= bound).all()
    assert untouched(C) == around
    if not beta:
        for fresh in (gemm(alpha, A, B), gemm(alpha, A, B, beta=1)):  # without C nothing is added
            assert fresh.dtype == dtype
            assert (np.abs(fresh - exact) <= bound).all()


def test_what_c_held_does_not_count_without_beta(dtype, loops):
    A, C = np.eye(4, dtype=dtype), np.full((4, 4), np.nan, dtype)
    np.testing.assert_array_equal(gemm(2, A, A, C), 2 * A)


def test_c_may_be_one_of_the_factors(dtype, rng, loops):
    A, B = rng.standard_normal((2, 9, 9)).astype(dtype)
    expected = A + 2 * A.astype(float) @ B.astype(float)
    np.testing.assert_allclose(gemm(2, A, B, A, beta=1), expected, atol=200 * np.finfo(dtype).eps)


def test_factors_of_another_dtype_are_numpys(rng, loops):
    A, B = rng.standard_normal((5, 5)), rng.standard_normal((5, 5)).astype(np.float32)
    np.testing.assert_allclose(gemm(1.0, A, B), A @ B, rtol=1e-12)


def test_shapes_that_do_not_fit_are_refused(loops):
    A = np.ones((3, 4))
    with pytest.raises(ValueError, match=r"A \(3, 4\) and B \(3, 4\) have no product"):
        gemm(1.0, A, A)
    with pytest.raises(ValueError, match=r"C has shape \(3, 4\); expected .*\(3, 3\)"):
        gemm(1.0, A, A.T, A)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=4),
    least=st.sampled_from([1, 4, 256]),
    threads=st.sampled_from([1, 2, 16]),
    seed=st.integers(0, 99),
)
def test_symmetric_products_are_those_with_the_transpose(
    sizes, least, threads, seed, dtype, loops, monkeypatch
):
    monkeypatch.setattr(blas, "LEAST", least)
    monkeypatch.setattr(blas, "thread_count", lambda: threads)
    rng = np.random.default_rng(seed)
    matrices = [rng.standard_normal(shape).astype(dtype) for shape in sizes]
    for as_they_are in (True, False):  # or transposed
        if not as_they_are:
            matrices = [A.T for A in matrices]
        for A, G in zip(matrices, symmetric_products(matrices), strict=True):
            bound = (A.shape[1] + 2) * np.finfo(dtype).eps * (np.abs(A) @ np.abs(A.T))
            assert (np.abs(G - A.astype(float) @ A.T.astype(float)) <= bound).all()
            np.testing.assert_array_equal(G, G.T)


@pytest.mark.parametrize(
    ("n", "threads", "blocks"),
    [(1000, 1, 3), (1000, 2, 3), (784, 3, 3), (1000, 8, 10), (3072, 16, 36), (784, 16, 3), (400, 16, 1)],
)
def test_each_thread_has_a_block_of_a_symmetric_product_that_is_large(n, threads, blocks, monkeypatch):
    parts = []
    monkeypatch.setattr(blas, "thread_count", lambda: threads)
    monkeypatch.setattr(blas, "in_threads", lambda work, of_all, x: parts.extend(of_all))
    symmetric_products([np.zeros((n, 4), np.float32)])
    assert len(parts) == blocks
    operations = [G[i, j].size * (1 if i == j else 2) for _, G, i, j in parts]
    assert sum(operations) == n * n
    assert operations == sorted(operations, reverse=True)


@needs_openblas
def test_large_products_are_made_by_blas_and_small_ones_are_not(rng, monkeypatch):
    calls = []
    make = blas.function("gemm", np.dtype(float))
    monkeypatch.setattr(blas, "function", lambda *which: lambda *a: (calls.append(a), make(*a)))
    A = rng.standard_normal((200, 200))
    gemm(1.0, A[:8, :8], A[:8, :8])
    assert not calls
    np.testing.assert_allclose(gemm(1.0, A, A), A @ A)
    assert len(calls) == 1


@needs_openblas
@pytest.mark.parametrize("name", ["gemm", "syrk"])
def test_functions_and_their_addresses_are_found(name, dtype):
    assert blas.function(name, dtype) is not None
    assert blas.address(name, dtype) not in (None, 0)
    assert blas.function(name, np.dtype(np.float16)) is None


@pytest.mark.parametrize(
    ("api", "symbols", "expected"),
    [
        ("openblas", ["scipy_cblas_sgemm64_"], ("scipy_cblas_sgemm64_", ctypes.c_int64)),
        ("openblas", ["cblas_sgemm"], ("cblas_sgemm", ctypes.c_int)),
        ("mkl", ["cblas_sgemm", "cblas_sgemm_64"], ("cblas_sgemm_64", ctypes.c_int64)),
        ("mkl", ["cblas_sgemm"], ("cblas_sgemm", ctypes.c_int)),
        ("mkl", ["sgemm_"], None),
        ("blis", ["cblas_sgemm"], None),
    ],
)
def test_names_say_how_wide_the_integers_of_a_library_are(api, symbols, expected, monkeypatch):
    library = SimpleNamespace(dynlib=SimpleNamespace(**{name: name for name in symbols}))
    there = {api: [library]}
    controller = SimpleNamespace(
        select=lambda internal_api: SimpleNamespace(lib_controllers=there.get(internal_api, []))
    )
    monkeypatch.setattr(blas, "controller", lambda: controller)
    monkeypatch.setattr(blas, "switched_off", lambda: False)
    assert blas._found("gemm", np.dtype(np.float32)) == expected
