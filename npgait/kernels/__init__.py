"""Kernels: in one pass what NumPy or CuPy does in several over memory, or CuPy with atomic sums.

Each function but `mirror` is an equation that stands in activations.py, optimizers.py, data.py or
layers/patches.py in NumPy. For a GPU the sources are *.cu, compiled on first use; for a CPU loops.c,
compiled when npgait is installed, where there is a C compiler. Both take the equations from equations.h.
Products with patches are in loops.c, and by the registers of a processor in tiles.c.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np

from npgait.backend import Array, array_module, launch_kernel
from npgait.kernels.loops import library, run_loop
from npgait.parallel import in_threads, stretches

EQUATIONS = "equations.h"
SMALL = 1 << 15  # values, below which NumPy is as fast


def apply_to(*arrays: Array) -> bool:
    """Return whether kernels work on these: all float32 or all float64, each in one piece.

    On a CPU also large enough: NumPy computes the same bits, and where a few of its passes cost less
    than a call of C it does so.
    """
    first = arrays[0]
    if array_module(first) is np and (first.size < SMALL or library(first.dtype) is None):
        return False
    return all(a.flags.c_contiguous and a.dtype == first.dtype for a in arrays)


def apply_to_bytes(x: Array) -> bool:
    """Return whether `normalise` works on x."""
    there = array_module(x) is not np or library(np.dtype(np.float32)) is not None
    return there and x.dtype == np.uint8 and x.flags.c_contiguous


def bias_activation(a: Array, b: Array, slope: float, out: Array | None = None) -> Array:
    """Do a <- a + b in place, and return y = f(a), in `out` where given: a (..., u), b (u,)."""
    y = array_module(a).empty_like(a) if out is None else out
    check_writable(a, y)
    _check_shapes(a=a.shape, out=y.shape)
    _check_shapes(a=a.shape[-1:], b=b.shape)
    u, real = np.int32(a.shape[-1]), _real(a, slope)
    # As rows of u values: a stretch that threads share then holds whole rows.
    rows, y_rows = a.reshape(-1, a.shape[-1]), y.reshape(-1, a.shape[-1])
    _elementwise("bias_activation", rows, lambda part, n: (rows[part], b, y_rows[part], n, u, real))
    return y


def times_derivative(a: Array, e: Array, slope: float, power: int) -> Array:
    """Return f'(a)^power * e."""
    _check_shapes(a=a.shape, e=e.shape)
    out = array_module(a).empty_like(e)
    factor = _real(a, _real(a, slope) ** power)  # a power of NumPy 1 is of double precision
    _elementwise("times_derivative", a, lambda part, n: (a[part], e[part], out[part], n, factor))
    return out


