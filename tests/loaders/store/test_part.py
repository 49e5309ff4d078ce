"""The store in the making and the file in memory around it: room, what is written, what is synced."""

from __future__ import annotations

import errno
import io
import os
import threading
import types

import h5py
import numpy as np
import pytest

from npgait.loaders.store import frame, part
from npgait.loaders.store.frame import PAGE
from npgait.loaders.store.journal import Done
from npgait.loaders.store.layout import GOOD, SKIPPED, Head


class Journal(list):
    """What is done, and up to where that is on the disk."""

    def __init__(self):
        super().__init__()
        self.synced = []

    def add(self, done):
        self += done

    def mark_synced(self, n):
        self.synced.append(n)


@pytest.fixture
def job(tmp_path):
    (tmp_path / "journal").touch()
    return types.SimpleNamespace(
        part=tmp_path / "part", journal_path=tmp_path / "journal", out=tmp_path / "out", raw=True,
        start=100, room=4000, behind=30, end=100, listing=range(50), journal=Journal(),
    )  # fmt: skip


def free(monkeypatch, n):
    monkeypatch.setattr(part.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=n))


def test_a_part_is_as_long_as_the_store_will_be(job, monkeypatch):
    free(monkeypatch, 1 << 30)
    part.allocate(job)
    assert job.part.stat().st_size == 4130
    job.room = 3000
    job.part.write_bytes(b"x" * 5000)
    part.allocate(job)  # one that is longer is left as it is
    assert job.part.read_bytes() == b"x" * 5000
    job.part.unlink()
    job.raw = False  # files of sizes that are not known
    part.allocate(job)
    assert job.part.stat().st_size == 0


def test_room_is_asked_for_what_is_missing_of_store_and_journal_and_nothing_more(job, monkeypatch):
    needed = 4130 + part.JOURNAL_BYTES * 50
    free(monkeypatch, needed - 1)
    with pytest.raises(OSError, match=r"the disk has 0.0 MB free") as raised:
        part.allocate(job)
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(job.out)
    assert not job.part.exists() and not job.journal_path.exists()
    job.journal_path.touch()
    free(monkeypatch, needed)
    part.allocate(job)
    free(monkeypatch, part.JOURNAL_BYTES * 50)
    part.allocate(job)  # it has its room,
    job.part.unlink()
    job.part.touch()
    os.truncate(job.part, 4130)
    part.allocate(job)  # even where it takes none on the disk yet
    job.journal.extend(range(20))
    free(monkeypatch, part.JOURNAL_BYTES * 30)
    part.allocate(job)
    free(monkeypatch, part.JOURNAL_BYTES * 30 - 1)
    with pytest.raises(OSError, match="make room"):
        part.allocate(job)
    assert job.part.exists() and job.journal_path.exists()  # with what is done


def test_blocks_that_a_part_has_need_not_be_free_again(job, monkeypatch):
    job.part.write_bytes(bytes(8192))
    blocks = 512 * job.part.stat().st_blocks
    job.room, job.listing = 1 << 20, ()
    free(monkeypatch, 100 + (1 << 20) + 30 - blocks)
    part.allocate(job)
    assert job.part.stat().st_size == 100 + (1 << 20) + 30


def done(state, size):
    return Done(state, 0, size, [], [])


def test_what_is_written_lies_one_after_the_other_and_a_skipped_image_is_zero(job):
    job.part.write_bytes(b"." * 120)
    part.commit(job, [done(GOOD, 3), done(SKIPPED, 4), done(GOOD, 2)], b"")  # written by workers
    assert job.part.read_bytes()[100:] == b"...\0\0\0\0" + b"." * 13
    assert (job.end, len(job.journal)) == (109, 3)
    part.commit(job, [done(GOOD, 2), done(SKIPPED, 1)], b"abc")
    assert job.part.read_bytes()[100:] == b"...\0\0\0\0..ab\0" + b"." * 8
    assert (job.end, len(job.journal)) == (112, 5)
    part.commit(job, [done(SKIPPED, 1), done(SKIPPED, 1)], b"")
    assert job.part.read_bytes()[109:] == b"ab\0\0\0" + b"." * 6
    job.raw = False
    part.commit(job, [done(GOOD, 2), done(SKIPPED, 0)], b"de")
    assert job.part.read_bytes()[109:] == b"ab\0\0\0de" + b"." * 4


@pytest.fixture
def disk(monkeypatch):
    """A clock, and a disk that is done when it is told to be."""
    disk = types.SimpleNamespace(now=0.0, done=threading.Event(), syncs=0, problem=None)

    def sync(path):
        disk.syncs += 1
        disk.done.wait(10)
        disk.done.clear()
        if disk.problem:
            raise disk.problem

    monkeypatch.setattr(part, "sync", sync)
    monkeypatch.setattr(part, "time", types.SimpleNamespace(monotonic=lambda: disk.now))
    return disk


