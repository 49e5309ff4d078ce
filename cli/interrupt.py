"""Ctrl-C, SIGTERM and the end of a terminal: finish the batch, save, stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import click

HANGUP = getattr(signal, "SIGHUP", None)  # which Windows has not
STDERR = 2


class StopRequest:
    """Becomes true when the user or the system asks the run to stop."""

    def __init__(self, message: str) -> None:
        self.signal: int | None = None
        self.message = message

    def __call__(self) -> bool:
        """Return whether a stop was asked for."""
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; give up at once on the second.

        A terminal that goes may say so twice, by shell and system, and takes no message any more.
        """
        if self.signal is not None and number != HANGUP:
            raise KeyboardInterrupt
        self.signal = self.signal or number
        words = f"\n{self.message} (once more to stop at once) ...\n"
        with suppress(OSError):
            os.write(STDERR, words.encode())  # sys.stderr may be in the midst of a write of its own


@contextmanager
def stop_on_signals(goes_on: str, message: str = "stopping after this batch") -> Iterator[StopRequest]:
    """Give a `StopRequest` that SIGINT, SIGTERM and SIGHUP make true while the block runs.

    The second ends the block at once, and `goes_on` says by which command its work goes on.
    """
    request = StopRequest(message)
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, HANGUP):  # one that is ignored stays so: nohup, say
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, request.handle)
    try:
        yield request
    except KeyboardInterrupt:
        click.echo(f"stopped at once; {goes_on}", err=True)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
