"""What BLAS does in one call, and NumPy in several passes: alpha A B + beta C, and half of A A^T.

NumPy's own BLAS is called, where that is OpenBLAS or MKL. Where NumPy was built with another, or
NPGAIT_LOOPS=numpy is set, NumPy does it.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from npgait import kernels
from npgait.backend import Array, array_module, lower_symmetric_product
from npgait.cublas import recording
from npgait.kernels.loops import switched_off
from npgait.layout import AS_IS, TRANSPOSED, layout
from npgait.parallel import controller, in_threads, slices, thread_count

SMALL = 1 << 15  # values of a matrix, below which NumPy is as fast
LEAST = 225  # rows of the blocks that A A^T is cut into: smaller ones are slow to multiply
LIBRARIES = ("openblas", "mkl")  # as threadpoolctl calls them
PATTERNS = {  # names in their builds, and their integers
    "scipy_cblas_{}64_": ctypes.c_int64,  # NumPy's own,
    "cblas_{}64_": ctypes.c_int64,  # its older ones,
    "cblas_{}_64": ctypes.c_int64,  # MKL's: what its plain names take depends on its settings,
    "scipy_cblas_{}": ctypes.c_int,
    "cblas_{}": ctypes.c_int,  # those of distributions
}
TYPES = {np.dtype(np.float32): ("s", ctypes.c_float), np.dtype(np.float64): ("d", ctypes.c_double)}
ROW_MAJOR, LOWER = 101, 122  # of CBLAS
Block = tuple[np.ndarray, np.ndarray, slice, slice]  # A, G, and rows and columns of G = A A^T


# --- products -------------------------------------------------------------------------------------


def product(A: Array, B: Array, out: Array | None = None) -> Array:
    """Return A B, in `out` where given.

    What a step writes in place of A @ B: CuPy's @ cannot be recorded in a CUDA graph.
    """
    xp = array_module(A)
    if xp is np or recording() is None:
        return xp.matmul(A, B, out=out)
    return gemm(1.0, A, B, out)


def gemm(
    alpha: Array | float, A: Array, B: Array, C: Array | None = None, *, beta: float = 0.0
) -> Array:
    """Return alpha A B + beta C, in the memory of C where that is given.

    Parameters
    ----------
    alpha : float, or array () where A is
    A : array (n, k)
    B : array (k, m)
    C : array (n, m), optional
        Overwritten. With beta = 0 it may hold anything, NaN too.
    beta : {0, 1}
        Without C taken for 0.

    Raises
    ------
    ValueError
        If shapes do not fit each other.
    """
    xp = array_module(A)
    shape = len(A), B.shape[1]
    if A.shape[1] != len(B):
        raise ValueError(f"A {A.shape} and B {B.shape} have no product; expected (n, k) and (k, m)")
    if C is not None and C.shape != shape:
        raise ValueError(f"C has shape {C.shape}; expected that of the product, {shape}")
    beta = 0.0 if C is None else beta
    if xp is np:
        out = np.empty(shape, A.dtype) if C is None else C
        if _by_blas(float(alpha), A, B, out, beta):
            return out
    elif (recorder := recording()) is not None:
        out = xp.empty(shape, A.dtype) if C is None else C
        recorder.gemm(alpha, A, B, out, beta)
        return out
    P = xp.matmul(A, B, out=None if beta else C)
    P *= P.dtype.type(alpha) if xp is np else alpha
    if not beta:
        return P
    C += P
    return C


def syrk(A: np.ndarray, C: np.ndarray) -> None:
    """Fill C (n, n) with A A^T, A (n, k): its lower triangle; what is above may be anything."""
    call = function("syrk", A.dtype)
    a, c = layout(A), layout(C)
    if call is None or A.size < SMALL or a is None or c is None or c[0] != AS_IS:
        np.matmul(A, A.T, out=C)
        return
    call(LOWER, a[0], *A.shape, 1.0, _address_of(A), a[1], 0.0, _address_of(C), c[1])


def lower_product(A: Array) -> Array:
    """Return the lower triangle of A A^T (n, n) on a GPU, A (n, k); the rest is undefined.

    In float32 even where other products are TF32: its distance from the identity is small, and would be
    lost in their rounding.
    """
    A, recorder = array_module(A).ascontiguousarray(A), recording()
    if recorder is None:
        return lower_symmetric_product(A)
    G = array_module(A).empty((len(A), len(A)), A.dtype)
    recorder.syrk(A, G)
    return G


def symmetric_products(matrices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return A A^T (n, n) of each A (n, k): half of it is multiplied, the other half copied.

    Threads share the blocks of all of them: of a large one those on the diagonal, and those below it.
    Each is copied while it is in the cache.
    """
    products = [np.empty((len(A), len(A)), A.dtype) for A in matrices]
    parts: list[Block] = []
    threads = thread_count()
    for A, G in zip(matrices, products, strict=True):
        blocks = slices(len(A), -(-len(A) // _cuts(len(A), threads)))
        parts += [(A, G, rows, columns) for k, rows in enumerate(blocks) for columns in blocks[: k + 1]]

    def multiply(part: Block) -> None:
        A, G, rows, columns = part
        if G[rows, columns].shape == G.shape:
            np.matmul(A, A.T, out=G)  # which NumPy does by halves itself
            return
        if rows == columns:
            syrk(A[rows], G[rows, columns])
        else:
            gemm(1.0, A[rows], A[columns].T, G[rows, columns])
        kernels.mirror(G, rows, columns)

    def operations(part: Block) -> int:
        A, G, rows, columns = part
        return G[rows, columns].size * A.shape[1] * (1 if rows == columns else 2)  # half of it, or all

    in_threads(multiply, sorted(parts, key=operations, reverse=True), matrices[0])  # the longest first
    return products


def _cuts(n: int, threads: int) -> int:
    """Return into how many stretches n rows are cut, so that each thread has a block of A A^T."""
    cuts = 1
    while cuts * (cuts + 1) // 2 < max(2, threads) and n >= 2 * cuts * LEAST:
        cuts *= 2
    return cuts


# --- NumPy's BLAS ---------------------------------------------------------------------------------


@functools.cache
def function(name: str, dtype: np.dtype) -> Any:
    """Return a function of NumPy's own BLAS for row-major matrices, or None.

    Parameters
    ----------
    name : {"gemm", "syrk"}
    dtype : numpy.dtype
    """
    found = _found(name, dtype)
    if found is None:
        return None
    call, integer = found
    kinds = {"i": ctypes.c_int, "n": integer, "r": TYPES[dtype][1], "p": ctypes.c_void_p}
    call.argtypes = [kinds[letter] for letter in {"gemm": "iiinnnrpnpnrpn", "syrk": "iiinnrpnrpn"}[name]]
    call.restype = None
    return functools.partial(call, ROW_MAJOR)


@functools.cache
def address(name: str, dtype: np.dtype) -> np.uint64 | None:
    """Return the address of a function of NumPy's own BLAS for compiled loops to call, or None.

    They pass sizes in 64 bits: where a build takes 32, it reads the lower half of each.
    """
    found = _found(name, dtype)
    if found is None or sys.byteorder != "little":
        return None
    return np.uint64(ctypes.cast(found[0], ctypes.c_void_p).value or 0)


def _found(name: str, dtype: np.dtype) -> tuple[Any, Any] | None:
    """Return a function of NumPy's own BLAS and the type of its integers, or None."""
    if switched_off() or dtype not in TYPES:
        return None
    there = [lib for api in LIBRARIES for lib in controller().select(internal_api=api).lib_controllers]
    for library in there:
        for pattern, integer in PATTERNS.items():
            got = getattr(library.dynlib, pattern.format(TYPES[dtype][0] + name), None)
            if got is not None:
                return got, integer
    return None


def _by_blas(alpha: float, A: np.ndarray, B: np.ndarray, C: np.ndarray, beta: float) -> bool:
    """Do C <- alpha A B + beta C by BLAS and return True, or False where that is not for these."""
    if min(A.size, B.size, C.size) < SMALL or not A.dtype == B.dtype == C.dtype:
        return False
    call, a, b, c = function("gemm", A.dtype), layout(A), layout(B), layout(C)
    if call is None or a is None or b is None or c is None:
        return False
    if np.may_share_memory(C, A) or np.may_share_memory(C, B):
        return False
    kernels.check_writable(C)
    if c[0] == TRANSPOSED:  # C^T = B^T A^T
        return _by_blas(alpha, B.T, A.T, C.T, beta)
    sizes = len(A), B.shape[1], len(B)
    call(
        a[0], b[0], *sizes, alpha, _address_of(A), a[1], _address_of(B), b[1], beta, _address_of(C), c[1]
    )
    return True


def _address_of(A: np.ndarray) -> int:
    return A.__array_interface__["data"][0]
