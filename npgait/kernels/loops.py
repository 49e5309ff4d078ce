"""The compiled loops of *.c for NumPy arrays, where a C compiler was there when npgait was installed.

Nothing needs them: without them NumPy computes the same in several passes over memory, elementwise to
the bit, sums and products up to rounding.
"""

from __future__ import annotations

import ctypes
import functools
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np

SWITCH = "NPGAIT_LOOPS"  # environment variable: "numpy" does without compiled loops
NUMBERS = {
    np.dtype(np.int32): ctypes.c_int,
    np.dtype(np.int64): ctypes.c_longlong,
    np.dtype(np.float32): ctypes.c_float,
    np.dtype(np.float64): ctypes.c_double,
    np.dtype(np.uint64): ctypes.c_void_p,  # the address of a function
}


class SwitchError(ValueError):
    """NPGAIT_LOOPS is set to an unknown word."""


def switched_off() -> bool:
    """Return whether NPGAIT_LOOPS=numpy asks for NumPy.

    Raises
    ------
    SwitchError
        If it is set to another word than "numpy" or "compiled".
    """
    word = os.environ.get(SWITCH) or "compiled"
    if word not in ("numpy", "compiled"):
        raise SwitchError(f"{SWITCH} is {word!r}; expected numpy, or compiled (the default)")
    return word == "numpy"


@functools.cache
def library(dtype: np.dtype) -> ctypes.CDLL | None:
    """Return the loops for float32 or float64; None for another dtype, or where they were not built."""
    if switched_off() or not dtype.isnative:
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


def run_loop(name: str, dtype: np.dtype, arguments: tuple[Any, ...]) -> None:
    """Run a loop, without Python's lock.

    Parameters
    ----------
    name : str
        Of the function in loops.c or tiles.c.
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
