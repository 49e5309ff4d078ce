"""Sources as researchers have them: folders, archives, flat files with a text."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from npgait.loaders import DataError
from npgait.loaders.store import find_listings
from npgait.loaders.store.decode import read_source
from tests.loaders.store.conftest import encoded, make_tree, smooth


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def bytes_of(listing):
    return [read_source(*listing.where(i)) for i in range(len(listing))]


def inner_tar(folder):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(folder.iterdir(), reverse=True):
            tar.add(path, path.name)
    return buffer.getvalue()


def test_a_folder_a_class_is_the_training_set_with_classes_sorted(tree):
    (listing,) = find_listings("imagenet", tree)
    assert listing.split == "train"
    assert listing.classes == ("n00000000", "n00000001", "n00000002")
    assert listing.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert list(listing.names) == sorted(str(p.relative_to(tree)) for p in tree.glob("*/*"))


def test_the_archive_of_archives_holds_what_the_folders_hold(tree, tmp_path):
    folders = sorted(tree.iterdir(), reverse=True)
    tar = tar_of(tmp_path / "train.tar", [(f"{f.name}.tar", inner_tar(f)) for f in folders])
    (unpacked,), (packed,) = find_listings("imagenet", tree), find_listings("imagenet", tar)
    assert list(packed.names) == list(unpacked.names)
    assert packed.classes == unpacked.classes
    assert packed.labels.tolist() == unpacked.labels.tolist()
    assert bytes_of(packed) == bytes_of(unpacked)


def test_a_folder_of_the_archives_of_the_classes_will_do(tree, tmp_path):
    (tmp_path / "tars").mkdir()
    for folder in tree.iterdir():
        (tmp_path / "tars" / f"{folder.name}.tar").write_bytes(inner_tar(folder))
    (packed,), (unpacked,) = (
        find_listings("imagenet", tmp_path / "tars"),
        find_listings("imagenet", tree),
    )
    assert (list(packed.names), bytes_of(packed)) == (list(unpacked.names), bytes_of(unpacked))


def test_an_archive_of_folders_will_do(tree, tmp_path):
    members = [(f"./train/{p.relative_to(tree)}", p.read_bytes()) for p in tree.glob("*/*")]
    (packed,) = find_listings("imagenet", tar_of(tmp_path / "x.tar", members))
    (unpacked,) = find_listings("imagenet", tree)
    assert (list(packed.names), bytes_of(packed)) == (list(unpacked.names), bytes_of(unpacked))


@pytest.fixture
def flat(tmp_path, rng):
    """Twelve flat validation files, and the class of each, all three classes among them."""
    folder = tmp_path / "all" / "val"
    folder.mkdir(parents=True)
    for i in range(1, 13):
        path = folder / f"ILSVRC2012_val_{i:08d}.JPEG"
        path.write_bytes(encoded(smooth(rng, 30, 30)))
    make_tree(tmp_path / "all" / "train", rng, images=2)
    return folder, [f"n{c:08d}" for c in (2, 0, 1, 1, 2, 0, 0, 1, 2, 2, 1, 0)]


def texts(classes):
    files = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 13)]
    pairs = list(zip(files, classes, strict=True))
    return {
        "synsets": "".join(f"{c}\n" for c in classes),
        "kaggle": "ImageId,PredictionString\n" + "".join(f"{f},{c} 1 2 3 4\n" for f, c in pairs[::-1]),
        "tiny": "".join(f"{f}.JPEG\t{c}\t0\t0\t9\t9\n" for f, c in pairs[::-1]),
    }


@pytest.mark.parametrize("form", ["synsets", "kaggle", "tiny"])
def test_flat_validation_files_take_their_classes_from_a_text(form, flat, tmp_path):
    folder, classes = flat
    (tmp_path / "truth.txt").write_text(texts(classes)[form])
    listings = find_listings("imagenet", folder.parent, labels=tmp_path / "truth.txt")
    train, val = listings
    assert (train.split, val.split) == ("train", "val")
    assert val.classes == train.classes
    found = dict(zip(val.names, val.labels.tolist(), strict=True))
    assert [train.classes[found[name]] for name in sorted(found)] == classes


def test_the_text_is_found_beside_the_files_and_flat_archives_do_too(flat, tmp_path):
    folder, classes = flat
    (folder.parent / "LOC_val_solution.csv").write_text(texts(classes)["kaggle"])
    from_folder = find_listings("imagenet", folder.parent, split="val")[0]
    tar_of(
        folder.parent / "ILSVRC2012_img_val.tar", [(p.name, p.read_bytes()) for p in folder.iterdir()]
    )
    from_archive = find_listings("imagenet", folder.parent / "ILSVRC2012_img_val.tar", split="val")[0]
    assert list(from_archive.names) == list(from_folder.names)
    assert from_archive.labels.tolist() == from_folder.labels.tolist()
    assert bytes_of(from_archive) == bytes_of(from_folder)


@pytest.mark.parametrize("source", [".", "../val"])
def test_the_text_is_found_beside_the_folder_that_one_is_in(source, flat, monkeypatch):
    folder, classes = flat
    (folder.parent / "LOC_val_solution.csv").write_text(texts(classes)["kaggle"])
    monkeypatch.chdir(folder)
    (found,) = find_listings("imagenet", Path(source))
    assert [found.classes[label] for label in found.labels] == classes


def test_the_numbers_of_the_development_kit_are_looked_up_in_its_class_list(flat, tmp_path):
    io_ = pytest.importorskip("scipy.io", reason="meta.mat takes SciPy")
    folder, classes = flat
    data = folder.parent / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    numbers = {"n00000000": 3, "n00000001": 1, "n00000002": 2}  # not in the order of the names
    rows = np.array(
        [(i, wnid, "words") for wnid, i in numbers.items()],
        dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)],
    )
    io_.savemat(data / "meta.mat", {"synsets": rows})
    text = "".join(f"{numbers[c]}\n" for c in classes)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(text)
    _, val = find_listings("imagenet", folder.parent)
    found = dict(zip(val.names, val.labels.tolist(), strict=True))
    assert [val.classes[found[name]] for name in sorted(found)] == classes


def test_numbers_without_the_class_list_are_refused_with_what_to_do(flat, tmp_path):
    folder, _ = flat
    (folder.parent / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n" * 12)
    with pytest.raises(DataError, match=r"meta\.mat"):
        find_listings("imagenet", folder.parent)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("n1\n" * 5, "5 lines for 12 images"),
        ("a b\n", "says nothing of"),
        ("n9\n" * 12, "none of the 3"),
    ],
)
def test_a_text_that_does_not_fit_is_refused(text, says, flat, tmp_path):
    folder, _ = flat
    (tmp_path / "t").write_text(text)
    with pytest.raises(DataError, match=says):
        find_listings("imagenet", folder.parent, labels=tmp_path / "t")


def test_flat_files_without_a_text_are_refused_with_what_to_give(flat):
    with pytest.raises(DataError, match="--labels"):
        find_listings("imagenet", flat[0])


def test_hidden_files_and_pipes_are_not_images_and_deep_folders_count(tree, rng):
    import os

    (tree / ".DS_Store").write_bytes(b"x")
    (tree / "n00000000" / "._n0.JPEG").write_bytes(b"x")
    os.mkfifo(tree / "n00000000" / "pipe.JPEG")
    (tree / "n00000001" / "images").mkdir()
    (tree / "n00000001" / "images" / "deep.JPEG").write_bytes(encoded(smooth(rng, 9, 9)))
    (listing,) = find_listings("imagenet", tree)
    assert len(listing) == 22
    assert listing.labels[list(listing.names).index("n00000001/images/deep.JPEG")] == 1


@pytest.mark.parametrize("make", ["empty", "nothing", "compressed", "damaged", "nosplit"])
def test_a_source_that_is_none_is_one_clear_line(make, tree, tmp_path):
    path, split = tmp_path / "s", None
    if make == "empty":
        path.mkdir()
    elif make == "compressed":
        with tarfile.open(path, "w:gz") as tar:
            tar.add(tree, "x")
    elif make == "damaged":
        path.write_bytes(bytes(range(256)) * 9)
    elif make == "nosplit":
        path, split = tree.parent / "both", "val"
        path.mkdir()
        tree.rename(path / "train")
    with pytest.raises(DataError) as caught:
        find_listings("imagenet", path, split=split)
    assert "\n" not in str(caught.value)


def test_a_split_that_a_data_set_of_arrays_has_not_is_an_error(tmp_path):
    with pytest.raises(DataError, match="digits: has no split 'test'"):
        find_listings("digits", tmp_path, split="test")


def test_data_sets_that_come_as_arrays_give_both_splits(shared_data):
    train, test = find_listings("fashion-mnist", shared_data)
    assert train.images.shape == (60000, 28, 28, 1)
    assert (test.split, len(test)) == ("val", 10000)


@pytest.mark.parametrize("split", [None, "train", "val"])
def test_the_published_validation_set_given_alone_is_the_validation_set(split, flat, tmp_path):
    folder, classes = flat
    (tmp_path / "truth.txt").write_text(texts(classes)["kaggle"])
    (found,) = find_listings("imagenet", folder, split=split, labels=tmp_path / "truth.txt")
    assert found.split == (split or "val")
