"""Finds the plain files within a tar archive, and refuses one that has lost some.

Images are read at their places, never unpacked. `tarfile` takes a damaged header, and the end of a file
that was cut between two members, for the end of the archive: here that must be there, with nothing
behind it.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from npgait.files import shown
from npgait.loaders.dataset import DataError

MAX_READ = 1 << 20  # bytes of a header, such as a long name; what says more is damaged or hostile
MAX_LINKS = 40  # one after the other, as Linux has it
BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
NO_DATA = (tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"V", b"D")


class Place(NamedTuple):
    """Where the bytes of a file lie in an archive."""

    offset: int
    size: int


class _Link(NamedTuple):
    """A symbolic link; what it points to may come later in the archive."""

    target: str


class _Window:
    """A stretch of a file, as `tarfile` reads it; to read past the end, or very much, is an error."""

    def __init__(self, file: IO[bytes], place: Place) -> None:
        self.file, self.start, self.size = file, place.offset, place.size
        self.position = 0

    def seek(self, position: int) -> None:
        self.position = position

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise tarfile.ReadError(f"a header of {size} bytes; expected up to {MAX_READ}")
        if not 0 <= self.position <= self.size - size:
            raise tarfile.ReadError(f"ends after {self.size} bytes, without the mark of the end")
        self.file.seek(self.start + self.position)
        data = self.file.read(size)
        self.position += len(data)
        return data


def files_in_archive(
    path: Path, member: str = "", place: Place | None = None, *, skip_unreadable: bool = False
) -> dict[str, Place]:
    """Return the plain files of an archive, by their paths in it; hidden ones are not data.

    Of members of one name the last counts, and links stand for what they point to: as unpacked by `tar`.

    Parameters
    ----------
    path : Path
        The archive.
    member, place : str, Place, optional
        Name and place of an archive within it, to be read instead.
    skip_unreadable : bool
        Whether a link to what is not in it counts as a file of no bytes, for the conversion to skip it.

    Raises
    ------
    DataError
        If it is no archive, is damaged or cut short, or holds a link to what is not in it.
    OSError
        If it cannot be read.
    """
    where = f"{shown(path)}: the archive {shown(member)} in it" if member else shown(path)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(f"{where}: is neither a folder nor a file")
    found: dict[str, Place | _Link] = {}
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for info in _members(_Window(file, place or Place(0, size)), where, inner=bool(member)):
            _take(info, found, where)
    start = place.offset if place else 0
    files: dict[str, Place] = {}
    for name, entry in found.items():
        if not any(part.startswith(".") for part in name.split("/")):
            at = _resolved(name, entry, found)
            if at is None and not skip_unreadable:
                assert isinstance(entry, _Link)
                raise DataError(
                    f"{where}: {shown(name)} is a link to {shown(entry.target)}, which is no file in "
                    "the archive; pack it again with --dereference, or give --skip-unreadable"
                )
            files[name] = Place(start + at.offset, at.size) if at else Place(0, 0)
    return files


def _members(window: _Window, where: str, *, inner: bool) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive up to its end, which is checked."""
    before = -1
    tar = None
    try:
        tar = tarfile.TarFile(fileobj=window, mode="r")  # type: ignore[arg-type]
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # where it would keep every header
            if info.size < 0 or tar.offset <= before:  # a size below 0 would go round for ever
                raise tarfile.ReadError(f"a member of {info.size} bytes")
            before = tar.offset
            yield info
        _check_end(window, tar.offset)
    except (OSError, DataError):
        raise
    except Exception as error:  # tarfile raises anything on a damaged header
        if tar is None and not inner:
            raise DataError(
                f"{where}: no tar archive, or a compressed one ({shown(error)}); unpack the compression "
                "first"
            ) from error
        at = 0 if tar is None else tar.offset
        raise DataError(
            f"{where}: is damaged or cut short at byte {at} ({shown(error)}); get or pack it again"
        ) from error


def _check_end(window: _Window, offset: int) -> None:
    """Check that an archive ends at `offset`: a block of zeros, better two, and no more than padding.

    A single block with data behind it, and data behind the last record, are members whose header was
    lost: a hole in a download. What fills up the record after two blocks may be anything (POSIX).
    """
    window.seek(offset)
    if any(window.read(BLOCK)):
        raise tarfile.ReadError("a header that is none")
    position = offset + BLOCK
    if position < window.size:
        window.seek(position)
        if not any(window.read(min(BLOCK, window.size - position))):
            position = -(-(position + BLOCK) // RECORD) * RECORD
    while position < window.size:
        window.seek(position)
        size = min(MAX_READ, window.size - position)
        if window.read(size).count(0) != size:
            raise tarfile.ReadError("the mark of the end, and more behind it")
        position += size


def _take(info: tarfile.TarInfo, found: dict[str, Place | _Link], where: str) -> None:
    """Note a member, in place of one of its name."""
    if info.type in NO_DATA:
        return
    name = _path(info.name, where)
    if info.issym():
        found[name] = _Link(info.linkname)
    elif info.islnk():  # to what came before, whatever takes that name later
        found[name] = found.get(_path(info.linkname, where), _Link(f"/{info.linkname}"))
    elif info.issparse() or info.type == b"M":
        kind = "sparse" if info.issparse() else "the rest of a"
        raise DataError(f"{where}: {shown(name)} is {kind} file; pack without --sparse, in one volume")
    else:  # a type that nobody knows is a file, as tar takes it
        found[name] = Place(info.offset_data, info.size)


def _path(name: str, where: str) -> str:
    """Return the name of a member below the folder that tar would unpack to."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name or not parts:
        raise DataError(
            f"{where}: the member {shown(name)!r} does not lie below the archive's folder; pack it "
            "again from there"
        )
    return "/".join(parts)


def _resolved(name: str, entry: Place | _Link, found: dict[str, Place | _Link]) -> Place | None:
    """Return the place of a file, following links by names in the archive; None if one is of none."""
    for _ in range(MAX_LINKS):
        if isinstance(entry, Place):
            return entry
        name = posixpath.normpath(posixpath.join(posixpath.dirname(name), entry.target))
        if name not in found:
            return None
        entry = found[name]
    return None
