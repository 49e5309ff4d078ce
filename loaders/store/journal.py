"""The journal of a conversion: what is done, beside the file that is being written.

One line a stretch of images: its CRC-32, a space, JSON. The first says what is being made; a line is
only believed with its checksum, and the file is cut off at the first that is not. A line `synced` says
that everything before it had reached the disk, so that only what follows it is looked at again.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npgait.files import lock
from npgait.loaders.store.layout import MAX_IMAGE_BYTES, SKIPPED

MAX_LINE = 1 << 22


@dataclass(frozen=True)
class Done:
    """What became of one image."""

    state: int
    checksum: int
    size: int  # bytes stored
    sums: list[int]  # of its pixels, by channel
    squares: list[int]
    reason: str = ""  # why it was skipped

    def row(self) -> list[Any]:
        """Return it as plain values."""
        return [self.state, self.checksum, self.size, self.sums, self.squares, self.reason]


class Journal:
    """An open journal: what is done so far, in columns, and the file that lines are appended to.

    Attributes
    ----------
    states, checksums, sizes : sequences of int
        Of the images done.
    sums, squares : list of int
        Of all their pixels, by channel.
    reasons : dict
        Why images were skipped, by number.
    synced : int
        Images known to be on the disk.
    """

    def __init__(self, descriptor: int, path: Path | None = None) -> None:
        self.descriptor, self.path = descriptor, path
        self.ends: list[tuple[int, int]] = []  # (images, bytes) after each line that was read
        self.synced = 0
        self._forget()

    def _forget(self) -> None:
        self.states, self.checksums, self.sizes = bytearray(), array("L"), array("q")
        self.sums, self.squares = [0, 0, 0], [0, 0, 0]
        self.reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.states)

    def append(self, entry: dict[str, Any]) -> None:
        """Write one line."""
        with naming(self.path):
            write_all(self.descriptor, _line(entry))

    def add(self, done: list[Done]) -> None:
        """Note images as written."""
        self.append({"first": len(self), "images": [one.row() for one in done]})
        self._count(done)

    def _count(self, done: list[Done]) -> None:
        for one in done:
            if one.reason:
                self.reasons[len(self)] = one.reason
            self.states.append(one.state)
            self.checksums.append(one.checksum)
            self.sizes.append(one.size)
            for c, (s, q) in enumerate(zip(one.sums, one.squares, strict=True)):
                self.sums[c] += s
                self.squares[c] += q

    def mark_synced(self, n: int) -> None:
        """Note that the first `n` images are on the disk; call once they are."""
        self.append({"synced": n})
        with naming(self.path):
            os.fsync(self.descriptor)
        self.synced = n

    def read(self) -> None:
        """Take up all lines until the first that is torn or out of order, and cut off the rest."""
        self._forget()
        self.synced = 0
        with os.fdopen(os.dup(self.descriptor), "rb") as file:
            file.seek(0)
            file.readline(MAX_LINE)
            self.ends = [(0, file.tell())]
            while (entry := _parse(file.readline(MAX_LINE))) is not None:
                if "synced" in entry:
                    self.synced = min(entry["synced"], len(self))
                elif entry.get("first") == len(self) and "images" in entry:
                    self._count([Done(*row) for row in entry["images"]])
                else:
                    break
                self.ends.append((len(self), file.tell()))
        os.ftruncate(self.descriptor, self.ends[-1][1])
        os.lseek(self.descriptor, 0, os.SEEK_END)

    def keep(self, n: int) -> None:
        """Forget the lines that go beyond the first `n` images."""
        os.ftruncate(self.descriptor, max(size for images, size in self.ends if images <= n))
        self.read()

    def close(self) -> None:
        """Close the file; its lock goes with it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)


class BusyError(RuntimeError):
    """Another process is converting to the same file."""


class OtherPlanError(RuntimeError):
    """The journal belongs to a conversion of other images, or with other settings."""


def open_journal(path: Path, header: dict[str, Any]) -> Journal:
    """Return the journal at `path`, begun if there is none that can be read, and locked.

    Raises
    ------
    BusyError, OtherPlanError
    OSError
        If it cannot be opened or written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with naming(path):
            try:
                lock(descriptor)
            except BlockingIOError as error:
                raise BusyError from error
            if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
                raise BusyError  # the one who had the lock has just finished, and removed it
        journal = Journal(descriptor, path)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            first = _parse(file.readline(MAX_LINE))
        if first is None:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            journal.append(header)
        elif first != header:
            raise OtherPlanError(str(path))
        journal.read()
        return journal
    except BaseException:
        os.close(descriptor)
        raise


def _line(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return what a line says, or None if it is not whole, or says what no conversion notes."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict):
        return None
    synced, rows = entry.get("synced", 0), entry.get("images", [])
    if type(synced) is not int or synced < 0 or not isinstance(rows, list):
        return None
    return entry if all(map(_is_row, rows)) else None


def _is_row(row: Any) -> bool:
    """Return whether a row can be that of an image; a line changed by hand may have a fitting CRC."""
    if not isinstance(row, list) or len(row) != 6:
        return False
    state, checksum, size, sums, squares, reason = row
    if not isinstance(sums, list) or not isinstance(squares, list) or len(sums) != len(squares):
        return False
    numbers = [state, checksum, size, *sums, *squares]
    return (
        set(map(type, numbers)) == {int}
        and min(numbers) >= 0
        and (state <= SKIPPED and checksum < 1 << 32 and size <= MAX_IMAGE_BYTES and len(sums) <= 3)
        and isinstance(reason, str)
    )


@contextlib.contextmanager
def naming(path: Path | str | None) -> Iterator[None]:
    """Have an OSError of the block say which file it is about: one of a descriptor does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and path is not None:
            error.filename = str(path)
        raise


def write_all(descriptor: int, data: bytes, offset: int | None = None) -> None:
    """Write all of `data`, at `offset` or where the file stands."""
    view = memoryview(data)
    while view:
        n = os.write(descriptor, view) if offset is None else os.pwrite(descriptor, view, offset)
        view = view[n:]
        offset = None if offset is None else offset + n
