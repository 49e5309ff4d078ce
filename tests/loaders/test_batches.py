"""Training and test set as batches: each by its own pixels, both by the training set's scaling."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from npgait.backend import CPU
from npgait.loaders import DataError
from npgait.loaders.batches import crop_of, sources
from npgait.loaders.dataset import Dataset
from npgait.loaders.store import Settings, open_store, prepare
from npgait.loaders.store.listing import ArrayListing
from npgait.loaders.stored import StoredDataset, find_store
from npgait.streams import random_streams

SHAPE, CLASSES = (6, 5, 3), ("a", "b")
rng = np.random.default_rng(8)
TRAIN, TEST = rng.integers(0, 100, (12, *SHAPE), np.uint8), rng.integers(50, 200, (9, *SHAPE), np.uint8)
LABELS = {"train": np.arange(12) % 2, "val": np.arange(9) % 2}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    opened = []
    for split, pixels in (("train", TRAIN), ("val", TEST)):
        path = tmp_path_factory.mktemp("stores") / f"{split}.h5"
        names = [str(i) for i in range(len(pixels))]
        listing = ArrayListing("mine", split, names, LABELS[split], CLASSES, pixels)
        prepare(listing, path, Settings(shuffled=False))
        opened.append(open_store(path))
    return opened


@pytest.fixture(params=["in memory", "stored"])
def made(request, stores):
    """The function that makes the data set, with its test set or without."""
    if request.param == "stored":
        return lambda test=True: StoredDataset("mine", stores[0], stores[1] if test else None)
    return lambda test=True: Dataset(
        "mine", TRAIN, LABELS["train"], *((TEST, LABELS["val"]) if test else (None, None)), CLASSES
    )


def of(dataset, dtype="float64", **options):
    return sources(dataset, **{"shape": SHAPE, "dtype": np.dtype(dtype), "device": CPU} | options)


@pytest.mark.parametrize(
    ("normalisation", "shift", "scale"),
    [
        ("none", 0, 1),
        ("unit", 0, 1 / 255),
        ("standard", TRAIN.mean(axis=(0, 1, 2)), 1 / TRAIN.std(axis=(0, 1, 2))),
    ],
)
def test_both_sets_are_scaled_by_the_training_set_s_pixels(normalisation, shift, scale, made, dtype):
    for source, pixels, split in zip(
        of(made(), dtype, normalisation=normalisation), (TRAIN, TEST), LABELS, strict=True
    ):
        ((x, labels),) = source.batches(99)
        assert x.dtype == dtype
        tolerance = 20 * np.finfo(dtype).eps * max(1, np.max(255 * np.abs(scale)))
        np.testing.assert_allclose(x, (pixels - shift) * scale, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(labels, LABELS[split])


def test_the_largest_value_of_a_pixel_is_the_data_set_s_own():
    dataset = Dataset("mine", TRAIN // 10, LABELS["train"], None, None, CLASSES, max_value=16)
    ((x, _),) = of(dataset, normalisation="unit")[0].batches(99)
    np.testing.assert_allclose(x, TRAIN // 10 / 16, rtol=1e-15)


def test_a_network_of_rows_takes_images_flattened_and_without_a_test_set_there_is_none(made):
    train, test = of(made(test=False), shape=(90,))
    assert test is None
    ((x, _),) = train.batches(99)
    np.testing.assert_array_equal(x, TRAIN.reshape(12, 90))


@pytest.mark.parametrize("kind", ["crop", "resized"])
def test_an_epoch_is_augmented_and_evaluation_is_not(kind, made):
    source, plain = (of(made(), augmentation=each)[0] for each in (kind, "none"))
    (x, labels), (own, same) = (next(s.shuffled(99, random_streams(3))) for s in (source, plain))
    np.testing.assert_array_equal(labels, same)
    assert (x != own).any()
    ((x, _),) = source.batches(99)
    np.testing.assert_array_equal(x, TRAIN)


def test_a_store_is_shuffled_in_runs_of_the_length_asked_for(stores):
    def runs(block):
        ((_, labels),) = of(StoredDataset("mine", stores[0], None), block=block)[0].shuffled(
            99, random_streams(3)
        )
        return np.count_nonzero(np.diff(labels) == 0)  # labels alternate within a run

    assert runs(12) <= 1
    assert runs(1) > 2


@pytest.mark.parametrize("shape", [(4, 5, 3), (6, 3, 3), (3, 2, 3)])
def test_stored_images_are_cropped_to_the_middle_for_a_smaller_network(shape, stores):
    dataset = StoredDataset("mine", *stores)
    assert crop_of(dataset, shape) == shape[:2]
    top, left = (SHAPE[0] - shape[0]) // 2, (SHAPE[1] - shape[1]) // 2
    for source, pixels in zip(of(dataset, shape=shape), (TRAIN, TEST), strict=True):
        ((x, _),) = source.batches(99)
        np.testing.assert_array_equal(x, pixels[:, top : top + shape[0], left : left + shape[1]])


@pytest.mark.parametrize("shape", [SHAPE, (90,)])
def test_stored_images_of_the_network_s_size_are_not_cropped(shape, stores):
    assert crop_of(StoredDataset("mine", *stores), shape) is None


@pytest.mark.parametrize("shape", [(7, 5, 3), (6, 6, 3), (6, 5, 1), (5, 4, 4), (89,), (91,)])
def test_a_network_that_stored_images_do_not_fit_is_told_the_size_that_would(shape, stores):
    with pytest.raises(DataError, match=r"images are 6 x 5 x 3, and the network takes .*image_size=6"):
        of(StoredDataset("mine", *stores), shape=shape)


def test_a_validation_store_that_is_lost_or_unfinished_is_an_error_not_a_test_set_less(stores, tmp_path):
    beside, journal = tmp_path / "mine.val.h5", tmp_path / "mine.val.h5.journal"
    shutil.copy(stores[0].path, tmp_path / "mine.h5")
    assert find_store("mine", tmp_path).test is None
    journal.touch()
    with pytest.raises(
        DataError, match=r"mine.val.h5: its conversion is unfinished; .* or remove .*journal"
    ):
        find_store("mine", tmp_path)
    beside.symlink_to("nowhere")
    with pytest.raises(DataError, match=r"mine.val.h5: there is no such file"):
        find_store("mine", tmp_path)
    beside.unlink()
    shutil.copy(stores[1].path, beside)  # killed between the store's last name and the journal's end
    assert len(find_store("mine", tmp_path).test) == 9
