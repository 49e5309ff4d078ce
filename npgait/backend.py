"""The array module: NumPy, or CuPy where there is a GPU. The only file that imports cupy.

Every other file asks `array_module(x)` which module an array belongs to and calls that module, so one
line of code serves both.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray; the two share no base class

DTYPES: dict[str, np.dtype] = {"float32": np.dtype(np.float32), "float64": np.dtype(np.float64)}

_DLPACK_CPU = (1, 3)  # kDLCPU and kDLCUDAHost: memory that NumPy can read
_DLPACK_GPU = (2, 13)  # kDLCUDA and kDLCUDAManaged


class DeviceError(RuntimeError):
    """The device that was asked for cannot be used."""


@dataclass(frozen=True)
class Device:
    """Where arrays live: `xp` is the array module, `name` what a person calls the device."""

    xp: ModuleType
    name: str
    index: int | None = None  # of the CUDA device; None on the CPU

    @property
    def is_gpu(self) -> bool:
        """Whether arrays live on a CUDA device."""
        return self.index is not None

    def use(self) -> None:
        """Have this thread compute here from now on: CuPy begins each on the first GPU.

        Kernels and cuBLAS would take the addresses of another GPU's arrays for their own.
        """
        if self.is_gpu:
            self.xp.cuda.Device(self.index).use()


CPU = Device(np, "cpu")


def array_module(x: Array) -> ModuleType:
    """Return the module that `x` belongs to: cupy for a CuPy array, numpy for all else."""
    cupy = sys.modules.get("cupy")  # an array of CuPy's exists only once cupy is imported
    if cupy is not None and isinstance(x, cupy.ndarray):
        return cupy
    return np


def device_of(x: Array) -> Device:
    """Return the device that `x` lives on."""
    xp = array_module(x)
    return CPU if xp is np else Device(xp, f"gpu:{x.device.id}", x.device.id)


def select_device(spec: str = "auto") -> Device:
    """Return the device that `spec` names.

    Parameters
    ----------
    spec : {"auto", "cpu", "gpu", "gpu:N"}
        "auto" takes the first GPU where there is one and the CPU otherwise, silently.
        Of several GPUs, this is the one that the thread uses from now on.

    Raises
    ------
    TypeError
        If `spec` is no text.
    DeviceError
        If it is none of these, or names a GPU that is not there.
    """
    if spec == "cpu":
        return CPU
    if not isinstance(spec, str):
        raise TypeError(f"device is {spec!r}; expected a text: cpu, gpu, gpu:N or auto")
    kind, _, number = spec.partition(":")
    if not (spec == "auto" or (kind == "gpu" and (number.isdecimal() or spec == "gpu"))):
        raise DeviceError(f"device {spec!r} is unknown; use cpu, gpu, gpu:N or auto")
    index = int(number or 0)
    cupy, count, why = _find_gpus()
    if cupy is not None and index < count:
        device = Device(cupy, f"gpu:{index}", index)
        device.use()
        return device
    if spec == "auto":
        return CPU
    if count:
        why = f"there is no GPU {index}; this machine has {count}, counted from 0"
    raise DeviceError(f"device {spec!r} cannot be used: {why}")


def _find_gpus() -> tuple[ModuleType | None, int, str]:
    """Return cupy (or None), the number of GPUs it sees, and why there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cupy warns about absent CUDA libraries on import
        try:
            import cupy
        except ImportError:
            return None, 0, "CuPy is not installed (pip install 'npgait[cuda12]' or '[cuda13]')"
        except Exception as error:  # a broken CUDA installation fails in many ways
            return None, 0, f"CuPy cannot be imported ({_one_line(error)})"
        try:
            count = cupy.cuda.runtime.getDeviceCount()
            if count:
                importlib.import_module("cupy.cublas")
        except ImportError as error:  # CuPy 14 finds its libraries when they are first used
            why = (
                f"CuPy finds no cuBLAS ({_one_line(error)}); pip install 'npgait[cuda12]' or '[cuda13]'"
            )
            return None, 0, f"{why} brings it, or install the CUDA toolkit"
        except Exception as error:
            return None, 0, f"CUDA finds no GPU ({_one_line(error)})"
    return cupy, count, "CUDA finds no GPU"


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def parse_dtype(name: str | np.dtype | type) -> np.dtype:
    """Return float32 or float64 as a dtype.

    Raises
    ------
    ValueError
        If `name` is neither.
    """
    try:
        dtype = DTYPES.get(np.dtype(name).name)
    except TypeError:
        dtype = None
    if dtype is None:
        raise ValueError(f"dtype {name!r} is not supported; use float32 or float64")
    return dtype


