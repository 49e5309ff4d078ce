"""Files are written whole or not at all, in the place that was named and in no other."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

import pytest

from npgait.experiments import find_experiments
from npgait.files import holds, locked, read_bytes, replacing, write_text
from npgait.run_folder import RunFolderError, read_json, read_metrics


def test_a_block_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_a_link_leads_to_is_replaced_and_the_link_is_kept(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.txt").write_text("old")
    for name, target in (("link", "there/a.txt"), ("to-nothing", "there/b.txt")):
        (tmp_path / name).symlink_to(target)
        write_text(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / target).read_text() == "new"


@pytest.mark.parametrize("name", [255 * "a", 80 * "日" + "b.html"])
def test_a_file_may_have_the_longest_name_that_there_is(name, tmp_path):
    for text in ("old", "new"):
        write_text(tmp_path / name, text)
    write_text(tmp_path / name[1:], "other", new=True)
    assert (tmp_path / name).read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == sorted([name, name[1:]])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_or_a_folder_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match="is no plain file"):
            write_text(tmp_path / name, "new")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_what_cannot_be_written_is_named_as_the_user_named_it(tmp_path, monkeypatch):
    def refused(path, *arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr(Path, "write_text", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(OSError, match="Read-only") as caught:
        write_text(tmp_path / "report.html", "text")
    assert caught.value.filename == str(tmp_path / "report.html")


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    def fail():
        with replacing(tmp_path / "store.h5"):
            (tmp_path / "images").open()

    with pytest.raises(FileNotFoundError) as caught:
        fail()
    assert caught.value.filename == str(tmp_path / "images")


def test_a_write_leaves_no_descriptor_open(tmp_path):
    def lowest_free():
        descriptor = os.open(tmp_path / "a", os.O_RDONLY)
        os.close(descriptor)
        return descriptor

    write_text(tmp_path / "a", "old")
    before = lowest_free()
    write_text(tmp_path / "a", "new")
    assert lowest_free() == before


def test_a_lock_is_held_by_one_and_let_go_of_at_the_end(tmp_path):
    (tmp_path / "a").write_text("")
    with locked(tmp_path / "a") as first, locked(tmp_path / "a") as second:
        assert (first, second) == (True, False)
    with locked(tmp_path / "a") as again:
        assert again


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path):
    for name in ("run.json", "metrics.jsonl", "data_batch_1"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match="is no plain file"):
        read_bytes(tmp_path / "data_batch_1", 100)
    for read in (read_json, read_metrics):
        with pytest.raises(RunFolderError, match="is no plain file"):
            read(tmp_path)
    assert not holds(tmp_path / "metrics.jsonl", "")


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="this system has no /dev/fd")
def test_experiments_can_come_through_a_pipe():
    read, write = os.pipe()
    os.write(write, b'[[experiment]]\nname = "piped"\n')
    os.close(write)
    (experiment,) = find_experiments(f"/dev/fd/{read}")
    os.close(read)
    assert experiment.name == "piped"


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX")
@pytest.mark.parametrize(("number", "works"), [("EINVAL", True), ("ENOTSUP", True), ("EIO", False)])
def test_a_folder_that_cannot_be_synced_is_no_failure_of_what_was_written(
    number, works, tmp_path, monkeypatch
):
    def fsync(descriptor, real=os.fsync):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(getattr(errno, number), "no")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with contextlib.nullcontext() if works else pytest.raises(OSError, match=str(tmp_path)):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


def test_a_file_that_cannot_be_synced_is_named(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output") as caught:
        write_text(tmp_path / "a", "new")
    assert caught.value.filename == str(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_file_is_synced_on_windows_though_that_wants_it_open_to_write(tmp_path, monkeypatch):
    def fsync(descriptor):
        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_RDWR:
            raise OSError(errno.EBADF, "Bad file descriptor")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr("npgait.files.sys.platform", "win32")
    monkeypatch.setattr("npgait.files.sync_folder", lambda folder: None)
    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="locks as on POSIX")
def test_a_lock_is_exclusive_where_it_takes_a_file_that_is_open_to_write(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(descriptor, how, real=fcntl.flock):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")  # as NFS has it
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "a").write_text("")
    with locked(tmp_path / "a") as first, locked(tmp_path / "a") as second:
        assert (first, second) == (True, False)


def test_a_file_that_cannot_be_written_is_locked_all_the_same(tmp_path, monkeypatch):
    def read_only(path, mode, *rest, real=Path.open):
        if mode != "rb":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, mode, *rest)

    monkeypatch.setattr(Path, "open", read_only)
    (tmp_path / "a").touch()
    with locked(tmp_path / "a") as first, locked(tmp_path / "a") as second:
        assert (first, second) == (True, False)


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_is_whole_and_takes_no_others_place(links, tmp_path, monkeypatch):
    def link(path, to, real=os.link):
        if not links:
            raise OSError(errno.EPERM, "Operation not permitted")
        real(path, to)

    monkeypatch.setattr(os, "link", link)
    write_text(tmp_path / "a", "first", new=True)
    with pytest.raises(FileExistsError) as caught:
        write_text(tmp_path / "a", "second", new=True)
    assert caught.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "first"
    assert os.listdir(tmp_path) == ["a"]
