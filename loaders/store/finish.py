"""The end of a conversion: head and report, and the store gets its name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from npgait.files import rename, shown, write_text
from npgait.loaders.dataset import DataError
from npgait.loaders.store import layout
from npgait.loaders.store.frame import frame
from npgait.loaders.store.job import LEAST_ROOM, Job
from npgait.loaders.store.journal import naming, write_all
from npgait.loaders.store.layout import GOOD, Head
from npgait.loaders.store.listing import ArrayListing

NAMES_BYTES = 1 << 30  # of all names of images; 838 each of ImageNet's training set


def first_head(job: Job) -> Head:
    """Return the head as far as the listing tells it; the rest has its size."""
    n, channels = len(job.listing), job.shape[2]
    s = job.settings
    fitted = f"short side to {s.size} pixels (bicubic), cropped at the centre, upright, RGB"
    kept = {
        "raw": fitted,
        "jpeg": f"{fitted}; JPEG quality {s.quality}",
        "original": f"source files as they were; as read: {fitted}",
    }
    made_by = "as published" if isinstance(job.listing, ArrayListing) else kept[s.store]
    return Head(
        name=job.listing.name,
        split=job.listing.split,
        store=s.store,
        image_shape=job.shape,
        max_value=getattr(job.listing, "max_value", 255),
        made_by=made_by,
        plan=job.plan,
        labels=job.listing.labels.astype(np.int64),
        classes=job.listing.classes,
        sources=_as_bytes(job.listing.names),
        state=np.zeros(n, np.uint8),
        checksums=np.zeros(n, np.uint32),
        mean=np.zeros(channels),
        std=np.ones(channels),
        offsets=None if job.raw else np.zeros(n + 1, np.int64),
    )


def _final_head(job: Job) -> Head:
    journal, channels = job.journal, job.shape[2]
    n_good = journal.states.count(GOOD)
    if n_good == 0:
        job.part.unlink()  # nothing is lost, and the next start looks at the images again
        job.journal_path.unlink()
        raise DataError(
            f"{job.out}: not one of {len(journal)} images could be used; the first: "
            f"{shown(journal.reasons[0])}"
        )
    pixels = n_good * job.shape[0] * job.shape[1]
    mean, std = _statistics(journal.sums[:channels], journal.squares[:channels], pixels)
    return replace(
        first_head(job),
        state=np.array(journal.states, np.uint8),
        checksums=np.array(journal.checksums, np.uint32),
        mean=mean,
        std=std,
        offsets=None if job.raw else np.cumsum([0, *journal.sizes]),
    )


def finish(job: Job) -> Path | None:
    """Write head and report, and give the file its name.

    Raises
    ------
    DataError
        If not one image could be used, or the images do not lie where this version of h5py has them.
    OSError
        If the disk is full.
    """
    head = _final_head(job)
    room = job.room if head.offsets is None else max(LEAST_ROOM, int(head.offsets[-1]))
    around = frame(head, room)
    if len(around.before) != job.start:
        raise DataError(f"{job.out}: was begun by another version of h5py; go on with that one")
    with naming(job.part), job.part.open("r+b") as part:
        part.truncate(job.start + room)
        write_all(part.fileno(), around.before, 0)
        write_all(part.fileno(), around.behind, job.start + room)
    report = _write_report(job)
    with naming(job.part):
        rename(job.part, job.out)
    job.journal_path.unlink()
    return report


def _write_report(job: Job) -> Path | None:
    """Write one line a skipped image: its number, its name, the reason; without one there is no file."""
    lines = [
        f"{i}\t{shown(job.listing.names[i])}\t{shown(reason)}\n"
        for i, reason in job.journal.reasons.items()
    ]
    if not lines:
        job.report_path.unlink(missing_ok=True)  # of an earlier store of this name
        return None
    write_text(job.report_path, "".join(lines))
    return job.report_path


def _as_bytes(names: Sequence[str]) -> NDArray[np.bytes_]:
    """Return names as UTF-8 in an array of one width; what is not text is escaped.

    The longest are cut: all take as much memory as one of them does.
    """
    most = min(layout.MAX_NAME, NAMES_BYTES // len(names))
    cut = [name.encode("utf-8", "backslashreplace")[:most] for name in names]
    return np.array([name.decode("utf-8", "ignore").encode() for name in cut])


def _statistics(
    sums: list[int], squares: list[int], pixels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation by channel from exact sums over `pixels`; sd 1 for 0."""
    mean = [s / max(pixels, 1) for s in sums]
    # In whole numbers until the end, so that no digits cancel.
    variance = [(q * pixels - s * s) / max(pixels, 1) ** 2 for s, q in zip(sums, squares, strict=True)]
    return np.array(mean), np.array([math.sqrt(v) if v > 0 else 1.0 for v in variance])
