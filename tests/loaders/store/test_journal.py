"""The journal of a conversion by itself: what is believed of it, and what is cut off."""

from __future__ import annotations

import errno
import json
import os
import zlib

import pytest

from npgait.files import locked
from npgait.loaders.store import journal
from npgait.loaders.store.journal import BusyError, Done, OtherPlanError, open_journal, write_all

HEADER = {"plan": "p"}
STRETCHES = [
    [Done(0, 11, 5, [1, 2, 3], [4, 5, 6]), Done(1, 0, 7, [0, 0, 0], [0, 0, 0], "torn")],
    [Done(0, (1 << 32) - 1, 1 << 30, [10, 20, 30], [40, 50, 1 << 70])],
    [Done(1, 1, 0, [0, 0, 0], [0, 0, 0], "empty")],
]


def told(j):
    """What a journal says, as plain values."""
    columns = (list(j.states), list(j.checksums), list(j.sizes))
    return (len(j), *columns, list(j.sums), list(j.squares), dict(j.reasons), j.synced)


WHOLE = (
    4,
    [0, 1, 0, 1],
    [11, 0, (1 << 32) - 1, 1],
    [5, 7, 1 << 30, 0],
    [11, 22, 33],
    [44, 55, 6 + (1 << 70)],
    {1: "torn", 3: "empty"},
    2,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.journal"


@pytest.fixture
def after(path):
    """What a journal says, and how long its file is, after its header and after each line."""
    j = open_journal(path, HEADER)
    states = [(path.stat().st_size, told(j))]
    for k, stretch in enumerate(STRETCHES):
        j.add(stretch)
        states.append((path.stat().st_size, told(j)))
        if k == 1:
            j.mark_synced(2)
            states.append((path.stat().st_size, told(j)))
    j.close()
    return states


def opened(path):
    j = open_journal(path, HEADER)
    said = told(j)
    j.close()
    return said


def test_what_is_noted_is_said_at_once_and_when_it_is_opened_again(path, after):
    assert after[-1][1] == WHOLE
    assert opened(path) == WHOLE
    j = open_journal(path, HEADER)
    j.add(STRETCHES[0])
    j.close()
    assert opened(path)[0] == 6


def test_a_journal_cut_anywhere_says_what_its_whole_lines_say_and_goes_on_behind_them(path, after):
    data = path.read_bytes()
    ends = [size for size, _ in after]
    for length in sorted({*range(0, len(data), 23), *(end + d for end in ends for d in (-1, 0, 1))}):
        path.write_bytes(data[:length])
        size, expected = max((s for s in after if s[0] <= length), default=after[0], key=lambda s: s[0])
        assert opened(path) == expected
        assert path.stat().st_size == size


@pytest.mark.parametrize("line", range(5))
def test_nothing_is_believed_from_the_first_line_that_is_damaged(line, path, after):
    lines = path.read_bytes().splitlines(keepends=True)
    for at in (0, 8, 9, len(lines[line]) - 2):
        damaged = bytearray(lines[line])
        damaged[at] ^= 1
        path.write_bytes(b"".join([*lines[:line], damaged, *lines[line + 1 :]]))
        size, expected = after[max(line - 1, 0)]
        assert opened(path) == expected
        assert path.stat().st_size == size


GOOD = [0, 11, 5, [1, 2, 3], [4, 5, 6], ""]


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[" * 100_000,
        b'{"synced":null}',
        b'{"synced":-1}',
        b'{"first":3}',
        b'{"first":3,"images":7}',
        b'{"first":3,"images":[7]}',
        b'{"first":3,"images":[[1]]}',
        *(
            json.dumps({"first": 3, "images": [GOOD, [*GOOD[:at], bad, *GOOD[at + 1 :]]]}).encode()
            for at, bad in (
                (0, 2),
                (0, True),
                (1, -1),
                (1, 1 << 32),
                (1, 0.5),
                (2, 1 << 62),
                (2, None),
                (3, [1]),
                (3, 7),
                (4, [1, 2, "3"]),
                (4, [1, 2, -3]),
                (5, None),
            )
        ),
    ],
)
def test_nothing_is_believed_from_the_first_line_that_no_conversion_writes(text, path, after):
    lines = path.read_bytes().splitlines(keepends=True)
    strange = b"%08x %s\n" % (zlib.crc32(text), text)
    path.write_bytes(b"".join([*lines[:3], strange, *lines[3:]]))
    assert opened(path) == after[2][1]
    assert path.stat().st_size == after[2][0]


def test_nothing_is_believed_from_the_first_line_that_is_out_of_order(path, after):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[4:]]))
    assert opened(path) == after[1][1]


def test_no_more_images_are_on_the_disk_than_there_are(path, after):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[3], *lines[1:3]]))
    assert opened(path)[-1] == 0


@pytest.mark.parametrize(("n", "kept"), [(0, 0), (1, 0), (2, 2), (3, 3), (4, 4), (9, 4)])
def test_lines_are_kept_as_far_as_all_their_images_are_wanted(n, kept, path, after):
    j = open_journal(path, HEADER)
    j.keep(n)
    assert len(j) == len(list(j.states)) == kept
    assert sorted(j.reasons) == [i for i in (1, 3) if i < kept]
    assert j.synced == (2 if kept >= 3 else 0)  # as the line behind the first three says
    j.close()
    assert opened(path)[0] == kept


def test_a_journal_of_another_plan_or_of_one_who_is_at_it_is_left_alone(path, after):
    data = path.read_bytes()
    with pytest.raises(OtherPlanError):
        open_journal(path, {"plan": "q"})
    j = open_journal(path, HEADER)
    with pytest.raises(BusyError):
        open_journal(path, HEADER)
    j.close()
    assert path.read_bytes() == data
    assert opened(path) == WHOLE


def test_a_journal_that_another_took_the_place_of_is_not_written(path, after, monkeypatch):
    def lock(_):
        path.unlink()
        path.write_bytes(b"another's")

    monkeypatch.setattr(journal, "lock", lock)
    with pytest.raises(BusyError):
        open_journal(path, HEADER)
    assert path.read_bytes() == b"another's"


@pytest.mark.parametrize("offset", [None, 3])
def test_writes_that_the_system_cuts_short_are_finished(offset, tmp_path, monkeypatch):
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(journal.os, "write", lambda d, data: write(d, data[:2]))
    monkeypatch.setattr(journal.os, "pwrite", lambda d, data, at: pwrite(d, data[:2], at))
    (tmp_path / "a").write_bytes(b"-" * 12)
    descriptor = os.open(tmp_path / "a", os.O_RDWR)
    write_all(descriptor, b"abcdefg", offset)
    os.close(descriptor)
    assert (tmp_path / "a").read_bytes() == (b"abcdefg-----" if offset is None else b"---abcdefg--")


@pytest.mark.skipif(os.name != "posix", reason="locks as on POSIX")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_lets_everybody_in(number, path, monkeypatch):
    def flock(descriptor, how):
        raise OSError(number, "there are no locks here")

    monkeypatch.setattr("fcntl.flock", flock)
    open_journal(path, HEADER).close()
    with locked(path) as free:
        assert free


@pytest.mark.skipif(os.name != "posix", reason="locks as on POSIX")
def test_a_lock_that_fails_in_another_way_is_an_error_that_names_the_file(path, monkeypatch):
    def flock(descriptor, how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="Input/output") as journals:
        open_journal(path, HEADER)
    with pytest.raises(OSError, match="Input/output") as runs, locked(path):
        pass
    assert journals.value.filename == runs.value.filename == str(path)
