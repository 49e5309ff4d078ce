"""Finds the images of a source as researchers have it: folders, archives, flat files with a text.

    SRC/train/CLASS/FILE, SRC/val/CLASS/FILE      both splits (validation, valid: as val)
    SRC/CLASS/FILE                                one split
    SRC/CLASS.tar, SRC.tar of CLASS.tar           the training set as it is published, never unpacked
    SRC/FILE, SRC.tar of FILE                     the validation set, with the ground-truth text

Names are read, never what their endings promise: whether a file is an image is known once it is decoded.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from npgait.files import shown
from npgait.loaders import idx
from npgait.loaders.cifar import load_cifar10, load_cifar100
from npgait.loaders.dataset import DataError, Dataset
from npgait.loaders.digits import load_digits
from npgait.loaders.store.folders import VALIDATION_FOLDERS
from npgait.loaders.store.found import Found, find_images, is_tar
from npgait.loaders.store.layout import JOURNAL, MAX_NAME, PART, REPORT
from npgait.loaders.store.listing import ArrayListing, Listing, as_text, labelled
from npgait.loaders.store.truth import KITS, find_truth, read_truth

IN_MEMORY = {
    "digits": load_digits,
    "mnist": idx.load_mnist,
    "kmnist": idx.load_kmnist,
    "fashion-mnist": idx.load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
}
KINDS = ("imagenet", *IN_MEMORY)
PUBLISHED = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
VALIDATION = "ILSVRC2012_val_"  # what the names of its files begin with
OWN = {"train": ("train",), "val": VALIDATION_FOLDERS}
SPLITS = frozenset((*OWN["train"], *OWN["val"], "test"))
KAGGLE = "ILSVRC/Data/CLS-LOC"
COMPANIONS = ("", PART, JOURNAL, REPORT)  # of a store, while it is made and after


def find_listings(
    kind: str,
    source: Path,
    *,
    split: str | None = None,
    labels: Path | None = None,
    leave_out: Sequence[Path] = (),
    skip_unreadable: bool = False,
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
    leave_out : sequence of Path
        Stores that are made of it: should they lie in the source, they are none of its images.
    skip_unreadable : bool
        Whether what cannot even be looked at is listed, for the conversion to skip it.

    Raises
    ------
    DataError
        If there is nothing, it cannot be read, or nothing takes its classes from `labels`.
    """
    try:
        if not source.exists() and kind != "digits":
            raise DataError(f"{source}: there is no such folder or archive")
        if kind in IN_MEMORY:
            if labels is not None:
                raise DataError(
                    f"{labels}: is not used, as {kind} comes with its classes; leave --labels out"
                )
            return _array_listings(IN_MEMORY[kind](source), split)
        find = partial(
            find_images,
            told=labels is not None,
            splits=SPLITS,
            leave_out=_stores(leave_out),
            skip_unreadable=skip_unreadable,
        )
        return _image_listings(source, split, labels, find)
    except (OSError, tarfile.TarError) as error:
        where = getattr(error, "filename", None) or source
        raise DataError(
            f"{shown(where)}: cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from error


def _stores(paths: Sequence[Path]) -> frozenset[str]:
    """Return all files that may belong to the stores `paths`."""
    return frozenset(
        f"{os.path.realpath(path.parent)}/{path.name}{ending}" for path in paths for ending in COMPANIONS
    )


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
    source: Path, split: str | None, labels: Path | None, find: Callable[[Path], Found]
) -> list[Listing | ArrayListing]:
    places = _splits(source)
    if not places:
        places = {split or "train": source}
    if split is not None and split not in places:
        raise DataError(f"{source}: has no {split}; there is {', '.join(places)}")
    listings: list[Listing | ArrayListing] = []
    classes: Sequence[str] | None = None
    used = False
    for name, place in places.items():
        beside = (Path(os.path.abspath(path)).parent for path in (source, place))  # of "." too
        around = [source, place, *beside]
        if split in (None, name) or name == "train":  # the training set says what the classes are
            found = find(place)
            truth = _truth_of(place, found, labels, around, classes)
            if split is None and place is source and truth is not None and _is_published(found):
                name = "val"
            used = used or (truth is not None and truth == labels)
            listing = _listing(name, place, found, truth, classes)
            classes = listing.classes
            listings.append(listing)
    if labels is not None and not used:
        raise DataError(
            f"{labels}: is not used, as the folders in {source} say the classes; leave --labels out"
        )
    return [listing for listing in listings if split in (None, listing.split)]


