"""Random images of the size of a data set: for timing, where the data set itself has to be fetched."""

from __future__ import annotations

import numpy as np

from npgait.loaders.dataset import DataError, Dataset

# Height, width, channels and classes of data sets that have to be fetched; of imagenet the side is what
# the experiment says.
SHAPES = {
    "mnist": (28, 28, 1, 10),
    "kmnist": (28, 28, 1, 10),
    "fashion-mnist": (28, 28, 1, 10),
    "cifar10": (32, 32, 3, 10),
    "cifar100": (32, 32, 3, 100),
    "imagenet": (224, 224, 3, 1000),
}


def random_images(name: str, n: int, *, image_size: int = 224, seed: int = 0) -> Dataset:
    """Return `n` images of noise and random labels, of the shape of the data set `name`.

    Raises
    ------
    DataError
        If the shape of `name` is not known.
    """
    if name not in SHAPES:
        raise DataError(f"the shape of data set {name!r} is not known; give the data set by --data")
    height, width, channels, classes = SHAPES[name]
    if name == "imagenet":
        height = width = image_size
    rng = np.random.default_rng(seed)
    return Dataset(
        name,
        rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8),
        rng.integers(0, classes, n),
        None,
        None,
        tuple(map(str, range(classes))),
    )
