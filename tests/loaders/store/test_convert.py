"""Conversion: what the store holds, and that nothing but its content decides it."""

from __future__ import annotations

import os
import tarfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image, ImageOps

from npgait.loaders import DataError
from npgait.loaders.store import Settings, convert, find_listings, finish, open_store, prepare
from npgait.loaders.store.inspect import verify
from npgait.loaders.store.listing import ArrayListing
from tests.loaders.store.conftest import encoded, make_tree, smooth


def convert_tree(tree, out, **settings):
    (listing,) = find_listings("imagenet", tree)
    return prepare(listing, out, Settings(**{"size": 24, **settings}))


def reference(path, size):
    with Image.open(path) as image:
        return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shuffled", [True, False])
def test_plain_h5py_reads_everything(shuffled, tree, tmp_path):
    outcome = convert_tree(tree, tmp_path / "x.h5", shuffled=shuffled)
    assert (outcome.images, outcome.done, outcome.skipped, outcome.finished) == (21, 21, 0, True)
    with h5py.File(tmp_path / "x.h5") as file:
        names = file["sources"].asstr()[()].tolist()
        classes = file["classes"].asstr()[()].tolist()
        images, labels = file["images"][()], file["labels"][()]
        assert images.shape == (21, 24, 24, 3)
        assert images.dtype == np.uint8
        assert file["images"].chunks is None
        assert not file["state"][()].any()
        np.testing.assert_allclose(file["mean"][()], images.mean(axis=(0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(file["std"][()], images.std(axis=(0, 1, 2)), rtol=1e-12)
    assert classes == ["n00000000", "n00000001", "n00000002"]
    assert [classes[label] for label in labels] == [name.split("/")[0] for name in names]
    for name, image in zip(names, images, strict=True):
        np.testing.assert_array_equal(image, reference(tree / name, 24))
    assert (names == sorted(names)) is not shuffled
    assert sorted(os.listdir(tmp_path)) == ["source", "x.h5"]


def test_names_of_images_are_cut_where_together_they_would_fill_the_memory(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(finish, "NAMES_BYTES", 21 * 12)
    convert_tree(tree, tmp_path / "x.h5")
    store = open_store(tmp_path / "x.h5")
    assert store.head.sources.dtype == "S12"
    assert sorted(set(store.head.sources)) == [b"n%08d/n0" % number for number in range(3)]
    assert not [damage for _, found in verify(store) for damage in found]


def test_the_real_sample_is_converted_whole(shared_data, tmp_path):
    (listing,) = find_listings("imagenet", shared_data / "imagenet_sample")
    outcome = prepare(listing, tmp_path / "x.h5", Settings(64))
    store = open_store(tmp_path / "x.h5")
    assert (outcome.skipped, len(store), len(store.head.classes)) == (0, 100, 100)
    assert not [damage for _, found in verify(store) for damage in found]
    with h5py.File(tmp_path / "x.h5") as file:
        name = file["sources"].asstr()[17]
        expected = reference(shared_data / "imagenet_sample/train" / name, 64)
        assert np.abs(file["images"][17].astype(int) - expected).mean() < 2  # but for draft decoding


def test_workers_and_repetition_do_not_change_a_byte(tree, tmp_path):
    (listing,) = find_listings("imagenet", tree)
    for name, workers in (("a", 1), ("b", 3), ("c", 3)):
        prepare(listing, tmp_path / f"{name}.h5", Settings(24), workers=workers)
    contents = {(tmp_path / f"{name}.h5").read_bytes() for name in "abc"}
    assert len(contents) == 1


@pytest.mark.parametrize("store", ["jpeg", "original"])
def test_encoded_stores_keep_files_that_any_program_reads(store, tree, tmp_path):
    convert_tree(tree, tmp_path / "x.h5", store=store, quality=95)
    with h5py.File(tmp_path / "x.h5") as file:
        offsets, names = file["offsets"][()], file["sources"].asstr()[()]
        for i in (0, 9, 20):
            data = file["encoded"][offsets[i] : offsets[i + 1]].tobytes()
            if store == "original":
                assert data == (tree / names[i]).read_bytes()
            else:
                (tmp_path / "one.jpg").write_bytes(data)
                got = reference(tmp_path / "one.jpg", 24).astype(int)
                assert np.abs(got - reference(tree / names[i], 24)).mean() < 5
    assert not [d for _, found in verify(open_store(tmp_path / "x.h5")) for d in found]


def test_what_is_no_image_is_listed_and_skipped(tree, tmp_path, rng):
    bad = {"text.JPEG": b"hello", "empty.JPEG": b"", "cut.JPEG": encoded(smooth(rng, 50, 50))[:400]}
    for name, data in bad.items():
        (tree / "n00000001" / name).write_bytes(data)
    outcome = convert_tree(tree, tmp_path / "x.h5")
    assert (outcome.images, outcome.skipped) == (24, 3)
    listed = outcome.report.read_text().splitlines()
    assert sorted(line.split("\t")[1] for line in listed) == [f"n00000001/{n}" for n in sorted(bad)]
    assert all(line.split("\t")[2] for line in listed)
    with h5py.File(tmp_path / "x.h5") as file:
        skipped = file["state"][()] == 1
        assert [int(line.split("\t")[0]) for line in listed] == np.flatnonzero(skipped).tolist()
        assert not file["images"][skipped].any()
        good = file["images"][~skipped]
        np.testing.assert_allclose(file["mean"][()], good.mean(axis=(0, 1, 2)), rtol=1e-12)
    assert not [d for _, found in verify(open_store(tmp_path / "x.h5")) for d in found]


def test_a_source_without_one_good_image_is_an_error(tmp_path):
    (tmp_path / "s/c").mkdir(parents=True)
    (tmp_path / "s/c/x.JPEG").write_bytes(b"no")
    with pytest.raises(DataError, match="not one of 1 images"):
        convert_tree(tmp_path / "s", tmp_path / "x.h5")
    assert os.listdir(tmp_path) == ["s"]


def test_images_that_have_been_mended_are_looked_at_again(tmp_path, rng):
    (tmp_path / "s/c").mkdir(parents=True)
    (tmp_path / "s/c/x.JPEG").write_bytes(b"no")
    with pytest.raises(DataError, match="not one of 1 images"):
        convert_tree(tmp_path / "s", tmp_path / "x.h5")
    (tmp_path / "s/c/x.JPEG").write_bytes(encoded(smooth(rng, 30, 30)))
    outcome = convert_tree(tmp_path / "s", tmp_path / "x.h5")
    assert (outcome.finished, outcome.skipped) == (True, 0)


def test_a_report_is_only_there_where_it_is_of_this_store(tree, tmp_path):
    bad, out = tree / "n00000001" / "bad.JPEG", tmp_path / "x.h5"
    bad.write_bytes(b"no")
    report = convert_tree(tree, out).report
    bad.unlink()
    out.unlink()
    assert convert_tree(tree, out).report is None
    assert not report.exists()
    bad.write_bytes(b"no")
    convert_tree(tree, tmp_path / "y.h5").report.unlink()
    outcome = convert_tree(tree, tmp_path / "y.h5")
    assert (outcome.skipped, outcome.report) == (1, None)


@pytest.mark.parametrize("letters", [241, 250])  # for the report; for the journal already
def test_a_name_too_long_for_what_lies_beside_is_said_at_once_not_in_the_end(letters, tree, tmp_path):
    (tree / "n00000001" / "bad.JPEG").write_bytes(b"no")
    with pytest.raises(OSError, match="too long") as caught:
        convert_tree(tree, tmp_path / ("n" * letters + ".h5"))
    assert caught.value.filename == str(tmp_path / ("n" * letters + ".h5"))
    assert os.listdir(tmp_path) == ["source"]


def test_arrays_are_kept_as_they_are_with_their_number_of_channels(tmp_path, rng):
    x = rng.integers(0, 17, (3000, 5, 4, 1), dtype=np.uint8)
    labels = rng.integers(0, 2, 3000)
    names = [f"train/{i}" for i in range(3000)]
    listing = ArrayListing("digits", "train", names, labels, ("a", "b"), x, 16)
    prepare(listing, tmp_path / "x.h5", Settings(shuffled=False))
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(file["images"][()], x)
        np.testing.assert_array_equal(file["labels"][()], labels)
        np.testing.assert_allclose(file["std"][()], [x.std()], rtol=1e-12)
        assert file.attrs["max_value"] == 16


def test_a_finished_store_is_left_alone_and_another_one_is_not_overwritten(tree, tmp_path):
    convert_tree(tree, tmp_path / "x.h5")
    before = (tmp_path / "x.h5").stat()
    assert convert_tree(tree, tmp_path / "x.h5").finished
    assert (tmp_path / "x.h5").stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(DataError, match="made of other images or with other settings"):
        convert_tree(tree, tmp_path / "x.h5", size=20)


@pytest.mark.parametrize("kind", ["folder", "pipe", "text", "hdf5"])
def test_a_name_that_is_taken_by_something_else_is_said_to_be(kind, tree, tmp_path):
    out = tmp_path / "x.h5"
    if kind == "folder":
        out.mkdir()
    elif kind == "pipe":
        os.mkfifo(out)
    elif kind == "text":
        out.write_text("my notes")
    else:
        h5py.File(out, "w").close()
    with pytest.raises(DataError, match=r"x\.h5 is taken by something that is no good image store \("):
        convert_tree(tree, out)
    assert sorted(os.listdir(tmp_path)) == ["source", "x.h5"]


def test_a_place_that_cannot_be_written_is_said_by_the_name_that_was_given(tree, tmp_path):
    for folder in ("/proc/self", "/proc/absent"):
        with pytest.raises(OSError, match=rf"{folder}/x\.h5'") as caught:
            convert_tree(tree, Path(folder) / "x.h5")
        assert caught.value.filename == f"{folder}/x.h5"
    (tmp_path / "text").write_text("")
    with pytest.raises(DataError, match="text is no folder"):
        convert_tree(tree, tmp_path / "text" / "x.h5")


def test_the_report_has_one_line_an_image_whatever_its_name(tree, tmp_path):
    name = os.fsdecode(b"a\nb\tc\x1b[31m\xff.JPEG")
    (tree / "n00000001" / name).write_bytes(b"")
    outcome = convert_tree(tree, tmp_path / "x.h5")
    (line,) = outcome.report.read_text().splitlines()
    assert line.split("\t")[1] == r"n00000001/a\nb\tc\x1b[31m\udcff.JPEG"


def stopped_after(tree, out, tasks, **settings):
    """Convert with a stop after so many questions, as Ctrl-C would."""
    (listing,) = find_listings("imagenet", tree)
    asked = iter(range(1000))
    stop = lambda: next(asked) >= tasks  # noqa: E731
    return prepare(listing, out, Settings(size=24, **settings), workers=1, stop=stop)


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_a_stopped_conversion_goes_on_and_ends_with_the_same_file(store, tmp_path, rng):
    tree = make_tree(tmp_path / "source", rng, images=20)
    outcome = stopped_after(tree, tmp_path / "x.h5", 2, store=store)
    assert (outcome.finished, outcome.done) == (False, 2 * convert.TASK)
    assert not (tmp_path / "x.h5").exists()
    outcome = convert_tree(tree, tmp_path / "x.h5", store=store)
    assert (outcome.finished, outcome.redone) == (True, 0)
    convert_tree(tree, tmp_path / "y.h5", store=store)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "y.h5").read_bytes()


def test_a_conversion_does_not_go_on_with_other_images_or_settings(tree, tmp_path):
    stopped_after(tree, tmp_path / "x.h5", 1)
    with pytest.raises(DataError, match=r"remove x\.h5\.journal to begin anew"):
        convert_tree(tree, tmp_path / "x.h5", size=20)
    (tree / "n00000000" / "new.JPEG").write_bytes(b"")
    with pytest.raises(DataError, match="begun with other images"):
        convert_tree(tree, tmp_path / "x.h5")


@pytest.mark.parametrize("packed", [False, True])
def test_a_conversion_does_not_go_on_with_files_that_have_changed_since(packed, tree, tmp_path):
    changed = tree / "n00000001" / "n00000001_3.JPEG"
    source, out = tree, tmp_path / "x.h5"
    if packed:
        source = changed = tmp_path / "packed.tar"
        with tarfile.open(source, "w") as tar:
            tar.add(tree, "")
    stopped_after(source, out, 1)
    os.utime(changed, ns=(0, 1))
    with pytest.raises(DataError, match="begun with other images"):
        convert_tree(source, out)


def test_two_conversions_to_one_file_do_not_run_at_once(tree, tmp_path):
    (listing,) = find_listings("imagenet", tree)

    def second():
        with pytest.raises(DataError, match="another process is making it"):
            convert_tree(tree, tmp_path / "x.h5")
        return True

    prepare(listing, tmp_path / "x.h5", Settings(24), workers=1, stop=second)


@pytest.mark.parametrize("damage", ["tail", "flip", "zero"])
def test_images_that_never_reached_the_disk_are_made_again(damage, tmp_path, rng):
    tree = make_tree(tmp_path / "source", rng, images=20)
    stopped_after(tree, tmp_path / "x.h5", 4)
    file = tmp_path / "x.h5.part"
    data = bytearray(file.read_bytes())
    start = open_store_start(tree, tmp_path)
    at = start + 20 * 24 * 24 * 3  # in the third stretch
    if damage == "tail":
        del data[at:]
    elif damage == "flip":
        data[at] ^= 1
    else:
        data[at : at + 5000] = bytes(5000)
    file.write_bytes(data)
    outcome = convert_tree(tree, tmp_path / "x.h5")
    assert outcome.finished
    assert outcome.redone == 2 * convert.TASK
    convert_tree(tree, tmp_path / "y.h5")
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "y.h5").read_bytes()


def test_a_part_that_was_cut_short_is_not_believed_where_it_was_synced(tmp_path, rng):
    tree = make_tree(tmp_path / "source", rng, images=20)
    stopped_after(tree, tmp_path / "x.h5", 4)
    text = b'{"synced":%d}' % (4 * convert.TASK)
    with (tmp_path / "x.h5.journal").open("ab") as journal:
        journal.write(b"%08x %s\n" % (zlib.crc32(text), text))
    file = tmp_path / "x.h5.part"
    os.truncate(file, open_store_start(tree, tmp_path) + 12 * 24 * 24 * 3)  # within the second stretch
    outcome = convert_tree(tree, tmp_path / "x.h5")
    assert outcome.redone == 3 * convert.TASK
    convert_tree(tree, tmp_path / "y.h5")
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "y.h5").read_bytes()


def open_store_start(tree, tmp_path):
    convert_tree(tree, tmp_path / "other.h5")
    return open_store(tmp_path / "other.h5").start


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_journal_whose_last_line_is_torn_is_believed_up_to_there(cut, tmp_path, rng):
    tree = make_tree(tmp_path / "source", rng, images=20)
    stopped_after(tree, tmp_path / "x.h5", 3)
    journal = tmp_path / "x.h5.journal"
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert convert_tree(tree, tmp_path / "x.h5").finished
    convert_tree(tree, tmp_path / "y.h5")
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "y.h5").read_bytes()


@pytest.mark.parametrize(
    "bad", [{"size": 0}, {"size": 5000}, {"store": "zip"}, {"quality": 0}, {"quality": 96}]
)
def test_settings_are_checked(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        Settings(**bad)
