"""The compiled loops of *.c for NumPy arrays, where a C compiler was there when npgait was installed.

Nothing needs them: without them NumPy computes the same in several passes over memory, elementwise to
the bit, sums and products up to rounding.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np

SWITCH = "NPGAIT_LOOPS"  # environment variable: "numpy" for NumPy even where there are compiled loops
NUMBERS = {
    np.dtype(np.int32): ctypes.c_int,
    np.dtype(np.int64): ctypes.c_longlong,
    np.dtype(np.float32): ctypes.c_float,
    np.dtype(np.float64): ctypes.c_double,
    np.dtype(np.uint64): ctypes.c_void_p,  # the address of a function
}
# Names of a product in the builds of OpenBLAS: NumPy's own, its older ones, those of distributions.
GEMM = ("scipy_cblas_{}gemm64_", "cblas_{}gemm64_", "scipy_cblas_{}gemm", "cblas_{}gemm")


@functools.cache
def library(dtype: np.dtype) -> ctypes.CDLL | None:
    """Return the loops for float32 or float64; None for another dtype, or where they were not built."""
    if os.environ.get(SWITCH) == "numpy":
        return None
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_loops_{dtype.name}{suffix}")
        if path.is_file():
            try:
                return ctypes.CDLL(str(path))
            except OSError:  # built for another machine
                return None
    return None


def in_use() -> str:
    """Return which loops work on NumPy arrays: "compiled" or "numpy"."""
    return "numpy" if library(np.dtype(np.float32)) is None else "compiled"


@functools.cache
def gemm(dtype: np.dtype) -> np.uint64 | None:
    """Return the address of the matrix product (CBLAS gemm) that NumPy itself uses, for loops to call.

    None where there are no loops, or NumPy's BLAS is another than OpenBLAS. Sizes are passed in 64 bits:
    where a build takes 32, it reads the lower half of each.
    """
    if library(dtype) is None or sys.byteorder != "little":
        return None
    from threadpoolctl import ThreadpoolController

    letter = {4: "s", 8: "d"}[dtype.itemsize]
    for found in ThreadpoolController().select(internal_api="openblas").lib_controllers:
        for name in GEMM:
            function = getattr(found.dynlib, name.format(letter), None)
            if function is not None:
                return np.uint64(ctypes.cast(function, ctypes.c_void_p).value or 0)
    return None


def run_loop(name: str, dtype: np.dtype, arguments: tuple[Any, ...]) -> None:
    """Run a loop, without Python's lock.

    Parameters
    ----------
    name : str
        Of the function in loops.c.
    dtype : numpy.dtype
        What REAL stands for.
    arguments : tuple
        NumPy arrays, each in one piece, and NumPy scalars of the types that the function takes.
    """
    loops = library(dtype)
    assert loops is not None
    values = [
        ctypes.c_void_p(a.__array_interface__["data"][0])
        if isinstance(a, np.ndarray)
        else NUMBERS[a.dtype](a.item())
        for a in arguments
    ]
    getattr(loops, name)(*values)
