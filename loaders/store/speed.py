"""How fast a store gives batches on this machine, stage by stage, beside what plain reads would give."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npgait.backend import CPU
from npgait.data import Preparation, Scaling
from npgait.loaders.store.layout import GOOD, Store
from npgait.loaders.store.reader import Buffer, block_shuffle, cores, open_images, read_images


@dataclass(frozen=True)
class Rate:
    """One stage: what it does, and images a second (median and best of its repetitions)."""

    stage: str
    median: float
    best: float


Batches = list[NDArray[np.int64]]


def measure_store(
    store: Store,
    *,
    batch_size: int = 256,
    threads: int = 0,
    block: int = 32,
    seconds: float = 1.0,
    repeats: int = 5,
    most_bytes: int = 4 << 30,
) -> Iterator[Rate]:
    """Yield the rate of each stage, warm; stages take turns, so that drift of the machine is shared.

    Parameters
    ----------
    store : Store
    batch_size, threads, block : int
        As training has them.
    seconds : float
        Of one measurement, about.
    repeats : int
        Measurements of each stage.
    most_bytes : int
        Of the file to read: what is measured has to stay in the page cache.
    """
    threads = threads or min(8, cores())
    good = np.flatnonzero(store.head.state == GOOD)
    average = sum(store.place(int(i))[1] for i in good[:100]) / len(good[:100])
    good = good[: max(batch_size, int(most_bytes / average))]
    batch_size = min(batch_size, len(good))
    rng = np.random.default_rng(0)
    kept: list[Buffer] = []
    height, width, channels = store.head.image_shape
    prepare = Preparation(
        Scaling(store.head.mean, 1 / store.head.std),
        np.dtype(np.float32),
        CPU,
        (height, width, channels),
        augmentation="resized",
    )

    def ours(batches: Batches, use: Callable | None = None) -> None:
        for number, x in enumerate(read_images(store, batches, threads=threads, buffers=kept)):
            if use is not None:
                use(x, number)

    stages: dict[str, tuple[int, Callable[[Batches], None]]] = {
        "batches in random order": (1, ours),
        f"batches in shuffled runs of {block}": (block, ours),
        "... normalised, float32": (block, lambda b: ours(b, lambda x, _: prepare(x))),
        "... and augmented": (block, lambda b: ours(b, lambda x, n: prepare(x, (0, n)))),
    }
    if store.head.offsets is None:
        plain = f"plain os.preadv, random order, {threads} thread{'s' if threads > 1 else ''}"
        stages = {plain: (1, lambda batches: _plain_reads(store, batches, threads, kept)), **stages}
    rates: dict[str, list[float]] = {stage: [] for stage in stages}
    for repeat in range(repeats + 1):  # the first warms page cache and buffers, and is not counted
        for stage, (run, work) in stages.items():
            images = len(good) if repeat == 0 else _enough(rates[stage], seconds, batch_size)
            batches = _draw(good, images, batch_size, run, rng)
            started = time.perf_counter()
            work(batches)
            rate = sum(map(len, batches)) / (time.perf_counter() - started)
            rates[stage] = [rate] if repeat <= 1 else [*rates[stage], rate]
    for stage, measured in rates.items():
        yield Rate(stage, float(np.median(measured)), max(measured))


def _enough(rates: list[float], seconds: float, batch_size: int) -> int:
    return max(2 * batch_size, int(rates[-1] * seconds))


def _draw(
    good: NDArray[np.int64], images: int, batch_size: int, run: int, rng: np.random.Generator
) -> Batches:
    """Return full batches of about `images` images, epoch after epoch."""
    epochs = -(-images // len(good))
    order = np.concatenate([good[block_shuffle(len(good), run, rng)] for _ in range(epochs)])
    n = max(1, min(images, len(order)) // batch_size)
    return [order[i * batch_size : (i + 1) * batch_size] for i in range(n)]


def _plain_reads(store: Store, batches: Batches, threads: int, kept: list[Buffer]) -> None:
    """Read the same bytes into the same buffers by `os.preadv` and nothing else: the rate to reach."""
    descriptor = open_images(store)
    start, size = store.start, store.head.image_bytes
    buffers = [
        kept.pop() if kept else Buffer(len(batches[0]), store.head.image_shape) for _ in range(threads)
    ]

    def read(k: int) -> None:
        rows = buffers[k].rows
        for batch in batches[k::threads]:
            for row, i in enumerate(batch.tolist()):
                os.preadv(descriptor, [rows[row]], start + i * size)

    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, range(threads)))
    finally:
        os.close(descriptor)
        kept += buffers
