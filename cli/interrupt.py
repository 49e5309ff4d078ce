"""Ctrl-C and SIGTERM: finish the batch, save, stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click


class StopRequest:
    """Becomes true when the user or the system asks the run to stop."""

    def __init__(self, message: str) -> None:
        self.signal: int | None = None
        self.message = message

    def __call__(self) -> bool:
        """Return whether a stop was asked for."""
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; give up at once on the second."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        click.echo(f"\n{self.message} (once more to stop at once) ...", err=True)


@contextmanager
def stop_on_signals(message: str = "stopping after this batch") -> Iterator[StopRequest]:
    """Give a `StopRequest` that SIGINT and SIGTERM make true while the block runs."""
    request = StopRequest(message)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request.handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
