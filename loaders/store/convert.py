"""`prepare`: images into a store, so that it can be stopped at any moment and goes on.

OUT.part is the store in the making: room for all images first, then their bytes at known places.
OUT.journal says which are done. When all are, the head is written with what is now known (checksums,
mean, ...), and the file is renamed to OUT. Whatever is killed in between, the next start takes up the
journal.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from npgait.files import beside
from npgait.loaders.dataset import DataError
from npgait.loaders.store.finish import finish, first_head
from npgait.loaders.store.frame import frame
from npgait.loaders.store.job import Job, Outcome, Settings, plan_of
from npgait.loaders.store.journal import (
    BusyError,
    Done,
    Journal,
    OtherPlanError,
    open_journal,
)
from npgait.loaders.store.layout import GOOD, SKIPPED, open_store
from npgait.loaders.store.listing import ArrayListing, Listing
from npgait.loaders.store.part import allocate, commit, synced_now_and_then
from npgait.loaders.store.reader import check_system, cores
from npgait.loaders.store.workers import Workers

ARRAY_TASK = 1024  # images of an array that are written at a time
TASK, AHEAD = 8, 3  # images of a task; tasks a worker has in hand: what a kill may have to redo


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
        those it was begun with. On Windows.
    OSError
        If the disk is full, or the source cannot be read. Nothing that was done is lost.
    """
    check_system()
    settings = settings or Settings()
    if isinstance(listing, ArrayListing) and settings.store != "raw":
        raise DataError(f"{listing.name} comes as pixels: only --store raw keeps them as they are")
    if settings.shuffled:
        order = np.random.default_rng(settings.seed).permutation(len(listing))
        listing = listing.reordered(order)
    job = Job(listing, settings, out, plan_of(listing, settings))
    if out.exists():
        return _made_before(job)
    with _journal_of(job):
        if out.exists():  # finished by another process, between the look and the lock
            return _made_before(job)
        redone = _take_up(job)
        count = _Count(progress, job.journal)
        with synced_now_and_then(job) as sync_if_due:
            for done, data in _converted(job, workers, stop):
                commit(job, done, data)
                count.add(done)
                sync_if_due()
        n = len(job.journal)
        finished = n == len(listing)
        report = finish(job) if finished else None
        return Outcome(out, len(listing), n, count.skipped, redone, finished, report)


class _Count:
    """Images done and skipped, told to whoever watches."""

    def __init__(self, progress: Callable[[int, int], None], journal: Journal) -> None:
        self.progress, self.journal = progress, journal
        self.skipped = len(journal.reasons)
        progress(len(journal), self.skipped)

    def add(self, done: list[Done]) -> None:
        self.skipped += sum(one.state == SKIPPED for one in done)
        self.progress(len(self.journal), self.skipped)


def _made_before(job: Job) -> Outcome:
    """Return the outcome of an earlier start, if `out` is that."""
    try:
        head = open_store(job.out).head
    except DataError as error:
        raise DataError(
            f"{job.out} is taken by something that is no good image store ({error}); "
            "choose another name, or remove it first"
        ) from error
    if head.plan != job.plan:
        raise DataError(
            f"{job.out} is there, made of other images or with other settings; choose another name, or "
            "remove it first"
        )
    for left in (job.journal_path, job.part):
        left.unlink(missing_ok=True)
    report = job.report_path
    skipped = int((head.state == SKIPPED).sum())
    return Outcome(
        job.out,
        len(head.labels),
        len(head.labels),
        skipped,
        before=True,
        report=report if skipped and report.exists() else None,
    )


@contextlib.contextmanager
def _journal_of(job: Job) -> Iterator[None]:
    """Open the journal and the part file of a job, with room in it for every image."""
    path, folder = job.journal_path, job.out.parent
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{job.out}: {folder} is no folder; give a name in one")
    around = frame(first_head(job), job.room)
    job.start, job.behind = len(around.before), len(around.behind)
    header = {"format": "npgait journal", "version": 1, "plan": job.plan, "start": job.start}
    if isinstance(job.listing, Listing):
        header["files"] = job.listing.state()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the longest name of all: too long shows now
            os.lstat(job.report_path)
        job.journal = open_journal(path, header)
    except OSError as error:
        if not os.path.exists(path):  # nobody has asked for a journal; Path.exists may say so again
            error.filename = str(job.out)
        raise
    except BusyError as error:
        raise DataError(f"{job.out}: another process is making it now") from error
    except OtherPlanError as error:
        raise DataError(
            f"{job.out}: was begun with other images or settings (see {path}); remove {path.name} to "
            "begin anew, or give what it was begun with"
        ) from error
    try:
        _remove_stale(job)
        yield
    finally:
        job.journal.close()


def _remove_stale(job: Job) -> None:
    """Remove what a start that was killed had written beside; call with the lock held."""
    for path in job.out.parent.iterdir():
        temporary = re.fullmatch(r"(?s)\..*\.([1-9][0-9]{0,9})\.tmp", path.name)
        if temporary and path == beside(job.report_path, int(temporary[1])):
            path.unlink(missing_ok=True)


def _take_up(job: Job) -> int:
    """Bring journal and part file together; return how many images have to be done again."""
    journal, before = job.journal, len(job.journal)
    if not job.part.exists():
        journal.keep(0)
    elif not before:  # a decoder of a start that was killed may still write into it, in other order
        job.part.unlink()
    written = job.start + sum(journal.sizes)
    cut_short = bool(len(journal)) and job.part.stat().st_size < written
    allocate(job)
    good = 0 if cut_short else journal.synced
    with job.part.open("rb") as part:
        part.seek(job.start + sum(journal.sizes[:good]))
        while good < len(journal):
            if zlib.crc32(part.read(journal.sizes[good])) != journal.checksums[good]:
                journal.keep(good)  # was written, and lost with the power
            good += 1
    job.end = job.start + sum(journal.sizes)
    return before - len(journal)


def _converted(
    job: Job, workers: int | None, stop: Callable[[], bool]
) -> Iterator[tuple[list[Done], bytes]]:
    """Yield what became of each stretch of images that is not done, in order."""
    first, n = len(job.journal), len(job.listing)
    if isinstance(job.listing, ArrayListing):
        for i in range(first, n, ARRAY_TASK):
            if stop():
                return
            yield _from_array(job.listing.images[i : i + ARRAY_TASK])
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
