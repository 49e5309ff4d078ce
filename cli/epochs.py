"""A line an epoch: live on a terminal, plain where output is piped."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

import click
from tqdm import tqdm
from tqdm.utils import disp_len

from npgait.run_folder import mean_angle
from npgait.session import Session
from npgait.training import EpochDone, Event, Measured, StepDone

LOSS_EVERY = 10  # batches between two losses that are shown
FIRST_TO_GO = ("left", "train", "loss", "angle", "test")  # where a terminal is too narrow for all


class LiveLine(tqdm):
    """A bar with items behind it: those that fit, each whole, since half a number is another number."""

    def __init__(self, **options: Any) -> None:
        self.items: dict[str, str] = {}
        super().__init__(**options)

    def __str__(self) -> str:
        values = self.format_dict
        room = values["ncols"]
        for gone in range(len(FIRST_TO_GO) + 1):
            kept = [text for key, text in self.items.items() if key not in FIRST_TO_GO[:gone]]
            line = self.format_meter(**{**values, "ncols": None, "postfix": ", ".join(kept)})
            if disp_len(line) <= room:
                return line
        line = values["prefix"]
        while disp_len(line) > room:  # its end says which epoch it is
            line = line[1:]
        return line


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
        self.bar: LiveLine | None = None
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
            self.angle = mean_angle([event.row()])
        elif isinstance(event, StepDone) and self.on_terminal:
            self._live(event)
        elif isinstance(event, EpochDone):
            self._ended(event)

    def _live(self, event: StepDone) -> None:
        if self.bar is None:
            size = shutil.get_terminal_size()
            self.bar = LiveLine(
                total=self.batches,
                initial=event.batch - 1,
                desc=f"{self.name} {event.epoch}/{self.total}",
                ncols=size.columns - 1,  # where it is not known, tqdm by itself shows nothing
                nrows=size.lines,
                bar_format="{desc} {bar:3} {rate_fmt}{postfix}",
            )
        self.bar.update(event.batch - self.bar.n)
        # Not at every batch: on a GPU, a look at the loss waits for it.
        if event.batch == self.batches or self.bar.n % LOSS_EVERY == 0:
            self.bar.items = {"loss": f"loss {float(event.loss):.3f}", "left": f"{self._left()} left"}

    def _ended(self, event: EpochDone) -> None:
        row = event.row
        items = {"loss": f"loss {row['train_loss']:.3f}", "train": f"train {row['train_top1']:.1%}"}
        if "test_top1" in row:
            items["test"] = f"test {row['test_top1']:.1%}"
        if self.angle is not None:
            items["angle"] = f"angle {self.angle:.1f} deg"
        if self.bar is not None:
            self.bar.items = items | {"left": f"{self._left()} left"}
            self.bar.refresh()
            self.bar.close()
            self.bar = None
        elif not self.on_terminal:
            rate = (self.progress.step - self.first) * self.batch_size / self._passed()
            click.echo(
                f"{self.name}: epoch {row['epoch']}/{self.total}, {', '.join(items.values())}, "
                f"{rate:.0f} samples/s, {self._left()} left"
            )

    def _passed(self) -> float:
        return max(time.monotonic() - self.started, 1e-9)

    def _left(self) -> str:
        """Return the time that the rest of the epochs takes at the rate so far."""
        done = self.progress.step - self.first
        left = self.total * self.batches - self.progress.step
        return tqdm.format_interval(self._passed() / max(done, 1) * left)
