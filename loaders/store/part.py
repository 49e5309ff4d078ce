"""The store in the making, OUT.part: room for it, what is written into it, and when that is synced."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator

from npgait.files import sync
from npgait.loaders.store.job import Job
from npgait.loaders.store.journal import Done, naming, write_all
from npgait.loaders.store.layout import SKIPPED

SYNC_SECONDS = 30.0
JOURNAL_BYTES = 128  # of an image, about


def allocate(job: Job) -> None:
    """Make the part file as long as it will be, so that a full disk shows now and not in hours.

    Raises
    ------
    OSError
        If the disk has no room for the store.
    """
    descriptor = os.open(job.part, os.O_RDWR | os.O_CREAT, 0o644)
    about = os.fstat(descriptor)
    try:
        with naming(job.out):
            size = job.start + job.room + job.behind
            missing = 0 if about.st_size >= size else max(0, size - 512 * about.st_blocks)
            _check_room(job, missing)
            if not job.raw or about.st_size >= size:
                return
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
            else:
                os.ftruncate(descriptor, size)
    except OSError:
        if not about.st_size:  # nothing is done yet: other settings may be tried
            job.part.unlink()
            job.journal_path.unlink()
        raise
    finally:
        os.close(descriptor)


def _check_room(job: Job, missing: int) -> None:
    """Ask whether the disk has room for `missing` bytes of the store, and for the journal."""
    needed = missing + JOURNAL_BYTES * (len(job.listing) - len(job.journal))
    free = shutil.disk_usage(job.part.parent).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"the disk has {free / 1e6:,.1f} MB free and the store takes {needed / 1e6:,.1f} MB; "
            "make room, choose another disk, a smaller --size, or --store jpeg",
            str(job.out),
        )


def commit(job: Job, done: list[Done], data: bytes) -> None:
    """Write what the workers did not, then note the stretch in the journal."""
    end = job.end
    if data or any(one.state == SKIPPED for one in done):
        with naming(job.part), job.part.open("r+b") as part:
            write_all(part.fileno(), data, end)
            for one in done:
                if job.raw and one.state == SKIPPED:  # a decoder that crashed left whatever was there
                    write_all(part.fileno(), bytes(one.size), end)
                end += one.size
    job.journal.add(done)
    job.end += sum(one.size for one in done)


@contextlib.contextmanager
def synced_now_and_then(job: Job) -> Iterator[Callable[[], None]]:
    """Give a function that has the disk write out now and then, in the background, and notes it."""
    last, written = time.monotonic(), threading.Event()
    under_way: list[tuple[threading.Thread, int]] = []
    problems: list[OSError] = []

    def write_out() -> None:
        try:
            with naming(job.part):
                sync(job.part)
        except OSError as error:
            problems.append(error)
        written.set()

    def sync_if_due() -> None:
        nonlocal last
        if under_way and written.is_set():
            _, n = under_way.pop()
            if problems:
                raise problems[0]
            job.journal.mark_synced(n)
        if not under_way and time.monotonic() - last > SYNC_SECONDS:
            written.clear()
            thread = threading.Thread(target=write_out, daemon=True)
            under_way.append((thread, len(job.journal)))
            thread.start()
            last = time.monotonic()

    try:
        yield sync_if_due
    finally:
        for thread, _ in under_way:
            thread.join()
