"""Finds the images of a source as researchers have it: folders, archives, flat files with a text.

    SRC/train/CLASS/FILE, SRC/val/CLASS/FILE      both splits
    SRC/CLASS/FILE                                one split
    SRC/CLASS.tar, SRC.tar of CLASS.tar           the training set as it is published, never unpacked
    SRC/FILE, SRC.tar of FILE                     the validation set, with the ground-truth text

Names are read, never what their endings promise: whether a file is an image is known once it is decoded.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from npgait.loaders import idx
from npgait.loaders.cifar import load_cifar10, load_cifar100
from npgait.loaders.dataset import DataError, Dataset
from npgait.loaders.digits import load_digits
from npgait.loaders.store.listing import ArrayListing, Listing, labelled
from npgait.loaders.store.truth import find_truth, read_truth

IN_MEMORY = {
    "digits": load_digits,
    "mnist": idx.load_mnist,
    "kmnist": idx.load_kmnist,
    "fashion-mnist": idx.load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
}
KINDS = ("imagenet", *IN_MEMORY)
ARCHIVES = {
    "train": ("ILSVRC2012_img_train.tar", "train.tar"),
    "val": ("ILSVRC2012_img_val.tar", "val.tar"),
}
KAGGLE = "ILSVRC/Data/CLS-LOC"
Found = list[tuple[str, str]]  # (name, class) of each image
Stretches = list[tuple[int, int, int]]


def find_listings(
    kind: str, source: Path, *, split: str | None = None, labels: Path | None = None
) -> list[Listing | ArrayListing]:
    """Return the splits of a source, the training set first.

    Parameters
    ----------
    kind : str
        One of `KINDS`; "imagenet" is any images in a folder a class.
    source : Path
        Folder or tar archive.
    split : {"train", "val"}, optional
        Only this one. A source that does not say which it is, is the training set.
    labels : Path, optional
        Ground truth of flat files; see `truth`. Default: looked for in and beside the source.

    Raises
    ------
    DataError
        If there is nothing, or it cannot be read.
    """
    if not source.exists() and kind != "digits":
        raise DataError(f"{source}: there is no such folder or archive")
    try:
        if kind in IN_MEMORY:
            return _array_listings(IN_MEMORY[kind](source), split)
        return _image_listings(source, split, labels)
    except (OSError, tarfile.TarError) as error:
        where = getattr(error, "filename", None) or source
        raise DataError(
            f"{where}: cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from error


def _array_listings(dataset: Dataset, split: str | None) -> list[Listing | ArrayListing]:
    found: list[Listing | ArrayListing] = []
    parts = {
        "train": (dataset.train_x, dataset.train_labels),
        "val": (dataset.test_x, dataset.test_labels),
    }
    for name, (x, labels) in parts.items():
        if x is not None and labels is not None and split in (None, name):
            names = [f"{name}/{i}" for i in range(len(x))]
            images = x.reshape(len(x), *dataset.image_shape)
            found.append(
                ArrayListing(
                    dataset.name, name, names, labels, dataset.classes, images, dataset.max_value
                )
            )
    if not found:
        raise DataError(f"{dataset.name}: has no split {split!r}")
    return found


def _image_listings(
    source: Path, split: str | None, labels: Path | None
) -> list[Listing | ArrayListing]:
    places = _splits(source)
    if not places:
        places = {split or "train": source}
    if split is not None and split not in places:
        raise DataError(f"{source}: has no {split}; there is {', '.join(places)}")
    listings: list[Listing | ArrayListing] = []
    classes: Sequence[str] | None = None
    for name, place in places.items():
        around = [source, place, source.parent, place.parent]
        if split in (None, name) or name == "train":  # the training set says what the classes are
            listing = _listing(name, place, labels, around, classes)
            classes = listing.classes
            listings.append(listing)
    return [listing for listing in listings if split in (None, listing.split)]


def _splits(source: Path) -> dict[str, Path]:
    """Return where the splits of a source lie, if it names them."""
    if not source.is_dir():
        return {}
    for base in (source, source / KAGGLE):
        found: dict[str, Path] = {}
        for split, archives in ARCHIVES.items():
            names = [split, *archives, *(["validation"] if split == "val" else [])]
            place = next((base / name for name in names if (base / name).exists()), None)
            if place is not None:
                found[split] = place
        if found:
            return found
    return {}


def _listing(
    split: str,
    place: Path,
    labels: Path | None,
    around: Sequence[Path],
    classes: Sequence[str] | None,
) -> Listing:
    """Return a split that lies in one folder or archive."""
    archives: tuple[str, ...] = ()
    stretches: Stretches | None = None
    tars = _tars(place) if place.is_dir() else [place]
    if tars:
        archives = tuple(str(tar) for tar in tars)
        found, stretches = _in_archives(tars, class_by_name=place.is_dir())
    else:
        found = list(_in_folders(place))
    if not found:
        raise DataError(f"{place}: holds no images; expected CLASS/FILE, CLASS.tar or flat files")
    order = sorted(range(len(found)), key=lambda i: _sort_key(found[i]))
    names = [found[i][0] for i in order]
    owners = [found[i][1] for i in order]
    if "" in owners:
        owners = _told(place, names, owners, labels, around)
    classes = tuple(classes or sorted(set(owners)))
    return Listing(
        "imagenet",
        split,
        names,
        labelled(names, owners, classes),
        tuple(classes),
        str(place),
        archives,
        None if stretches is None else np.array([stretches[i] for i in order], dtype=np.int64),
    )


def _sort_key(found: tuple[str, str]) -> tuple[str, str]:
    return found[1], found[0]


def _told(
    place: Path, names: list[str], owners: list[str], labels: Path | None, around: Sequence[Path]
) -> list[str]:
    """Return the classes of flat files by the ground truth."""
    if any(owners):
        stray = names[owners.index("")]
        raise DataError(f"{place}: {stray} lies beside the folders of the classes; expected it in one")
    truth = labels or find_truth(around)
    if truth is None:
        raise DataError(
            f"{place}: {len(names)} flat files, as the validation set has them; their classes are in a "
            "ground-truth text of the development kit, which is not in or beside the folder: give it by "
            "--labels FILE"
        )
    return read_truth(truth, names)


def _in_folders(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, class) of every plain file below `root`; hidden files are not data."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, inner, files in os.walk(root, onerror=refuse):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        base = os.path.relpath(folder, root)
        parts = () if base == "." else Path(base).parts
        for name in files:
            if not name.startswith(".") and os.path.isfile(os.path.join(folder, name)):
                if not parts and _is_text_about(name):
                    continue
                yield "/".join((*parts, name)), parts[0] if parts else ""


def _is_text_about(name: str) -> bool:
    """Return whether a file beside the images is a text about them, such as the ground truth."""
    return name.lower().endswith((".txt", ".csv", ".mat", ".md", ".json", ".xml", ".html"))


def _tars(folder: Path) -> list[Path]:
    """Return the archives of the classes, if that is what a folder holds."""
    tars = sorted(path for path in folder.iterdir() if path.suffix == ".tar" and path.is_file())
    if tars and any(path.is_dir() for path in folder.iterdir() if not path.name.startswith(".")):
        return []
    return tars


def _in_archives(tars: list[Path], *, class_by_name: bool) -> tuple[Found, Stretches]:
    """Return names, classes and places of the images within archives, one level of tar in tar deep."""
    found: Found = []
    stretches: Stretches = []
    for number, path in enumerate(tars):
        with _open_tar(path) as outer:
            own = path.stem if class_by_name else ""
            for member in _plain_members(outer):
                if own == "" and member.name.endswith(".tar"):
                    inner_class = PurePosixPath(member.name).stem
                    with _open_inner(outer, member, path) as inner:
                        for image in _plain_members(inner):
                            name = f"{inner_class}/{PurePosixPath(image.name).name}"
                            found.append((name, inner_class))
                            stretches.append(
                                (number, member.offset_data + image.offset_data, image.size)
                            )
                    continue
                parts = [part for part in PurePosixPath(member.name).parts if part != "."]
                owner = own or (parts[-2] if len(parts) > 1 else "")
                found.append((f"{owner}/{parts[-1]}" if owner else parts[-1], owner))
                stretches.append((number, member.offset_data, member.size))
    return found, stretches


def _open_tar(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except tarfile.TarError as error:
        raise DataError(
            f"{path}: no tar archive, or a compressed one ({error}); unpack the compression first"
        ) from error


def _open_inner(outer: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=outer.extractfile(member), mode="r:")
    except tarfile.TarError as error:
        raise DataError(f"{path}: the archive {member.name} in it is damaged ({error})") from error


def _plain_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # where it would keep every header
        hidden = PurePosixPath(member.name).name.startswith(".")
        if member.isreg() and not member.issparse() and not hidden:
            yield member
