"""Runs side by side: what is on disk, what repeats what, mean and spread over seeds, what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npgait.config import Experiment
from npgait.experiments import read_experiments
from npgait.files import printable
from npgait.run_folder import CONFIG, RunFolderError, check_run, hidden_angle, read_json, read_metrics

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
        tests = [row["test_top1"] for row in self.epochs if row.get("test_top1") is not None]
        values = {
            "epoch": last.get("epoch"),
            "train_top1": last.get("train_top1"),
            "test_top1": last.get("test_top1"),
            "best_test_top1": max(tests, default=None),
            "train_loss": last.get("train_loss"),
            "test_loss": last.get("test_loss"),
            "angle": hidden_angle(self.rows),
            "seconds": sum(row["seconds"] for row in self.epochs) if self.epochs else None,
        }
        return {key: float(value) for key, value in values.items() if value is not None}


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample (n - 1 in the denominator); 0 of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Group:
    """An experiment and its repetitions with other seeds, all at the same epoch."""

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
    check_run(folder)
    info = read_json(folder)
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
    """Return experiments that differ in nothing but their seed as one group each, in order.

    A seed counts once in a group, and the members of a group are at the same epoch: what would not be
    a mean over seeds stays apart, by its folder and its name.
    """
    groups: dict[str, list[Trained]] = {}
    for t in trained:
        settings = {k: v for k, v in asdict(t.experiment).items() if k not in NAMING}
        groups.setdefault(json.dumps([settings, t.final().get("epoch")]), []).append(t)
    apart = [members for alike in groups.values() for members in _distinct_seeds(alike)]
    return [Group(label, members) for label, members in zip(_labels(apart), apart, strict=True)]


def _distinct_seeds(alike: list[Trained]) -> list[list[Trained]]:
    """Return experiments of the same settings in groups in which no seed is used twice."""
    groups = [alike]
    for tell in (lambda t: t.folder, _base_name, lambda t: t.experiment.name):
        finer: list[list[Trained]] = []
        for members in groups:
            unlike: dict[Any, list[Trained]] = {}
            twice = len({t.experiment.seed for t in members}) < len(members)
            for t in members:
                unlike.setdefault(tell(t) if twice else None, []).append(t)
            finer += unlike.values()
        groups = finer
    return groups


def _base_name(t: Trained) -> str:
    """Return the name of an experiment without the seed that `npgait run --seeds` adds."""
    return SEED.sub("", t.experiment.name)


def _labels(groups: Sequence[list[Trained]]) -> list[str]:
    """Return the label of each group: its name, in brackets what tells it from others of that name."""
    folders = _short_paths(list(dict.fromkeys(t.folder for members in groups for t in members)))
    names = [_joined(_base_name(t) for t in members) for members in groups]
    told: list[list[str]] = [[] for _ in groups]
    for tell in (
        [_joined(folders[t.folder] for t in members) for members in groups],
        [f"epoch {members[0].final().get('epoch', 0):.0f}" for members in groups],
        [_joined(t.experiment.name for t in members) for members in groups],
        [str(number) for number in range(1, len(groups) + 1)],
    ):
        labels = [(name, *words) for name, words in zip(names, told, strict=True)]
        for words, own, label in zip(told, tell, labels, strict=True):
            same = {other for other, theirs in zip(tell, labels, strict=True) if theirs == label}
            if len(same) > 1:
                words.append(own)
    return [
        f"{name} ({', '.join(words)})" if words else name
        for name, words in zip(names, told, strict=True)
    ]


def _short_paths(folders: Sequence[Path]) -> dict[Path, str]:
    """Return the end of each path, as long as it takes to tell it from the others."""
    parts = {folder: folder.resolve().parts for folder in folders}

    def end(folder: Path, length: int) -> str:
        return printable("/".join(parts[folder][-length:]))

    short = {}
    for folder in folders:
        lengths = range(1, len(parts[folder]) + 1)
        alone = (n for n in lengths if [end(f, n) for f in folders].count(end(folder, n)) == 1)
        short[folder] = end(folder, next(alone, 1))
    return short


def _joined(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def changed_settings(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Return the keys that differ between groups, with the value of each."""
    settings = [asdict(group.members[0].experiment) for group in groups]
    keys = [key for key in settings[0] if key not in NAMING]
    return {
        key: [s[key] for s in settings]
        for key in keys
        if any(s[key] != settings[0][key] for s in settings)
    }
