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

from npgait.loaders.dataset import DataError

FORMAT, VERSION = "npgait image store", 1
GOOD, SKIPPED = 0, 1  # states of an image
STORES = ("raw", "jpeg", "original")
MAX_IMAGES, MAX_NAME, MAX_CLASSES = 1 << 28, 4096, 1 << 24
MAX_IMAGE_BYTES = 1 << 30
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

    def __len__(self) -> int:
        return len(self.head.labels)

    def place(self, i: int) -> tuple[int, int]:
        """Return where the bytes of image i begin in the file, and how many there are."""
        if self.head.offsets is None:
            return self.start + i * self.head.image_bytes, self.head.image_bytes
        first, last = self.head.offsets[i : i + 2].tolist()
        return self.start + first, last - first


def write_head(path: Path, head: Head, n_bytes: int) -> int:
    """Write a new HDF5 file with `head`, and room for `n_bytes` of images; return where they begin.

    Nothing is written into that room: in a new file it is a hole. Equal heads make equal files, and the
    images begin at a place that depends on the sizes of the head's arrays only.
    """
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        for key in ATTRIBUTES:
            file.attrs[key] = getattr(head, key)
        file.attrs["digest"] = head.digest()
        classes = np.array([text.encode() for text in head.classes])
        for name, texts in (("classes", classes), ("sources", head.sources)):
            kind = h5py.string_dtype("utf-8", texts.dtype.itemsize)
            file.create_dataset(name, data=texts.astype(kind), track_times=False)
        for name in ("labels", "state", "checksums", "mean", "std", "offsets"):
            if getattr(head, name) is not None:
                file.create_dataset(name, data=getattr(head, name), track_times=False)
        raw = head.offsets is None
        shape = (len(head.labels), *head.image_shape) if raw else (n_bytes,)
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.CONTIGUOUS)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        layout.set_obj_track_times(False)
        images = h5py.h5d.create(
            file.id,
            b"images" if raw else b"encoded",
            h5py.h5t.STD_U8LE,
            h5py.h5s.create_simple(shape),
            layout,
        )
        start = images.get_offset()
    if start is None:  # an empty dataset has no place
        start = path.stat().st_size
    return start


def open_store(path: Path) -> Store:
    """Look at an image store, and check all of it but the images themselves.

    Raises
    ------
    DataError
        If there is no such file, it is no image store, of a later version, damaged, or cut short.
    """
    import h5py

    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if not h5py.is_hdf5(path):
        raise DataError(f"{path}: no HDF5 file; `npgait data prepare` makes one of images")
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _look_at(path, file)
    except DataError:
        raise
    except Exception as error:  # h5py raises nearly every type there is on a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: a damaged image store ({reason})") from error


def _look_at(path: Path, file: Any) -> Store:
    kind = file.attrs.get("format")
    if not isinstance(kind, str) or kind != FORMAT:
        raise DataError(f"{path}: an HDF5 file, but no image store of npgait's")
    if int(file.attrs["version"]) > VERSION:
        raise DataError(
            f"{path}: format version {file.attrs['version']}; this npgait reads up to {VERSION}, a "
            "later one is needed"
        )
    size = path.stat().st_size
    head = _read_head(file, size)
    digest = head.digest()
    if file.attrs["digest"] != digest:
        raise DataError(f"{path}: a damaged image store: its tables do not match their digest")
    images = file["images" if head.offsets is None else "encoded"]
    expected: tuple[int, ...] = (len(head.labels), *head.image_shape)
    if head.offsets is not None:
        steps = np.diff(head.offsets)
        if head.offsets[0] != 0 or steps.min() < 0 or steps.max() > MAX_IMAGE_BYTES:
            raise ValueError("the places of its images are out of order")
        expected = (max(int(head.offsets[-1]), *images.shape),)  # there may be room left
    if images.shape != expected or images.dtype != np.uint8 or images.chunks or images.external:
        raise ValueError(f"its images are {images.dtype} {images.shape}; expected uint8 {expected}")
    start = images.id.get_offset()
    if start is None and images.nbytes == 0:
        start = size
    if start is None or start + images.nbytes > size:
        raise ValueError("cut short: its images end beyond the end of the file")
    return Store(path, head, start, digest)


def _read_head(file: Any, size: int) -> Head:
    """Return the head, having asked of each part whether it can be what it says."""
    values = {key: file.attrs[key] for key in ATTRIBUTES}
    labels = _table(file, "labels", np.int64, size)
    n = len(labels)
    classes = _table(file, "classes", np.bytes_, size)
    shape = tuple(int(v) for v in values["image_shape"])
    if not 0 < n <= MAX_IMAGES or not 0 < len(classes) <= MAX_CLASSES:
        raise ValueError(f"{n} images of {len(classes)} classes")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels in {labels.min()}..{labels.max()} for {len(classes)} classes")
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > MAX_IMAGE_BYTES or shape[2] not in (1, 3):
        raise ValueError(f"images of shape {shape}")
    if values["store"] not in STORES or not 0 < int(values["max_value"]) <= 255:
        raise ValueError(f"store {values['store']!r}, largest value {values['max_value']}")
    head = Head(
        **{key: str(values[key]) for key in ("name", "split", "store", "made_by", "plan")},
        image_shape=(shape[0], shape[1], shape[2]),
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
    return head


def _table(file: Any, name: str, kind: Any, size: int, n: int | None = None) -> Any:
    """Return a one-dimensional dataset that can lie in a file of `size` bytes: nothing is unpacked."""
    dataset = file[name]
    text = kind is np.bytes_
    fits = (
        dataset.dtype.kind == "S" and dataset.dtype.itemsize <= MAX_NAME
        if text
        else dataset.dtype == kind
    )
    if not fits or dataset.ndim != 1 or dataset.chunks or dataset.external:
        raise ValueError(f"{name} is {dataset.dtype} {dataset.shape}, or not plainly stored")
    if dataset.nbytes > size or (n is not None and len(dataset) != n):
        raise ValueError(f"{name} has {len(dataset)} entries of {dataset.dtype}")
    return dataset[()]


def preadv_whole(descriptor: int, buffers: list[Any], offset: int) -> None:
    """Fill all buffers from one stretch of a file.

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
            raise DataError("the file ends within an image: it was cut short")
        got += more