def difference(y: Array, v: Array, s: Any, slope: float) -> Array:
    """Return d = [f^-1(y) - f^-1(y - s v)] / s: s one value a sample, or one for all."""
    xp = array_module(y)
    # A number is filled in on the device: a copy from the host would be waited for.
    sizes = xp.full(len(y), s, y.dtype) if np.ndim(s) == 0 else s.reshape(-1).astype(y.dtype, copy=False)
    sizes = xp.ascontiguousarray(sizes)
    _check_shapes(y=y.shape, v=v.shape)
    _check_shapes(samples=y.shape[:1], s=sizes.shape)
    d = xp.empty_like(y)
    per_sample, real = np.int64(y.size // max(len(y), 1)), _real(y, slope)
    _elementwise(
        "difference",
        y,
        lambda part, n: (y[part], v[part], sizes[part], d[part], n, per_sample, real),
    )
    return d


def adam_clock(
    clock: Array,
    like: Array,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    bias_correction: bool,
) -> None:
    """Move Adam's clock (t, rate, epsilon), float64, on by one step; `like` is a parameter."""
    numbers = map(np.float64, (learning_rate, beta1, beta2, epsilon))
    correct = np.int32(bias_correction)
    _launch("elementwise.cu", "adam_clock", like, 1, clock, np.int64(1), *numbers, correct)


def adam(p: Array, g: Array, m: Array, v: Array, clock: Array, beta1: float, beta2: float) -> None:
    """Change p, m and v by one step of Adam, in place, at the rate and epsilon of `clock`."""
    _check_shapes(p=p.shape, g=g.shape, m=m.shape, v=v.shape)
    check_writable(p, m, v)
    betas = (np.float64(beta1), np.float64(beta2))
    _launch("elementwise.cu", "adam", p, p.size, p, g, m, v, clock, np.int64(p.size), *betas)


def normalise(x: Array, shift: Array, scale: Array, dtype: np.dtype) -> Array:
    """Return (x - shift) * scale of bytes x (..., channels): shift and scale one value a channel."""
    _check_shapes(shift=shift.shape, scale=scale.shape)
    if shift.size > 1:
        _check_shapes(channels=x.shape[-1:], shift=shift.shape)
    out = array_module(x).empty(x.shape, dtype)
    channels = np.int32(shift.size)
    _elementwise("normalise", out, lambda part, n: (x[part], shift, scale, out[part], n, channels))
    return out


def mirror(G: Array, rows: slice = slice(None), columns: slice = slice(None)) -> None:
    """Copy the lower triangle of G (n, n), or a block of it, to its mirror image, in place.

    Parameters
    ----------
    G : array (n, n)
    rows, columns : slice, optional
        Those of a block below the diagonal or, equal, on it.
    """
    block, image = G[rows, columns], G[columns, rows]
    if apply_to(G):
        check_writable(G)
        sizes = np.int64(len(G)), *map(np.int32, block.shape)
        _launch("elementwise.cu", "mirror", G, block.size, block, image, *sizes)
    elif rows == columns:
        block[...] = np.tril(block) + np.tril(block, -1).T
    else:
        image[...] = block.T


def cut_patches(x: Array, patches: Array, geometry: tuple[int, ...]) -> None:
    """Fill `patches` from images; geometry: H, W, C, k, stride, top, left, rows, columns."""
    _patches("cut_patches", x, patches, patches.size, geometry)


def add_patches(patches: Array, x: Array, geometry: tuple[int, ...]) -> None:
    """Fill images `x` with the sums of the patches that cover their pixels."""
    _patches("add_patches", patches, x, x.size, geometry)


def _patches(name: str, source: Array, target: Array, n: int, geometry: tuple[int, ...]) -> None:
    sizes = (np.int64(n), *(np.int32(value) for value in geometry))
    _launch("patches.cu", name, target, n, source, target, *sizes)


def _check_shapes(**shapes: tuple[int, ...]) -> None:
    """Raise a ValueError where shapes differ: a kernel would read beyond the smaller array."""
    if len(set(shapes.values())) > 1:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"arrays of equal shapes are expected; got {got}")


def check_writable(*arrays: Array) -> None:
    """Raise NumPy's own ValueError where one of its arrays is read-only: C would write all the same."""
    if any(array_module(a) is np and not a.flags.writeable for a in arrays):
        raise ValueError("output array is read-only")


def _real(like: Array, value: float) -> Any:
    return like.dtype.type(value)


def _elementwise(name: str, x: Array, arguments: Callable[[slice, np.int64], tuple[Any, ...]]) -> None:
    """Run a kernel on all of x, on a CPU by stretches in threads; `arguments` are those of a stretch."""

    def work(part: slice) -> None:
        n = x[part].size
        _launch("elementwise.cu", name, x, n, *arguments(part, np.int64(n)))

    in_threads(work, stretches(x), x)


def _launch(file: str, name: str, like: Array, n: int, *arguments: Any) -> None:
    """Run a kernel over n values, in the floating-point type of `like`."""
    if not n:
        return
    if array_module(like) is np:
        run_loop(name, like.dtype, arguments)
    else:
        launch_kernel(source(file), name, like.dtype, n, arguments)


@functools.cache
def source(file: str) -> str:
    """Return the CUDA source of a file beside this one, with what it includes."""
    folder = resources.files(__name__)
    equations = folder.joinpath(EQUATIONS).read_text(encoding="utf-8")
    text = folder.joinpath(file).read_text(encoding="utf-8")
    return text.replace(f'#include "{EQUATIONS}"\n', equations)
