"""The digits that come with npgait, and the list of data sets."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from importlib import resources

import h5py
import numpy as np
import pytest

from npgait.files import lock
from npgait.loaders import DATASETS, DataError, load
from npgait.loaders.dataset import Dataset


def test_the_digits_are_1797_images_of_17_grey_levels():
    data = load("digits")
    assert len(data.train_x) + len(data.test_x) == 1797
    assert data.train_x.shape[1:] == data.test_x.shape[1:] == (8, 8)
    assert data.train_x.max() == data.test_x.max() == data.max_value == 16
    assert data.train_x.dtype == np.uint8


def test_a_fifth_of_every_class_is_for_testing_and_none_of_it_for_training():
    data = load("digits")
    train, test = np.bincount(data.train_labels), np.bincount(data.test_labels)
    assert len(train) == len(test) == len(data.classes) == 10
    np.testing.assert_array_equal(test, (train + test) // 5)


@pytest.mark.skipif(os.name != "posix", reason="locks as on POSIX")
def test_the_digits_are_read_while_another_program_has_them_locked():
    folder = resources.files("npgait.loaders.data")
    with resources.as_file(folder / "digits.h5") as path, path.open("rb") as file:
        lock(file.fileno())
        assert load("digits").max_value == 16


def test_the_file_says_whose_the_digits_are_and_under_which_licence():
    folder = resources.files("npgait.loaders.data")
    with resources.as_file(folder / "digits.h5") as path, h5py.File(path) as file:
        attributes = dict(file.attrs)
    assert "CC BY 4.0" in attributes["licence"]
    assert "Alpaydin" in attributes["attribution"]
    assert "10.24432/C50P49" in attributes["attribution"]
    assert "archive.ics.uci.edu" in attributes["source"]
    assert "CC BY 4.0" in (folder / "digits.txt").read_text()


def test_the_digest_changes_with_any_pixel_or_label():
    data = load("digits")
    assert data.digest() == load("digits").digest()
    for part in ("train_x", "train_labels", "test_x", "test_labels"):
        changed = getattr(data, part).copy()
        changed.flat[-1] ^= 1
        assert dataclasses.replace(data, **{part: changed}).digest() != data.digest()


def test_pixels_are_digested_once(monkeypatch):
    data = load("digits")
    digest = data.digest()
    monkeypatch.delattr("npgait.loaders.dataset.hashlib.sha256")
    assert data.digest() == digest


def test_an_unknown_name_gives_the_nearest_and_all():
    with pytest.raises(DataError, match="nearest: 'fashion-mnist'") as caught:
        load("fashion_mnist")
    for name in DATASETS:
        assert name in str(caught.value)


def make(**changes):
    images, labels = np.zeros((4, 2, 2), np.uint8), np.zeros(4, np.int64)
    values = {"train_x": images, "train_labels": labels, "test_x": images, "test_labels": labels}
    return Dataset("made", **{**values, **changes}, classes=("a", "b"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.zeros(3, np.int64)}, "4 images and 3 labels"),
        ({"test_x": np.zeros((0, 2, 2), np.uint8), "test_labels": np.zeros(0, np.int64)}, "0 images"),
        ({"test_labels": np.full(4, 2)}, "2..2; expected 0..1"),
        ({"train_labels": np.full(4, -1)}, "-1..-1"),
        ({"train_x": np.zeros((4, 2, 2))}, "expected uint8"),
        ({"test_x": np.zeros((4, 2, 3), np.uint8)}, "expected one size"),
    ],
)
def test_arrays_that_are_not_a_data_set_are_refused(changes, message):
    make()
    with pytest.raises(DataError, match=message):
        make(**changes)


def test_importing_the_loaders_does_not_import_h5py():
    code = "import npgait.loaders, sys; sys.exit('h5py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
