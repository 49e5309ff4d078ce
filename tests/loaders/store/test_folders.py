"""Folders as users have them: links, odd names, splits, stores beside their images."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile

import h5py
import pytest
from click.testing import CliRunner

from npgait.cli.main import cli
from npgait.loaders import DataError, load
from npgait.loaders.store import Settings, find_listings, open_store, prepare
from tests.loaders.store.conftest import make_tree


def named(path, **options):
    return [
        (one.split, list(one.classes), len(one)) for one in find_listings("imagenet", path, **options)
    ]


def refusal(kind, path, **options):
    with pytest.raises(DataError) as caught:
        find_listings(kind, path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def make(*args, status=0):
    result = CliRunner().invoke(cli, ["data", "prepare", *map(str, args), "-q"])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result.output


# --- links and rights -----------------------------------------------------------------------------


def test_folders_of_classes_may_be_links_and_links_that_go_round_end(tree, tmp_path):
    (tree / "n00000001").rename(tmp_path / "elsewhere")
    (tree / "n00000001").symlink_to(tmp_path / "elsewhere")
    (tree / "n00000000" / "up").symlink_to("..")
    (tree / "n00000002" / "self").symlink_to(".")
    (tree / "n00000002" / "file.JPEG").symlink_to("../n00000000/n00000000_0.JPEG")
    (listing,) = find_listings("imagenet", tree)
    assert listing.classes == ("n00000000", "n00000001", "n00000002")
    assert listing.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 8


@pytest.mark.parametrize("link", ["cats", "zebras"])  # before and behind it by name
def test_one_folder_as_two_classes_is_refused_with_both_names(link, tree):
    (tree / link).symlink_to("n00000001")
    one, two = sorted((link, "n00000001"))
    assert f"{one} and {two} are one folder" in refusal("imagenet", tree)


def test_what_cannot_be_looked_at_is_an_error_before_anything_is_made_unless_told_to_skip(
    tree, tmp_path
):
    (tree / "n00000001" / "gone.JPEG").symlink_to("nothing")
    (tree / "n00000001" / "round.JPEG").symlink_to("round.JPEG")
    out = tmp_path / "x.h5"
    text = make("imagenet", tree, out, "--order", "sorted", status=2)
    assert "n00000001/gone.JPEG: cannot be read (No such file" in text
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert "23 images, 2 skipped" in make(
        "imagenet", tree, out, "--order", "sorted", "--skip-unreadable"
    )
    report = (tmp_path / "x.h5.skipped.txt").read_text()
    assert "n00000001/gone.JPEG\tcannot be read: No such file" in report


def test_a_class_folder_that_is_a_link_to_nothing_is_named(tree):
    (tree / "n00000003").symlink_to("nothing")
    for skip in (False, True):
        assert "n00000003: cannot be read (No" in refusal("imagenet", tree, skip_unreadable=skip)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives its rights up, which takes those of root")
def test_files_of_a_folder_without_the_right_to_enter_it_are_not_left_out(tmp_path):
    program = """
import os
from pathlib import Path
from npgait.loaders import DataError, load
from npgait.loaders.store import find_listings
os.setuid(65534)
try:
    find_listings("imagenet", Path("."))
except DataError as error:
    print(error)
