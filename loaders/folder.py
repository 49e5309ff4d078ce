"""Images in folders, one a class, as ImageNet's training set is unpacked: DIR/train/WNID/*.JPEG.

For what fits into memory: samples, subsets, a user's own images. Nothing is skipped: a file that cannot
be decoded is an error that names it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from npgait.files import shown
from npgait.loaders.dataset import DataError, Dataset, missing
from npgait.loaders.store.decode import BadImageError, decode, read_source
from npgait.loaders.store.folders import VALIDATION_FOLDERS, files_in_folder

ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MAX_BYTES = 8 << 30  # of decoded images


def load_image_folder(data_dir: Path | None = None, *, image_size: int = 224) -> Dataset:
    """Return the images below DIR/train, and below DIR/val if there is one, uint8 (N, S, S, 3).

    Where there is no DIR/val, DIR/validation and DIR/valid are taken for it.

    Each is turned as its EXIF says, converted to RGB, resized on the short side and cropped at the
    centre. Classes are the names of the folders in DIR/train that hold images, however deep, sorted.

    Parameters
    ----------
    data_dir : Path, optional
        Holds train/CLASS/FILE, itself or in its folder imagenet or imagenet_sample.
    image_size : int
        S, in pixels.

    Raises
    ------
    DataError
        If there are no such folders, DIR/val has a class that DIR/train has not, a file cannot be
        decoded, or the images would not fit.
    """
    root = _find(data_dir)
    training = _files(root / "train")
    classes = tuple(training)
    train_x, train_labels = _read(root / "train", training, classes, image_size)
    folders = (root / name for name in VALIDATION_FOLDERS)
    folder = next((f for f in folders if os.path.lexists(f)), None)  # a link to nothing is an error
    if folder is None:
        return Dataset("imagenet", train_x, train_labels, None, None, classes)
    validation = _files(folder)
    if unknown := [name for name in validation if name not in training]:
        raise DataError(
            f"{folder}: {shown(unknown[0])} is none of the {len(classes)} classes of the folders "
            f"in {root / 'train'}"
        )
    test_x, test_labels = _read(folder, validation, classes, image_size)
    return Dataset("imagenet", train_x, train_labels, test_x, test_labels, classes)


def _find(data_dir: Path | None) -> Path:
    for name in ("imagenet", "imagenet_sample", ""):
        if data_dir is not None and (data_dir / name / "train").is_dir():
            return data_dir / name
    raise missing(
        "imagenet",
        data_dir,
        "the ILSVRC2012 images, or images of your own, in folders train/CLASS/FILE.JPEG",
        "https://www.image-net.org/download (an account is needed)",
        "imagenet",
    )


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each folder that holds any, by its name, sorted; hidden ones are not data."""
    try:
        names = [name.split("/") for name, _ in files_in_folder(folder)]
    except OSError as error:  # to go on would be a class less, and other numbers for those after it
        where = shown(Path(error.filename))
        raise DataError(f"{where}: cannot be looked into: {error.strerror}") from error
    found: dict[str, list[Path]] = {}
    for name, *inner in sorted(names):
        if inner and inner[-1].lower().endswith(ENDINGS):
            found.setdefault(name, []).append(folder.joinpath(name, *inner))
    if not found:
        raise DataError(f"{folder}: no images ({', '.join(ENDINGS)}) in folders of their classes")
    return found


def _read(
    folder: Path, found: Mapping[str, Sequence[Path]], classes: Sequence[str], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return all images of these files and their labels, in the order of their names."""
    files = [(path, label) for label, name in enumerate(classes) for path in found.get(name, ())]
    if len(files) * size * size * 3 > MAX_BYTES:
        raise DataError(
            f"{folder}: {len(files)} images of {size} x {size} do not fit {MAX_BYTES >> 30} GiB; take "
            "a subset, or a smaller image_size"
        )
    images = np.empty((len(files), size, size, 3), np.uint8)
    for number, (path, _) in enumerate(files):
        images[number] = read_image(path, size)
    return images, np.array([label for _, label in files], dtype=np.int64)


def read_image(path: Path, size: int) -> NDArray[np.uint8]:
    """Return an image as RGB, resized on the short side and cropped at the centre, (size, size, 3).

    Raises
    ------
    DataError
        If it cannot be decoded, or unpacks to more pixels than Pillow holds to be safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of harmless damage, such as EXIF that cannot be read
            return np.asarray(decode(read_source(str(path)), size))
    except (BadImageError, OSError) as error:
        raise DataError(f"{shown(path)}: cannot be decoded ({error})") from error
