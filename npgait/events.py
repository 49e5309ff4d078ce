"""What training tells: sums over samples, where a run stands, and its events."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from npgait.backend import Array
from npgait.metrics import LayerMeasures, correct_within


@dataclass
class Tally:
    """Sums over samples: loss, top-1, top-5 and how many there were."""

    loss: float = 0.0
    top1: int = 0
    top5: int = 0
    samples: int = 0

    def add(self, loss: Array, y: Array, labels: Array) -> None:
        """Count a batch in: loss (B,), outputs (B, n), labels (B,). A GPU is not waited for."""
        self.loss = self.loss + loss.sum(dtype=np.float64)
        self.top1 = self.top1 + correct_within(y, labels, 1)
        self.top5 = self.top5 + correct_within(y, labels, 5)
        self.samples += len(y)

    def fetch(self) -> None:
        """Turn sums that are still on a device into numbers."""
        self.loss, self.top1, self.top5 = float(self.loss), int(self.top1), int(self.top5)

    def means(self, prefix: str) -> dict[str, float]:
        """Return loss, top-1 and top-5 per sample, their names after `prefix`."""
        self.fetch()
        n = max(self.samples, 1)
        values = {"loss": self.loss / n, "top1": self.top1 / n, "top5": self.top5 / n}
        return {f"{prefix}_{key}": value for key, value in values.items()}


@dataclass
class Progress:
    """Where a run stands; with weights, optimizer and streams, all that resuming needs."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches done of the epoch under way
    step: int = 0  # batches done in all
    seconds: float = 0.0  # training time of the epoch under way
    tally: Tally = field(default_factory=Tally)  # of the epoch under way
    streams: str = ""  # state of the random streams as the epoch under way began


def progress_of(values: dict[str, Any]) -> Progress:
    """Return the progress that `asdict` made these plain values of.

    Raises
    ------
    KeyError, TypeError, ValueError
        If they are not such values.
    """
    progress = Progress(**{**values, "tally": Tally(**values["tally"])})
    for part, given in ((progress, values), (progress.tally, values["tally"])):
        for f in fields(part):
            if f.name not in given:
                raise ValueError(f"{f.name} is missing")
            value = getattr(part, f.name)
            fits = f.name == "tally" or type(value) is type(f.default)
            if isinstance(value, int | float):
                fits = fits and (value >= 0 if isinstance(value, int) else np.isfinite(value))
            if not fits:
                raise ValueError(f"{f.name} is {value!r}")
    return progress


@dataclass(frozen=True)
class StepDone:
    """A batch was learned from."""

    step: int
    epoch: int
    batch: int  # batches done of this epoch
    batches: int  # batches of an epoch
    loss: float | Array  # mean over the batch; on a GPU a 0-d array, and float() waits for it


@dataclass(frozen=True)
class Measured:
    """The layers were measured; belongs to the step that is done next."""

    step: int
    epoch: int
    layers: list[LayerMeasures]

    def row(self) -> dict[str, Any]:
        """Return the event as plain values."""
        return {"step": self.step, "epoch": self.epoch, "layers": [asdict(m) for m in self.layers]}


@dataclass(frozen=True)
class Evaluating:
    """All steps of an epoch are done, and a batch is evaluated next."""

    step: int
    epoch: int


@dataclass(frozen=True)
class EpochDone:
    """An epoch is complete; `row` holds its metrics."""

    row: dict[str, Any]


Event = StepDone | Measured | Evaluating | EpochDone
