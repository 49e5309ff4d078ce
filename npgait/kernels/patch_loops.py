"""Products with patches on a CPU, by compiled loops.

Those of loops.c cut a few patches at a time and have NumPy's own BLAS multiply them. Those of tiles.c,
which are faster where their tiles fit, read the image itself and never write a patch.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np

from npgait.backend import array_module
from npgait.blas import address
from npgait.kernels.loops import library, run_loop
from npgait.layout import layout
from npgait.parallel import scratch

Geometry = tuple[int, ...]  # H, W, C, k, stride, top, left, rows, columns
InTiles = Callable[[np.ndarray, np.ndarray], None]
PAYS = 0.6  # share of the tiles' values that has to be of use for them to be faster than BLAS
WORTH_SUMS = 40  # positions of an image: of fewer, results wider than a tile load their sums too often
# Lanes of a register: channels of a tile: rows of a tile. The tiles that tiles.c has (EACH_TILE).
HEIGHTS = {8: {24: (7, 9, 6), 32: (6,), 16: (7, 9, 6)}, 4: {12: (4,), 8: (6, 5)}}
LINE = 64  # bytes of a line of the cache
BAND, POSITIONS = 24000, 126  # as in tiles.c


def apply_to(x: np.ndarray) -> bool:
    """Return whether these loops work on arrays like x."""
    there = array_module(x) is np and library(x.dtype) is not None
    return there and address("gemm", x.dtype) is not None


def patches_times(
    x: np.ndarray, W: np.ndarray, out: np.ndarray, memory: np.ndarray, geometry: Geometry
) -> None:
    """Fill `out` (B, H', W', u) with x_p W; W (k k C, u) may be columns of a larger matrix."""
    columns = np.int32(W.shape[1]), np.int32(_between_rows(W))
    product = address("gemm", x.dtype), np.int64(len(x)), _held(memory, geometry), *columns
    _run("patches_times", x, W, out, memory, *product, *geometry)


def times_patches(
    d: np.ndarray, x: np.ndarray, out: np.ndarray, memory: np.ndarray, geometry: Geometry
) -> None:
    """Fill `out` (u, k k C) with d^T x_p, summed over positions and samples."""
    product = address("gemm", x.dtype), np.int64(len(x)), _held(memory, geometry), np.int32(len(out))
    _run("times_patches", x, d, out, memory, *product, *geometry)


def add_products(
    d: np.ndarray, M: np.ndarray, out: np.ndarray, memory: np.ndarray, geometry: Geometry
) -> None:
    """Fill images `out` with the sums of the patches d M that cover their pixels."""
    product = address("gemm", d.dtype), np.int64(len(d)), _held(memory, geometry), np.int32(len(M))
    _run("add_products", d, M, out, memory, *product, *geometry)


def _between_rows(W: np.ndarray) -> int:
    """Return how many values one row of W is from the next, each of them in one piece."""
    lies = layout(W)
    assert lies is not None
    return lies[1]


def _held(memory: np.ndarray, geometry: Geometry) -> np.int32:
    """Return how many patches `memory` holds."""
    _, _, channels, k, *_ = geometry
    return np.int32(memory.size // (k * k * channels))


def _run(name: str, first: np.ndarray, *arguments: Any) -> None:
    numbers = (np.int32(a) if isinstance(a, int) else a for a in arguments)
    run_loop(name, first.dtype, (first, *numbers))


# --- in tiles -------------------------------------------------------------------------------------


def multiplier_in_tiles(W: np.ndarray, geometry: Geometry) -> InTiles | None:
    """Return the function that fills `out` (B, H', W', u) with x_p W in tiles; None: they do not pay.

    W (k k C, u) may be columns of a larger matrix.
    """
    _, _, channels, k, s, _, _, rows, columns = geometry
    u, dtype, pair, lanes = W.shape[1], W.dtype, _pair(W.dtype), register_lanes(W.dtype)
    wide, tall = _tile(dtype, u, _at_a_time(rows, columns))
    if not wide:
        return None
    length = _filled(k * channels, pair)
    laid_out = _zeros(_filled(u, wide) * k * length, dtype)
    _run(f"lay_out_patches_{lanes}", W, laid_out, u, _between_rows(W), wide, *geometry)
    padded = ((rows - 1) * s + k) * ((columns - 1) * s + k) * channels

    def multiply(x: np.ndarray, out: np.ndarray) -> None:
        memory = scratch(padded + pair, dtype, x)
        _run(
            f"patches_times_in_tiles_{lanes}",
            x,
            laid_out,
            out,
            memory,
            np.int64(len(x)),
            u,
            tall,
            wide,
            *geometry,
        )

    return multiply


def adder_in_tiles(M: np.ndarray, geometry: Geometry) -> InTiles | None:
    """Return the function that fills images `out` with the sums of the patches d M, or None."""
    height, width, channels, k, s, top, left, *_ = geometry
    u, dtype, pair, lanes = len(M), M.dtype, _pair(M.dtype), register_lanes(M.dtype)
    high, across = ((pad + n - 1) // s - pad // s + 1 for n, pad in ((height, top), (width, left)))
    wide, tall = _tile(dtype, channels, _at_a_time(high, across))
    if not wide:
        return None
    beside = [ceil(max(0, k - phase) / s) for phase in range(s)]  # patches over a pixel in one direction
    laid_out = _zeros(_filled(channels, wide) * k * sum(_filled(n * u, pair) for n in beside), dtype)
    _run(f"lay_out_phases_{lanes}", M, laid_out, u, wide, *geometry)
    padded = (high + beside[0] - 1) * (across + beside[0] - 1) * u

    def add(d: np.ndarray, out: np.ndarray) -> None:
        memory = scratch(padded + pair, dtype, d)
        sizes = np.int64(len(d)), u, tall, wide
        _run(f"add_products_in_tiles_{lanes}", d, laid_out, out, memory, *sizes, *geometry)

    return add


def summing_memory(dtype: np.dtype, u: int, geometry: Geometry) -> int:
    """Return how many values of memory `times_patches_in_tiles` takes; 0 where tiles do not pay."""
    _, _, channels, k, s, _, _, rows, columns = geometry
    wide, tall = _tile_of_sums(dtype, u, geometry)
    if not wide or (u > wide and rows * columns < WORTH_SUMS):
        return 0
    pair, width_of_d = _pair(dtype), wide * _pair(dtype)
    pairs = _filled(ceil(k * channels / pair), tall)  # of a row of P, in whole tiles
    sums = _filled(u, wide) * pair * k * pairs
    padded = ((rows - 1) * s + k) * ((columns - 1) * s + k) * channels + pairs * pair
    some = max(1, min(rows, BAND // (columns * width_of_d * dtype.itemsize)))
    return LINE // dtype.itemsize + some * columns * width_of_d + sums + padded


def times_patches_in_tiles(
    d: np.ndarray, x: np.ndarray, out: np.ndarray, memory: np.ndarray, geometry: Geometry
) -> None:
    """Fill `out` (k k C, u) with x_p^T d, summed over positions and samples."""
    u, lanes = d.shape[-1], register_lanes(x.dtype)
    wide, tall = _tile_of_sums(x.dtype, u, geometry)
    sizes = np.int64(len(x)), u, tall, wide
    _run(f"times_patches_in_tiles_{lanes}", x, d, out, memory, *sizes, *geometry)


def _tile_of_sums(dtype: np.dtype, u: int, geometry: Geometry) -> tuple[int, int]:
    _, _, channels, k, *_ = geometry
    return _tile(dtype, u, ceil(k * channels / _pair(dtype)))


def _tile(dtype: np.dtype, u: int, rows: int) -> tuple[int, int]:
    """Return channels and rows of the tiles for a result of u channels; no channels: they do not pay."""
    most, best = 0.0, (0, 0)
    for wide, heights in HEIGHTS.get(register_lanes(dtype), {}).items():
        for tall in heights:
            of_use = u / _filled(u, wide) * rows / _filled(rows, tall)
            if of_use > most:
                most, best = of_use, (wide, tall)
    return best if most >= PAYS else (0, 0)


def _at_a_time(rows: int, columns: int) -> int:
    """Return how many positions tiles cover together."""
    return min(rows, max(1, POSITIONS // columns)) * columns


def register_lanes(dtype: np.dtype) -> int:
    """Return how many lanes of eight bytes a register has; 0 where there are no tiles."""
    loops = library(dtype)
    return loops.tile_lanes() if loops is not None else 0


def _pair(dtype: np.dtype) -> int:
    """Return how many values a lane holds."""
    return 8 // dtype.itemsize


def _filled(n: int, size: int) -> int:
    """Return n filled up to whole pieces of such a size."""
    return ceil(n / size) * size


def _zeros(n: int, dtype: np.dtype) -> np.ndarray:
    """Return zeros that begin where a line of the cache does: half of all reads lie on two otherwise."""
    memory = np.zeros(n * dtype.itemsize + LINE, np.uint8)
    first = -memory.__array_interface__["data"][0] % LINE
    return memory[first : first + n * dtype.itemsize].view(dtype)
