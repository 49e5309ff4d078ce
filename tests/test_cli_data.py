"""`npgait data` as a user runs it, and training from what it makes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from npgait.cli.main import cli
from npgait.loaders.store import open_store, prepare, workers
from npgait.loaders.stored import StoredData
from tests.loaders.store.conftest import make_tree


def npgait(*args, status=0):
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == status, result.output + str(result.exception)
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture
def source(tmp_path, rng):
    make_tree(tmp_path / "src" / "train", rng, images=6)
    make_tree(tmp_path / "src" / "val", rng, images=2)
    return tmp_path / "src"


def test_both_splits_are_made_checked_and_shown(source, tmp_path):
    out = tmp_path / "x.h5"
    text = npgait("data", "prepare", "imagenet", source, out, "--size", 20)
    assert "train: 18 images of 3 classes" in text
    assert "val: 6 images of 3 classes" in text
    assert [s.name for s in sorted(tmp_path.glob("x*"))] == ["x.h5", "x.val.h5"]
    names = open_store(tmp_path / "x.val.h5").head.sources.tolist()
    assert names == sorted(names)
    assert "18 images, all as they were written" in npgait("data", "verify", out)
    text = npgait("data", "info", out, "--png", tmp_path / "sheet.png")
    assert "n00000002 (6)" in text
    assert "20 x 20, 3 channels" in text
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (5 * 96, 4 * 96)
        assert np.asarray(sheet).std() > 20


def test_a_text_of_labels_says_the_classes_of_flat_files(source, tmp_path):
    flat, truth, out = source / "train" / "n00000000", tmp_path / "truth", tmp_path / "x.h5"
    truth.write_text("".join(f"{path.name} {'ab'[i % 2]}\n" for i, path in enumerate(flat.iterdir())))
    npgait("data", "prepare", "imagenet", flat, out, "--size", 20, "--labels", truth, "-q")
    head = open_store(out).head
    told = dict(line.split() for line in truth.read_text().splitlines())
    assert [head.classes[label] for label in head.labels] == [
        told[name.decode()] for name in head.sources
    ]


@pytest.mark.skipif(os.name != "posix", reason="a shell as on POSIX")
@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams_change_nothing_but_what_is_shown(closed, source, tmp_path):
    def shell(*args):
        command = shlex.join([sys.executable, "-m", "npgait", *map(str, args)])
        return subprocess.run(f"{command} {closed}", shell=True, check=False).returncode

    out, run = tmp_path / "x.h5", tmp_path / "run"
    assert shell("data", "prepare", "imagenet", source, out, "--size", 20, "--workers", 2) == 0
    assert shell("data", "verify", out) == 0
    assert "18 images, all as they were written" in npgait("data", "verify", out)
    options = ["-e", "bp", "--set", "epochs=1", "--no-plots", "--device", "cpu"]
    assert shell("run", "digits", *options, "--out", run) == 0
    assert (run / "bp" / "checkpoint.h5").is_file()


def test_damage_is_named_and_the_status_is_1(source, tmp_path):
    out = tmp_path / "x.h5"
    npgait("data", "prepare", "imagenet", source / "train", out, "--size", 20)
    store = open_store(out)
    with out.open("r+b") as file:
        file.seek(store.place(7)[0])
        file.write(bytes(30))
    text = npgait("data", "verify", out, status=1)
    assert f"image 7 ({store.head.sources[7].decode()})" in text
    assert "1 of 18 images damaged" in text


def test_skipped_files_are_said_and_listed(source, tmp_path):
    (source / "train" / "n00000001" / "notes.txt").write_text("no image")
    text = npgait("data", "prepare", "imagenet", source / "train", tmp_path / "x.h5", "-q")
    assert "19 images, 1 skipped" in text
    assert (
        "n00000001/notes.txt\tno image of a known format" in (tmp_path / "x.h5.skipped.txt").read_text()
    )
    assert "skipped: n00000001/notes.txt" in npgait("data", "info", tmp_path / "x.h5")


def test_names_that_would_move_the_cursor_are_shown_escaped(source, tmp_path):
    (source / "train" / "a\x1b[2Jb").mkdir()
    (source / "train" / "a\x1b[2Jb" / "x\ny.JPEG").write_bytes(b"")
    npgait("data", "prepare", "imagenet", source / "train", tmp_path / "x.h5", "-q")
    text = npgait("data", "info", tmp_path / "x.h5")
    assert "\x1b" not in text
    assert r"a\x1b[2Jb (1)" in text
    assert r"skipped: a\x1b[2Jb/x\ny.JPEG" in text


def test_bench_shows_every_stage(source, tmp_path):
    npgait("data", "prepare", "imagenet", source / "train", tmp_path / "x.h5", "--size", 20)
    text = npgait("data", "bench", tmp_path / "x.h5", "--seconds", 0.01)
    for stage in ("plain os.preadv", "random order", "shuffled runs of 32", "float32", "augmented"):
        assert stage in text


@pytest.mark.parametrize(
    ("command", "default"), [("bench", "one a core, up to 8"), ("verify", "one a core")]
)
def test_the_help_says_how_many_threads_read(command, default):
    assert f"Threads that read [default: {default}]" in " ".join(
        npgait("data", command, "--help").split()
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["prepare", "imagenet", "absent", "x.h5"], "there is no such folder"),
        (["prepare", "imagenet", "src", "x.hdf5"], "ends in .h5"),
        (["prepare", "imagent", "src", "x.h5"], "imagent"),
        (["prepare", "mnist", "src", "x.h5"], "train-images-idx3-ubyte"),
        (["prepare", "digits", "src", "x.h5", "--store", "jpeg"], "only --store raw"),
        (["prepare", "imagenet", "src", "x.h5", "--size", "0"], "0 is not in the range"),
        (["verify", "absent.h5"], "no such file"),
        (["info", "src/train/n00000000/n00000000_0.JPEG"], "no HDF5 file"),
        (["bench", "absent.h5", "--seconds", "1e9"], "not in the range 0.01<=x<=60"),
        (["bench", "absent.h5", "--seconds", "nan"], "not a finite number"),
        (["info", "src"], "src: is a folder; expected an image store"),
        (["info", "absent.h5", "--png", "src"], "src is a folder; expected the name of a file"),
    ],
)
def test_mistakes_are_one_line_with_status_2(args, says, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in npgait("data", *args, status=2)


def test_a_sheet_does_not_take_the_place_of_the_store(tmp_path):
    npgait("data", "prepare", "digits", tmp_path, tmp_path / "x.h5")
    (tmp_path / "link").symlink_to(tmp_path / "x.h5")
    text = npgait("data", "info", tmp_path / "x.h5", "--png", tmp_path / "link", status=2)
    assert "is the store itself" in text
    npgait("data", "verify", tmp_path / "x.h5")


def test_workers_that_do_not_start_are_one_line_with_status_1(source, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PROGRAM", "raise SystemExit(3)")
    monkeypatch.setattr(workers, "FIRST_WAIT", 0.01)
    text = npgait("data", "prepare", "imagenet", source, tmp_path / "x.h5", "-q", status=1)
    assert "Error: a process that decodes images did not start" in text


def test_threads_that_do_not_start_are_one_line_with_status_1(source, tmp_path, monkeypatch):
    npgait("data", "prepare", "imagenet", source, tmp_path / "x.h5", "--size", 20, "-q")

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for command in (("data", "verify"), ("data", "bench")):
        text = npgait(*command, tmp_path / "x.h5", status=1)
        assert "Error: the system starts no more threads" in text
    text = npgait(
        "run",
        *RUN,
        "--set",
        "image_size=20",
        "--data",
        tmp_path / "x.h5",
        "--out",
        tmp_path / "r",
        status=1,
    )
    assert "Error: the system starts no more threads" in text


def test_digits_and_arrays_convert_and_train_to_the_same_digit(tmp_path):
    """From the store, fully shuffled, a run is the one from the files, bit for bit."""
    npgait("data", "prepare", "digits", ".", tmp_path / "digits.h5", "--order", "sorted", "-q")
    with h5py.File(tmp_path / "digits.h5") as file:
        assert file["images"].shape == (1442, 8, 8, 1)
    settings = [
        "--set", "epochs=2", "--set", "shuffle_block=1", "-e", "gait", "-q", "--no-plots",
    ]  # fmt: skip
    for name, data in (("a", []), ("b", ["--data", tmp_path / "digits.h5"])):
        npgait("run", "digits", *data, *settings, "--out", tmp_path / name)
    with (
        h5py.File(tmp_path / "a/gait/checkpoint.h5") as a,
        h5py.File(tmp_path / "b/gait/checkpoint.h5") as b,
    ):
        for layer in a["parameters"]:
            np.testing.assert_allclose(
                a["parameters"][layer]["W"][()], b["parameters"][layer]["W"][()], rtol=1e-5, atol=1e-6
            )


RUN = ["imagenet-bp", "--no-plots", "--set", "image_size=64", "--set", "batch_size=2",
       "--set", "augmentation=resized", "--set", "measure_every=0", "--set", "epochs=3",
       "--set", "checkpoint_minutes=0"]  # fmt: skip


def test_a_run_from_a_store_that_is_interrupted_goes_on_bit_for_bit(source, tmp_path):
    out = tmp_path / "x.h5"
    npgait("data", "prepare", "imagenet", source, out, "--size", 72, "-q")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    npgait("run", *RUN, "--data", out, "--out", whole)
    command = [sys.executable, "-m", "npgait"]
    process = subprocess.Popen(
        [*command, "run", *RUN, "--data", str(out), "--out", str(cut)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = cut / "imagenet-bp" / "checkpoint.h5"
    for _ in range(600):
        if checkpoint.exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) in (128 + signal.SIGINT, 0)
    npgait("resume", cut, "--no-plots")
    ends = []
    for folder in (whole, cut):
        with h5py.File(folder / "imagenet-bp/checkpoint.h5") as file:
            assert json.loads(file["meta"][()].tobytes())["progress"]["epoch"] == 3
            parameters = file["parameters"]
            ends.append([parameters[layer][name][()] for layer in parameters for name in "Wb"])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_stopped_at_the_last_batch_of_an_epoch_goes_on(source, tmp_path, monkeypatch):
    out, run = tmp_path / "x.h5", tmp_path / "run"
    npgait("data", "prepare", "imagenet", source, out, "--size", 72, "-q")
    read = StoredData._read

    def stopping_at_the_last(self, order, *args):
        for number, batch in enumerate(read(self, order, *args), 1):
            if number == len(order) / 2:  # batches of 2
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    monkeypatch.setattr(StoredData, "_read", stopping_at_the_last)
    npgait("run", *RUN, "--data", out, "--out", run, status=128 + signal.SIGINT)
    monkeypatch.undo()
    npgait("resume", run, "--no-plots")
    with h5py.File(run / "imagenet-bp/checkpoint.h5") as file:
        assert json.loads(file["meta"][()].tobytes())["progress"]["epoch"] == 3


def test_a_run_does_not_go_on_with_another_store(source, tmp_path):
    out = tmp_path / "x.h5"
    npgait("data", "prepare", "imagenet", source, out, "--size", 64, "-q")
    npgait("run", *RUN, "--set", "epochs=1", "--data", out, "--out", tmp_path / "run")
    os.remove(out)
    npgait("data", "prepare", "imagenet", source, out, "--size", 64, "--seed", 1, "-q")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace("epochs = 1", "epochs = 2"))
    text = npgait("resume", tmp_path / "run", "--no-plots", status=2)
    assert "trained on other data" in text


def test_a_finished_run_needs_its_data_no_more(source, tmp_path):
    out = tmp_path / "x.h5"
    npgait("data", "prepare", "imagenet", source, out, "--size", 64, "-q")
    quick = ["--set", "epochs=1", "--set", "initialisation=glorot_normal"]
    npgait("run", *RUN, *quick, "--data", out, "--out", tmp_path / "run")
    os.remove(out)
    assert "imagenet-bp" in npgait("resume", tmp_path / "run", "--no-plots")


def test_only_an_explicit_data_option_takes_the_place_of_the_data_that_a_run_recorded(
    source, tmp_path, monkeypatch
):
    out, run, moved = tmp_path / "x.h5", tmp_path / "run", tmp_path / "moved" / "x.h5"
    npgait("data", "prepare", "imagenet", source, out, "--size", 64, "-q")
    quick = ["--set", "epochs=1", "--set", "initialisation=glorot_normal"]
    npgait("run", *RUN, *quick, "--data", out, "--out", run)
    monkeypatch.setenv("NPGAIT_DATA", str(source))
    assert "every equation holds" in npgait("check", run)
    with h5py.File(run / "imagenet-bp/checkpoint.h5") as file:
        trained_on = json.loads(file["meta"][()].tobytes())["data"]
    (run / "imagenet-bp/checkpoint.h5").unlink()  # as if killed before there was one
    npgait("resume", run, "--no-plots")
    with h5py.File(run / "imagenet-bp/checkpoint.h5") as file:
        assert json.loads(file["meta"][()].tobytes())["data"] == trained_on
    assert "trained on other data" in npgait("resume", run, "--no-plots", "--data", source, status=2)
    assert json.loads((run / "run.json").read_text())["data"] == str(out)
    moved.parent.mkdir()
    for store in (out, tmp_path / "x.val.h5"):
        store.rename(moved.with_name(store.name))
    npgait("resume", run, "--no-plots", "--data", moved)
    assert json.loads((run / "run.json").read_text())["data"] == str(moved)


def test_a_store_of_small_images_says_what_to_set(source, tmp_path):
    npgait("data", "prepare", "imagenet", source, tmp_path / "x.h5", "--size", 20, "-q")
    text = npgait("run", *RUN, "--data", tmp_path / "x.h5", "--out", tmp_path / "r", status=2)
    assert "set image_size=20, or convert at a larger --size" in text
    mine = tmp_path / "mine.toml"
    mine.write_text('[[experiment]]\nname = "rows"\ndata = "imagenet"\nimage_size = 64\nwidth = 20\n')
    text = npgait("run", mine, "--data", tmp_path / "x.h5", "--out", tmp_path / "r", status=2)
    assert "the network takes 12288 values; set image_size=20" in text
    assert not (tmp_path / "r").exists()  # the corrected command takes the same --out


def test_the_digits_need_no_data_whatever_the_environment_names(source, tmp_path, monkeypatch):
    out = tmp_path / "x.h5"
    npgait("data", "prepare", "imagenet", source / "train", out, "--size", 20, "-q")
    run = ["run", "-q", "--no-plots", "-e", "bp", "--set", "epochs=1"]
    text = npgait(*run, "--data", out, "--out", tmp_path / "typed", status=2)
    assert "holds 'imagenet'; the experiment asks for 'digits'" in text
    monkeypatch.setenv("NPGAIT_DATA", str(out))
    npgait(*run, "--out", tmp_path / "run")
    npgait("check", "digits", "-e", "bp")
    monkeypatch.delenv("NPGAIT_DATA")
    npgait("resume", "-q", "--no-plots", tmp_path / "run")


def test_ctrl_c_stops_a_conversion_that_the_same_command_finishes(tmp_path, rng):
    tree = make_tree(tmp_path / "src", rng, images=800)
    command = [sys.executable, "-m", "npgait", "data", "prepare", "imagenet", str(tree)]
    process = subprocess.Popen(
        [*command, str(tmp_path / "x.h5")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "x.h5.journal").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if process.returncode:  # or it was done before
        assert process.returncode == 130
        assert "the same command goes on" in errors
        assert "Traceback" not in errors
    assert "2400 images, 0 skipped" in npgait("data", "prepare", "imagenet", tree, tmp_path / "x.h5")


@pytest.mark.parametrize(("split", "status"), [("train", 130), ("val", 0)])
def test_ctrl_c_at_the_very_end_does_not_make_a_conversion_a_stopped_one(
    split, status, source, tmp_path, monkeypatch
):
    def finish(listing, *args, **kwargs):
        outcome = prepare(listing, *args, **kwargs)
        if listing.split == split:
            os.kill(os.getpid(), signal.SIGINT)
        return outcome

    monkeypatch.setattr("npgait.cli.data.prepare", finish)
    text = npgait("data", "prepare", "imagenet", source, tmp_path / "x.h5", status=status)
    assert ("stopped; the same command goes on" in text) == bool(status)
    assert (tmp_path / "x.val.h5").exists() == (not status)


def test_harmless_damage_of_an_image_is_no_warning_to_whoever_reads_the_store(tmp_path):
    exif = b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\x99" * 40  # cannot be read
    for name in "ab":
        (tmp_path / "src" / name).mkdir(parents=True)
        Image.new("RGB", (30, 30)).save(tmp_path / "src" / name / "x.jpg", exif=exif)
    npgait("data", "prepare", "imagenet", tmp_path / "src", tmp_path / "x.h5", "--store", "original")
    command = [sys.executable, "-m", "npgait", "data", "bench", tmp_path / "x.h5", "--seconds", "0.01"]
    read = subprocess.run(command, capture_output=True, text=True, check=False)
    assert read.returncode == 0
    assert "Warning" not in read.stderr
