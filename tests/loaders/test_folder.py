"""Images in folders: the real sample, made ones, and damaged ones."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from npgait.loaders import DataError, load
from npgait.loaders.folder import read_image
from npgait.loaders.store import decode, find_listings


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def test_the_real_sample_is_read_at_any_size(shared_data):
    data = load("imagenet", shared_data, image_size=64)
    assert data.train_x.shape == (100, 64, 64, 3)
    assert data.train_labels.tolist() == list(range(100))
    assert list(data.classes) == sorted(data.classes)
    assert data.test_x is None
    assert 60 < data.train_x.mean() < 180


@pytest.mark.parametrize("validation", ["val", "validation", "valid"])
def test_a_tree_of_ones_own_is_read_in_the_order_of_names(validation, tmp_path):
    for part, value in (("train", 40), (validation, 200)):
        for name in ("b", "a"):
            for number in (2, 1):
                save(
                    tmp_path / part / name / f"{number}.png",
                    np.full((9, 7, 3), value + number, np.uint8),
                )
    data = load("imagenet", tmp_path, image_size=5)
    assert data.classes == ("a", "b")
    assert data.train_labels.tolist() == [0, 0, 1, 1]
    assert data.train_x[:, 0, 0, 0].tolist() == [41, 42, 41, 42]
    assert data.test_x[:, 0, 0, 0].tolist() == [201, 202, 201, 202]


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1", "I;16"])
def test_every_kind_of_image_becomes_rgb(mode, tmp_path):
    path = tmp_path / f"x.{'tiff' if mode in ('CMYK', 'I;16') else 'png'}"
    Image.new(mode, (20, 10)).save(path)
    assert read_image(path, 8).shape == (8, 8, 3)


def test_a_png_named_jpeg_is_read_as_what_it_is(tmp_path):
    save(tmp_path / "x.JPEG", np.full((8, 8, 3), 77, np.uint8), format="PNG")
    assert (read_image(tmp_path / "x.JPEG", 8) == 77).all()


def test_images_are_cropped_at_the_centre_and_turned_as_exif_says(tmp_path):
    array = np.zeros((10, 30, 3), np.uint8)
    array[:, 10:20] = 255
    save(tmp_path / "wide.png", array)
    assert (read_image(tmp_path / "wide.png", 10) == 255).all()
    turned = np.zeros((16, 16, 3), np.uint8)
    turned[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    save(tmp_path / "turned.png", turned, exif=exif)
    image = read_image(tmp_path / "turned.png", 16)
    assert image[12:].min() == 255
    assert image[:4].max() == 0


def test_a_file_that_cannot_be_decoded_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    save(tmp_path / "train" / "a" / "good.png", noise)
    raw = (tmp_path / "train" / "a" / "good.png").read_bytes()
    for content in (b"", b"not an image", raw[:30], raw[: len(raw) // 2]):
        (tmp_path / "train" / "a" / "bad.png").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.png.*cannot be decoded"):
            load("imagenet", tmp_path)


def test_an_image_that_unpacks_to_too_many_pixels_is_refused(tmp_path, monkeypatch):
    save(tmp_path / "bomb.png", np.zeros((100, 100, 3), np.uint8))
    monkeypatch.setattr(decode, "MAX_PIXELS", 6000)
    with pytest.raises(DataError, match="100 x 100 pixels"):
        read_image(tmp_path / "bomb.png", 8)


def test_a_folder_without_images_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match="train/CLASS"):
        load("imagenet", tmp_path)
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="no images"):
        load("imagenet", tmp_path)


def test_images_that_would_not_fit_memory_are_refused_before_they_are_read(tmp_path):
    save(tmp_path / "train" / "a" / "x.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="do not fit"):
        load("imagenet", tmp_path, image_size=100_000)


def test_folders_that_are_hidden_or_hold_no_image_are_no_classes(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    for name in (
        "train/b/x.png",
        "train/a/x.png",
        "train/a/.x.png",
        "train/.hidden/x.png",
        "val/b/x.png",
    ):
        save(tmp_path / name, image)
    (tmp_path / "train" / "empty").mkdir()
    dataset = load("imagenet", tmp_path, image_size=8)
    assert dataset.classes == ("a", "b")
    assert dataset.train_labels.tolist() == [0, 1]
    assert dataset.test_labels.tolist() == [1]


def test_files_that_are_no_images_or_of_no_class_are_left_alone(tmp_path):
    for name in ("train/a/x.png", "train/b/x.png", "train/stray.png"):
        save(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "train" / "texts").mkdir()
    for name in ("README.txt", "a/notes.txt", "texts/about.txt"):
        (tmp_path / "train" / name).write_text("about")
    dataset = load("imagenet", tmp_path, image_size=8)
    assert (dataset.classes, dataset.train_labels.tolist()) == (("a", "b"), [0, 1])


def test_a_class_that_training_lacks_is_refused(tmp_path):
    for name in ("train/a/x.png", "train/b/x.png", "val/a/x.png", "val/c9/x.png"):
        save(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="c9 is none of the 2 classes"):
        load("imagenet", tmp_path, image_size=8)


@pytest.mark.parametrize("broken", ["train/b", "val", "val/b"])
def test_a_folder_that_cannot_be_looked_into_is_not_left_out(broken, tmp_path):
    for name in ("train/a/x.png", "train/c/x.png", "val/a/x.png"):
        save(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
    if broken == "val":
        (tmp_path / "val").rename(tmp_path / "elsewhere")
    (tmp_path / broken).symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=f"{broken}: cannot be looked into: No such file"):
        load("imagenet", tmp_path, image_size=8)


@pytest.mark.parametrize("ending", ["gif", "TIF", "ppm"])
def test_images_of_every_format_that_is_decoded_are_found(ending, tmp_path):
    save(tmp_path / "train" / "a" / "x.png", np.zeros((8, 8, 3), np.uint8))
    save(tmp_path / "train" / "b" / f"x.{ending}", np.zeros((8, 8, 3), np.uint8))
    assert load("imagenet", tmp_path, image_size=8).classes == ("a", "b")


def test_images_in_deeper_folders_are_of_the_class_as_in_a_store(tmp_path):
    for name in ("train/a/x.png", "train/a-b/deep/x.png", "train/b/x.png"):
        save(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
    dataset = load("imagenet", tmp_path, image_size=8)
    (listing,) = find_listings("imagenet", tmp_path)
    assert dataset.classes == listing.classes == ("a", "a-b", "b")
    assert dataset.train_labels.tolist() == listing.labels.tolist() == [0, 1, 2]
