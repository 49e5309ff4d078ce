"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

import click
from tqdm import tqdm

EVERY = 10.0  # seconds between lines where there is no terminal


class Lines:
    """Shows how many of `total` are done, the rate and the time left; a context that ends the line.

    Parameters
    ----------
    name, unit : str
        What is worked on, and what is counted.
    total : int
    quiet : bool
        Whether nothing is shown.
    """

    def __init__(self, name: str, unit: str, total: int, *, quiet: bool) -> None:
        self.name, self.unit, self.total, self.quiet = name, unit, total, quiet
        self.on_terminal = sys.stderr.isatty()
        self.bar: tqdm | None = None
        self.first = 0
        self.started = self.last = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, done: int, bad: int) -> None:
        """Show that `done` are done in all, `bad` of them not well."""
        if self.quiet:
            return
        if self.bar is None:  # what an earlier start did is not part of the rate
            self.first = done
            self.bar = tqdm(
                total=self.total,
                initial=done,
                desc=self.name,
                unit=self.unit,
                disable=not self.on_terminal,
            )
        self.bar.update(done - self.bar.n)
        if bad:
            self.bar.set_postfix_str(f"{bad} bad", refresh=False)
        now = time.monotonic()
        if not self.on_terminal and (now - self.last > EVERY):
            self.last = now
            rate = (done - self.first) / max(now - self.started, 1e-9)
            left = (self.total - done) / rate if rate else float("inf")
            bad_text = f", {bad} bad" if bad else ""
            click.echo(
                f"{self.name}: {done} of {self.total} {self.unit}s{bad_text}, {rate:.0f} a second, "
                f"{left:.0f} s left",
                err=True,
            )

    def print(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if self.bar is not None and self.on_terminal:
            self.bar.clear()
        click.echo(text)
