"""The validation set's ground truth: which class each of its flat files is of.

Read from whichever form a researcher has:

- WNIDs, one a line, in the order of the sorted file names;
- "FILE CLASS" or "FILE,CLASS ..." a line, as Kaggle's LOC_val_solution.csv and Tiny ImageNet's
  val_annotations.txt;
- ILSVRC2012_validation_ground_truth.txt of the development kit: numbers from 1, which are not those of
  the sorted WNIDs; meta.mat beside it says which is which.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from npgait.files import read_text
from npgait.loaders.dataset import DataError

NAMES = (
    "ILSVRC2012_validation_ground_truth.txt",
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "val_annotations.txt",
)
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
        If the file cannot be read, or does not say it for every image.
    """
    try:
        lines = [line.strip() for line in read_text(path, MAX_BYTES).splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: ground truth cannot be read ({error})") from error
    lines = [line for line in lines if line]
    rows = [re.split(r"[\s,;]+", line) for line in lines]
    if rows and all(len(row) == 1 for row in rows):
        return _in_order(path, [row[0] for row in rows], names)
    return _by_name(path, rows, names)


def _in_order(path: Path, labels: list[str], names: Sequence[str]) -> list[str]:
    if len(labels) != len(names):
        raise DataError(f"{path}: {len(labels)} lines for {len(names)} images; expected as many")
    if not all(label.isascii() and label.isdigit() for label in labels):
        return labels
    known = _devkit_classes(path.parent / "meta.mat", path)
    unknown = next((label for label in labels if int(label) not in known), None)
    if unknown is not None:
        raise DataError(f"{path}: class {unknown} is none of the {len(known)} of meta.mat")
    return [known[int(label)] for label in labels]


def _by_name(path: Path, rows: list[list[str]], names: Sequence[str]) -> list[str]:
    """Match by file name, with or without its ending."""
    told = {PurePosixPath(row[0]).stem: row[1] for row in rows if len(row) > 1}
    missing = next((name for name in names if PurePosixPath(name).stem not in told), None)
    if missing is not None:
        raise DataError(f"{path}: says nothing of the image {missing}; expected 'FILE CLASS' a line")
    return [told[PurePosixPath(name).stem] for name in names]


def _devkit_classes(meta: Path, truth: Path) -> dict[int, str]:
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
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    except Exception as error:  # SciPy raises anything on a damaged file
        raise DataError(f"{meta}: no class list of the development kit ({error})") from error
