"""A line an epoch: live on a terminal, plain where output is piped."""

from __future__ import annotations

import shutil
import sys
import time

import click
import numpy as np
from tqdm import tqdm

from npgait.session import Session
from npgait.training import EpochDone, Event, Measured, StepDone


class EpochLines:
    """Shows the epochs of one session; a context that ends the line that is live.

    Parameters
    ----------
    session : Session
    batches : int
        Of an epoch.
    quiet : bool
        Whether nothing is shown.
    """

    def __init__(self, session: Session, batches: int, *, quiet: bool) -> None:
        self.name, self.total = session.experiment.name, session.experiment.epochs
        self.batches, self.quiet, self.progress = batches, quiet, session.progress
        self.batch_size = session.experiment.batch_size
        self.on_terminal = sys.stderr.isatty()
        self.bar: tqdm | None = None
        self.angle: float | None = None
        self.started, self.first = time.monotonic(), session.progress.step

    def __enter__(self) -> EpochLines:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, event: Event) -> None:
        """Show what an event says."""
        if self.quiet:
            return
        if isinstance(event, Measured):
            angles = [layer.angle for layer in event.layers[:-1] if layer.angle is not None]
            self.angle = float(np.mean(angles)) if angles else None
        elif isinstance(event, StepDone) and self.on_terminal:
            self._live(event)
        elif isinstance(event, EpochDone):
            self._ended(event)

    def _live(self, event: StepDone) -> None:
        if self.bar is None:
            size = shutil.get_terminal_size()
            self.bar = tqdm(
                total=self.batches,
                initial=event.batch - 1,
                desc=f"{self.name} {event.epoch}/{self.total}",
                ncols=size.columns - 1,  # where it is not known, tqdm by itself shows nothing
                nrows=size.lines,
                bar_format="{desc} {bar:3} {rate_fmt}{postfix}",
            )
        self.bar.update(event.batch - self.bar.n)
        if (
            event.batch == self.batches or self.bar.n % 10 == 0
        ):  # on a GPU, a look at the loss waits for it
            self.bar.set_postfix_str(f"loss {float(event.loss):.3f}, {self._left()} left", refresh=False)

    def _ended(self, event: EpochDone) -> None:
        row = event.row
        text = f"loss {row['train_loss']:.3f}, train {row['train_top1']:.1%}"
        if "test_top1" in row:
            text += f", test {row['test_top1']:.1%}"
        if self.angle is not None:
            text += f", angle {self.angle:.1f} deg"
        if self.bar is not None:
            self.bar.set_postfix_str(f"{text}, {self._left()} left")
            self.bar.close()
            self.bar = None
        elif not self.on_terminal:
            rate = (self.progress.step - self.first) * self.batch_size / self._passed()
            click.echo(
                f"{self.name}: epoch {row['epoch']}/{self.total}, {text}, {rate:.0f} samples/s, "
                f"{self._left()} left"
            )

    def _passed(self) -> float:
        return max(time.monotonic() - self.started, 1e-9)

    def _left(self) -> str:
        """Return the time that the rest of the epochs takes at the rate so far."""
        done = self.progress.step - self.first
        left = self.total * self.batches - self.progress.step
        return tqdm.format_interval(self._passed() / max(done, 1) * left)
