"""Products asked of cuBLAS itself, with a stand-in for the library: numbers, layouts, refusals."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait import cublas
from npgait.backend import to_host
from npgait.blas import gemm, lower_product, product
from npgait.cublas import CublasError, cublas_of, in_recordings
from npgait.gpu import Recorder
from tests.fake_cupy import fake_gpu  # noqa: F401 - a fixture

sizes = st.integers(1, 6)


def laid_out(xp, A, how):
    """The same matrix on the device: in rows, in columns, a block of a larger one, or every other."""
    n, m = A.shape
    if how == "columns":
        return xp.asarray(np.ascontiguousarray(A.T)).T
    if how == "block":
        around = np.full((n + 2, m + 3), np.nan, A.dtype)
        around[1:-1, 2:-1] = A
        return xp.asarray(around)[1:-1, 2:-1]
    if how == "every other":
        around = np.full((n, 2 * m), np.nan, A.dtype)
        around[:, ::2] = A
        return xp.asarray(around)[:, ::2]
    return xp.asarray(A)


WRITABLE = ["rows", "columns", "block"]
ways = st.sampled_from([*WRITABLE, "every other"])


@given(
    n=sizes, k=sizes, m=sizes, how_a=ways, how_b=ways, how_c=st.sampled_from(WRITABLE),
    on_device=st.booleans(), beta=st.sampled_from([0, 1]), seed=st.integers(0, 99),
)  # fmt: skip
def test_gemm_is_numpys_whatever_the_layout(
    n, k, m, how_a, how_b, how_c, on_device, beta, seed, dtype, fake_gpu  # noqa: F811
):  # fmt: skip
    rng, xp = np.random.default_rng(seed), fake_gpu.xp
    A, B = rng.standard_normal((n, k)).astype(dtype), rng.standard_normal((k, m)).astype(dtype)
    C = rng.standard_normal((n, m)).astype(dtype) if beta else np.full((n, m), np.nan, dtype)
    alpha = -0.7
    factor = xp.asarray(np.array(alpha)) if on_device else alpha
    expected = alpha * A.astype(float) @ B.astype(float) + (C if beta else 0)
    a, b, c = laid_out(xp, A, how_a), laid_out(xp, B, how_b), laid_out(xp, C, how_c)
    with in_recordings(fake_gpu):
        got = gemm(factor, a, b, c, beta=beta)
        fresh = gemm(factor, a, b)
        plain = product(a, b)
    assert got is c
    bound = (k + 3) * np.finfo(dtype).eps * (np.abs(A) @ np.abs(B) + np.abs(np.nan_to_num(C)))
    assert (np.abs(to_host(got) - expected) <= bound).all()
    if not beta:
        assert (np.abs(to_host(fresh) - expected) <= bound).all()
    assert (np.abs(to_host(plain) - A.astype(float) @ B.astype(float)) <= bound).all()
    assert set(cublas_of(fake_gpu).library.calls) == {"gemm"}


@given(n=sizes, k=sizes, how=ways, seed=st.integers(0, 99))
def test_the_lower_triangle_of_the_symmetric_product_is_filled(
    n, k, how, seed, dtype, fake_gpu  # noqa: F811
):  # fmt: skip
    A = np.random.default_rng(seed).standard_normal((n, k)).astype(dtype)
    with in_recordings(fake_gpu):
        G = lower_product(laid_out(fake_gpu.xp, A, how))
    bound = (k + 3) * np.finfo(dtype).eps * (np.abs(A) @ np.abs(A.T))
    error = np.abs(to_host(G) - A.astype(float) @ A.astype(float).T)
    assert (np.tril(error) <= bound)[np.tril_indices(n)].all()
    assert "syrk" in cublas_of(fake_gpu).library.calls


def test_precision_decides_how_cublas_multiplies(fake_gpu, monkeypatch):  # noqa: F811
    for precision, dtype, number in (("tf32", "f4", 77), ("float32", "f4", 68), ("float64", "f8", 70)):
        monkeypatch.setattr(cublas, "precision_of", lambda x, named=precision: named)
        A = fake_gpu.xp.asarray(np.eye(3, dtype=dtype))
        with in_recordings(fake_gpu):
            product(A, A)
        assert cublas_of(fake_gpu).library.computed[-1] == number


def test_nothing_is_asked_of_cublas_where_nothing_is_recorded(fake_gpu):  # noqa: F811
    A = fake_gpu.xp.asarray(np.eye(3))
    with in_recordings(fake_gpu):
        pass
    product(A, A), gemm(2.0, A, A), lower_product(A)
    assert cublas_of(fake_gpu).library.calls == []
    with in_recordings(fake_gpu):
        np.testing.assert_array_equal(product(np.eye(3), np.eye(3)), np.eye(3))  # NumPy's stay NumPy's
    assert cublas_of(fake_gpu).library.calls == []


def test_what_cublas_refuses_is_an_error_that_names_the_function(fake_gpu, monkeypatch):  # noqa: F811
    A = fake_gpu.xp.asarray(np.eye(3))
    monkeypatch.setattr(cublas_of(fake_gpu).library, "cublasGemmEx", lambda *arguments: 13)
    with in_recordings(fake_gpu), pytest.raises(CublasError, match=r"cublasGemmEx .* status 13"):
        product(A, A)
    with in_recordings(fake_gpu), pytest.raises(TypeError, match="float64, float32"):
        product(A, A.astype(np.float32))


def test_a_missing_library_is_named(fake_gpu, monkeypatch):  # noqa: F811
    monkeypatch.undo()

    def not_there(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", not_there)
    with pytest.raises(CublasError, match=r"cublas\w*\.\w+.* is not found"):
        Recorder(fake_gpu)
