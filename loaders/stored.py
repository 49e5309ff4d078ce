"""A data set in an image store, as training takes it: read in the background, never all in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from npgait.backend import Array, as_array
from npgait.data import Preparation
from npgait.loaders.dataset import DataError
from npgait.loaders.store.layout import GOOD, JOURNAL, Store, open_store
from npgait.loaders.store.reader import Buffer, block_shuffle, read_images
from npgait.streams import Streams

ENDING, VALIDATION = ".h5", ".val.h5"


@dataclass(frozen=True)
class StoredDataset:
    """Training set and, where there is one, test set, each an image store.

    Raises
    ------
    DataError
        If the two are not of one data set.
    """

    name: str
    train: Store
    test: Store | None

    def __post_init__(self) -> None:
        if self.test is None:
            return
        train, test = self.train.head, self.test.head
        if train.classes != test.classes:
            raise DataError(
                f"{self.train.path} has {len(train.classes)} classes and {self.test.path} "
                f"{len(test.classes)}, not the same; convert both from one source"
            )
        if train.image_shape != test.image_shape:
            raise DataError(
                f"{self.train.path} has images {train.image_shape}, {self.test.path} "
                f"{test.image_shape}; convert both at one --size"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.train.head.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image as it is stored."""
        return self.train.head.image_shape

    @property
    def max_value(self) -> int:
        """Largest value that a pixel can take."""
        return self.train.head.max_value

    def digest(self) -> str:
        """Return a text that only this content has: a run resumes on the data it began with."""
        return self.train.digest + (self.test.digest if self.test is not None else "")


def find_store(name: str, data_dir: Path | None) -> StoredDataset | None:
    """Return the image store of a data set: `data_dir` itself, or NAME.h5 in it; None if there is none.

    Raises
    ------
    DataError
        If `data_dir` is a file and not the store of that data set, or the store is damaged; or if the
        same is true of the validation store beside it, or that one is unfinished.
    """
    if data_dir is None:
        return None
    if os.path.isfile(data_dir) and data_dir.suffix != ENDING:
        return None
    path = data_dir if os.path.isfile(data_dir) else data_dir / f"{name}{ENDING}"
    if not os.path.isfile(path):
        return None
    store = open_store(path)
    if store.head.name != name:
        raise DataError(f"{path}: holds {store.head.name!r}; the experiment asks for {name!r}")
    beside = path.with_name(path.name.removesuffix(ENDING) + VALIDATION)
    if os.path.lexists(beside):  # a link to nothing is an error, not a test set less
        return StoredDataset(name, store, open_store(beside))
    if os.path.lexists(journal := f"{beside}{JOURNAL}"):
        raise DataError(
            f"{beside}: its conversion is unfinished; run `npgait data prepare` again as before, or "
            f"remove {journal} to go on without a test set"
        )
    return StoredDataset(name, store, None)


@dataclass(frozen=True)
class StoredData:
    """The good images of a store in batches on a device; see `npgait.data.Source`.

    Attributes
    ----------
    store : Store
    prepare : Preparation
    block : int
        Images read in a run when shuffled; 1 for a full shuffle.
    threads : int
        That read; 0 for one a core, up to 8.
    """

    store: Store
    prepare: Preparation
    block: int = 32
    threads: int = 0
    _buffers: list[Buffer] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return int((self.store.head.state == GOOD).sum())

    def batches(self, batch_size: int) -> Iterator[tuple[Array, Array]]:
        """Yield all images as they are stored."""
        good = np.flatnonzero(self.store.head.state == GOOD)
        return self._read(good, batch_size, 0, None)

    def shuffled(
        self, batch_size: int, streams: Streams, *, start: int = 0
    ) -> Iterator[tuple[Array, Array]]:
        """Yield the batches of an epoch, in shuffled runs of `block`, augmented."""
        good = np.flatnonzero(self.store.head.state == GOOD)
        order = good[block_shuffle(len(good), self.block, streams.order)]
        seed = int(streams.augmentation.integers(1 << 62))
        return self._read(order, batch_size, start, seed)

    def _read(
        self, order: NDArray[np.int64], batch_size: int, start: int, seed: int | None
    ) -> Iterator[tuple[Array, Array]]:
        xp = self.prepare.device.xp
        batches = [order[i : i + batch_size] for i in range(start * batch_size, len(order), batch_size)]
        images = read_images(self.store, batches, threads=self.threads, buffers=self._buffers)
        for number, (batch, x) in enumerate(zip(batches, images, strict=True), start):
            prepared = self.prepare(x, None if seed is None else (seed, number))
            yield prepared, as_array(self.store.head.labels[batch], xp)
