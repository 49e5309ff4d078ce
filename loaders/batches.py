"""A data set, in memory or in a store, as the two sources of batches that training takes."""

from __future__ import annotations

import functools

import numpy as np

from npgait.backend import Device
from npgait.data import Preparation, Scaling, Source, array_data, scaling_of
from npgait.loaders.dataset import DataError, Dataset
from npgait.loaders.stored import StoredData, StoredDataset


def sources(
    dataset: Dataset | StoredDataset,
    *,
    shape: tuple[int, ...],
    dtype: np.dtype,
    device: Device,
    normalisation: str = "none",
    augmentation: str = "none",
    block: int = 32,
) -> tuple[Source, Source | None]:
    """Return training and test set in batches, both scaled by the training set's pixels.

    Parameters
    ----------
    dataset : Dataset or StoredDataset
    shape : tuple of int
        Of a sample as the network takes it: (n,) or (H, W, C), then cropped to that.
    dtype : numpy.dtype
    device : Device
    normalisation : {"none", "unit", "standard"}
        See `npgait.data.scaling_of`.
    augmentation : {"none", "crop", "resized"}
        Of the training set.
    block : int
        Images read in a run from a store.

    Raises
    ------
    DataError
        If the images are smaller than the network takes.
    """
    if isinstance(dataset, Dataset):
        scaling = scaling_of(dataset.train_x, normalisation, max_value=dataset.max_value)
        take = functools.partial(array_data, shape=shape, scaling=scaling, dtype=dtype, device=device)
        train = take(dataset.train_x, dataset.train_labels, augmentation=augmentation)
        if dataset.test_x is None:
            return train, None
        return train, take(dataset.test_x, dataset.test_labels)
    head = dataset.train.head
    if normalisation == "standard":
        scaling = Scaling(head.mean, 1 / head.std)
    else:
        scaling = scaling_of(None, normalisation, max_value=dataset.max_value)
    crop = crop_of(dataset, shape)
    prepare = Preparation(scaling, dtype, device, shape, crop, augmentation)
    train_data = StoredData(dataset.train, prepare, block)
    if dataset.test is None:
        return train_data, None
    return train_data, StoredData(dataset.test, prepare, block)


def crop_of(dataset: StoredDataset, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the size that stored images are cropped to, None if they are of the network's.

    Raises
    ------
    DataError
        If the images are smaller than the network takes, or for a network that takes rows of values, of
        another size.
    """
    height, width, channels = dataset.image_shape
    if shape == dataset.image_shape or shape == (height * width * channels,):
        return None
    stored = f"{dataset.train.path}: images are {height} x {width} x {channels}"
    if len(shape) == 1:
        raise DataError(
            f"{stored}, and the network takes {shape[0]} values; set image_size={height}, or convert at "
            "the --size that image_size says"
        )
    if shape[0] > height or shape[1] > width or shape[2] != channels:
        raise DataError(
            f"{stored}, and the network takes {shape[0]} x {shape[1]} x {shape[2]}; "
            f"set image_size={height}, or convert at a larger --size"
        )
    return shape[0], shape[1]