(listing,) = find_listings("imagenet", Path("."), skip_unreadable=True)
print(*listing.names)
"""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.JPEG").write_bytes(b"x")
    (tmp_path / "b").chmod(0o744)
    tmp_path.chmod(0o755)
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    expected = "./b/1.JPEG: cannot be read (Permission denied)\na/1.JPEG b/1.JPEG\n"
    assert result.stdout == expected, result.stderr


# --- names ----------------------------------------------------------------------------------------


def test_names_that_are_not_utf_8_are_escaped(tree, tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    (tree / "n00000001").rename(tree / odd)
    (tree / odd / "n00000001_0.JPEG").rename(tree / odd / os.fsdecode(b"\xff.JPEG"))
    (listing,) = find_listings("imagenet", tree)
    assert listing.classes == ("caf\\udce9", "n00000000", "n00000002")
    assert prepare(listing, tmp_path / "x.h5", Settings(24)).skipped == 0
    head = open_store(tmp_path / "x.h5").head
    assert head.classes == listing.classes
    assert b"caf\\udce9/\\udcff.JPEG" in head.sources.tolist()
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["classes"].asstr()[0] == "caf\\udce9"


@pytest.mark.parametrize("kind", ["link", "class", "archive", "image"])
def test_names_that_would_move_the_cursor_are_escaped_in_messages(kind, tmp_path, rng):
    train = make_tree(tmp_path / "s" / "train", rng, images=1)
    odd = train / "n00000000" / "x\x1b[2J\ny.png"
    if kind == "link":
        odd.symlink_to("nothing")
    elif kind == "class":
        shutil.copytree(train / "n00000000", tmp_path / "s" / "val" / odd.name)
    elif kind == "archive":
        shutil.rmtree(train)
        train.mkdir()
        tarfile.open(train / f"{odd.name}.tar", "w").close()
    else:
        odd.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        (load if kind == "image" else find_listings)("imagenet", tmp_path / "s")
    assert r"x\x1b[2J\ny.png" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("where", ["", "n00000000/"])
def test_names_that_would_be_one_after_escaping_are_refused(where, tree):
    for name in (os.fsdecode(b"\xff"), "\\udcff"):
        (tree / where / name).mkdir()
        (tree / where / name / "a.JPEG").write_bytes(b"x")
    assert "would be called" in refusal("imagenet", tree)


@pytest.mark.parametrize("name", ["x.h5", "n00000000/x.h5"])
def test_a_store_within_its_source_is_none_of_the_images(name, tree):
    out = tree / name
    before = find_listings("imagenet", tree)
    for _ in range(2):
        assert "21 images" in make("imagenet", tree, out)
    for ending in (".part", ".journal", ".skipped.txt"):  # as a kill leaves them
        out.with_name(out.name + ending).write_bytes(b"")
    after = find_listings("imagenet", tree, leave_out=[out])
    assert [one.digest() for one in before] == [one.digest() for one in after]


# --- splits and labels ----------------------------------------------------------------------------


def test_a_class_called_train_is_a_class_among_others(tmp_path, rng):
    make_tree(tmp_path / "s", rng, images=2)
    for i, name in enumerate(("bus", "car", "train")):
        (tmp_path / "s" / f"n{i:08d}").rename(tmp_path / "s" / name)
    assert named(tmp_path / "s") == [("train", ["bus", "car", "train"], 6)]
    (tmp_path / "tars").mkdir()
    for name in ("bus", "car", "train"):
        tar = tmp_path / "tars" / f"{name}.tar"
        subprocess.run(["tar", "cf", tar, "-C", tmp_path / "s" / name, "."], check=True)
    assert named(tmp_path / "tars") == [("train", ["bus", "car", "train"], 6)]


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
@pytest.mark.parametrize("beside", [[], ["test"], ["ILSVRC2012_devkit_t12"], [".cache"], ["logs"]])
def test_folders_of_splits_are_splits(val, beside, tmp_path, rng):
    make_tree(tmp_path / "train", rng, images=2)
    make_tree(tmp_path / val, rng, images=1)
    for name in beside:
        (tmp_path / name).mkdir()
    assert [(split, n) for split, _, n in named(tmp_path)] == [("train", 6), ("val", 3)]


def test_a_split_that_is_a_link_to_nothing_is_an_error(tmp_path, rng):
    make_tree(tmp_path / "val", rng)
    (tmp_path / "train").symlink_to("nothing")
    assert "train: cannot be read" in refusal("imagenet", tmp_path)


@pytest.fixture
def tiny(tmp_path, rng):
    """As Tiny ImageNet: train/WNID/images, val/images with a text beside."""
    root = tmp_path / "tiny"
    make_tree(root / "train", rng, images=2)
    for folder in (root / "train").iterdir():
        (folder / "images").mkdir()
        for path in list(folder.glob("*.JPEG")):
            path.rename(folder / "images" / path.name)
    make_tree(root / "val", rng, classes=1, images=4)
    (root / "val" / "n00000000").rename(root / "val" / "images")
    names = [f"n00000000_{i}.JPEG" for i in range(4)]
    rows = [f"{name}\tn0000000{i % 3}\t0\t0\t9\t9\n" for i, name in enumerate(names)]
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    return root


def test_tiny_imagenet_is_read_as_it_is_published(tiny):
    text = tiny / "val" / "val_annotations.txt"
    for options in ({}, {"labels": text}):
        train, val = find_listings("imagenet", tiny, **options)
        assert (len(train), len(val)) == (6, 4)
        assert val.classes == train.classes
        assert val.labels.tolist() == [0, 1, 2, 0]
    (alone,) = find_listings("imagenet", tiny / "val", labels=text)
    assert alone.labels.tolist() == [0, 1, 2, 0]


def test_labels_that_nothing_takes_its_classes_from_are_refused(tree, tmp_path):
    (tmp_path / "t").write_text("n1\n" * 21)
    assert "is not used" in refusal("imagenet", tree, labels=tmp_path / "t")
    assert "is not used" in refusal("digits", tmp_path, labels=tmp_path / "t")
    subprocess.run(["tar", "cf", tmp_path / "t.tar", "-C", tree, "."], check=True)
    assert "is not used" in refusal("imagenet", tmp_path / "t.tar", labels=tmp_path / "t")


@pytest.mark.parametrize("where", ["s", "s/train", "s/n1.tar"])
def test_a_pipe_for_a_source_is_refused_and_not_waited_for(where, tmp_path):
    (tmp_path / where).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / where)
    assert "is neither a folder nor a file" in refusal("imagenet", tmp_path / "s")


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_conversion_does_not_go_on_with_files_that_changed(change, tree, tmp_path):
    out = tmp_path / "x.h5"
    asked = iter([False, False, True])
    prepare(*find_listings("imagenet", tree), out, Settings(24), workers=1, stop=lambda: next(asked))
    path = tree / "n00000001" / "n00000001_3.JPEG"
    about = path.stat()
    if change == "content":
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    else:
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    with pytest.raises(DataError, match="was begun with other images"):
        prepare(*find_listings("imagenet", tree), out, Settings(24))
    path.write_bytes(path.read_bytes()[: about.st_size])
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert prepare(*find_listings("imagenet", tree), out, Settings(24)).finished


def test_a_copy_of_a_source_gives_the_same_store_whenever_it_was_made(tree, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(tree, copy, copy_function=shutil.copyfile)
    for source, out in ((tree, "x.h5"), (copy, "y.h5")):
        prepare(*find_listings("imagenet", source), tmp_path / out, Settings(24))
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "y.h5").read_bytes()


def test_a_store_that_was_there_is_said_to_be(tree, tmp_path):
    assert "it was there" not in make("imagenet", tree, tmp_path / "x.h5", "--size", "24")
    assert "it was there, and is left as it is" in make(
        "imagenet", tree, tmp_path / "x.h5", "--size", "24"
    )


def test_a_size_for_images_that_keep_theirs_is_refused(tmp_path):
    text = make("digits", ".", tmp_path / "x.h5", "--size", "32", status=2)
    assert "--size is 32; digits has 8 x 8 pixels" in text
    assert "1442 images" in make("digits", ".", tmp_path / "x.h5", "--size", "8")
