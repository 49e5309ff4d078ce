"""The image store as a file: what lies where in the HDF5 (docs/image-store.md), and how it is opened.

Raw pixels lie in one contiguous, unfiltered dataset, so that the place of image i is a sum: plain reads
fetch it, and HDF5 is only asked once where the dataset begins.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npgait.files import own_item, shown, stamp
from npgait.loaders.dataset import DataError
from npgait.loaders.store.heap import try_heap

FORMAT, VERSION = "npgait image store", 1
GOOD, SKIPPED = 0, 1  # states of an image
STORES = ("raw", "jpeg", "original")
MAX_IMAGES, MAX_NAME, MAX_CLASSES = 1 << 28, 4096, 1 << 24
MAX_IMAGE_BYTES = 1 << 30
MAX_TABLE_BYTES = 1 << 33  # a file with holes may be far longer than what it takes on the disk
MAX_SIDE = 4096  # of images that are resized
PART, JOURNAL, REPORT = ".part", ".journal", ".skipped.txt"  # endings of what lies beside a store
ATTRIBUTES = ("name", "split", "store", "image_shape", "max_value", "made_by", "plan")


@dataclass(frozen=True)
class Head:
    """All that a store holds beside the images.

    Attributes
    ----------
    name, split : str
        Of the data set; "train" or "val".
    store : {"raw", "jpeg", "original"}
        Pixels, or the bytes of image files: encoded anew, or as they were.
    image_shape : (H, W, C)
        Of an image as it is read.
    max_value : int
        Largest value that a pixel can take.
    made_by : str
        How pixels were made of the source.
    plan : str
        SHA-256 of the source's listing and the settings.
    labels : int64 array (N,)
    classes : tuple of str
    sources : bytes array (N,)
        Names of the source files, UTF-8.
    state : uint8 array (N,)
        0 where the image is good, 1 where the source could not be used and the pixels are 0.
    checksums : uint32 array (N,)
        zlib.crc32 of each image's bytes as stored.
    mean, std : float64 array (C,)
        Of the pixels of all good images, channel by channel.
    offsets : int64 array (N + 1,), optional
        Of encoded images: image i is bytes offsets[i] to offsets[i + 1] of `encoded`.
    """

    name: str
    split: str
    store: str
    image_shape: tuple[int, int, int]
    max_value: int
    made_by: str
    plan: str
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    sources: NDArray[np.bytes_]
    state: NDArray[np.uint8]
    checksums: NDArray[np.uint32]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    offsets: NDArray[np.int64] | None = None

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's pixels."""
        return math.prod(self.image_shape)

    def digest(self) -> str:
        """Return the SHA-256 of everything here; by the checksums, of the images too."""
        sha = hashlib.sha256()
        for key in ATTRIBUTES:
            sha.update(f"{key}={getattr(self, key)}\n".encode())
        for text in self.classes:
            sha.update(text.encode() + b"\0")
        arrays = (
            self.labels,
            self.sources,
            self.state,
            self.checksums,
            self.mean,
            self.std,
            self.offsets,
        )
        for array in arrays:
            if array is not None:
                sha.update(f"{array.dtype.str} {array.shape}".encode())
                sha.update(np.ascontiguousarray(array).view(np.uint8).data)
        return sha.hexdigest()


@dataclass(frozen=True)
class Store:
    """An image store that has been looked at: its head, and where its images begin.

    Holds no open file, so it can be copied to other processes.
    """

    path: Path
    head: Head
    start: int  # of the images, in bytes from the beginning of the file
    digest: str
    stamp: tuple[int, int]  # size and time of change of the file, in bytes and ns

    def __len__(self) -> int:
        return len(self.head.labels)

    def place(self, i: int) -> tuple[int, int]:
        """Return where the bytes of image i begin in the file, and how many there are."""
        if self.head.offsets is None:
            return self.start + i * self.head.image_bytes, self.head.image_bytes
        first, last = self.head.offsets[i : i + 2].tolist()
        return self.start + first, last - first


def open_store(path: Path) -> Store:
    """Look at an image store, and check all of it but the images themselves.

    Raises
    ------
    DataError
        If there is no such file, it is no image store, of another version, damaged, or cut short.
    """
    import h5py

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no plain file" if path.exists() else None
        raise DataError(
            f"{path}: {f'{what}; expected an image store' if what else 'there is no such file'}"
        )
    if not h5py.is_hdf5(path):
        raise DataError(f"{path}: no HDF5 file; `npgait data prepare` makes one of images")
    try:
        about = path.stat()
        with h5py.File(path, "r", locking=False) as file:
            try_heap(path, file, ("format", "version", "digest", *ATTRIBUTES))
            return _look_at(path, file, about)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # h5py raises nearly every type there is on a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: a damaged image store ({shown(reason)})") from error


def _look_at(path: Path, file: Any, about: os.stat_result) -> Store:
    if _text(file.attrs.get("format")) != FORMAT:
        raise DataError(f"{path}: an HDF5 file, but no image store of npgait's")
    version = file.attrs["version"]
    if version != VERSION:
        raise DataError(
            f"{path}: format version {shown(str(version))}; expected {VERSION}; "
            "use the npgait that made it"
        )
    size = about.st_size
    head = _read_head(file, size)
    digest = head.digest()
    if _text(file.attrs["digest"]) != digest:
        raise DataError(f"{path}: a damaged image store: its tables do not match their digest")
    images = _dataset(file, "images" if head.offsets is None else "encoded")
    expected: tuple[int, ...] = (len(head.labels), *head.image_shape)
    if head.offsets is not None:
        steps = np.diff(head.offsets)
        if head.offsets[0] != 0 or steps.min() < 0 or steps.max() > MAX_IMAGE_BYTES:
            raise ValueError("the places of its images are out of order")
        if not steps[head.state == GOOD].all():
            raise ValueError("an image that should be good has no bytes")
        expected = (max(int(head.offsets[-1]), *images.shape),)  # there may be room left
    if images.shape != expected or images.dtype != np.uint8 or images.chunks or images.external:
        raise ValueError(f"its images are {images.dtype} {images.shape}; expected uint8 {expected}")
    start = images.id.get_offset()
    if start is None and images.nbytes == 0:
        start = size
    if start is None or start + images.nbytes > size:
        raise ValueError("cut short: its images end beyond the end of the file")
    return Store(path, head, start, digest, stamp(about))


