"""Products of tall matrices and of rows, on the CPU in pieces that BLAS multiplies where they lie.

BLAS copies both matrices into an order of its own before it multiplies them, which costs as much as a
third of a product of few columns. OpenBLAS leaves that out of products of up to PIECE multiplications,
where the processor has AVX-512.
"""

from __future__ import annotations

import functools

import numpy as np

from npgait.backend import Array, array_module
from npgait.blas import product
from npgait.parallel import controller

PIECE = 10**6
LEAST_ROWS = 8  # of a piece of x W, below which the calls would show
LEAST_SUMMED = 48  # of a piece of d^T x, below which the sum over pieces would
LEAST_STAGED = 1024  # rows, of fewer of which a GPU makes one sum
STAGES = 256  # the most rows of one sum in a stage
IN_PLACE = ("SkylakeX", "Cooperlake", "SapphireRapids")  # OpenBLAS's names of processors


def tall_product(x: Array, W: Array, out: Array | None = None) -> Array:
    """Return x W.

    Parameters
    ----------
    x : array (N, m)
    W : array (m, u)
    out : array (N, u), optional
        Memory for it.

    Returns
    -------
    array (N, u)
    """
    xp = array_module(x)
    out = xp.empty((len(x), W.shape[1]), x.dtype) if out is None else out
    rows = _piece(x, W.size)
    if rows < LEAST_ROWS:
        return product(x, W, out)
    whole = len(x) - len(x) % rows
    np.matmul(x[:whole].reshape(-1, rows, len(W)), W, out=out[:whole].reshape(-1, rows, W.shape[1]))
    np.matmul(x[whole:], W, out=out[whole:])
    return out


def summed_product(d: Array, x: Array) -> Array:
    """Return d^T x, the sum over rows of their outer products.

    Parameters
    ----------
    d : array (N, u)
    x : array (N, m)

    Returns
    -------
    array (u, m)
    """
    shape = d.shape[1], x.shape[1]
    rows = _piece(x, shape[0] * shape[1])
    if rows < LEAST_SUMMED:
        return product(d.T, x)
    whole = len(x) - len(x) % rows
    pieces = d[:whole].reshape(-1, rows, shape[0]).transpose(0, 2, 1) @ x[:whole].reshape(
        -1, rows, shape[1]
    )
    return column_sums(pieces.reshape(len(pieces), -1)).reshape(shape) + d[whole:].T @ x[whole:]


def column_sums(x: Array) -> Array:
    """Return x.sum(axis=0) of an array (N, u).

    On the CPU as a product, in a quarter of the time. On a GPU in stages: CuPy gives each 32 columns one
    block of threads, however many the rows are, and would leave most of its multiprocessors idle.
    """
    if array_module(x) is np:
        return np.ones(len(x), x.dtype) @ x
    if len(x) < LEAST_STAGED or not x.flags.c_contiguous:
        return x.sum(axis=0)
    stages = min(STAGES, 1 << len(x).bit_length() // 2)  # about the root of N
    whole = len(x) - len(x) % stages
    sums = column_sums(x[:whole].reshape(stages, -1).sum(axis=0).reshape(-1, x.shape[1]))
    return sums if whole == len(x) else sums + x[whole:].sum(axis=0)


def squared_norms(x: Array) -> Array:
    """Return ||x||_2^2 of each row of an array (N, m), (N,): on the CPU without x * x."""
    if array_module(x) is not np:
        return (x * x).sum(axis=1)
    if x.flags.f_contiguous and not x.flags.c_contiguous:  # its rows as products take 20 times as long
        return np.einsum("ij,ij->i", x, x)
    return (x[:, None, :] @ x[:, :, None]).reshape(-1)


def _piece(x: Array, values: int) -> int:
    """Return the rows of a piece, at `values` multiplications a row; 0: x is multiplied as a whole."""
    if array_module(x) is not np or len(x) * values <= PIECE or not _in_place():
        return 0
    return PIECE // values // 4 * 4


@functools.cache
def _in_place() -> bool:
    """Return whether NumPy's BLAS multiplies small matrices where they lie."""
    blas = controller().select(internal_api="openblas").lib_controllers
    return any(library.architecture in IN_PLACE for library in blas)