def finish(disk):
    disk.done.set()
    for thread in threading.enumerate():
        if getattr(thread, "_target", None) and thread._target.__name__ == "write_out":
            thread.join(10)


def test_what_was_done_when_a_sync_began_is_noted_once_it_has_ended(job, disk):
    with part.synced_now_and_then(job) as sync_if_due:
        job.journal.extend("abc")
        sync_if_due()
        assert disk.syncs == 0
        disk.now += part.SYNC_SECONDS + 1
        sync_if_due()
        job.journal.extend("de")
        disk.now += part.SYNC_SECONDS + 1
        sync_if_due()  # one at a time
        assert (disk.syncs, job.journal.synced) == (1, [])
        finish(disk)
        disk.now -= part.SYNC_SECONDS  # so that none is due
        sync_if_due()
        sync_if_due()
        assert (disk.syncs, job.journal.synced) == (1, [3])
        disk.now += part.SYNC_SECONDS
        sync_if_due()
        sync_if_due()
        assert job.journal.synced == [3]  # the second is under way
        finish(disk)
        sync_if_due()
        assert (disk.syncs, job.journal.synced) == (2, [3, 5])


def test_a_sync_that_fails_is_an_error_and_nothing_is_noted(job, disk):
    disk.problem = OSError(errno.EIO, "no disk")
    with part.synced_now_and_then(job) as sync_if_due:
        disk.now += part.SYNC_SECONDS + 1
        sync_if_due()
        finish(disk)
        with pytest.raises(OSError, match="no disk") as raised:
            sync_if_due()
    assert raised.value.filename == str(job.part)
    assert job.journal.synced == []


def test_a_file_in_memory_is_a_file(rng):
    memory, file = frame._Memory(), io.BytesIO()
    for _ in range(60):
        place = int(rng.integers(0, 3 * PAGE))
        data = (
            rng.integers(0, 256, int(rng.choice([0, 1, 100, PAGE, PAGE + 1]))).astype(np.uint8).tobytes()
        )
        end = len(file.getvalue())
        for opened in (memory, file):
            assert opened.seek(place) == place
            if data:
                assert opened.write(data) == len(data)
        assert memory.tell() == file.tell()
        assert memory.size == len(file.getvalue()) >= end
        buffers = bytearray(PAGE + 10), bytearray(PAGE + 10)
        start = int(rng.integers(0, memory.size + 10))
        for opened, buffer in zip((memory, file), buffers, strict=True):
            opened.seek(start)
            opened.readinto(buffer)
        assert buffers[0] == buffers[1] and memory.tell() == file.tell()
        assert memory.seek(-5, io.SEEK_END) == memory.size - 5
        assert memory.seek(2, io.SEEK_CUR) == memory.size - 3
    assert memory.stretch(0, memory.size) == file.getvalue()
    assert memory.stretch(PAGE - 3, PAGE + 3) == file.getvalue()[PAGE - 3 : PAGE + 3]
    assert memory.stretch(9, 9) == memory.stretch(9, 8) == b""
    memory.seek(7)
    assert memory.truncate() == memory.size == 7
    assert memory.truncate(20) == memory.size == 20


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_a_frame_is_an_hdf5_file_without_times_and_takes_no_memory_for_the_images(store, monkeypatch):
    memory = frame._Memory()
    monkeypatch.setattr(frame, "_Memory", lambda: memory)
    n, room = 2, 2 * 2048 * 2048 * 3
    head = Head(
        "set", "train", store, (2048, 2048, 3), 255, "made by hand", "plan", np.arange(n), ("a", "b"),
        np.array([b"a/1", b"b/2"]), np.zeros(n, np.uint8), np.arange(n, dtype=np.uint32), np.ones(3),
        np.ones(3), None if store == "raw" else np.array([0, 10, room]),
    )  # fmt: skip
    made = frame.frame(head, room)
    assert len(memory.pages) < room // PAGE // 4
    whole = io.BytesIO(made.before + bytes(room) + made.behind)
    with h5py.File(whole, "r") as file:
        images = file["images" if store == "raw" else "encoded"]
        assert images.shape == ((n, 2048, 2048, 3) if store == "raw" else (room,))
        assert images.id.get_offset() == len(made.before)
        # A time would make another file of the same images a second later.
        assert {h5py.h5g.get_objinfo(d.id).mtime for d in file.values()} == {0}
        assert file.attrs["digest"].decode() == head.digest()
        for name in ("labels", "state", "checksums", "mean", "std"):
            np.testing.assert_array_equal(file[name][()], getattr(head, name))
