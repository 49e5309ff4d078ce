"""What fails under a conversion (disk, source, decoders): said in one line, and nothing is lost."""

from __future__ import annotations

import errno
import os

import pytest

from npgait.loaders.store import (
    Settings,
    convert,
    find_listings,
    finish,
    journal,
    open_store,
    part,
    prepare,
)
from npgait.loaders.store.inspect import verify
from tests.loaders.store.conftest import make_tree
from tests.loaders.store.test_convert import convert_tree, stopped_after


def test_a_disk_that_is_too_small_is_one_line_before_anything_is_written(tree, tmp_path, monkeypatch):
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(part.shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match=r"the disk has 0\.0 MB free"):
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
    with pytest.raises(OSError, match="MB free and the store takes"):
        convert_tree(tree, tmp_path / "x.h5", store=store)


def test_a_disk_without_room_for_the_rest_does_not_cost_what_is_done(tmp_path, rng, monkeypatch):
    tree = make_tree(tmp_path / "source", rng, images=20)
    stopped_after(tree, tmp_path / "x.h5", 2)
    os.truncate(tmp_path / "x.h5.part", (tmp_path / "x.h5.part").stat().st_size - 1)
    monkeypatch.setattr(part.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 0}))
    with pytest.raises(OSError, match="the disk has"):
        convert_tree(tree, tmp_path / "x.h5")
    monkeypatch.undo()
    seen = []
    (listing,) = find_listings("imagenet", tree)
    prepare(listing, tmp_path / "x.h5", Settings(24), progress=lambda done, _: seen.append(done))
    assert seen[0] == 2 * convert.TASK


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


def test_a_source_that_fails_while_it_is_read_is_named(tree, monkeypatch):
    from npgait.loaders.store import worker

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(worker, "read_source", fail)
    settings = {"skip_unreadable": False, "size": 24, "store": "raw"}
    with pytest.raises(OSError, match="Input/output error") as caught:
        worker.convert_image(("/disk/a.JPEG", 0, None), settings)
    assert caught.value.filename == "/disk/a.JPEG"


def test_a_disk_that_is_full_under_a_decoder_is_named(tree, tmp_path, monkeypatch):
    from npgait.loaders.store import worker

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker, "write_all", fail)
    (tmp_path / "x.part").write_bytes(b"")
    settings = {"skip_unreadable": False, "size": 24, "store": "raw", "part": str(tmp_path / "x.part")}
    image = str(next(tree.glob("*/*.JPEG")))
    answer, _ = worker._do([[image, 0, None]], [0], settings)
    assert answer["file"] == str(tmp_path / "x.part")


def test_a_journal_that_went_while_its_lock_was_waited_for_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "x.journal"
    monkeypatch.setattr(journal, "lock", lambda _: path.unlink())  # as one who has just finished
    with pytest.raises(journal.BusyError):
        journal.open_journal(path, {})


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


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_source_that_hangs_is_waited_for_and_no_image_is_skipped_for_it(
    comes_back, tree, tmp_path, monkeypatch
):
    from npgait.loaders.store import workers

    back = tmp_path / "back"
    trap = (
        "import os, time, npgait.loaders.store.worker as w\n"
        "read = w.read_source\n"
        f"hangs = lambda p: p.endswith('1_4.JPEG') and not os.path.exists({str(back)!r})\n"
        "w.read_source = lambda p, *a: time.sleep(99) if hangs(p) else read(p, *a)\n"
        "w.main()"
    )

    def wait(path, *_):
        if not comes_back:
            raise OSError(errno.EIO, "Input/output error")
        back.touch()

    monkeypatch.setattr(workers, "PROGRAM", trap)
    monkeypatch.setattr(workers, "SECONDS", 2.0)
    monkeypatch.setattr(workers, "read_source", wait)
    monkeypatch.setattr(convert, "TASK", 1)
    if comes_back:
        assert convert_tree(tree, tmp_path / "x.h5").skipped == 0
    else:
        with pytest.raises(OSError, match="Input/output error") as caught:
            convert_tree(tree, tmp_path / "x.h5")
        assert caught.value.filename.endswith("1_4.JPEG")


def test_a_process_that_starts_slowly_is_not_taken_for_an_image_that_takes_too_long(
    tree, tmp_path, monkeypatch
):
    from npgait.loaders.store import workers

    monkeypatch.setattr(workers, "PROGRAM", "import time; time.sleep(4); " + workers.PROGRAM)
    monkeypatch.setattr(workers, "SECONDS", 3.0)
    assert convert_tree(tree, tmp_path / "x.h5").skipped == 0


def test_a_process_that_is_never_ready_is_said_to_be_so(tree, tmp_path, monkeypatch):
    from npgait.loaders.store import workers

    monkeypatch.setattr(workers, "PROGRAM", "import time; time.sleep(99)")
    monkeypatch.setattr(workers, "START_SECONDS", 0.6)
    monkeypatch.setattr(workers, "FIRST_WAIT", 0.01)
    with pytest.raises(workers.WorkerError, match=r"did not start: took more than 1 s"):
        convert_tree(tree, tmp_path / "x.h5")


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


@pytest.mark.parametrize("late", [False, True])
def test_what_else_a_process_prints_is_shown_and_no_image_is_skipped_for_it(
    late, tree, tmp_path, monkeypatch
):
    from npgait.loaders.store import workers

    printing = "print('Hello from sitecustomize', flush=True); "
    if late:
        printing = "from npgait.loaders.store import worker; worker._do = lambda *_: print('Hello'); "
    monkeypatch.setattr(workers, "PROGRAM", printing + workers.PROGRAM)
    with pytest.raises(workers.WorkerError, match=r"printed 'Hello.*\.pth file of this Python print\?"):
        convert_tree(tree, tmp_path / "x.h5")


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


def test_a_worker_that_is_killed_within_its_answer_is_asked_again(tree, tmp_path, monkeypatch):
    from npgait.loaders.store import workers

    once = tmp_path / "once"
    trap = (
        "import os, sys, npgait.loaders.store.worker as w\n"
        "def answer(data):\n"
        f"    if len(data) > 1000 and not os.path.exists({str(once)!r}):\n"
        f"        open({str(once)!r}, 'w').close()\n"
        "        os.write(1, data[:-100])\n"
        "        os.abort()\n"
        "    whole(data)\n"
        "whole, w._answer = w._answer, answer\n"
        "w.main()"
    )
    monkeypatch.setattr(workers, "PROGRAM", trap)
    assert convert_tree(tree, tmp_path / "x.h5", store="original").skipped == 0
    assert once.exists()
    assert not [d for _, found in verify(open_store(tmp_path / "x.h5")) for d in found]


def test_a_decoder_of_a_killed_start_does_not_write_into_a_conversion_begun_anew(tmp_path, rng):
    tree = make_tree(tmp_path / "source", rng, images=20)
    stopped_after(tree, tmp_path / "x.h5", 2)
    with (tmp_path / "x.h5.part").open("r+b") as left:  # as it has it, who decodes on
        (tmp_path / "x.h5.journal").unlink()
        convert_tree(tree, tmp_path / "x.h5", seed=1)
        left.write(b"junk" * 10_000)
    assert not [d for _, found in verify(open_store(tmp_path / "x.h5")) for d in found]
