"""MNIST, KMNIST and Fashion-MNIST: four IDX files each, gzipped or not.

IDX (http://yann.lecun.com/exdb/mnist/): two zero bytes, the type (8: uint8), the number of axes, the
size of each axis as a big-endian uint32, then the values.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from npgait.loaders.dataset import DataError, Dataset, find_folder, missing

MAX_VALUES = 1 << 30  # 1 GiB: no set of this family comes near it, a damaged header may promise more
MAX_RATIO = 1032  # no gzip file unpacks to more bytes for each of its own
UINT8 = 8
PARTS = {  # beginning of a file's name, and its axes
    "train_x": ("train-images", 3),
    "train_labels": ("train-labels", 1),
    "test_x": ("t10k-images", 3),
    "test_labels": ("t10k-labels", 1),
}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of an IDX file of uint8, gzipped or not.

    At most one byte more than the header promises is ever unpacked, and no memory is taken for more than
    a file of this size can hold.

    Raises
    ------
    DataError
        If the file cannot be read, or is not what its header says.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            room = os.fstat(raw.fileno()).st_size * (MAX_RATIO if zipped else 1)
        with gzip.open(path) if zipped else path.open("rb") as file:
            start = file.read(4)
            if len(start) < 4 or start[:2] != b"\0\0":
                raise DataError(f"{path}: not an IDX file: it begins with {start.hex() or 'nothing'}")
            if start[2] != UINT8 or not 1 <= start[3] <= 4:
                raise DataError(
                    f"{path}: type {start[2]}, {start[3]} axes; expected type {UINT8}, 1 to 4 axes"
                )
            header = file.read(4 * start[3])
            shape = tuple(np.frombuffer(header[: len(header) // 4 * 4], dtype=">u4").tolist())
            size = math.prod(shape)
            if len(shape) != start[3] or not 0 < size <= MAX_VALUES:
                raise DataError(
                    f"{path}: its header promises shape {shape}; expected 1 to {MAX_VALUES} values"
                )
            values = file.read(min(size, room) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(values) != size:
        got = f"only {len(values)}" if len(values) < size else "more"
        raise DataError(f"{path}: its header promises {size} values, it holds {got}; fetch it again")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _load(
    name: str, data_dir: Path | None, folders: tuple[str, ...], source: str, classes: tuple[str, ...]
) -> Dataset:
    """Return the data set in the first of `folders` that has its files."""
    spellings = {
        part: tuple(f"{stem}{sep}idx{axes}-ubyte{gz}" for sep in "-." for gz in ("", ".gz"))
        for part, (stem, axes) in PARTS.items()
    }
    folder = find_folder(data_dir, folders, spellings["train_x"])
    files = ", ".join(names[1] for names in spellings.values())  # as published: with "-", gzipped
    if folder is None:
        raise missing(name, data_dir, files, source, folders[0])
    arrays: dict[str, NDArray] = {}
    for part, names in spellings.items():
        path = next((folder / n for n in names if (folder / n).is_file()), None)
        if path is None:
            raise missing(name, folder, names[1], source, folders[0])
        arrays[part] = read_idx(path)
        if arrays[part].ndim != PARTS[part][1]:
            raise DataError(f"{path}: {arrays[part].ndim} axes; this is not the file its name says")
    train_labels, test_labels = (
        arrays[part].astype(np.int64) for part in ("train_labels", "test_labels")
    )
    return Dataset(name, arrays["train_x"], train_labels, arrays["test_x"], test_labels, classes)


def load_mnist(data_dir: Path | None = None) -> Dataset:
    """Return MNIST: 60,000 + 10,000 hand-written digits of 28x28 pixels (LeCun et al. 1998)."""
    return _load(
        "mnist",
        data_dir,
        ("mnist", "MNIST/raw", "MNIST"),
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        tuple("0123456789"),
    )


def load_kmnist(data_dir: Path | None = None) -> Dataset:
    """Return KMNIST: 60,000 + 10,000 cursive Japanese characters of 28x28 pixels (Clanuwat 2018)."""
    return _load(
        "kmnist",
        data_dir,
        ("kmnist", "KMNIST/raw", "KMNIST"),
        "http://codh.rois.ac.jp/kmnist/",
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    )


def load_fashion_mnist(data_dir: Path | None = None) -> Dataset:
    """Return Fashion-MNIST: 60,000 + 10,000 pictures of clothes of 28x28 pixels (Xiao et al. 2017)."""
    return _load(
        "fashion-mnist",
        data_dir,
        ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw", "FashionMNIST"),
        "https://github.com/zalandoresearch/fashion-mnist",
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    )
