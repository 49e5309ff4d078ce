"""A data set in memory, and what is said when one cannot be had."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class DataError(Exception):
    """A data set is missing, damaged or not what its name says; the message says what to do."""


@dataclass(frozen=True)
class Dataset:
    """Images and labels, as stored: no scaling, no shuffling.

    Attributes
    ----------
    name : str
    train_x, test_x : uint8 array (N, H, W) or (N, H, W, C)
        test_x and test_labels are None where there is no test set.
    train_labels, test_labels : int64 array (N,)
        Classes, counted from 0.
    classes : tuple of str
        Their names, in the order of the labels.
    max_value : int
        Largest value that a pixel can take.

    Raises
    ------
    DataError
        If the arrays do not fit each other.
    """

    name: str
    train_x: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_x: NDArray[np.uint8] | None
    test_labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    max_value: int = 255

    def __post_init__(self) -> None:
        for part, x, labels in self._parts():
            where = f"{self.name}, {part} set"
            if len(x) == 0 or labels.shape != (len(x),):
                raise DataError(f"{where}: {len(x)} images and {len(labels)} labels; expected as many")
            if x.ndim not in (3, 4) or x.dtype != np.uint8:
                raise DataError(f"{where}: images {x.dtype} {x.shape}; expected uint8 (N, H, W[, C])")
            if labels.min() < 0 or labels.max() >= len(self.classes):
                raise DataError(
                    f"{where}: labels lie in {labels.min()}..{labels.max()}; expected "
                    f"0..{len(self.classes) - 1}"
                )
        if self.test_x is not None and self.train_x.shape[1:] != self.test_x.shape[1:]:
            raise DataError(
                f"{self.name}: training images {self.train_x.shape[1:]}, test images "
                f"{self.test_x.shape[1:]}; expected one size"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image; C is 1 where images are stored without channels."""
        height, width, *channels = self.train_x.shape[1:]
        return height, width, channels[0] if channels else 1

    def _parts(self) -> Iterator[tuple[str, NDArray, NDArray]]:
        yield "training", self.train_x, self.train_labels
        if self.test_x is not None and self.test_labels is not None:
            yield "test", self.test_x, self.test_labels

    def digest(self) -> str:
        """Return the SHA-256 of all images and labels: a run resumes on the data it began with."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:  # asked for by every experiment of a run
        sha = hashlib.sha256()
        for _, x, labels in self._parts():
            for array in (x, labels):
                sha.update(f"{array.dtype.str} {array.shape}".encode())
                sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()


def find_folder(
    data_dir: Path | None, subfolders: tuple[str, ...], names: tuple[str, ...]
) -> Path | None:
    """Return the first of `subfolders` of `data_dir`, or else itself, that holds a file of `names`.

    Named subfolders come first: MNIST and Fashion-MNIST call their files the same.

    Raises
    ------
    DataError
        If one of these folders may not be looked into.
    """
    if data_dir is None:
        return None
    for folder in (*(data_dir / name for name in subfolders), data_dir):
        try:
            if any((folder / name).is_file() for name in names):
                return folder
        except OSError as error:
            raise DataError(f"{folder}: cannot be looked into: {error.strerror or error}") from error
    return None


def missing(name: str, data_dir: Path | None, files: str, source: str, put: str) -> DataError:
    """Return the error for a data set that is not there: what to fetch, from where, where to put it."""
    where = "no --data DIR was given" if data_dir is None else f"it is not in {data_dir}"
    return DataError(
        f"data set {name!r} is needed, and {where}.\n"
        f"  fetch:  {files}\n"
        f"  from:   {source}\n"
        f"  put in: DIR/{put} (or DIR itself)\n"
        f"  then:   run the command again with --data DIR (or with DIR as SRC of `npgait data prepare`)"
    )
