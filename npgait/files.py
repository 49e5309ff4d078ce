"""Writing files so that a crash leaves the old one or the new one, never a part."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

# How a file system without locks says so; NFS has the last of a file that is only open to read.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF)

MAX_NAME_BYTES = 255  # of a file or folder, on the file systems in use


@contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, sync it and rename it to `path`.

    If the block fails, `path` is as it was and the temporary file is gone. Of a link, what it leads
    to is replaced.

    Parameters
    ----------
    path : Path
    new : bool
        Whether a file that is there by then is kept, and is an error.

    Raises
    ------
    FileExistsError
        If `new`, and there is a file. Of several processes one makes it.
    OSError
        If `path` is a folder, a pipe or a device, which a file must not take the place of.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no plain file; name one, or a new one", str(path))
    temporary = beside(path, os.getpid())
    try:
        try:
            yield temporary
            (_link if new else rename)(temporary, path)
        except OSError as error:
            if error.filename in (None, str(temporary)):  # which nobody has asked for
                error.filename = str(path)
            raise
    finally:
        with suppress(OSError):  # a read-only file system says so of a file that is not there, too
            temporary.unlink()


def beside(path: Path, process: int) -> Path:
    """Return the temporary path of a process for `path`, its name cut where it would be too long."""
    name = path.name
    while len(os.fsencode(temporary := f".{name}.{process}.tmp")) > MAX_NAME_BYTES:
        name = name[1:]
    return path.with_name(temporary)


def rename(path: Path, to: Path) -> None:
    """Sync a file, then give it the name `to`, so that a crash leaves what was there or all of it."""
    sync(path)
    path.replace(to)
    sync_folder(to.parent)


def _link(path: Path, to: Path) -> None:
    """Sync a file, then give it the name `to` where that is free, and nowhere else."""
    sync(path)
    try:
        os.link(path, to)
    except FileExistsError:
        raise
    except OSError:  # not every file system has links
        to.open("xb").close()
        path.replace(to)
    sync_folder(to.parent)


def sync_folder(folder: Path) -> None:
    """Return once the names in a folder are on the disk, as far as its file system can tell."""
    if os.name != "posix":
        return
    try:
        sync(folder)  # a rename is only safe once its folder is on disk
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync none
            raise


def sync(path: Path) -> None:
    """Return once a file, or the names in a folder, are on the disk."""
    # Windows syncs no file that is open to be read only.
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)  # of a descriptor, it says none
        raise
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock on a file while the block runs; false where another process holds it.

    The system lets go of it with the process, however that ends. A file system without locks gives it
    to everybody.
    """
    with _open_to_lock(path) as file:
        try:
            lock(file.fileno())
            free = True
        except BlockingIOError:
            free = False
        except OSError as error:
            error.filename = str(path)
            raise
        yield free


def _open_to_lock(path: Path) -> BinaryIO:
    """Open a file to write, though nothing is written: NFS locks no other; if need be, to read."""
    try:
        return path.open("r+b")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    return path.open("rb")


def lock(descriptor: int) -> None:
    """Lock an open file until it is closed. A file system without locks gives it to everybody.

    Raises
    ------
    BlockingIOError
        If another process holds the lock.
    """
    try:
        _lock(descriptor)
    except BlockingIOError:
        raise
    except PermissionError as error:  # as Windows says that it is taken
        raise BlockingIOError(*error.args) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        stood = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # a byte beyond the end, which nobody reads
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, stood, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_text(path: Path, limit: int) -> str:
    """Return the text of a file of up to `limit` bytes; what is not UTF-8 becomes U+FFFD.

    Raises
    ------
    ValueError
        If the file is larger.
    OSError
        If it cannot be read.
    """
    return read_bytes(path, limit).decode("utf-8", errors="replace")


def read_bytes(path: Path, limit: int, *, pipes: bool = False) -> bytes:
    """Return the bytes of a file of up to `limit`, whatever its size is said to be.

    Parameters
    ----------
    path : Path
    limit : int
    pipes : bool
        Whether the file may be a pipe, whose end is waited for.

    Raises
    ------
    ValueError
        If the file is larger.
    OSError
        If it cannot be read.
    """
    with open(path, "rb", opener=None if pipes else _open_plain) as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise ValueError(f"{path} is over {limit} bytes; not a file of npgait's")
    return raw


def _open_plain(path: str, flags: int) -> int:
    """Open a file, but no pipe or device: to open or read one may wait for ever."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # `open` has words of its own for a folder
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "is no plain file", str(path))


def own_item(file: Any, name: str) -> Any:
    """Return what lies in an HDF5 file under a name: what is linked may be a pipe, which never ends.

    Raises
    ------
    ValueError
        If it is a link.
    KeyError
        If there is no such name.
    """
    import h5py

    if isinstance(file.get(name, getlink=True), h5py.SoftLink | h5py.ExternalLink):
        raise ValueError(f"{name} is a link to another place")
    return file[name]


def stamp(about: os.stat_result) -> tuple[int, int]:
    """Return the size of a file, in bytes, and the time of its last change, in ns."""
    return about.st_size, about.st_mtime_ns


def can_be_file(name: str) -> bool:
    """Return whether this process can name a file so: not every locale has every letter."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def printable(text: str) -> str:
    """Return text in which bytes of a file name that are no text in this locale are read as UTF-8.

    What is no UTF-8 either stands as a replacement character.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()


def shown(text: object) -> str:
    """Return words from elsewhere as one printable line: what would move a cursor is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def holds(path: Path, text: str) -> bool:
    """Return whether a file is there and holds `text` (UTF-8), no more and no less."""
    expected = text.encode()
    try:
        return path.is_file() and path.stat().st_size == len(expected) and path.read_bytes() == expected
    except FileNotFoundError:
        return False


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all; `new` as of `replacing`."""
    with replacing(path, new=new) as temporary:
        temporary.write_text(text, encoding="utf-8")
