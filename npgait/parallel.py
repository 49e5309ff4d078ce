"""Work on the CPU, in threads where BLAS shares it out badly, and in pieces that fit a cache."""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np

from npgait.backend import Array, array_module

Part = TypeVar("Part")
Result = TypeVar("Result")
WORTH_THREADS = 1 << 20  # values from which on threads pay for one pass over them
PARTS = 4  # of such a pass; more, of no fewer values each, where there are more threads
LARGE = 1 << 18  # values of an array from which on elementwise work is done by stretches
STRETCH = 1 << 16  # values that are worked on at a time, so that several passes stay in the cache
_local = threading.local()
_sharing_out = threading.Lock()


def in_threads(work: Callable[[Part], Result], parts: Sequence[Part], x: Array) -> list[Result]:
    """Return `work(part)` for each part, in order.

    Where `x` is NumPy's, parts are worked on in as many threads as BLAS would take, with BLAS at one
    thread meanwhile. Results do not depend on how many that are. While another thread of the program
    does so, this one works alone.

    Parameters
    ----------
    work : callable
        Touches nothing but its own part: a slice of the batch, a layer, a stretch of memory.
    parts : sequence
    x : array
        Says where the work is done.
    """
    threads = 1 if array_module(x) is not np or len(parts) < 2 else thread_count()
    # BLAS has one number of threads for the whole process, so only one thread at a time sets it.
    if threads < 2 or not _sharing_out.acquire(blocking=False):
        return [work(part) for part in parts]
    try:
        return _share_out(work, parts, threads)
    finally:
        _sharing_out.release()


def _share_out(work: Callable[[Part], Result], parts: Sequence[Part], threads: int) -> list[Result]:
    """Return `work(part)` for each part, in order, from so many threads, this one among them."""
    left = deque(enumerate(parts))
    results: dict[int, Result] = {}

    def take_parts() -> None:
        while True:
            try:
                number, part = left.popleft()
            except IndexError:
                return
            try:
                results[number] = work(part)
            except BaseException:
                left.clear()  # nothing more is begun
                raise

    with controller().limit(limits=1, user_api="blas"):
        # This thread works too: to wake another takes longer than many a part.
        pool, awake = _pool(os.getpid(), threads - 1), min(threads, len(parts))
        helpers = [pool.submit(take_parts) for _ in range(awake - 1)]
        try:
            take_parts()
        finally:
            # One that has not begun has come too late: the parts are done, or taken.
            helpers = [helper for helper in helpers if not helper.cancel()]
            wait(helpers)
    for helper in helpers:
        helper.result()  # raises what was raised there
    return [results[number] for number in range(len(parts))]


def by_sample(equation: Callable[..., Array], x: Array, *others: Any) -> Array:
    """Return `equation(x, *others)`, elementwise; of large arrays by stretches of the batch.

    In one thread: two, which hand each other Python's lock at every operation, were measured slower.

    Parameters
    ----------
    equation : callable
        Its result has the shape of `x`.
    x : array (B, ...)
    others
        Arrays (B, ...) or (1, ...) that broadcast to `x`, and numbers.
    """
    if array_module(x) is not np or x.size < LARGE or len(x) < 2:
        return equation(x, *others)
    result = None
    for part in slices(len(x), max(1, len(x) * STRETCH // x.size)):
        values = equation(x[part], *(o[part] if np.ndim(o) and len(o) > 1 else o for o in others))
        if result is None:
            result = np.empty(x.shape, values.dtype)
        result[part] = values
    return result


def stretches(x: Array) -> list[slice]:
    """Return the stretches of the leading axis that threads share; one, where x is small."""
    if array_module(x) is not np or x.size < WORTH_THREADS:
        return [slice(None)]
    parts = max(PARTS, min(thread_count(), PARTS * x.size // WORTH_THREADS))
    return slices(len(x), -(-len(x) // parts))


def slices(n: int, size: int) -> list[slice]:
    """Return the slices of n things, `size` at a time."""
    return [slice(first, first + size) for first in range(0, n, size)]


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
def controller() -> Any:
    """Return threadpoolctl's view of the loaded BLAS libraries, looked for once."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def thread_count() -> int:
    """Return how many threads BLAS takes at present: 1 where a user or another library limits it."""
    libraries = controller().lib_controllers
    return max((lib.num_threads for lib in libraries if lib.user_api == "blas"), default=1)


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the threads of this process: those of a parent do not come along with a fork."""
    del process
    return ThreadPoolExecutor(threads, thread_name_prefix="npgait-part")
