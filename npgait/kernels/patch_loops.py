"""Products with patches on a CPU, of a few patches at a time or of none that is ever written.

Of loops.c, which calls NumPy's own BLAS, and of narrow.c, for a W of so few columns that BLAS is slow.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np

from npgait.backend import array_module
from npgait.blas import address
from npgait.kernels.loops import library, run_loop

Geometry = tuple[int, ...]  # H, W, C, k, stride, top, left, rows, columns
PAYS = 0.6  # share of the tiles that has to be of use, from which on they are faster than BLAS


def multiply(x: np.ndarray) -> bool:
    """Return whether these products can be had for arrays like x."""
    there = array_module(x) is np and library(x.dtype) is not None
    return there and address("gemm", x.dtype) is not None


def patches_times(
    x: np.ndarray, W: np.ndarray, out: np.ndarray, memory: np.ndarray, geometry: Geometry
) -> None:
    """Fill `out` (B, H', W', u) with x_p W; W (k k C, u) may be columns of a larger matrix."""
    columns = (np.int32(W.shape[1]), np.int32(W.strides[0] // W.itemsize))
    product = address("gemm", x.dtype), np.int64(len(x)), _some(memory, geometry), *columns
    _run("patches_times", x, W, out, memory, *product, *geometry)


def times_patches(
    d: np.ndarray, x: np.ndarray, out: np.ndarray, memory: np.ndarray, geometry: Geometry
) -> None:
    """Fill `out` (u, k k C) with d^T x_p, summed over positions and samples."""
    product = address("gemm", x.dtype), np.int64(len(x)), _some(memory, geometry), np.int32(len(out))
    _run("times_patches", x, d, out, memory, *product, *geometry)


def add_products(
    d: np.ndarray, M: np.ndarray, out: np.ndarray, memory: np.ndarray, geometry: Geometry
) -> None:
    """Fill images `out` with the sums of the patches d M that cover their pixels."""
    product = address("gemm", d.dtype), np.int64(len(d)), _some(memory, geometry), np.int32(len(M))
    _run("add_products", d, M, out, memory, *product, *geometry)


def _some(memory: np.ndarray, geometry: Geometry) -> np.int32:
    """Return how many patches `memory` holds."""
    _, _, channels, k, *_ = geometry
    return np.int32(memory.size // (k * k * channels))


def _run(name: str, first: np.ndarray, *arguments: Any) -> None:
    numbers = (np.int32(a) if isinstance(a, int) else a for a in arguments)
    run_loop(name, first.dtype, (first, *numbers))


# --- narrow --------------------------------------------------------------------------------------------


def narrow_memory(dtype: np.dtype, u: int, geometry: Geometry) -> int:
    """Return how many values of memory the products in tiles take; 0 where they do not pay."""
    width, tall = _tile(dtype)
    _, _, channels, k, s, _, _, rows, columns = geometry
    if not 0 < u <= width or k * channels < tall:
        return 0
    of_use = min(_of_use(columns, tall), _of_use(k * channels, tall)) * u / width
    if of_use < PAYS:
        return 0
    high, wide = (rows - 1) * s + k, (ceil(columns / tall) * tall - 1) * s + k
    return high * wide * channels + rows * columns * width


def patches_times_narrow(
    x: np.ndarray, W: np.ndarray, out: np.ndarray, memory: np.ndarray, geometry: Geometry
) -> None:
    """Fill `out` (B, H', W', u) with x_p W."""
    u = W.shape[1]
    wide = np.zeros((len(W), _tile(x.dtype)[0]), x.dtype)
    wide[:, :u] = W
    _run("patches_times_narrow", x, wide, out, memory, np.int64(len(x)), u, *geometry)


def narrow_times_patches(
    d: np.ndarray, x: np.ndarray, out: np.ndarray, memory: np.ndarray, geometry: Geometry
) -> None:
    """Fill `out` (k k C, u) with x_p^T d, summed over positions and samples."""
    _run("narrow_times_patches", x, d, out, memory, np.int64(len(x)), d.shape[-1], *geometry)


def _tile(dtype: np.dtype) -> tuple[int, int]:
    """Return how many columns of W and how many positions a tile holds; (0, 0): there are no tiles."""
    loops = library(dtype)
    return (loops.tile_width(), loops.tile_rows()) if loops is not None else (0, 0)


def _of_use(n: int, tile: int) -> float:
    """Return the share that n values take of the tiles that cover them."""
    return n / (ceil(n / tile) * tile)
