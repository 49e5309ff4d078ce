"""What there is to convert: the images of a split, in order, with their labels and where they lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npgait.files import shown, stamp
from npgait.loaders.dataset import DataError


@dataclass(frozen=True)
class Listing:
    """The images of a split as files, or as stretches of archives.

    Attributes
    ----------
    name : str
        Of the data set.
    split : str
        "train" or "val".
    names : sequence of str
        Of the images, relative to the source; unique.
    labels : int64 array (N,)
        Classes, counted from 0.
    classes : tuple of str
        Their names, sorted.
    root : str
        Folder that `names` are relative to, where images are files.
    archives : tuple of str
        Paths of the archives, where images lie in them.
    stretches : int64 array (N, 3), optional
        Number of the archive, offset and size in bytes of each image.
    stamps : int64 array (N, 2), optional
        Size in bytes and time of change in ns of each file, where images are files.
    """

    name: str
    split: str
    names: Sequence[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    root: str = ""
    archives: tuple[str, ...] = ()
    stretches: NDArray[np.int64] | None = None
    stamps: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def where(self, i: int) -> tuple[str, int, int | None]:
        """Return path, offset and size of image i; None is the whole file."""
        if self.stretches is None:
            return f"{self.root}/{self.names[i]}", 0, None
        archive, offset, size = self.stretches[i].tolist()
        return self.archives[archive], offset, size

    def reordered(self, order: NDArray[np.int64]) -> Listing:
        """Return the same images in another order."""
        return replace(
            self,
            names=[self.names[i] for i in order],
            labels=self.labels[order],
            stretches=None if self.stretches is None else self.stretches[order],
            stamps=None if self.stamps is None else self.stamps[order],
        )

    def digest(self) -> str:
        """Return the SHA-256 of names, labels and places: equal for equal sources, wherever they lie."""
        return _digest(self.names, self.labels, self.classes, self.stretches)

    def state(self) -> str:
        """Return the SHA-256 of sizes and times of files: a conversion goes on with those it began."""
        stamps = self.stamps
        if stamps is None:
            stamps = np.array([stamp(os.stat(path)) for path in self.archives], dtype=np.int64)
        return _digest([], stamps, [])


@dataclass(frozen=True)
class ArrayListing:
    """The images of a split as an array that another loader has read; see `Listing`."""

    name: str
    split: str
    names: Sequence[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    images: NDArray[np.uint8]  # (N, H, W, C)
    max_value: int = 255

    def __len__(self) -> int:
        return len(self.names)

    def reordered(self, order: NDArray[np.int64]) -> ArrayListing:
        """Return the same images in another order."""
        return replace(
            self,
            names=[self.names[i] for i in order],
            labels=self.labels[order],
            images=self.images[order],
        )

    def digest(self) -> str:
        """Return the SHA-256 of names, labels and pixels."""
        return _digest(self.names, self.labels, self.classes, self.images)


def _digest(names: Sequence[str], labels: Any, classes: Sequence[str], array: Any = None) -> str:
    sha = hashlib.sha256()
    for text in (*classes, "", *names):
        sha.update(text.encode("utf-8", "backslashreplace") + b"\0")
    sha.update(np.ascontiguousarray(labels).data)
    if array is not None:
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def as_text(name: str) -> str:
    """Return a file's name as text that UTF-8 can hold: bytes that are none are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def labelled(
    names: Sequence[str], class_names: Sequence[str], classes: Sequence[str]
) -> NDArray[np.int64]:
    """Return the labels of images whose classes are known by name.

    Raises
    ------
    DataError
        If an image is of none of `classes`.
    """
    number = {name: i for i, name in enumerate(classes)}
    for name, own in zip(names, class_names, strict=True):
        if own not in number:
            raise DataError(
                f"{shown(name)} is of class {own!r}, which is none of the {len(classes)} classes "
                f"of the training set ({shown(', '.join(list(classes)[:3]))} ...)"
            )
    return np.array([number[own] for own in class_names], dtype=np.int64)
