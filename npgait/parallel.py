"""Slices of a batch in threads, on the CPU: patches are copies, and BLAS does not share copying out."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from npgait.backend import Array, array_module

Result = TypeVar("Result")


def over_slices(work: Callable[[slice], Result], slices: Sequence[slice], x: Array) -> list[Result]:
    """Return `work(part)` for each slice, in order.

    Where `x` is NumPy's, slices are worked on in as many threads as BLAS would take, with BLAS at one
    thread meanwhile. Results do not depend on how many that are.

    Parameters
    ----------
    work : callable
        Touches nothing but its own slice.
    slices : sequence of slice
    x : array
        Says where the work is done.
    """
    threads = 1 if array_module(x) is not np or len(slices) < 2 else _blas_threads()
    if threads < 2:
        return [work(part) for part in slices]
    with _controller().limit(limits=1, user_api="blas"):
        return list(_pool(os.getpid(), threads).map(work, slices))


_local = threading.local()


def scratch(n: int, dtype: np.dtype, x: Array) -> Array:
    """Return `n` values of memory that this thread uses again and again, with anything in them.

    What is written there is gone at the next call: for what a slice needs and drops. To ask the system
    anew would cost as much as the copying, a page at a time.
    """
    if array_module(x) is not np:
        return array_module(x).empty(n, dtype)
    memory = getattr(_local, "memory", None)
    if memory is None or memory.nbytes < n * dtype.itemsize:
        memory = _local.memory = np.empty(n * dtype.itemsize, np.uint8)
    return memory[: n * dtype.itemsize].view(dtype)


@functools.cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _blas_threads() -> int:
    """Return how many threads BLAS takes at present: 1 where a user or another library limits it."""
    libraries = _controller().lib_controllers
    return max((lib.num_threads for lib in libraries if lib.user_api == "blas"), default=1)


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the threads of this process: those of a parent do not come along with a fork."""
    del process
    return ThreadPoolExecutor(threads, thread_name_prefix="npgait-slices")
