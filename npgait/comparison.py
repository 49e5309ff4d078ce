"""Runs side by side: what is on disk, what repeats what, mean and spread over seeds, what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npgait.config import Experiment
from npgait.experiments import read_experiments
from npgait.files import printable, read_text
from npgait.run_folder import CONFIG, INFO, RunFolderError, hidden_angle, read_metrics

NAMING = ("name", "description", "seed")  # keys in which repetitions of one experiment differ
SEED = re.compile(r"-seed\d+$")  # what `npgait run --seeds` adds to a name


@dataclass(frozen=True)
class Trained:
    """One experiment of a run folder.

    Attributes
    ----------
    folder : Path
        Of the run.
    experiment : Experiment
    rows : list of dict
        Its metrics; see `run_folder`.
    info : dict
        What run.json says of machine, versions and command.
    """

    folder: Path
    experiment: Experiment
    rows: list[dict[str, Any]]
    info: dict[str, Any]

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The rows of epochs."""
        return [row for row in self.rows if row["kind"] == "epoch"]

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The rows of measured steps."""
        return [row for row in self.rows if row["kind"] == "layers"]

    def final(self) -> dict[str, float]:
        """Return the numbers of the last epoch that a table shows; what is missing is left out."""
        last = self.epochs[-1] if self.epochs else {}
        values = {
            "epoch": last.get("epoch"),
            "train_top1": last.get("train_top1"),
            "test_top1": last.get("test_top1"),
            "best_test_top1": _best(self.epochs, "test_top1"),
            "train_loss": last.get("train_loss"),
            "test_loss": last.get("test_loss"),
            "angle": hidden_angle(self.rows),
            "seconds": sum(row["seconds"] for row in self.epochs) if self.epochs else None,
        }
        return {key: float(value) for key, value in values.items() if value is not None}


def _best(epochs: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in epochs if row.get(key) is not None]
    return max(values) if values else None


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation that a sample gives of where it was drawn from (n - 1); 0 of one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Group:
    """An experiment and its repetitions with other seeds."""

    label: str
    members: list[Trained]

    def summary(self) -> dict[str, tuple[float, float]]:
        """Return mean and standard deviation over the seeds of each number of `Trained.final`."""
        finals = [member.final() for member in self.members]
        keys = dict.fromkeys(key for final in finals for key in final)
        columns = {key: [final[key] for final in finals if key in final] for key in keys}
        return {key: (float(np.mean(v)), spread(v)) for key, v in columns.items()}


def read_run(folder: Path) -> list[Trained]:
    """Return every experiment of a run folder that has metrics.

    Raises
    ------
    RunFolderError, ConfigError
        If the folder is not that of a run, nothing was trained in it yet, or a file is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise RunFolderError(
            f"{folder}: no run folder (there is no {CONFIG} in it); give a folder that `npgait run` made"
        )
    try:
        info = json.loads(read_text(folder / INFO, 1 << 20))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{folder / INFO}: cannot be read ({error})") from error
    experiments = read_experiments(folder / CONFIG)
    trained = [
        Trained(folder, e, read_metrics(folder / e.name), info if isinstance(info, dict) else {})
        for e in experiments
    ]
    trained = [t for t in trained if t.rows]
    if not trained:
        raise RunFolderError(f"{folder}: no experiment has finished an epoch yet")
    return trained


def group_repetitions(trained: Sequence[Trained]) -> list[Group]:
    """Return experiments that differ in nothing but their seed as one group each, in order."""
    groups: dict[str, list[Trained]] = {}
    for t in trained:
        key = json.dumps({k: v for k, v in asdict(t.experiment).items() if k not in NAMING})
        groups.setdefault(key, []).append(t)
    labels = [SEED.sub("", members[0].experiment.name) for members in groups.values()]
    several = len({t.folder for t in trained}) > 1
    return [
        Group(_unlike(label, labels, members[0].folder, several), members)
        for label, members in zip(labels, groups.values(), strict=True)
    ]


def _unlike(label: str, labels: Sequence[str], folder: Path, several: bool) -> str:
    """Return the label, with its folder where another group has the same."""
    return f"{label} ({printable(folder.name)})" if several and labels.count(label) > 1 else label


def changed_settings(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Return the keys that differ between groups, with the value of each."""
    settings = [asdict(group.members[0].experiment) for group in groups]
    keys = [key for key in settings[0] if key not in NAMING]
    return {
        key: [s[key] for s in settings]
        for key in keys
        if any(s[key] != settings[0][key] for s in settings)
    }
