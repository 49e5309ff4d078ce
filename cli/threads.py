"""How a run uses the machine: threads of its matrix products, memory that it keeps."""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager, suppress
from math import prod

from threadpoolctl import threadpool_limits

from npgait.network import Network
from npgait.parallel import thread_count

# Multiplications of a layer product that a thread is worth. Measured: x W, W W^T and one solve take as
# long with one thread as with two at 32 x 128 x 128 (0.5 million), and 1.5 times as long at
# 64 x 256 x 256 (4 million).
PAYS = 2_000_000


def blas_threads(network: Network, batch_size: int) -> AbstractContextManager[object]:
    """Limit BLAS to as many threads as a network's products are worth while it trains.

    Small products gain nothing from threads, and where another process wants the same cores, threads
    that wait for each other make them fifty times slower.
    """
    # A sample gives a product as many rows as its map has positions, one of a dense layer.
    largest = max(layer.W.size * prod(layer.shape_out[:-1]) for layer in network.layers) * batch_size
    worth = -(-largest // PAYS)
    return threadpool_limits(worth if worth < thread_count() else None, user_api="blas")


def keep_memory() -> None:
    """Let the C library keep what a step frees, for the next step to take.

    By default glibc gives large arrays back to the system and asks for them anew, a page at a time: a
    fifth of a step of the convolutions went there. Elsewhere than on Linux this does nothing.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-4, 0)  # M_MMAP_MAX: none is a mapping of its own, which would go back when freed
