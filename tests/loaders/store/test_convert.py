"""Conversion: what the store holds, and that nothing but its content decides it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image, ImageOps

from npgait.loaders import DataError
from npgait.loaders.store import Settings, convert, find_listings, finish, open_store, part, prepare
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


def test_a_disk_that_is_too_small_is_one_line_before_anything_is_written(tree, tmp_path, monkeypatch):
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(part.shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match=r"the disk has 0\.0 GB free"):
        convert_tree(tree, tmp_path / "x.h5")
    assert os.listdir(tmp_path) == ["source"]
    monkeypatch.undo()
    assert convert_tree(tree, tmp_path / "x.h5", size=20).finished


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_the_room_that_is_asked_for_is_that_of_the_whole_store_and_its_journal(
    store, tree, tmp_path, monkeypatch
):
    convert_tree(tree, tmp_path / "y.h5", store=store)
    start = open_store(tmp_path / "y.h5").start
    needed = start + 21 * 100 + (21 * 24 * 24 * 3 if store == "raw" else 0)
    free = type("Usage", (), {"free": needed})
    monkeypatch.setattr(part.shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match=r"GB free and the store takes"):
        convert_tree(tree, tmp_path / "x.h5", store=store)


def test_a_disk_that_is_full_in_the_end_loses_nothing(tree, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(finish, "write_all", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        convert_tree(tree, tmp_path / "x.h5")
    assert caught.value.filename == str(tmp_path / "x.h5.part")
    monkeypatch.undo()
    seen = []
    (listing,) = find_listings("imagenet", tree)
    prepare(listing, tmp_path / "x.h5", Settings(24), progress=lambda done, _: seen.append(done))
    assert seen == [21]


def test_a_disk_that_fills_up_on_the_way_loses_nothing(tmp_path, rng, monkeypatch):
    tree = make_tree(tmp_path / "source", rng, images=20)
    room, write_all = [4], part.write_all

    def writing(descriptor, data, offset=None):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(descriptor, data, offset)

    monkeypatch.setattr(part, "write_all", writing)
    with pytest.raises(OSError, match="No space left") as caught:
        convert_tree(tree, tmp_path / "x.h5", store="jpeg")
    assert caught.value.filename == str(tmp_path / "x.h5.part")
    monkeypatch.undo()
    seen = []
    (listing,) = find_listings("imagenet", tree)
    prepare(
        listing,
        tmp_path / "x.h5",
        Settings(24, "jpeg"),
        progress=lambda done, skipped: seen.append(done),
    )
    assert seen[0] == 4 * convert.TASK
    convert_tree(tree, tmp_path / "y.h5", store="jpeg")
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "y.h5").read_bytes()


def test_a_source_that_cannot_be_read_stops_the_conversion_unless_told_to_skip(tree, tmp_path):
    (listing,) = find_listings("imagenet", tree)
    (tree / "n00000001" / "n00000001_3.JPEG").unlink()  # as if its disk had gone
    with pytest.raises(OSError, match="No such file"):
        prepare(listing, tmp_path / "x.h5", Settings(24))
    outcome = prepare(listing, tmp_path / "x.h5", Settings(24, skip_unreadable=True))
    assert outcome.skipped == 1
    assert "cannot be read: No such file" in outcome.report.read_text()


def test_an_image_that_takes_its_decoder_down_is_skipped_alone(tree, tmp_path, monkeypatch):
    from npgait.loaders.store import workers

    trap = (
        "import os, npgait.loaders.store.worker as w\n"
        "read = w.read_source\n"
        "w.read_source = lambda p, *a: os.abort() if p.endswith('_4.JPEG') else read(p, *a)\n"
        "w.main()"
    )
    monkeypatch.setattr(workers, "PROGRAM", trap)
    outcome = convert_tree(tree, tmp_path / "x.h5")
    assert outcome.skipped == 3
    assert "the decoder crashed (signal 6)" in outcome.report.read_text()
    assert not [d for _, found in verify(open_store(tmp_path / "x.h5")) for d in found]


def test_an_image_that_takes_too_long_is_skipped_alone(tree, tmp_path, monkeypatch):
    from npgait.loaders.store import workers

    trap = (
        "import time, npgait.loaders.store.worker as w\n"
        "read = w.read_source\n"
        "w.read_source = lambda p, *a: time.sleep(99) if p.endswith('1_4.JPEG') else read(p, *a)\n"
        "w.main()"
    )
    monkeypatch.setattr(workers, "PROGRAM", trap)
    monkeypatch.setattr(workers, "SECONDS", 2.0)
    monkeypatch.setattr(workers, "TRIES", 1)
    monkeypatch.setattr(convert, "TASK", 1)
    outcome = convert_tree(tree, tmp_path / "x.h5")
    assert outcome.skipped == 1
    assert "took more than" in outcome.report.read_text()


def test_workers_that_do_not_start_are_an_error_not_a_skip(tree, tmp_path, monkeypatch):
    from npgait.loaders.store import workers

    monkeypatch.setattr(workers, "PROGRAM", "raise SystemExit(3)")
    monkeypatch.setattr(workers, "FIRST_WAIT", 0.01)
    with pytest.raises(workers.WorkerError, match=r"did not start: .*status 3"):
        convert_tree(tree, tmp_path / "x.h5")
    pool = workers.Workers(1, {})
    with pytest.raises(workers.WorkerError):
        pool.submit([("a", 0, None)], [0]).result()
    assert not pool._processes


def test_workers_that_are_killed_while_they_start_are_started_again(tree, tmp_path, monkeypatch):
    from npgait.loaders.store import workers

    # Each process but every third is killed before it is ready, as a system short of memory does.
    count = tmp_path / "count"
    count.write_text("")
    trap = (
        "import os, signal\n"
        f"with open({str(count)!r}, 'a') as file: file.write('x')\n"
        f"if os.path.getsize({str(count)!r}) % 3: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.setattr(workers, "PROGRAM", trap + workers.PROGRAM)
    monkeypatch.setattr(workers, "FIRST_WAIT", 0.01)
    (listing,) = find_listings("imagenet", tree)
    outcome = prepare(listing, tmp_path / "x.h5", Settings(24), workers=1)
    assert (outcome.finished, outcome.skipped) == (True, 0)
    assert count.stat().st_size == 3


@pytest.mark.parametrize(
    "bad", [{"size": 0}, {"size": 5000}, {"store": "zip"}, {"quality": 0}, {"quality": 96}]
)
def test_settings_are_checked(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        Settings(**bad)
