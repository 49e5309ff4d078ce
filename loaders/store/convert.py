"""`prepare`: images into a store, so that it can be stopped at any moment and goes on.

OUT.part is the store in the making: room for all images first, then their bytes at known places.
OUT.journal says which are done. When all are, the head is written with what is now known (checksums,
mean, ...), and the file is renamed to OUT. Whatever is killed in between, the next start takes up the
journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from npgait.files import rename, sync, write_text
from npgait.loaders.dataset import DataError
from npgait.loaders.store import layout
from npgait.loaders.store.journal import (
    BusyError,
    Done,
    Journal,
    OtherPlanError,
    open_journal,
    write_all,
)
from npgait.loaders.store.layout import GOOD, SKIPPED, Head, open_store
from npgait.loaders.store.listing import ArrayListing, Listing
from npgait.loaders.store.reader import cores
from npgait.loaders.store.workers import Workers

TASK, AHEAD = 8, 3  # images of a task; tasks a worker has in hand: what a kill may have to redo
SYNC_SECONDS = 30.0
LEAST_ROOM = 4096  # of encoded images: HDF5 puts what is smaller elsewhere


@dataclass(frozen=True)
class Settings:
    """How a store is made.

    Parameters
    ----------
    size : int
        Side of the images, in pixels; sets that come as arrays keep theirs.
    store : {"raw", "jpeg", "original"}
        Pixels; JPEG files of that size; or the source's own bytes, resized when read.
    quality : int
        Of the JPEG files, 1 to 95.
    shuffled : bool
        Whether images are stored in an order drawn at random, so that a run of them is a fair sample.
    seed : int
        Of that order.
    skip_unreadable : bool
        Whether a source file that cannot be read is skipped, as a damaged one is.
    """

    size: int = 224
    store: str = "raw"
    quality: int = 90
    shuffled: bool = True
    seed: int = 0
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise ValueError(f"size is {self.size}; expected 1 to 4096 pixels")
        if self.store not in layout.STORES:
            raise ValueError(f"store {self.store!r} is unknown; use one of {', '.join(layout.STORES)}")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality is {self.quality}; expected 1 to 95")


@dataclass(frozen=True)
class Outcome:
    """What a conversion came to."""

    path: Path
    images: int
    done: int
    skipped: int
    redone: int = 0  # done before, and lost with a kill or a crash of the machine
    finished: bool = True
    report: Path | None = None


@dataclass
class _Job:
    """One conversion under way: its plan and its files."""

    listing: Listing | ArrayListing
    settings: Settings
    out: Path
    plan: str = ""
    start: int = 0  # of the images in the file
    end: int = 0  # of the encoded bytes written so far
    journal: Journal = field(default_factory=lambda: Journal(-1))

    @property
    def part(self) -> Path:
        return self.out.with_name(self.out.name + ".part")

    @property
    def raw(self) -> bool:
        return self.settings.store == "raw"

    @property
    def shape(self) -> tuple[int, int, int]:
        if isinstance(self.listing, ArrayListing):
            height, width, channels = self.listing.images.shape[1:]
            return height, width, channels
        return self.settings.size, self.settings.size, 3


def prepare(
    listing: Listing | ArrayListing,
    out: Path,
    settings: Settings | None = None,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, skipped: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Convert the images of a split to an image store, going on where an earlier start was stopped.

    Parameters
    ----------
    listing : Listing or ArrayListing
        From `sources.find_listings`.
    out : Path
        The file to make.
    settings : Settings, optional
    workers : int, optional
        Processes that decode. Default: one a core.
    progress : callable
        Called with the numbers of images done and skipped, whenever they grow.
    stop : callable
        Asked between tasks; when true, what is under way is finished and the outcome says so.

    Returns
    -------
    Outcome

    Raises
    ------
    DataError
        If `out` is something else, another process makes it, or the source or the settings differ from
        those it was begun with.
    OSError
        If the disk is full, or the source cannot be read. Nothing that was done is lost.
    """
    settings = settings or Settings()
    if isinstance(listing, ArrayListing) and settings.store != "raw":
        raise DataError(f"{listing.name} comes as pixels: only --store raw keeps them as they are")
    if settings.shuffled:
        order = np.random.default_rng(settings.seed).permutation(len(listing))
        listing = listing.reordered(order)
    job = _Job(listing, settings, out, _plan(listing, settings))
    if out.exists():
        return _made_before(job)
    with _journal_of(job):
        if out.exists():  # finished by another process, between the look and the lock
            return _made_before(job)
        redone = _take_up(job)
        count = _Count(progress, job.journal)
        with _synced_now_and_then(job) as sync_if_due:
            for done, data in _converted(job, workers, stop):
                _commit(job, done, data)
                count.add(done)
                sync_if_due()
        n = len(job.journal)
        finished = n == len(listing)
        report = _finish(job) if finished else None
        return Outcome(out, len(listing), n, count.skipped, redone, finished, report)


