"""Products with patches on a CPU, of a few patches at a time or of none that is ever written.

Of loops.c, which calls NumPy's own BLAS, and of narrow.c, for a W of so few columns that BLAS is slow.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    wide, pair, (positions, pairs) = _tiles_of_patches(dtype, u, geometry)
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
    wide, pair, (positions, _) = _tiles_of_patches(x.dtype, u, geometry)
    W_pairs = _in_pairs(W.reshape(k, k * channels, u), pair, wide)
    sizes = np.int64(len(x)), u, positions, wide
    _run("patches_times_narrow", x, W_pairs, out, memory, *sizes, *geometry)


def narrow_times_patches(
    d: np.ndarray, x: np.ndarray, out: np.ndarray, memory: np.ndarray, geometry: Geometry
) -> None:
    """Fill `out` (k k C, u) with x_p^T d, summed over positions and samples."""
    u = d.shape[-1]
    wide, _, (_, pairs) = _tiles_of_patches(x.dtype, u, geometry)
    _run("narrow_times_patches", x, d, out, memory, np.int64(len(x)), u, pairs, wide, *geometry)


def adding_memory(dtype: np.dtype, u: int, geometry: Geometry) -> int:
    """Return how many values of memory the sum over patches in tiles takes; 0 where they do not pay."""
    wide, pair, pixels = _tiles_of_pixels(dtype, geometry)
    if not wide:
        return 0
    _, _, _, k, s, *_ = geometry
    (high, across), t = _pixels_of_a_phase(geometry), ceil(k / s)
    padded = (high + t - 1) * (ceil(across / pixels) * pixels + t - 1) * u
    size_of_M = k * sum(ceil(_over(j, k, s) * u / pair) * pair for j in range(s)) * wide
    return 64 // dtype.itemsize + size_of_M + padded + pair


def phases_in_pairs(K: np.ndarray, u: int, geometry: Geometry) -> np.ndarray:
    """Return K (t t u, s s C), what each neighbour of a pixel gives it, as tiles read it: phase by phase."""
    _, _, channels, k, s, *_ = geometry
    wide, pair, _ = _tiles_of_pixels(K.dtype, geometry)
    t, phases = ceil(k / s), [_over(phase, k, s) for phase in range(s)]
    K = K.reshape(t, t, u, s, s, channels)
    parts = [
        _in_pairs(K[t - over :, t - beside :, :, i, j].reshape(over, beside * u, channels), pair, wide)
        for i, over in enumerate(phases)
        for j, beside in enumerate(phases)
    ]
    return np.concatenate([part.reshape(-1) for part in parts])


def add_products_narrow(
    d: np.ndarray, M: np.ndarray, out: np.ndarray, memory: np.ndarray, geometry: Geometry
) -> None:
    """Fill images `out` with the sums of the patches d M; M from `phases_in_pairs`."""
    wide, _, pixels = _tiles_of_pixels(d.dtype, geometry)
    sizes = np.int64(len(d)), d.shape[-1], pixels, wide
    _run("add_products_narrow", d, M, out, memory, *sizes, *geometry)


def _in_pairs(W: np.ndarray, pair: int, wide: int) -> np.ndarray:
    """Return W (n, length, u), filled up with zeros, as tiles read it: (n, length / pair, wide, pair)."""
    n, length, u = W.shape
    pairs = np.zeros((n, ceil(length / pair) * pair, wide), W.dtype)
    pairs[:, :length, :u] = W
    return np.ascontiguousarray(pairs.reshape(n, -1, pair, wide).swapaxes(2, 3))


def _pixels_of_a_phase(geometry: Geometry) -> tuple[int, int]:
    """Return how many pixels s q + phase of an image there are in each direction, at most."""
    height, width, _, _, s, top, left, *_ = geometry
    high, across = ((pad + n - 1) // s - pad // s + 1 for n, pad in ((height, top), (width, left)))
    return high, across


def _over(phase: int, k: int, s: int) -> int:
    """Return how many patches lie over a pixel of such a phase, in one direction."""
    return ceil(max(0, k - phase) / s)


def _tiles_of_pixels(dtype: np.dtype, geometry: Geometry) -> tuple[int, int, int]:
    """Return what tiles are for a sum over patches: their channels, values in a pair, and pixels."""
    _, _, channels, *_ = geometry
    _, across = _pixels_of_a_phase(geometry)
    wide, pair, (pixels,) = _tiles(dtype, channels, [across])
    return wide, pair, pixels


def _tiles_of_patches(dtype: np.dtype, u: int, geometry: Geometry) -> tuple[int, int, tuple[int, ...]]:
    """Return what tiles are for a convolution: their channels, values in a pair, and their rows.

    Those are positions of x_p W, and pairs of values of a patch of x_p^T d.
    """
    _, _, channels, k, *_, columns = geometry
    return _tiles(dtype, u, [columns, ceil(k * channels / max(1, _pair(dtype)))])


def _tiles(dtype: np.dtype, u: int, lengths: Sequence[int]) -> tuple[int, int, tuple[int, ...]]:
    """Return the channels of tiles for u, values in a pair, and their rows for each of `lengths`.

    No channels: tiles do not pay.
    """
    pair = _pair(dtype)
    wide = next((width for width in HEIGHTS if 0 < u <= width), 0)
    if not pair or not wide:
        return 0, pair, tuple(0 for _ in lengths)
    heights = tuple(max(HEIGHTS[wide], key=lambda tall: _of_use(n, tall)) for n in lengths)
    of_use = min(_of_use(n, tall) for n, tall in zip(lengths, heights, strict=True)) * u / wide
    return wide if of_use >= PAYS else 0, pair, heights


def _pair(dtype: np.dtype) -> int:
    """Return how many values tiles take at a time; 0 where there are none."""
    loops = library(dtype)
    return loops.tile_pair() if loops is not None else 0


def _of_use(n: int, tile: int) -> float:
    """Return the share that n values take of the tiles that cover them."""
    return n / (ceil(n / tile) * tile)