def _splits(source: Path) -> dict[str, Path]:
    """Return where the splits of a source lie, if it names them."""
    if not source.is_dir():
        return {}
    for base in (source, source / KAGGLE):
        if not base.is_dir():
            continue
        found: dict[str, Path] = {}
        named = _holds_splits(base)
        for split, published in PUBLISHED.items():
            own = OWN[split] if named else ()
            names = [*own, published, *(f"{name}.tar" for name in own)]
            place = next((base / name for name in names if os.path.lexists(base / name)), None)
            if place is not None:
                os.stat(place)  # a link to nothing is an error, not a split less
                found[split] = place
        if found:
            return found
    return {}


def _holds_splits(folder: Path) -> bool:
    """Return whether a folder called `train` is a split: among folders of other names it is a class."""
    with os.scandir(folder) as entries:
        names = {
            entry.name[: -len(".tar")] if is_tar(entry.name) else entry.name
            for entry in entries
            if entry.name in SPLITS or is_tar(entry.name) or entry.is_dir()
        }
    known = SPLITS.union(KITS, (name.removesuffix(".tar") for name in PUBLISHED.values()))
    others = {name for name in names - known if not name.startswith(".")}
    both = "train" in names and not names.isdisjoint(OWN["val"])
    return both or not others


def _is_published(found: Found) -> bool:
    """Return whether these are ImageNet's validation files, by their names."""
    return all(os.path.basename(name).startswith(VALIDATION) for name in found.names)


def _truth_of(
    place: Path,
    found: Found,
    labels: Path | None,
    around: Sequence[Path],
    classes: Sequence[str] | None,
) -> Path | None:
    """Return the text that says the classes of what was found, or None if folders say them."""
    owners = set(found.owners)
    if "" not in owners:
        if len(owners) > 1:
            return None
        if labels is None and classes is not None and owners.isdisjoint(classes):
            return find_truth(around)  # one folder, which is no class: val/images of Tiny ImageNet
        return labels
    stray = found.names[found.owners.index("")]
    if len(owners) > 1:
        _look_at(place, stray)
        raise DataError(
            f"{place}: {shown(stray)} lies beside the folders of the classes; expected it in one"
        )
    truth = labels or find_truth(around)
    if truth is None:
        _look_at(place, stray)
        raise DataError(
            f"{place}: {len(found.names)} flat files, as the validation set has them; their classes are "
            "in a ground-truth text of the development kit, which is not unpacked in or beside the "
            "folder: give it by --labels FILE"
        )
    return truth


def _look_at(place: Path, name: str) -> None:
    """Raise OSError if a file cannot be looked at: it may be a folder of a class."""
    if place.is_dir():
        os.stat(place / name)


def _listing(
    split: str, place: Path, found: Found, truth: Path | None, classes: Sequence[str] | None
) -> Listing:
    """Return a split in the order of classes and names."""
    if not found.names:
        raise DataError(f"{place}: holds no images; expected CLASS/FILE, CLASS.tar or flat files")
    own = [as_text(owner) for owner in found.owners]
    _check_unique(place, "class", set(found.owners))
    _check_unique(place, "image", found.names)
    order = sorted(range(len(own)), key=lambda i: (own[i], found.names[i]))
    names = [found.names[i] for i in order]
    owners = [own[i] for i in order] if truth is None else read_truth(truth, names)
    classes = tuple(classes or sorted(set(owners)))
    long = next((name for name in classes if len(name.encode()) > MAX_NAME), None)
    if long is not None:
        raise DataError(f"{place}: the class {shown(long[:40])}... has a name of over {MAX_NAME} bytes")
    numbers = np.array([found.numbers[i] for i in order], dtype=np.int64)
    return Listing(
        "imagenet",
        split,
        names,
        labelled(names, owners, classes),
        classes,
        root=str(place),
        archives=found.archives,
        stretches=numbers if found.archives else None,
        stamps=None if found.archives else numbers,
    )


def _check_unique(place: Path, what: str, names: Sequence[str] | set[str]) -> None:
    """Refuse names that would be the same in the store."""
    seen: set[str] = set()
    for name in map(as_text, names):
        if name in seen:
            raise DataError(f"{place}: more than one {what} would be called {shown(name)}; rename one")
        seen.add(name)
