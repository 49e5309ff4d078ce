"""Images out of a store, fast: plain reads at known places, in threads, ahead of whoever consumes them.

HDF5 is not asked for pixels: its one lock would make the threads wait for each other. `os.preadv` fills
the rows of a batch directly, neighbours in the file with one call. There are no processes and no locks
of our own, so nothing can deadlock with fork or spawn.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npgait.files import stamp
from npgait.loaders.dataset import DataError
from npgait.loaders.store.decode import BadImageError, decode
from npgait.loaders.store.layout import Store, preadv_whole

MAX_VECTOR = 512  # buffers of one call; the kernel takes 1024


class Buffer:
    """Room for a batch, and a view of each row for the kernel to read into."""

    def __init__(self, size: int, image_shape: tuple[int, int, int]) -> None:
        self.images = np.empty((size, *image_shape), np.uint8)
        rows: Any = self.images.reshape(size, math.prod(image_shape))
        self.rows = [memoryview(row) for row in rows]


# (descriptor, numbers of images, buffer, which share of them, of how many)
Read = Callable[[int, NDArray[np.int64], Buffer, int, int], None]


def block_shuffle(n: int, block: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return 0..n-1 in runs of `block`, the runs in random order: a disk reads in stretches.

    The runs begin elsewhere each time, so that an image's neighbours are not the same in every epoch.
    `prepare` stores images in random order, which makes each run a fair sample.

    Parameters
    ----------
    n : int
    block : int
        Images of a run; 1 shuffles fully.
    rng : numpy.random.Generator
    """
    block = min(block, n)
    if block <= 1:
        return rng.permutation(n)
    shift = int(rng.integers(block))
    starts = np.arange(shift - block if shift else 0, n, block)
    runs = starts[rng.permutation(len(starts)), None] + np.arange(block)
    return runs[(runs >= 0) & (runs < n)]


