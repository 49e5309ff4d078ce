"""Products with patches: x_p W, x_p^T d, and the sum over patches of d M.

On a CPU with compiled loops patches are cut, multiplied and added a few at a time, in a cache. Elsewhere
they are written out, and the products are those that the equations name.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from npgait.backend import Array
from npgait.blas import product
from npgait.kernels import patch_loops
from npgait.layers.patches import Window, add_patches, check_array, cut_patches, geometry
from npgait.layout import AS_IS, layout
from npgait.parallel import scratch

SOME_BYTES = 400 << 10  # of patches that loops work on at a time, so that they stay in a cache

Products = Callable[[Array, Array], None]


def multiplier(W: Array, window: Window) -> Products:
    """Return the function that fills an array with x_p W.

    Parameters
    ----------
    W : array (k*k*C, u)
    window : Window

    Returns
    -------
    callable
        Of x (B, H, W, C) and of what is to be filled, (B, H', W', u).

    Raises
    ------
    ValueError
        By what is returned: if a shape is another, or what is to be filled does not lie in one piece.
    """
    where, in_tiles = geometry(window), None
    if multiplied_in_loops(W):
        lies = layout(W)
        W = W if lies is not None and lies[0] == AS_IS else np.ascontiguousarray(W)
        in_tiles = patch_loops.multiplier_in_tiles(W, where)

    def multiply(x: Array, out: Array) -> None:
        check_array("x", x, (len(x), window.height, window.width, window.channels))
        check_array("out", out, (len(x), *window.positions, W.shape[1]), in_one_piece=True)
        if not multiplied_in_loops(x, W, out):
            product(_patches(x, window), W, out.reshape(-1, W.shape[1]))
        elif in_tiles is not None:
            in_tiles(np.ascontiguousarray(x), out)
        else:
            x = np.ascontiguousarray(x)
            patch_loops.patches_times(x, W, out, _memory_for_some(x, window), where)

    return multiply


def patches_transposed_times(x: Array, d: Array, window: Window) -> Array:
    """Return x_p^T d, summed over positions and samples.

    Parameters
    ----------
    x : array (B, H, W, C)
    d : array (B, H', W', u)
    window : Window

    Returns
    -------
    array (k*k*C, u)

    Raises
    ------
    ValueError
        If a shape is another.
    """
    u = d.shape[-1]
    check_array("x", x, (len(x), window.height, window.width, window.channels))
    check_array("d", d, (len(x), *window.positions, u))
    if not multiplied_in_loops(x, d):  # (d^T x_p)^T: of the two, the faster
        return product(d.reshape(-1, u).T, _patches(x, window)).T
    x, d, where = np.ascontiguousarray(x), np.ascontiguousarray(d), geometry(window)
    if size := patch_loops.summing_memory(x.dtype, u, where):
        P = np.empty((window.patch_size, u), x.dtype)
        patch_loops.times_patches_in_tiles(d, x, P, scratch(size, x.dtype, x), where)
        return P
    P = np.empty((u, window.patch_size), x.dtype)
    patch_loops.times_patches(d, x, P, _memory_for_some(x, window), where)
    return P.T


def product_adder(M: Array, window: Window) -> Products:
    """Return the function that fills images with the sums of the patches d M.

    Parameters
    ----------
    M : array (u, k*k*C)
    window : Window

    Returns
    -------
    callable
        Of d (B, H', W', u) and of images to be filled, (B, H, W, C).

    Raises
    ------
    ValueError
        By what is returned: if a shape is another, or loops are to fill what is not in one piece.
    """

    def check(d: Array, out: Array, *, in_one_piece: bool = False) -> None:
        check_array("d", d, (len(d), *window.positions, len(M)))
        shape = (len(d), window.height, window.width, window.channels)
        check_array("out", out, shape, in_one_piece=in_one_piece)

    if multiplied_in_loops(M):
        M, where = np.ascontiguousarray(M), geometry(window)
        in_tiles = patch_loops.adder_in_tiles(M, where)

        def by_loops(d: Array, out: Array) -> None:
            if not multiplied_in_loops(M, d, out):
                raise TypeError(f"d is {d.dtype} and out {out.dtype}; expected {M.dtype}")
            check(d, out, in_one_piece=True)
            d = np.ascontiguousarray(d)
            if in_tiles is not None:
                in_tiles(d, out)
            else:
                patch_loops.add_products(d, M, out, _memory_for_some(d, window), where)

        return by_loops

    def written_out(d: Array, out: Array) -> None:
        check(d, out)
        out[...] = add_patches(product(d.reshape(-1, len(M)), M), window)

    return written_out


def multiplied_in_loops(*arrays: Array) -> bool:
    """Return whether compiled loops multiply patches of such arrays, a few at a time."""
    return patch_loops.apply_to(arrays[0]) and len({a.dtype for a in arrays}) == 1


def _memory_for_some(x: Array, window: Window) -> Array:
    """Return memory for a few patches."""
    rows, columns = window.positions
    some = max(1, min(len(x) * rows * columns, SOME_BYTES // (window.patch_size * x.itemsize)))
    return scratch(some * window.patch_size, x.dtype, x)


def _patches(x: Array, window: Window) -> Array:
    """Return all patches, on a CPU in memory that the next call takes again."""
    rows, columns = window.positions
    memory = scratch(len(x) * rows * columns * window.patch_size, x.dtype, x)
    return cut_patches(x, window, memory)
