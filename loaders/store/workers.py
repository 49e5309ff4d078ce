"""The parent's side of `worker`: starts processes, hands out tasks, and outlives what kills them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from npgait.loaders.store.decode import BadImageError, read_source
from npgait.loaders.store.journal import Done, naming
from npgait.loaders.store.worker import skipped

PROGRAM = "from npgait.loaders.store.worker import main; main()"
Where = tuple[str, int, int | None]
SECONDS = 60.0  # for one image
START_SECONDS = 60.0  # until a process is ready
STARTS, FIRST_WAIT = 5, 0.2  # tries to start a process; seconds between the first, then twice as many
TRIES = 3  # of an image alone: what ended its process may have come from outside


class WorkerError(RuntimeError):
    """A worker cannot be started, or does not answer as one."""


class _WorkerLostError(RuntimeError):
    """The process ended, or took too long; the message says which."""


class Workers:
    """Processes that decode, each driven by a thread; a context that ends them.

    Parameters
    ----------
    n : int
        How many.
    settings : dict
        Of the conversion: store, size, quality, part, skip_unreadable.
    """

    def __init__(self, n: int, settings: dict[str, Any]) -> None:
        self.settings = settings
        self._threads = ThreadPoolExecutor(n, thread_name_prefix="npgait-convert")
        self._local = threading.local()
        self._processes: set[subprocess.Popen] = set()
        self._ended = threading.Event()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in list(self._processes):
            process.kill()
        self._threads.shutdown(wait=True)
        for process in list(self._processes):
            _end(process)

    def submit(self, where: list[Where], offsets: list[int]) -> Future:
        """Return the future (list of Done, bytes to store) of a task.

        Its `result` raises OSError if the source cannot be read or the disk is full.
        """
        return self._threads.submit(self._convert, where, offsets)

    def _convert(self, where: list[Where], offsets: list[int]) -> tuple[list[Done], bytes]:
        for tries in range(1 if len(where) > 1 else TRIES, 0, -1):
            try:
                return self._ask(where, offsets)
            except _WorkerLostError as error:
                if len(where) == 1 and tries == 1:
                    return [skipped(str(error), self.settings)], b""
                if len(where) == 1:
                    self._await_source(where[0])
        # One of them takes the process down: each alone tells which.
        parts = [self._convert([one], [offset]) for one, offset in zip(where, offsets, strict=True)]
        return [one for done, _ in parts for one in done], b"".join(data for _, data in parts)

    def _await_source(self, where: Where) -> None:
        """Read a source here, without a limit: a mount that hangs is no fault of the image."""
        left_to_worker = (
            [BadImageError, OSError] if self.settings["skip_unreadable"] else [BadImageError]
        )
        with contextlib.suppress(*left_to_worker), naming(where[0]):
            read_source(*where)

    def _ask(self, where: list[Where], offsets: list[int]) -> tuple[list[Done], bytes]:
        process = self._process()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"where": where, "offsets": offsets}).encode() + b"\n")
            process.stdin.flush()
            line = _line(process, SECONDS * len(where))
            try:
                answer = json.loads(line)
            except ValueError:
                raise _strange(line) from None
            if "errno" in answer:
                raise OSError(answer["errno"], answer["text"], answer["file"])
            done = [Done(*row) for row in answer["done"]]
            size = sum(one.size for one in done) if self.settings["store"] != "raw" else 0
            data = process.stdout.read(size)
            if len(data) < size:
                raise _WorkerLostError(f"the decoder crashed ({_reason(process)})")
            return done, data
        except BrokenPipeError as error:
            self._drop(process)
            raise _WorkerLostError(f"the decoder crashed ({_reason(process)})") from error
        except (_WorkerLostError, WorkerError):
            self._drop(process)
            raise

    def _process(self) -> subprocess.Popen:
        """Return the process of this thread, started if there is none."""
        process = getattr(self._local, "process", None)
        wait = FIRST_WAIT
        for tries in range(STARTS, 0, -1):
            if process is not None:
                break
            if self._ended.is_set():
                raise WorkerError("the conversion has ended")
            try:
                process = self._start()
            except (_WorkerLostError, OSError) as error:  # no memory left, for a while or for ever
                if tries == 1:
                    raise WorkerError(
                        f"a process that decodes images did not start: {error}; if the machine is short "
                        "of memory, use fewer --workers; the same command goes on"
                    ) from error
                self._ended.wait(wait)
                wait *= 2
        assert process is not None
        self._local.process = process
        return process

    def _start(self) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, json.dumps(self.settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C is for the parent
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._processes.add(process)
        try:
            line = _line(process, START_SECONDS)
            if line != b"ready\n":
                raise _strange(line)
        except (_WorkerLostError, WorkerError):
            self._drop(process)
            raise
        return process

    def _drop(self, process: subprocess.Popen) -> None:
        self._local.process = None
        self._processes.discard(process)
        _end(process)


def _line(process: subprocess.Popen, seconds: float) -> bytes:
    """Return the next line of an answer."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN | select.POLLHUP)
    if not poll.poll(1000 * seconds):
        raise _WorkerLostError(f"took more than {seconds:.0f} s")
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        raise _WorkerLostError(f"the decoder crashed ({_reason(process)})")
    return line


def _strange(line: bytes) -> WorkerError:
    return WorkerError(
        f"a process that decodes images printed {repr(line[:60])[1:]} in place of its answer; does "
        "sitecustomize.py or a .pth file of this Python print? Have it print to stderr"
    )


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _reason(process: subprocess.Popen) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)
    code = process.returncode
    return "no answer" if code is None else f"signal {-code}" if code < 0 else f"status {code}"