def _plan(listing: Listing | ArrayListing, settings: Settings) -> str:
    """Return the SHA-256 of all that decides the content; equal plans go on with each other."""
    size = 0 if isinstance(listing, ArrayListing) else settings.size
    quality = settings.quality if settings.store == "jpeg" else 0
    text = json.dumps([settings.store, size, quality]) + listing.digest()
    return hashlib.sha256(text.encode()).hexdigest()


class _Count:
    """Images done and skipped, told to whoever watches."""

    def __init__(self, progress: Callable[[int, int], None], journal: Journal) -> None:
        self.progress, self.journal = progress, journal
        self.skipped = len(journal.reasons)
        progress(len(journal), self.skipped)

    def add(self, done: list[Done]) -> None:
        self.skipped += sum(one.state == SKIPPED for one in done)
        self.progress(len(self.journal), self.skipped)


def _made_before(job: _Job) -> Outcome:
    """Return the outcome of an earlier start, if `out` is that."""
    head = open_store(job.out).head
    if head.plan != job.plan:
        raise DataError(
            f"{job.out} is there, made of other images or with other settings; choose another name, or "
            "remove it first"
        )
    for name in (".journal", ".part"):
        job.out.with_name(job.out.name + name).unlink(missing_ok=True)
    report = _report_path(job)
    skipped = int((head.state == SKIPPED).sum())
    return Outcome(
        job.out, len(head.labels), len(head.labels), skipped, report=report if skipped else None
    )


@contextlib.contextmanager
def _journal_of(job: _Job) -> Iterator[None]:
    """Open the journal and the part file of a job, with room in it for every image."""
    path = job.out.with_name(job.out.name + ".journal")
    job.out.parent.mkdir(parents=True, exist_ok=True)
    job.start = _write_template(job, _first_head(job), _room(job))
    header = {"format": "npgait journal", "version": 1, "plan": job.plan, "start": job.start}
    try:
        job.journal = open_journal(path, header)
    except BusyError as error:
        raise DataError(f"{job.out}: another process is making it now") from error
    except OtherPlanError as error:
        raise DataError(
            f"{job.out}: was begun with other images or settings (see {path}); remove {path.name} to "
            "begin anew, or give what it was begun with"
        ) from error
    try:
        yield
    finally:
        job.journal.close()


def _take_up(job: _Job) -> int:
    """Bring journal and part file together; return how many images have to be done again."""
    journal, before = job.journal, len(job.journal)
    if not job.part.exists():
        journal.keep(0)
    written = job.start + sum(journal.sizes)
    cut_short = bool(len(journal)) and job.part.stat().st_size < written
    _allocate(job)
    good = 0 if cut_short else journal.synced
    with job.part.open("rb") as part:
        part.seek(job.start + sum(journal.sizes[:good]))
        while good < len(journal):
            if zlib.crc32(part.read(journal.sizes[good])) != journal.checksums[good]:
                journal.keep(good)  # was written, and lost with the power
            good += 1
    job.end = job.start + sum(journal.sizes)
    return before - len(journal)


