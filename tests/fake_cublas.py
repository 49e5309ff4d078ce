"""A stand-in for libcublas on the CPU: the functions that npgait calls, as cublas_api.h describes them.

Matrices are read from their addresses, column after column, and what cuBLAS refuses is refused.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

REALS = {0: ctypes.c_float, 1: ctypes.c_double}
COMPUTE = {68: 0, 77: 0, 70: 1}
INVALID_VALUE = 7


def _matrix(address: int, rows: int, columns: int, ld: int, kind: int) -> np.ndarray:
    values = (REALS[kind] * (ld * (columns - 1) + rows)).from_address(address)
    flat = np.ctypeslib.as_array(values)
    size = flat.itemsize
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (size, ld * size))


class FakeCublas:
    """`change` does something in place, or records it."""

    def __init__(self, change: Callable[[Callable[[], object]], None]) -> None:
        self.change = change
        self.on_device = 0
        self.calls: list[str] = []
        self.computed: list[int] = []

    def cublasCreate_v2(self, handle):
        return 0

    def cublasSetStream_v2(self, handle, stream):
        assert stream is not None
        return 0

    def cublasSetWorkspace_v2(self, handle, memory, size):
        return 0

    def cublasSetPointerMode_v2(self, handle, mode):
        self.on_device = mode
        return 0

    def _scalar(self, address, kind) -> Callable[[], float]:
        """What lies on the host is read now, what lies on the device when it is needed."""
        there = REALS[kind].from_address(address)
        if self.on_device:
            return lambda: there.value
        value = there.value
        return lambda: value

    def cublasGemmEx(
        self, handle, transa, transb, m, n, k, alpha, A, a_kind, lda, B, b_kind, ldb,
        beta, C, c_kind, ldc, compute, algorithm,
    ):  # fmt: skip
        a_shape, b_shape = ((k, m) if transa else (m, k)), ((n, k) if transb else (k, n))
        enough = lda >= max(1, a_shape[0]) and ldb >= max(1, b_shape[0]) and ldc >= max(1, m)
        if not (enough and a_kind == b_kind == c_kind == COMPUTE[compute]):
            return INVALID_VALUE
        self.calls.append("gemm")
        self.computed.append(compute)
        A_, B_ = _matrix(A, *a_shape, lda, a_kind), _matrix(B, *b_shape, ldb, b_kind)
        C_ = _matrix(C, m, n, ldc, c_kind)
        A_, B_ = A_.T if transa else A_, B_.T if transb else B_
        alpha, beta = self._scalar(alpha, c_kind), self._scalar(beta, c_kind)

        def work():
            before = beta() * C_ if beta() else 0
            C_[...] = alpha() * (A_ @ B_) + before

        self.change(work)
        return 0

    def cublasSsyrk_v2(self, *arguments, kind=0):
        _handle, uplo, trans, n, k, alpha, A, lda, beta, C, ldc = arguments
        shape = (k, n) if trans else (n, k)
        if lda < max(1, shape[0]) or ldc < max(1, n):
            return INVALID_VALUE
        self.calls.append("syrk")
        A_, C_ = _matrix(A, *shape, lda, kind), _matrix(C, n, n, ldc, kind)
        A_ = A_.T if trans else A_
        alpha, beta = self._scalar(alpha, kind), self._scalar(beta, kind)
        triangle = np.triu_indices(n) if uplo else np.tril_indices(n)

        def work():
            before = beta() * C_[triangle] if beta() else 0
            C_[triangle] = alpha() * (A_ @ A_.T)[triangle] + before

        self.change(work)
        return 0

    def cublasDsyrk_v2(self, *arguments):
        return self.cublasSsyrk_v2(*arguments, kind=1)
