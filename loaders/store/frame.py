"""The HDF5 around the images of a store, made in memory: HDF5 itself never writes to a disk.

On a disk that is full, it fails in closing the file, and once more when the process ends.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npgait.loaders.store.layout import ATTRIBUTES, FORMAT, VERSION, Head

PAGE = 1 << 16


@dataclass(frozen=True)
class Frame:
    """What lies in the file before the images, and behind them."""

    before: bytes
    behind: bytes


def frame(head: Head, n_bytes: int) -> Frame:
    """Return the HDF5 file with `head` around `n_bytes` of images.

    Equal heads make equal frames, and the images begin at a place that depends on the sizes of the
    head's arrays only.
    """
    import h5py

    memory = _Memory()
    with h5py.File(memory, "w") as file:
        attributes = {key: getattr(head, key) for key in ATTRIBUTES} | {"digest": head.digest()}
        for key, value in {"format": FORMAT, "version": VERSION, **attributes}.items():
            file.attrs[key] = _fixed(value) if isinstance(value, str) else value
        classes = np.array([text.encode() for text in head.classes])
        for name, texts in (("classes", classes), ("sources", head.sources)):
            kind = h5py.string_dtype("utf-8", texts.dtype.itemsize)
            file.create_dataset(name, data=texts.astype(kind), track_times=False)
        for name in ("labels", "state", "checksums", "mean", "std", "offsets"):
            if getattr(head, name) is not None:
                file.create_dataset(name, data=getattr(head, name), track_times=False)
        start = _make_room(file, head, n_bytes)
    size = memory.size
    if start is None:  # an empty dataset has no place
        start = size
    return Frame(memory.stretch(0, start), memory.stretch(start + n_bytes, size))


def _fixed(text: str) -> NDArray[np.bytes_]:
    """Return a text as UTF-8 of fixed length.

    One of variable length would lie in a heap, and where that is damaged HDF5 may never end.
    """
    import h5py

    data = text.encode() or b"\0"
    return np.array(data, h5py.string_dtype("utf-8", len(data)))


def _make_room(file: Any, head: Head, n_bytes: int) -> int | None:
    """Add the dataset of the images, into which nothing is written; return where it begins."""
    import h5py

    raw = head.offsets is None
    shape = (len(head.labels), *head.image_shape) if raw else (n_bytes,)
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)
    images = h5py.h5d.create(
        file.id,
        b"images" if raw else b"encoded",
        h5py.h5t.STD_U8LE,
        h5py.h5s.create_simple(shape),
        layout,
    )
    return images.get_offset()


class _Memory(io.RawIOBase):
    """A file in memory that takes only what is written: the room for the images takes nothing."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.at = self.size = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; see io.IOBase."""
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        """Return the place where it stands."""
        return self.at

    def truncate(self, size: int | None = None) -> int:
        """Set the length; what is added is zero."""
        self.size = self.at if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        """Write all of `data` where it stands."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            number, offset = divmod(self.at + done, PAGE)
            part = view[done : done + PAGE - offset]
            page = self.pages.setdefault(number, bytearray(PAGE))
            page[offset : offset + len(part)] = part
            done += len(part)
        self.at += done
        self.size = max(self.size, self.at)
        return done

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from where it stands, as far as the file goes."""
        view = memoryview(buffer).cast("B")
        data = self.stretch(self.at, min(self.at + len(view), self.size))
        view[: len(data)] = data
        self.at += len(data)
        return len(data)

    def stretch(self, first: int, last: int) -> bytes:
        """Return the bytes from `first` up to `last`."""
        numbers = range(first // PAGE, -(-last // PAGE))
        whole = b"".join(self.pages.get(number, bytes(PAGE)) for number in numbers)
        return whole[first % PAGE : first % PAGE + last - first]