def _read_head(file: Any, size: int) -> Head:
    """Return the head, having asked of each part whether it can be what it says."""
    values = {key: _text(file.attrs[key]) for key in ATTRIBUTES}
    labels = _table(file, "labels", np.int64, size)
    n = len(labels)
    classes = _table(file, "classes", np.bytes_, size)
    shape = _image_shape(values["image_shape"], values["store"])
    if not 0 < n <= MAX_IMAGES or not 0 < len(classes) <= MAX_CLASSES:
        raise ValueError(f"{n} images of {len(classes)} classes")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels in {labels.min()}..{labels.max()} for {len(classes)} classes")
    if values["store"] not in STORES or values["max_value"] not in range(1, 256):
        raise ValueError(f"store {values['store']!r}, largest value {values['max_value']}")
    head = Head(
        **{key: str(values[key]) for key in ("name", "split", "store", "made_by", "plan")},
        image_shape=shape,
        max_value=int(values["max_value"]),
        labels=labels,
        classes=tuple(text.decode() for text in classes.tolist()),
        sources=_table(file, "sources", np.bytes_, size, n),
        state=_table(file, "state", np.uint8, size, n),
        checksums=_table(file, "checksums", np.uint32, size, n),
        mean=_table(file, "mean", np.float64, size, shape[2]),
        std=_table(file, "std", np.float64, size, shape[2]),
        offsets=None if values["store"] == "raw" else _table(file, "offsets", np.int64, size, n + 1),
    )
    if not (np.isfinite(head.mean).all() and np.isfinite(head.std).all() and (head.std > 0).all()):
        raise ValueError("mean or standard deviation is not finite and above 0")
    if head.state.max() > SKIPPED or GOOD not in head.state:
        states = np.unique(head.state).tolist()
        raise ValueError(f"its images have states {states}; expected some {GOOD} (good), else {SKIPPED}")
    return head


def _image_shape(got: Any, store: str) -> tuple[int, int, int]:
    """Return the shape of an image, if there can be such images in that kind of store."""
    shape = np.asarray(got)
    if shape.shape != (3,) or shape.dtype.kind not in "iu":
        raise ValueError(f"image_shape is {got}; expected three whole numbers")
    height, width, channels = (int(v) for v in shape)
    if min(height, width) < 1 or channels not in (1, 3) or height * width * channels > MAX_IMAGE_BYTES:
        raise ValueError(f"images of shape {(height, width, channels)}")
    # Of pixels, the file itself must hold as many; what files are decoded to, only this number says.
    if store != "raw" and (height != width or channels != 3 or height > MAX_SIDE):
        raise ValueError(
            f"encoded images of shape {(height, width, channels)}; expected squares of up to {MAX_SIDE} "
            "pixels, 3 channels"
        )
    return height, width, channels


def _text(value: Any) -> Any:
    """Return a text of fixed length, which h5py gives as bytes, as str; anything else as it is."""
    return value.decode() if isinstance(value, bytes) else value


def _dataset(file: Any, name: str) -> Any:
    """Return a dataset of this file's own, and none that is put together from others."""
    dataset = own_item(file, name)
    if dataset.is_virtual:
        raise ValueError(f"{name} is a link to another dataset")
    return dataset


def _table(file: Any, name: str, kind: Any, size: int, n: int | None = None) -> Any:
    """Return a one-dimensional dataset that can lie in a file of `size` bytes: nothing is unpacked."""
    dataset = _dataset(file, name)
    text = kind is np.bytes_
    fits = (
        dataset.dtype.kind == "S" and dataset.dtype.itemsize <= MAX_NAME
        if text
        else dataset.dtype == kind
    )
    if not fits or dataset.ndim != 1 or dataset.chunks or dataset.external:
        raise ValueError(f"{name} is {dataset.dtype} {dataset.shape}, or not plainly stored")
    if dataset.nbytes > min(size, MAX_TABLE_BYTES) or (n is not None and len(dataset) != n):
        raise ValueError(f"{name} has {len(dataset)} entries of {dataset.dtype}")
    return dataset[()]


def preadv_whole(path: Path, descriptor: int, buffers: list[Any], offset: int) -> None:
    """Fill all buffers from one stretch of the file at `path`, which is open.

    Raises
    ------
    DataError
        If the file ends first.
    """
    wanted = sum(len(buffer) for buffer in buffers)
    got = os.preadv(descriptor, buffers, offset)
    while got < wanted:  # a signal, a network file system or a limit of the kernel may cut a read short
        rest, skip = [], got
        for buffer in buffers:
            if skip < len(buffer):
                rest.append(memoryview(buffer)[skip:])
            skip = max(0, skip - len(buffer))
        more = os.preadv(descriptor, rest, offset + got)
        if more == 0:
            raise DataError(f"{path}: ends within an image; it was cut short since it was opened")
        got += more
