"""Matrix products by cuBLAS itself, for CUDA graphs: CuPy refuses to call cuBLAS while a stream records.

Only what is recorded is asked for here, and a recording is trusted only where it ends as CuPy's own
products do (replay.py). Names and numbers are those of cublas_api.h.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from npgait.backend import Array, Device, array_module, precision_of
from npgait.layout import AS_IS, TRANSPOSED, layout

WORKSPACE = 32 << 20  # bytes, what NVIDIA advises for its largest
OPERATIONS = {AS_IS: 0, TRANSPOSED: 1}  # CUBLAS_OP_N, CUBLAS_OP_T
KINDS = {"float32": 0, "float64": 1}  # CUDA_R_32F, CUDA_R_64F
REALS = {"float32": ctypes.c_float, "float64": ctypes.c_double}
COMPUTE = {"float32": 68, "tf32": 77, "float64": 70}  # CUBLAS_COMPUTE_32F, _32F_FAST_TF32, _64F
SYRK = {"float32": "cublasSsyrk_v2", "float64": "cublasDsyrk_v2"}
UPPER, DEFAULT_ALGORITHM = 1, -1
ON_HOST, ON_DEVICE = 0, 1  # where alpha and beta lie
SIGNATURES = {  # i: int, n: size_t, p: pointer
    "cublasCreate_v2": "p",
    "cublasSetStream_v2": "pp",
    "cublasSetWorkspace_v2": "ppn",
    "cublasSetPointerMode_v2": "pi",
    "cublasGemmEx": "piiiiippiipiippiiii",
    "cublasSsyrk_v2": "piiiippippi",
    "cublasDsyrk_v2": "piiiippippi",
}
LETTERS = {"i": ctypes.c_int, "n": ctypes.c_size_t, "p": ctypes.c_void_p}

_local = threading.local()


class CublasError(RuntimeError):
    """A call of cuBLAS failed, or its library is not there."""


class Cublas:
    """A handle of cuBLAS on one GPU, with memory of its own to work in."""

    def __init__(self, device: Device) -> None:
        self.xp = device.xp
        self.library = _library(device)
        self.workspace = self.xp.empty(WORKSPACE, np.uint8)
        # Where alpha lies on the device beta has to as well.
        self.betas = {name: self.xp.asarray([0.0, 1.0], dtype=name) for name in KINDS}
        self.handle = ctypes.c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(self.handle))

    def gemm(self, alpha: Array | float, A: Array, B: Array, C: Array, beta: float) -> None:
        """Do C <- alpha A B + beta C, beta 0 or 1; see `blas.gemm`.

        Raises
        ------
        TypeError
            If dtypes differ.
        CublasError
            If cuBLAS refuses.
        """
        c = layout(C)
        if c is None:
            raise CublasError("C has neither rows nor columns in one piece")
        if c[0] == TRANSPOSED:  # C^T = B^T A^T
            self.gemm(alpha, B.T, A.T, C.T, beta)
            return
        if not A.dtype == B.dtype == C.dtype:
            raise TypeError(f"dtypes differ: {A.dtype}, {B.dtype} and {C.dtype}")
        (A, a), (B, b) = _laid_out(A), _laid_out(B)
        kind, (n, m), k = KINDS[str(C.dtype)], C.shape, len(B)
        # cuBLAS takes columns for rows, so that what it is given is the transpose: C^T = B^T A^T.
        self._scaled("cublasGemmEx", alpha, beta, C, lambda alpha_, beta_: (
            OPERATIONS[b[0]], OPERATIONS[a[0]], m, n, k,
            alpha_, B.data.ptr, kind, b[1], A.data.ptr, kind, a[1],
            beta_, C.data.ptr, kind, c[1], COMPUTE[precision_of(C)], DEFAULT_ALGORITHM,
        ))  # fmt: skip

    def syrk(self, A: Array, C: Array) -> None:
        """Fill the lower triangle of C (n, n), in one piece, with A A^T."""
        A, a = _laid_out(A)
        n, k = A.shape
        trans = OPERATIONS[TRANSPOSED if a[0] == AS_IS else AS_IS]  # rows taken for columns, as above
        self._scaled(SYRK[str(C.dtype)], 1.0, 0.0, C, lambda alpha_, beta_: (
            UPPER, trans, n, k, alpha_, A.data.ptr, a[1], beta_, C.data.ptr, n,
        ))  # fmt: skip

    def _scaled(
        self,
        name: str,
        alpha: Any,
        beta: float,
        C: Array,
        arguments: Callable[[Any, Any], tuple[Any, ...]],
    ) -> None:
        """Call a function of cuBLAS with addresses of alpha and beta, on the current stream."""
        dtype, stream = str(C.dtype), self.xp.cuda.get_current_stream()
        self._call("cublasSetStream_v2", self.handle, stream.ptr)
        self._call("cublasSetWorkspace_v2", self.handle, self.workspace.data.ptr, WORKSPACE)
        if array_module(alpha) is np:
            alpha_, beta_ = REALS[dtype](alpha), REALS[dtype](beta)
            where, addresses = ON_HOST, (ctypes.addressof(alpha_), ctypes.addressof(beta_))
        else:
            alpha = alpha.astype(dtype, copy=False)
            where, addresses = ON_DEVICE, (alpha.data.ptr, self.betas[dtype][int(beta) :].data.ptr)
        self._call("cublasSetPointerMode_v2", self.handle, where)
        self._call(name, self.handle, *arguments(*addresses))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, name)(*arguments)
        if status:
            raise CublasError(f"{name} failed with status {status} of cuBLAS")


@functools.cache
def cublas_of(device: Device) -> Cublas:
    """Return the one handle of a GPU."""
    return Cublas(device)


@contextmanager
def in_recordings(device: Device) -> Iterator[None]:
    """Within it this thread's products on a GPU are asked of cuBLAS itself."""
    _local.cublas = cublas_of(device)
    try:
        yield
    finally:
        _local.cublas = None


def recording() -> Cublas | None:
    """Return what products are asked of in place of CuPy, or None."""
    return getattr(_local, "cublas", None)


def _laid_out(A: Array) -> tuple[Array, tuple[int, int]]:
    """Return A and its layout, in one piece where it has none."""
    found = layout(A)
    return (A, found) if found else (array_module(A).ascontiguousarray(A), (AS_IS, A.shape[1]))


def _library(device: Device) -> Any:
    """Return the cuBLAS that CuPy has loaded, the types of its functions declared."""
    version = device.xp.cuda.runtime.runtimeGetVersion() // 1000
    name = f"cublas64_{version}.dll" if sys.platform == "win32" else f"libcublas.so.{version}"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise CublasError(f"{name} is not found: {error}") from error
    for function, letters in SIGNATURES.items():
        getattr(library, function).argtypes = [LETTERS[letter] for letter in letters]
    return library
