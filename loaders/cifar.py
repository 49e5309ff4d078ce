"""CIFAR-10 and CIFAR-100: the official binary and Python versions, unpacked or as tar.gz.

A binary record is its label bytes (one for CIFAR-10; coarse and fine for CIFAR-100) and 3,072 bytes of
pixels: 1,024 red, 1,024 green, 1,024 blue, each row by row (https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npgait.files import read_bytes
from npgait.loaders.dataset import DataError, Dataset, find_folder, missing
from npgait.loaders.plain_pickle import read_plain_pickle

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"
PIXELS = 3 * 32 * 32
MAX_FILE_BYTES = 1 << 28  # 256 MiB: the largest official file has 155 million bytes
MAX_ARCHIVE_BYTES = 1 << 29  # unpacked: the official ones have 190 million bytes
TRAIN_10 = tuple(f"data_batch_{i}" for i in range(1, 6))
Read = Callable[[str], bytes]


@dataclass(frozen=True)
class _Version:
    """One of the official archives: how its files are called."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str  # the file with the names of the classes


BINARY_10 = _Version(
    "cifar-10-binary.tar.gz",
    "cifar-10-batches-bin",
    tuple(f"{name}.bin" for name in TRAIN_10),
    "test_batch.bin",
    "batches.meta.txt",
)
PYTHON_10 = _Version(
    "cifar-10-python.tar.gz", "cifar-10-batches-py", TRAIN_10, "test_batch", "batches.meta"
)
BINARY_100 = _Version(
    "cifar-100-binary.tar.gz", "cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt"
)
PYTHON_100 = _Version("cifar-100-python.tar.gz", "cifar-100-python", ("train",), "test", "meta")


def load_cifar10(data_dir: Path | None = None) -> Dataset:
    """Return CIFAR-10: 50,000 + 10,000 colour images of 32x32 pixels, uint8 (N, 32, 32, 3).

    Raises
    ------
    DataError
        If it is not below `data_dir`, or damaged.
    """
    version, read = _find("cifar10", data_dir, (BINARY_10, PYTHON_10), ("cifar10", "cifar-10"))
    return _load("cifar10", version, read, "labels", "label_names", label_bytes=1)


def load_cifar100(data_dir: Path | None = None) -> Dataset:
    """Return CIFAR-100: 50,000 + 10,000 colour images of 32x32 pixels, 100 classes.

    Raises
    ------
    DataError
        If it is not below `data_dir`, or damaged.
    """
    version, read = _find("cifar100", data_dir, (BINARY_100, PYTHON_100), ("cifar100", "cifar-100"))
    return _load("cifar100", version, read, "fine_labels", "fine_label_names", label_bytes=2)


def _find(
    name: str, data_dir: Path | None, versions: tuple[_Version, ...], folders: tuple[str, ...]
) -> tuple[_Version, Read]:
    """Return the first version that is there, and a function that reads one of its files."""
    for version in versions:
        own = (version.folder, *(f"{f}/{version.folder}" for f in folders), *folders)
        folder = find_folder(data_dir, own, (version.test,))
        if folder is not None:
            return version, lambda file, folder=folder: _read_file(folder / file)
    for version in versions:
        folder = find_folder(data_dir, folders, (version.archive,))
        if folder is not None:
            return version, _read_archive(folder / version.archive, version)
    archives = f"{versions[0].archive} (or {versions[1].archive}); it need not be unpacked"
    raise missing(name, data_dir, archives, SOURCE, folders[0])


def _read_file(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_FILE_BYTES)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read: {reason}; fetch it again from {SOURCE}") from error
    except ValueError as error:
        raise DataError(f"{path}: over {MAX_FILE_BYTES} bytes; not a file of CIFAR") from error


def _too_large(path: Path) -> str:
    return f"{path}: unpacks to over {MAX_ARCHIVE_BYTES} bytes; not CIFAR"


class _Bounded:
    """What a gzip file unpacks to, up to `MAX_ARCHIVE_BYTES`; a few bytes can hold far more."""

    def __init__(self, file: gzip.GzipFile, path: Path) -> None:
        self._file, self._path, self._left = file, path, MAX_ARCHIVE_BYTES

    def read(self, size: int) -> bytes:
        chunk = self._file.read(size)
        self._left -= len(chunk)
        if self._left < 0:
            raise DataError(_too_large(self._path))
        return chunk


