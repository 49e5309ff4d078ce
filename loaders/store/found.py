"""Finds the images of one split, and the folder or archive that says the class of each."""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from npgait.files import shown
from npgait.loaders.dataset import DataError
from npgait.loaders.store.archives import Place, files_in_archive
from npgait.loaders.store.folders import files_in_folder

TEXTS = (".txt", ".csv", ".mat", ".md", ".json", ".xml", ".html")


@dataclass
class Found:
    """Images in the order in which they were found.

    Attributes
    ----------
    names : list of str
        Paths below the folder or archive.
    owners : list of str
        Class of each; "" where no folder says it.
    numbers : list of tuple of int
        Of files, size and time; in archives, number of the archive, offset and size.
    archives : tuple of str
        Paths of the archives, if they lie in some.
    """

    names: list[str] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)
    numbers: list[tuple[int, ...]] = field(default_factory=list)
    archives: tuple[str, ...] = ()

    def add(self, name: str, owner: str, numbers: tuple[int, ...]) -> None:
        """Append an image."""
        self.names.append(name)
        self.owners.append(owner)
        self.numbers.append(numbers)


def find_images(
    place: Path,
    *,
    told: bool,
    splits: AbstractSet[str],
    leave_out: frozenset[str],
    skip_unreadable: bool,
) -> Found:
    """Return the images in a folder or archive.

    Parameters
    ----------
    place : Path
    told : bool
        Whether a text is to say the classes: images in one folder of an archive are then flat files.
    splits : set of str
        What folders of splits are called.
    leave_out, skip_unreadable : frozenset of str, bool
        See `files_in_folder` and `files_in_archive`.

    Raises
    ------
    DataError
        If it is neither, or is damaged.
    OSError
        If it cannot be read.
    """
    read = partial(files_in_archive, skip_unreadable=skip_unreadable)
    if not place.is_dir():
        found = Found(archives=(str(place),))
        for name, owner, at in _in_archive(place, read, told, splits):
            found.add(name, owner, (0, *at))
        return found
    tars = _tars(place, leave_out)
    if not tars:
        return _in_folder(place, leave_out, skip_unreadable)
    found = Found(archives=tuple(str(tar) for tar in tars))
    for number, tar in enumerate(tars):
        for name, owner, at in _of_class(tar.stem, read(tar), shown(tar)):
            found.add(name, owner, (number, *at))
    return found


def is_tar(name: str) -> bool:
    """Return whether a file is called as an archive."""
    return name.lower().endswith(".tar")


def _is_text_about(name: str) -> bool:
    """Return whether a file beside the images is a text about them, such as the ground truth."""
    return name.lower().endswith(TEXTS)


def _in_folder(root: Path, leave_out: frozenset[str], skip_unreadable: bool) -> Found:
    found = Found()
    for name, stamp in files_in_folder(root, leave_out, skip_unreadable=skip_unreadable):
        owner, _, inner = name.partition("/")
        if inner or not _is_text_about(name):
            found.add(name, owner if inner else "", stamp)
    return found


def _tars(folder: Path, leave_out: frozenset[str]) -> list[Path]:
    """Return the archives of the classes, if that is what a folder holds."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    tars = [path for path in paths if is_tar(path.name)]
    if not tars or any(path.is_dir() for path in paths):
        return []
    real = os.path.realpath(folder)
    for path in paths:
        known = is_tar(path.name) or _is_text_about(path.name) or f"{real}/{path.name}" in leave_out
        if not known:
            raise _stray(str(folder), path.name)
    return tars


def _stray(where: str, name: str) -> DataError:
    return DataError(
        f"{where}: {shown(name)} lies beside the archives of the classes; expected it in one"
    )


def _in_archive(
    path: Path, read: Callable[..., dict[str, Place]], told: bool, splits: AbstractSet[str]
) -> Iterator[tuple[str, str, Place]]:
    """Yield name, class and place of the images in an archive of folders, or of archives."""
    files = read(path)
    tars = [name for name in files if is_tar(name)]
    others = [name for name in files if not is_tar(name) and not _is_text_about(name)]
    if not tars or not {posixpath.dirname(n) for n in others} <= {posixpath.dirname(n) for n in tars}:
        yield from _by_folders(path, files, told, splits)
        return
    if others:
        raise _stray(str(path), others[0])
    for name in tars:
        owner = posixpath.basename(name)[: -len(".tar")]
        inner = read(path, name, files[name])
        yield from _of_class(owner, inner, f"{shown(path)}: the archive {shown(name)} in it")


def _of_class(owner: str, files: dict[str, Place], where: str) -> Iterator[tuple[str, str, Place]]:
    """Yield the images in the archive of a class, with or without the folder that it was packed from."""
    if not files:
        raise DataError(f"{where}: holds no files; get or pack it again")
    inner = f"{owner}/" if all(name.startswith(f"{owner}/") for name in files) else ""
    for name, at in files.items():
        yield f"{owner}/{name.removeprefix(inner)}", owner, at


def _by_folders(
    path: Path, files: dict[str, Place], told: bool, splits: AbstractSet[str]
) -> Iterator[tuple[str, str, Place]]:
    """Yield the images of an archive of folders, without the folders that lead to the classes."""
    paths = {name: tuple(name.split("/")) for name in files}
    depth = _wrapping(list(paths.values()), told, splits)
    owners = set()
    for name, parts in paths.items():
        if len(parts) <= depth + 1 and _is_text_about(name):
            continue
        owner = parts[depth] if len(parts) > depth + 1 else ""
        owners.add(owner)
        yield "/".join(parts[depth:]), owner, files[name]
    if len(owners) > 1 and owners <= splits:
        raise DataError(
            f"{path}: holds {', '.join(sorted(owners))}, which look like splits; unpack it, or pack "
            "each alone"
        )


def _wrapping(paths: Sequence[tuple[str, ...]], told: bool, splits: AbstractSet[str]) -> int:
    """Return how many folders lead to those of the classes: what all images have in common."""
    images = [path for path in paths if not _is_text_about(path[-1])] or paths
    common = _common([path[:-1] for path in images])
    # Texts on the way there, such as a README, are none of them; texts elsewhere are in some class.
    inner = [p for p in paths if not _is_text_about(p[-1]) or common[: len(p) - 1] != p[:-1]]
    common = _common([path[:-1] for path in inner])
    flat = [len(path) == len(common) + 1 for path in inner]
    if not any(flat):
        return len(common)
    if not all(flat):  # one class, which has folders of its own
        return max(len(common) - 1, 0)
    if told:
        return len(common)
    return next((i for i, name in enumerate(common) if name not in splits), len(common))


def _common(folders: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the folders that all paths begin with."""
    first, last = min(folders, default=()), max(folders, default=())
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return tuple(name for name, _ in alike)
