"""The validation set's ground truth: which class each of its flat files is of.

Read from whichever form a researcher has:

- WNIDs, one a line, in the order of the sorted file names;
- "FILE CLASS" or "FILE,CLASS ..." a line, in any order, as Kaggle's LOC_val_solution.csv and Tiny
  ImageNet's val_annotations.txt;
- ILSVRC2012_validation_ground_truth.txt of the development kit: numbers from 1, which are not those of
  the sorted WNIDs; meta.mat beside it says which is which.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from npgait.files import read_text, shown
from npgait.loaders.dataset import DataError

NAMES = (
    "ILSVRC2012_validation_ground_truth.txt",
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "val_annotations.txt",
)
BOXED = re.compile(r"(\S+)(?:\s+-?[\d.]+){4}")  # CLASS X Y WIDTH HEIGHT ...
KITS = ("ILSVRC2012_devkit_t12", "devkit", "data")  # folders of the development kit
MAX_BYTES = 1 << 26
MAX_META_BYTES = 1 << 20  # meta.mat has 35 KB; what it unpacks to is bounded with it


def find_truth(folders: Sequence[Path]) -> Path | None:
    """Return the first file of ground truth in one of `folders`, or in a development kit there."""
    for folder in folders:
        for inner in ("", "data", "ILSVRC2012_devkit_t12/data", "devkit/data"):
            for name in NAMES:
                if (folder / inner / name).is_file():
                    return folder / inner / name
    return None


def read_truth(path: Path, names: Sequence[str]) -> list[str]:
    """Return the class of each of the images `names`, which are sorted.

    Raises
    ------
    DataError
        If the file cannot be read, does not say it once for every image, or speaks of others.
    """
    try:
        text = read_text(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: ground truth cannot be read ({error})") from error
    if "\0" in text:
        raise DataError(
            f"{path}: is no text in UTF-8; of a development kit that is packed, unpack it and give its "
            "data/ILSVRC2012_validation_ground_truth.txt"
        )
    lines = [line for line in text.removeprefix("\ufeff").splitlines() if line.strip()]
    rows = [_row(line) for line in lines]
    if rows and all(len(row) == 1 for row in rows):
        return _in_order(path, [row[0] for row in rows], names)
    return _by_name(path, rows, names)


def _row(line: str) -> list[str]:
    """Return file and class of a line, or the one word that is in it; boxes after them are left out.

    The first comma, semicolon or tab separates, so that names may hold blanks; where there is none,
    blanks do.
    """
    separator = next((c for c in line if c in ",;\t"), None)
    if separator is None:
        words = line.split()
        return words[:2] if BOXED.match(" ".join(words[1:])) else words
    try:
        fields = next(csv.reader([line], delimiter=separator))  # names may be in quotes
    except (csv.Error, StopIteration):
        fields = line.split(separator)
    file, owner = [field.strip() for field in (*fields, "")][:2]
    boxed = BOXED.match(owner)
    owner = boxed[1] if boxed else owner
    return [file, owner] if owner else [file]


def _in_order(path: Path, labels: list[str], names: Sequence[str]) -> list[str]:
    if len(labels) != len(names):
        raise DataError(f"{path}: {len(labels)} lines for {len(names)} images; expected as many")
    if not all(label.isascii() and label.isdigit() for label in labels):
        return labels
    known = _devkit_classes(path.parent / "meta.mat", path)
    numbers = [label.lstrip("0") for label in labels]
    unknown = next((number for number in numbers if number not in known), None)
    if unknown is not None:
        raise DataError(f"{path}: class {unknown[:20]} is none of the {len(known)} of meta.mat")
    return [known[number] for number in numbers]


def _by_name(path: Path, rows: list[list[str]], names: Sequence[str]) -> list[str]:
    """Match by the whole path, else by the file's name, else without its ending, where one file fits."""
    told = _classes_told(path, rows)
    left, found = dict(told), {}
    for key_of_row, key in ((_whole, _whole), (_last, _last), (_last, _stem), (_stem, _stem)):
        files = _unique(names, key)
        for short, row in _unique(told, key_of_row).items():
            name = files.get(short)
            if name is not None and name not in found and row in left:
                found[name] = left.pop(row)
    missing = next((name for name in names if name not in found), None)
    if missing is not None:
        raise DataError(
            f"{path}: says nothing of the image {shown(missing)} that could not be of another; expected "
            "'FILE CLASS' a line"
        )
    head = _whole(rows[0][0])
    if "." not in head and left.get(head) not in found.values():
        left.pop(head, None)  # names of the columns, as in Kaggle's
    if left:
        raise DataError(
            f"{path}: {len(left)} of {len(told)} rows name no file, such as {shown(next(iter(left)))}; "
            f"expected those of the {len(names)} images"
        )
    return [found[name] for name in names]


def _classes_told(path: Path, rows: list[list[str]]) -> dict[str, str]:
    """Return the class of each name in the text, which says it once or the same again."""
    told: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if len(row) != 2:  # of more words, a class of several would be cut to its first
            raise DataError(
                f"{path}: row {number} says {shown(row)}; expected 'FILE CLASS', or 'FILE,CLASS' where "
                "they hold blanks"
            )
        name, owner = _whole(row[0]), row[1]
        if told.setdefault(name, owner) != owner:
            raise DataError(
                f"{path}: {shown(name)} is said to be of class {shown(told[name])} and of "
                f"{shown(owner)}; expected one"
            )
    return told


def _unique(texts: Iterable[str], key: Callable[[str], str]) -> dict[str, str]:
    """Return texts by their keys, without those that share one."""
    pairs = [(key(text), text) for text in texts]
    counts = Counter(short for short, _ in pairs)
    return {short: text for short, text in pairs if counts[short] == 1}


def _whole(name: str) -> str:
    return str(PurePosixPath(name))


def _last(name: str) -> str:
    return PurePosixPath(name).name


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _devkit_classes(meta: Path, truth: Path) -> dict[str, str]:
    """Return the WNID of each number of the development kit, from its meta.mat."""
    if not meta.is_file():
        raise DataError(
            f"{truth}: holds numbers of the development kit, which are not those of the sorted WNIDs; "
            f"put the kit's meta.mat beside it, or give a text of WNIDs by --labels"
        )
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(
            f"{meta}: reading it takes SciPy: pip install 'npgait[devkit]'; or give a text of WNIDs by "
            "--labels"
        ) from error
    try:
        if meta.stat().st_size > MAX_META_BYTES:
            raise ValueError(f"{meta.stat().st_size} bytes; expected up to {MAX_META_BYTES}")
        rows = loadmat(meta, squeeze_me=True, chars_as_strings=True)["synsets"]
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in rows}
    except Exception as error:  # SciPy raises anything on a damaged file
        raise DataError(f"{meta}: no class list of the development kit ({error})") from error