def _read_archive(path: Path, version: _Version) -> Read:
    """Read the files of a tar.gz in one pass, not to disk; return a function that gives one by name."""
    wanted = {*version.train, version.test, version.names}
    found: dict[str, bytes] = {}
    try:
        with gzip.open(path) as zipped:
            content: Any = _Bounded(zipped, path)  # all of a file that tarfile asks for
            with tarfile.open(fileobj=content, mode="r|") as archive:
                for member in archive:
                    if archive.offset > MAX_ARCHIVE_BYTES:  # tarfile would seek there, read by read
                        raise DataError(_too_large(path))
                    name = member.name.rpartition("/")[2]
                    is_plain = member.isfile() and not member.issparse()
                    file = archive.extractfile(member) if is_plain and name in wanted else None
                    if file is not None:
                        found[name] = file.read()
            while content.read(1 << 16):  # the checksum stands at the end
                pass
    except DataError:
        raise
    except Exception as error:  # a damaged archive fails in any step of tarfile, in any way
        raise DataError(f"{path}: cannot be read: {error}; fetch it again") from error

    def read(name: str) -> bytes:
        if name not in found:
            raise DataError(f"{path}: has no file {name}; fetch it again from {SOURCE}")
        return found[name]

    return read


def _load(
    name: str, version: _Version, read: Read, label_key: str, names_key: str, *, label_bytes: int
) -> Dataset:
    """Return the data set: the last of the `label_bytes` of a binary record counts."""
    is_binary = version.test.endswith(".bin")

    def part(file: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        raw = read(file)
        if is_binary:
            return _binary_records(raw, file, label_bytes)
        return _pickled_records(raw, file, label_key)

    file = version.names
    if is_binary:
        classes = tuple(read(file).decode("ascii", errors="replace").split())
    else:
        classes = _pickled_names(read(file), file, names_key)
    if not classes:
        raise DataError(f"{file}: no names of classes; fetch it again from {SOURCE}")
    parts = [part(file) for file in version.train]
    test_x, test_labels = part(version.test)
    train_x = np.concatenate([x for x, _ in parts])
    train_labels = np.concatenate([labels for _, labels in parts])
    return Dataset(name, train_x, train_labels, test_x, test_labels, classes)


def _to_nhwc(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (N, 32, 32, 3) from rows of 3,072 bytes, plane by plane."""
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _binary_records(
    raw: bytes, file: str, label_bytes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    size = label_bytes + PIXELS
    if not raw or len(raw) % size:
        raise DataError(f"{file}: {len(raw)} bytes; expected a multiple of {size}; fetch it again")
    records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, size)
    return _to_nhwc(records[:, label_bytes:]), records[:, label_bytes - 1].astype(np.int64)


def _pickled_records(
    raw: bytes, file: str, label_key: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    table = _table(raw, file)
    data, labels = table.get("data"), table.get(label_key)
    if not isinstance(data, np.ndarray) or data.shape[1:] != (PIXELS,):
        raise DataError(f"{file}: has no 'data' of {PIXELS} bytes an image")
    if not isinstance(labels, list) or not all(type(v) is int and 0 <= v < 256 for v in labels):
        raise DataError(f"{file}: has no list {label_key!r} of labels")
    if len(data) != len(labels):
        raise DataError(f"{file}: {len(data)} images and {len(labels)} labels; expected as many")
    return _to_nhwc(data), np.array(labels, dtype=np.int64)


def _pickled_names(raw: bytes, file: str, key: str) -> tuple[str, ...]:
    names = _table(raw, file).get(key)
    if not isinstance(names, list) or not all(isinstance(n, str | bytes) for n in names):
        raise DataError(f"{file}: has no list {key!r}")
    return tuple(n.decode("ascii", "replace") if isinstance(n, bytes) else n for n in names)


def _table(raw: bytes, file: str) -> dict[str, Any]:
    """Return the dict of a batch file; Python 2 wrote its keys as bytes."""
    table = read_plain_pickle(raw, file)
    if not isinstance(table, dict):
        raise DataError(f"{file}: holds a {type(table).__name__}; expected a dict")
    return {k.decode("ascii", "replace") if isinstance(k, bytes) else k: v for k, v in table.items()}