def as_array(x: Any, xp: ModuleType | None = None) -> Array:
    """Return `x` as a NumPy or CuPy array, without a copy where that can be.

    Parameters
    ----------
    x : array
        A NumPy or CuPy array, anything with `__dlpack__` (PyTorch, JAX, ...), or a nested sequence.
    xp : module, optional
        numpy or cupy: where the result has to live. Default: where `x` lives.

    Raises
    ------
    TypeError
        If `x` is an array that neither NumPy nor CuPy can take, or masked.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError("x is a masked array; fill in or leave out what is masked (x.filled(...))")
    own = array_module(x)
    if own is np and not isinstance(x, np.ndarray) and hasattr(x, "__dlpack__"):
        x = _from_dlpack(x)
        own = array_module(x)
    elif own is np:
        x = np.asarray(x)
    if xp is None or xp is own:
        return x
    return to_host(x) if xp is np else xp.asarray(x)


def _from_dlpack(x: Any) -> Array:
    kind = int(x.__dlpack_device__()[0])
    try:
        if kind in _DLPACK_CPU:
            return np.from_dlpack(x)
        if kind in _DLPACK_GPU:
            import cupy

            return cupy.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ImportError) as error:
        raise TypeError(
            f"cannot read a {type(x).__module__}.{type(x).__qualname__} through DLPack: {error}"
        ) from error
    raise TypeError(
        f"{type(x).__module__}.{type(x).__qualname__} lives on DLPack device type {kind}; "
        "expected CPU or CUDA memory"
    )


def to_host(x: Array) -> np.ndarray:
    """Return `x` as a NumPy array, copied from the device if it lives there."""
    return x.get() if array_module(x) is not np else np.asarray(x)


# --- what only a GPU has --------------------------------------------------------------------------

THREADS = 256  # of a block
REALS = {"float32": "float", "float64": "double"}
PRECISIONS = ("float32", "tf32")


@functools.cache
def _kernel(source: str, name: str, dtype: str) -> Any:
    import cupy

    return cupy.RawModule(code=source, options=(f"-DREAL={REALS[dtype]}",)).get_function(name)


def launch_kernel(source: str, name: str, dtype: np.dtype, n: int, arguments: tuple[Any, ...]) -> None:
    """Run a CUDA kernel over n values on the current stream.

    Parameters
    ----------
    source : str
        CUDA C++; REAL in it becomes float or double, and its loops stride over the whole grid.
    name : str
        Of the kernel in it.
    dtype : numpy.dtype
    n : int
    arguments : tuple
        CuPy arrays, and NumPy scalars of the types that the kernel takes.
    """
    blocks = min(-(-n // THREADS), 1 << 16)
    _kernel(source, name, str(dtype))((blocks,), (THREADS,), arguments)


def lower_symmetric_product(W: Array) -> Array:
    """Return the lower triangle of W W^T (n, n) on a GPU by cuBLAS syrk; the rest is undefined."""
    import cupy
    from cupy import cublas

    G = cupy.empty((len(W), len(W)), dtype=W.dtype)
    return cublas.syrk("N", W, out=G, lower=True)


def set_precision(precision: str) -> None:
    """Choose how a GPU makes float32 products: "float32", or "tf32", with factors of 10 bits.

    Raises
    ------
    ValueError
        If `precision` is neither.
    DeviceError
        If there is no CuPy, or it cannot choose: GPUs before Ampere have no TF32.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}")
    try:
        from cupy._core import _routines_linalg as products

        kind = products.COMPUTE_TYPE_TF32 if precision == "tf32" else products.COMPUTE_TYPE_FP32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy's own, that it takes another
            products.set_compute_type(np.dtype(np.float32), kind)
        chosen = products.get_compute_type(np.dtype(np.float32))
    except (ImportError, AttributeError) as error:
        raise DeviceError(f"precision {precision!r} cannot be set: {_one_line(error)}") from error
    if precision == "tf32" and chosen != kind:
        raise DeviceError("precision 'tf32' needs a GPU of compute capability 8.0 or more; use float32")


def precision_of(x: Array) -> str:
    """Return how products of `x` are made: "float64", "float32", or on a GPU "tf32" where chosen.

    By `set_precision`, or by CuPy's environment variable CUPY_TF32.
    """
    if array_module(x) is np or x.dtype != np.float32:
        return str(x.dtype)
    try:
        from cupy._core import _routines_linalg as products

        return "tf32" if products.get_compute_type(x.dtype) == products.COMPUTE_TYPE_TF32 else "float32"
    except (ImportError, AttributeError):
        return "float32"


@contextmanager
def in_float32(x: Array) -> Iterator[None]:
    """Make products of `x` in float32 and not in TF32 while the block runs, so that it can measure."""
    if precision_of(x) != "tf32":
        yield
        return
    from cupy._core import _routines_linalg as products

    before = products.get_compute_type(np.dtype(np.float32))
    products.set_compute_type(np.dtype(np.float32), products.COMPUTE_TYPE_FP32)
    try:
        yield
    finally:
        products.set_compute_type(np.dtype(np.float32), before)


def synchronise(device: Device) -> None:
    """Wait until the device has done all it was asked to; at once on the CPU."""
    if device.is_gpu:
        device.xp.cuda.get_current_stream().synchronize()


def memory_taken(device: Device, work: Callable[[], Any]) -> int:
    """Return the bytes that `work` takes on a GPU beyond those that are in use before it."""
    pool = device.xp.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.used_bytes()
    work()
    return int(pool.total_bytes()) - int(before)
