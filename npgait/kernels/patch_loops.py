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
HEIGHTS = {16: (7, 9, 6), 24: (7, 9, 6), 32: (6,)}  # of the tiles in narrow.c, by their channels
BAND = 24000  # as there


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
    wide, pair, (positions, pairs) = _tiles(dtype, u, geometry)
    if not wide:
        return 0
    _, _, channels, k, s, _, _, rows, columns = geometry
    high, width_of_d = (rows - 1) * s + k, wide * pair
    tall = ceil(k * channels / (pairs * pair)) * pairs  # pairs of a row of P, in whole tiles
    padded = high * ((ceil(columns / positions) * positions - 1) * s + k) * channels
    some = max(1, min(rows, BAND // (columns * width_of_d * dtype.itemsize)))
    line = 64 // dtype.itemsize
    return line + padded + (tall + 1) * pair + (some * columns + k * tall) * width_of_d


def patches_times_narrow(
    x: np.ndarray, W: np.ndarray, out: np.ndarray, memory: np.ndarray, geometry: Geometry
) -> None:
    """Fill `out` (B, H', W', u) with x_p W."""
    u, (_, _, channels, k, *_) = W.shape[1], geometry
    wide, pair, (positions, _) = _tiles(x.dtype, u, geometry)
    W_pairs = np.zeros((k, ceil(k * channels / pair) * pair, wide), x.dtype)
    W_pairs[:, : k * channels, :u] = W.reshape(k, k * channels, u)
    W_pairs = np.ascontiguousarray(W_pairs.reshape(k, -1, pair, wide).swapaxes(2, 3))
    sizes = np.int64(len(x)), u, positions, wide
    _run("patches_times_narrow", x, W_pairs, out, memory, *sizes, *geometry)


def narrow_times_patches(
    d: np.ndarray, x: np.ndarray, out: np.ndarray, memory: np.ndarray, geometry: Geometry
) -> None:
    """Fill `out` (k k C, u) with x_p^T d, summed over positions and samples."""
    u = d.shape[-1]
    wide, _, (_, pairs) = _tiles(x.dtype, u, geometry)
    _run("narrow_times_patches", x, d, out, memory, np.int64(len(x)), u, pairs, wide, *geometry)


def _tiles(dtype: np.dtype, u: int, geometry: Geometry) -> tuple[int, int, tuple[int, int]]:
    """Return what tiles are for a convolution: their channels, values in a pair, and their rows.

    Those are positions of x_p W, and pairs of values of a patch of x_p^T d. No channels: tiles do not
    pay.
    """
    _, _, channels, k, *_, columns = geometry
    loops = library(dtype)
    pair = loops.tile_pair() if loops is not None else 0
    wide = next((width for width in HEIGHTS if 0 < u <= width), 0)
    if not pair or not wide:
        return 0, pair, (0, 0)
    lengths = columns, ceil(k * channels / pair)
    positions, pairs = (max(HEIGHTS[wide], key=lambda tall: _of_use(n, tall)) for n in lengths)
    of_use = min(_of_use(columns, positions), _of_use(lengths[1], pairs)) * u / wide
    return wide if of_use >= PAYS else 0, pair, (positions, pairs)


def _of_use(n: int, tile: int) -> float:
    """Return the share that n values take of the tiles that cover them."""
    return n / (ceil(n / tile) * tile)
