"""The UCI hand-written digits that come with npgait: 1,797 images of 8x8 pixels, 17 grey levels.

E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, https://doi.org/10.24432/C50P49, CC BY 4.0; see data/digits.txt.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np

from npgait.loaders.dataset import Dataset

TEST_EVERY = 5  # of each class, every fifth image is for testing


def load_digits(data_dir: Path | None = None) -> Dataset:
    """Return the digits: 1,442 to train, 355 to test, every fifth image of each class.

    Parameters
    ----------
    data_dir : Path, optional
        Not needed: the images come with npgait.
    """
    del data_dir
    import h5py

    file = resources.files("npgait.loaders.data").joinpath("digits.h5")
    with resources.as_file(file) as path, h5py.File(path, "r", locking=False) as h5:
        images = h5["images"][:]
        labels = h5["labels"][:].astype(np.int64)
        max_value = int(h5.attrs["max_value"])
    is_test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        is_test[np.flatnonzero(labels == digit)[TEST_EVERY - 1 :: TEST_EVERY]] = True
    return Dataset(
        "digits",
        images[~is_test],
        labels[~is_test],
        images[is_test],
        labels[is_test],
        tuple("0123456789"),
        max_value,
    )