def _room(job: _Job) -> int:
    return len(job.listing) * int(np.prod(job.shape)) if job.raw else LEAST_ROOM


def _allocate(job: _Job) -> None:
    """Make the part file as long as it will be, so that a full disk shows now and not in hours."""
    descriptor = os.open(job.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not job.raw:
            return
        size = job.start + _room(job)
        if os.fstat(descriptor).st_size >= size:
            return
        free = shutil.disk_usage(job.part.parent).free
        if free < _room(job):
            raise OSError(
                28,
                f"the disk has {free / 1e9:.1f} GB free and the images take {_room(job) / 1e9:.1f} GB; "
                "make room, choose another disk, a smaller --size, or --store jpeg",
                str(job.out),
            )
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.ftruncate(descriptor, size)
    except OSError as error:
        error.filename = error.filename or str(job.out)
        job.part.unlink()
        raise
    finally:
        os.close(descriptor)


def _converted(
    job: _Job, workers: int | None, stop: Callable[[], bool]
) -> Iterator[tuple[list[Done], bytes]]:
    """Yield what became of each stretch of images that is not done, in order."""
    first, n = len(job.journal), len(job.listing)
    if isinstance(job.listing, ArrayListing):
        for i in range(first, n, 1024):
            if stop():
                return
            yield _from_array(job.listing.images[i : i + 1024])
        return
    if first == n:
        return
    n_workers = max(1, min(workers or cores(), -(-(n - first) // TASK)))
    size = int(np.prod(job.shape))
    settings = asdict(job.settings) | {"part": str(job.part)}
    waiting: deque = deque()
    with Workers(n_workers, settings) as pool:
        for i in range(first, n, TASK):
            if stop():
                break
            images = range(i, min(i + TASK, n))
            where = [job.listing.where(k) for k in images]
            waiting.append(pool.submit(where, [job.start + k * size for k in images]))
            if len(waiting) >= AHEAD * n_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _from_array(images: Any) -> tuple[list[Done], bytes]:
    x = np.ascontiguousarray(images).reshape(len(images), -1, images.shape[-1])
    wide = x.astype(np.int64)
    sums, squares = wide.sum(axis=1).tolist(), (wide * wide).sum(axis=1).tolist()
    size = x[0].size
    done = [
        Done(GOOD, zlib.crc32(one.data), size, s, q) for one, s, q in zip(x, sums, squares, strict=True)
    ]
    return done, x.tobytes()


def _commit(job: _Job, done: list[Done], data: bytes) -> None:
    """Write what the workers did not, then note the stretch in the journal."""
    end = job.end
    if data or any(one.state == SKIPPED for one in done):
        with job.part.open("r+b") as part:
            write_all(part.fileno(), data, end)
            for one in done:
                if job.raw and one.state == SKIPPED:  # a decoder that crashed left whatever was there
                    write_all(part.fileno(), bytes(one.size), end)
                end += one.size
    job.journal.add(done)
    job.end += sum(one.size for one in done)


@contextlib.contextmanager
def _synced_now_and_then(job: _Job) -> Iterator[Callable[[], None]]:
    """Give a function that has the disk write out now and then, in the background, and notes it."""
    last, waiting = time.monotonic(), threading.Event()
    under_way: list[tuple[threading.Thread, int]] = []
    problems: list[OSError] = []

    def write_out() -> None:
        try:
            sync(job.part)
        except OSError as error:
            problems.append(error)
        waiting.set()

    def sync_if_due() -> None:
        nonlocal last
        if under_way and waiting.is_set():
            _, n = under_way.pop()
            if problems:
                raise problems[0]
            job.journal.mark_synced(n)
        if not under_way and time.monotonic() - last > SYNC_SECONDS:
            waiting.clear()
            thread = threading.Thread(target=write_out, daemon=True)
            under_way.append((thread, len(job.journal)))
            thread.start()
            last = time.monotonic()

    try:
        yield sync_if_due
    finally:
        for thread, _ in under_way:
            thread.join()


# --- the finished file ----------------------------------------------------------------------------


def _first_head(job: _Job) -> Head:
    """Return the head as far as the listing tells it; the rest has its size."""
    n, channels = len(job.listing), job.shape[2]
    s = job.settings
    fitted = f"short side to {s.size} pixels (bicubic), cropped at the centre, upright, RGB"
    kept = {"raw": fitted, "jpeg": f"{fitted}; JPEG quality {s.quality}"}
    kept["original"] = f"source files as they were; as read: {fitted}"
    made_by = "as published" if isinstance(job.listing, ArrayListing) else kept[s.store]
    return Head(
        job.listing.name,
        job.listing.split,
        s.store,
        job.shape,
        getattr(job.listing, "max_value", 255),
        made_by,
        job.plan,
        job.listing.labels.astype(np.int64),
        job.listing.classes,
        layout.names_as_bytes(job.listing.names),
        np.zeros(n, np.uint8),
        np.zeros(n, np.uint32),
        np.zeros(channels),
        np.ones(channels),
        None if job.raw else np.zeros(n + 1, np.int64),
    )


def _final_head(job: _Job) -> Head:
    journal, channels = job.journal, job.shape[2]
    n_good = journal.states.count(GOOD)
    if n_good == 0:
        raise DataError(
            f"{job.out}: not one of {len(journal)} images could be used; the first: {journal.reasons[0]}"
        )
    pixels = n_good * job.shape[0] * job.shape[1]
    mean, std = layout.statistics(journal.sums[:channels], journal.squares[:channels], pixels)
    return replace(
        _first_head(job),
        state=np.array(journal.states, np.uint8),
        checksums=np.array(journal.checksums, np.uint32),
        mean=mean,
        std=std,
        offsets=None if job.raw else np.cumsum([0, *journal.sizes]),
    )


def _finish(job: _Job) -> Path | None:
    """Write head and report, and give the file its name."""
    head = _final_head(job)
    room = _room(job) if head.offsets is None else max(LEAST_ROOM, int(head.offsets[-1]))
    _write_template(job, head, room, into=job.part)
    report = _write_report(job)
    rename(job.part, job.out)
    job.out.with_name(job.out.name + ".journal").unlink()
    return report


def _write_template(job: _Job, head: Head, n_bytes: int, into: Path | None = None) -> int:
    """Write the HDF5 file without its images, a hole in their place; return where that begins.

    With `into`, what lies around the hole is copied there.

    Raises
    ------
    DataError
        If the images would not begin where those of `into` do.
    """
    template = job.out.with_name(f".{job.out.name}.{os.getpid()}.tmp")
    try:
        start = layout.write_head(template, head, n_bytes)
        if into is not None:
            if start != job.start:
                raise DataError(f"{job.out}: was begun by another version of h5py; go on with that one")
            with template.open("rb") as source, into.open("r+b") as target:
                write_all(target.fileno(), source.read(start), 0)
                source.seek(start + n_bytes)
                target.truncate(start + n_bytes)
                write_all(target.fileno(), source.read(), start + n_bytes)
        return start
    finally:
        template.unlink(missing_ok=True)


def _report_path(job: _Job) -> Path:
    return job.out.with_name(job.out.name + ".skipped.txt")


def _write_report(job: _Job) -> Path | None:
    """Write one line a skipped image: its number, its name, the reason."""
    names = job.listing.names
    lines = [f"{i}\t{names[i]}\t{reason}\n" for i, reason in job.journal.reasons.items()]
    if not lines:
        return None
    write_text(_report_path(job), "".join(lines).encode("utf-8", "backslashreplace").decode())
    return _report_path(job)