def read_images(
    store: Store,
    batches: Sequence[NDArray[np.int64]],
    *,
    threads: int = 0,
    ahead: int = 0,
    buffers: list[Buffer] | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of each batch, uint8 (B, H, W, C), read in the background.

    What is yielded is overwritten once the next is asked for: copy it to keep it. At most `ahead`
    batches wait. The reading ends with the generator.

    Parameters
    ----------
    store : Store
    batches : sequence of int64 array (B,)
        Numbers of images.
    threads : int
        That read. Default: as many as cores, at most 8.
    ahead : int
        Batches read beyond the one that is out. Default: one.
    buffers : list, optional
        Taken from and given back to, so that the next epoch need not ask for memory again.

    Raises
    ------
    DataError
        If the file is gone, changed, cut short, or an encoded image is damaged.
    IndexError
        If a batch asks for an image that the store does not have.
    RuntimeError
        If a forked process goes on with its parent's generator: threads do not come along.
    """
    if not batches:  # of an epoch that is taken up after its last batch
        return
    threads = threads or min(8, cores())
    ahead = ahead or 1
    owner, n = os.getpid(), len(batches)
    kept = [] if buffers is None else buffers
    spare = _take_buffers(kept, store, min(ahead, n) + 1, max(len(b) for b in batches))
    descriptor = open_images(store)
    read: Read = _read_raw(store) if store.head.offsets is None else _read_encoded(store)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="npgait-read")
    waiting: deque[tuple[list[Future], Buffer, int]] = deque()
    submitted = 0
    try:
        for _ in range(n):
            while submitted < n and spare:
                batch = batches[submitted]
                _check_numbers(store, batch)
                out = spare.pop()
                parts = [pool.submit(read, descriptor, batch, out, p, threads) for p in range(threads)]
                waiting.append((parts, out, len(batch)))
                submitted += 1
            parts, out, size = waiting.popleft()
            for part in parts:
                part.result()
            yield out.images[:size]
            if os.getpid() != owner:
                raise RuntimeError(
                    "batches of an image store are being read by the parent process; after a fork, ask "
                    "for them anew"
                )
            spare.append(out)
    finally:
        if os.getpid() == owner:
            pool.shutdown(wait=True, cancel_futures=True)
            os.close(descriptor)
            kept += spare


def _check_numbers(store: Store, batch: NDArray[np.int64]) -> None:
    """Refuse an image that is not in the store: its place would be that of other bytes of the file."""
    for number in (int(batch.min()), int(batch.max())) if len(batch) else ():
        if not 0 <= number < len(store):
            raise IndexError(
                f"{store.path}: image {number} was asked for; the store has {len(store)} images, "
                f"0 to {len(store) - 1}"
            )


def _take_buffers(kept: list[Buffer], store: Store, n: int, size: int) -> list[Buffer]:
    """Return `n` buffers for batches of `size` images, from those that were kept as far as they fit."""
    taken: list[Buffer] = []
    while kept and len(taken) < n:
        buffer = kept.pop()
        if len(buffer.images) >= size:
            taken.append(buffer)
    return taken + [Buffer(size, store.head.image_shape) for _ in range(n - len(taken))]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_system() -> None:
    """Raise a DataError on Windows, where threads cannot read one file at places of their own."""
    if not hasattr(os, "preadv"):
        raise DataError(
            "pixels of image stores cannot be read or written on this system, which has no os.preadv "
            "(Windows): use Linux, WSL or macOS, or images that fit into memory, DIR/train/CLASS/FILE"
        )


def open_images(store: Store) -> int:
    """Return a descriptor of the file, for reading only.

    Raises
    ------
    DataError
        If it is gone, or not as it was: the images of another file have other labels. On Windows.
    """
    check_system()
    try:
        descriptor = os.open(store.path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{store.path}: cannot be opened ({error.strerror})") from error
    if stamp(os.fstat(descriptor)) != store.stamp:
        os.close(descriptor)
        raise DataError(f"{store.path}: has been changed, cut short or replaced since it was opened")
    return descriptor


def _read_raw(store: Store) -> Read:
    """Return the function that fills a batch with pixels as they lie in the file."""
    start, size = store.start, store.head.image_bytes

    def read(descriptor: int, batch: NDArray[np.int64], out: Buffer, part: int, parts: int) -> None:
        rows, preadv = out.rows, os.preadv
        # In the order of the file; neighbours there land in their rows by one call.
        order = _share(np.argsort(batch, kind="stable"), part, parts)
        numbers = batch[order].astype(np.int64, copy=False)  # places in the file pass 32 bits
        firsts, lengths = _runs(numbers)
        offsets, places = (start + numbers[firsts] * size).tolist(), order.tolist()
        for first, length, offset in zip(firsts.tolist(), lengths, offsets, strict=True):
            if length == 1:  # worth a line: two threads share the time that is spent in Python
                buffers = [rows[places[first]]]
            else:
                buffers = [rows[place] for place in places[first : first + length]]
            if preadv(descriptor, buffers, offset) != size * length:
                preadv_whole(store.path, descriptor, buffers, offset)

    return read


def _share(order: NDArray[np.int64], part: int, parts: int) -> NDArray[np.int64]:
    """Return a thread's share of a batch."""
    return order[len(order) * part // parts : len(order) * (part + 1) // parts]


def _runs(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[int]]:
    """Return where each run of neighbours begins in sorted `numbers`, and how long it is.

    None is longer than MAX_VECTOR.
    """
    if len(numbers) == 0:
        return numbers, []
    firsts = np.concatenate([[0], np.flatnonzero(np.diff(numbers) != 1) + 1])
    if len(numbers) > MAX_VECTOR:
        firsts = np.union1d(firsts, np.arange(0, len(numbers), MAX_VECTOR))
    return firsts, np.diff(firsts, append=len(numbers)).tolist()


def _read_encoded(store: Store) -> Read:
    """Return the function that fills a batch by decoding."""
    side = store.head.image_shape[0]

    def read(descriptor: int, batch: NDArray[np.int64], out: Buffer, part: int, parts: int) -> None:
        for k in _share(np.arange(len(batch)), part, parts).tolist():
            i = int(batch[k])
            out.images[k] = decode_stored(store.path, i, read_bytes(store, descriptor, i), side)

    return read


def read_bytes(store: Store, descriptor: int, i: int) -> bytes:
    """Return the bytes of image i as they are stored."""
    offset, size = store.place(i)
    data = bytearray(size)
    if size:
        preadv_whole(store.path, descriptor, [memoryview(data)], offset)
    return bytes(data)


def decode_stored(path: Path, i: int, data: bytes, side: int) -> NDArray[np.uint8]:
    """Return the pixels of an encoded image; black where there is none."""
    if not data:
        return np.zeros((side, side, 3), np.uint8)
    try:
        return np.asarray(decode(data, side))
    except BadImageError as error:
        raise DataError(f"{path}: image {i} is damaged ({error}); see npgait data verify") from error
