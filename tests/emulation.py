"""The CUDA kernels on the CPU: their sources compiled as C++, one thread that strides over everything.

What a kernel computes, and what the library passes to it, is then tested where there is no GPU. How it
runs on one is not.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from npgait import kernels
from npgait.kernels import patch_loops

PRELUDE = """
#include <cmath>
#include <algorithm>
#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
using std::sqrt; using std::pow; using std::min; using std::max;
struct Index { int x; };
static const Index blockIdx = {0}, threadIdx = {0}, blockDim = {1}, gridDim = {1};
"""
REALS = {"float32": "float", "float64": "double"}
TYPES = {
    np.dtype(np.int64): ctypes.c_longlong,
    np.dtype(np.int32): ctypes.c_int,
    np.dtype(np.float32): ctypes.c_float,
    np.dtype(np.float64): ctypes.c_double,
}


@functools.cache
def _library(source: str, dtype: str) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler to run the kernels with")
    with tempfile.TemporaryDirectory() as name:
        code, shared = Path(name, "kernels.cpp"), Path(name, "kernels.so")
        code.write_text(PRELUDE + source)
        options = ["-O1", "-shared", "-fPIC", f"-DREAL={REALS[dtype]}"]
        subprocess.run([compiler, *options, "-o", shared, code], check=True)
        return ctypes.CDLL(str(shared))  # what is loaded outlives the file


def launch_kernel(source: str, name: str, dtype: np.dtype, n: int, arguments: tuple) -> None:
    """Stand in for `npgait.backend.launch_kernel`, for NumPy arrays."""
    assert n > 0
    values = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            assert argument.flags.c_contiguous or name == "mirror"  # which takes a stride
            values.append(ctypes.c_void_p(argument.ctypes.data))
        else:
            values.append(TYPES[argument.dtype](argument.item()))
    getattr(_library(source, str(dtype)), name)(*values)


def _run_loop(name: str, dtype: np.dtype, arguments: tuple) -> None:
    """Stand in for `npgait.kernels.loops.run_loop`: the kernel of that name in the place of the loop."""
    file = "patches.cu" if name.endswith("patches") else "elementwise.cu"
    launch_kernel(kernels.source(file), name, dtype, 1, arguments)


@pytest.fixture
def emulated(monkeypatch):
    """Every kernel of the library at work on NumPy arrays."""
    monkeypatch.setattr(kernels, "run_loop", _run_loop)
    monkeypatch.setattr(kernels, "library", lambda dtype: object())
    monkeypatch.setattr(kernels, "SMALL", 0)
    monkeypatch.setattr(patch_loops, "library", lambda dtype: None)
