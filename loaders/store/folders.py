"""Finds the plain files below a folder, links followed; none is left out without a word."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from npgait.files import shown, stamp
from npgait.loaders.dataset import DataError

VALIDATION_FOLDERS = ("val", "validation", "valid")  # names of one that holds a validation set
UNKNOWN = (-1, -1)  # size and time of what cannot be looked at; converting it says why


class _Folder(NamedTuple):
    """A folder to be listed: its path from the root, the folders above, whether it is a link."""

    path: str
    above: tuple
    linked: bool


def files_in_folder(
    root: Path, leave_out: frozenset[str] = frozenset(), *, skip_unreadable: bool = False
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield path below `root` and (size, time of change in ns) of every file that is not hidden.

    Parameters
    ----------
    root : Path
    leave_out : frozenset of str
        Files that are not data: real path of the folder, "/", name.
    skip_unreadable : bool
        Whether what cannot be looked at, such as a link to nothing, counts as a file, for the conversion
        to skip it.

    Raises
    ------
    OSError
        If a folder cannot be read, or a file not be looked at.
    DataError
        If links lead to one folder in two ways, so that its files would be of two classes.
    """
    names_out = {os.path.basename(path) for path in leave_out}
    seen: dict[tuple[int, int], _Folder] = {}
    waiting = [_Folder("", (), False)]
    while waiting:
        folder = waiting.pop()
        full = os.path.join(root, folder.path)
        about = os.stat(full)
        key = (about.st_dev, about.st_ino)
        if folder.linked and _is_among(key, folder.above):
            continue  # a link to a folder that it lies in: whose files are all listed
        other = seen.setdefault(key, folder)
        if other is not folder and (folder.linked or other.linked):
            one, two = sorted((shown(other.path or "."), shown(folder.path or ".")))
            raise DataError(
                f"{shown(root)}: {one} and {two} are one folder, by a link; remove one of them"
            )
        with os.scandir(full) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = f"{folder.path}/{entry.name}" if folder.path else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.name in names_out and f"{os.path.realpath(full)}/{entry.name}" in leave_out:
                    continue
                try:
                    about = entry.stat()
                except OSError:
                    if not skip_unreadable:
                        raise
                    yield path, UNKNOWN
                    continue
                if stat.S_ISDIR(about.st_mode):
                    waiting.append(_Folder(path, (key, folder.above), entry.is_symlink()))
                elif stat.S_ISREG(about.st_mode):
                    yield path, stamp(about)


def _is_among(key: tuple[int, int], above: tuple) -> bool:
    while above:
        if above[0] == key:
            return True
        above = above[1]
    return False
