"""Data sets: read from disk into arrays. To add one: a new file, and a line in `DATASETS`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from npgait.loaders.cifar import load_cifar10, load_cifar100
from npgait.loaders.dataset import DataError, Dataset
from npgait.loaders.digits import load_digits
from npgait.loaders.folder import load_image_folder
from npgait.loaders.idx import load_fashion_mnist, load_kmnist, load_mnist
from npgait.loaders.stored import StoredDataset, find_store

__all__ = ["DATASETS", "INCLUDED", "RESIZED", "DataError", "Dataset", "StoredDataset", "load"]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "kmnist": load_kmnist,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "imagenet": load_image_folder,
}
RESIZED = ("imagenet",)  # those whose images are brought to one size as they are read
INCLUDED = "digits"  # what comes with npgait


def load(name: str, data_dir: Path | None = None, *, image_size: int = 224) -> Dataset | StoredDataset:
    """Return a data set by name: from an image store if there is one, or from its files.

    Parameters
    ----------
    name : str
        One of `DATASETS`.
    data_dir : Path, optional
        Where its files or NAME.h5 lie, or a folder with one subfolder a data set, or an image store. The
        digits need none.
    image_size : int
        Side of the images of `RESIZED` data sets, in pixels.

    Raises
    ------
    DataError
        If the name is unknown (with the nearest known), `data_dir` is not there, or the files are
        missing (with what to fetch, from where, and where to put it) or damaged.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"; nearest: {near[0]!r}" if near else ""
        raise DataError(f"data set {name!r} is unknown{hint}; there are {', '.join(DATASETS)}")
    if data_dir is not None and name != INCLUDED:
        _check_there(data_dir)
    stored = find_store(name, data_dir)
    if stored is not None:
        return stored
    if name in RESIZED:
        return DATASETS[name](data_dir, image_size=image_size)
    return DATASETS[name](data_dir)


def _check_there(path: Path) -> None:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path}: there is no such file or folder; --data (or NPGAIT_DATA) takes the folder of the "
            "data sets, or an image store"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be looked into: {error.strerror or error}") from error
