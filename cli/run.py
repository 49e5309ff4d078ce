"""`npgait run`: train the experiments of a preset or of a TOML file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from npgait.backend import Device
from npgait.cli.completion import complete_presets
from npgait.cli.execute import check_all, execute
from npgait.cli.options import (
    choose_device,
    data_option,
    device_option,
    graphs_option,
    loader,
    plots_option,
    precision_option,
    quiet_option,
)
from npgait.cli.paths import NamedPath
from npgait.config import Experiment
from npgait.experiments import find_experiments, parse_override, read_experiments, to_toml
from npgait.files import write_text
from npgait.run_folder import CONFIG, INFO, RunFolderError, describe_environment


@click.command(short_help="Train the experiments of a preset or file, and compare them.")
@click.argument("preset", default="digits", shell_complete=complete_presets)
@data_option
@device_option
@precision_option()
@graphs_option
@click.option("--out", type=NamedPath(), help="Run folder  [default: runs/PRESET-TIME]")
@click.option("--experiment", "-e", "only", multiple=True, help="Run this experiment only (repeatable).")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of every experiment that is run, such as epochs=3 (repeatable).",
)
@click.option(
    "--seeds",
    default=1,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Repeat every experiment with so many seeds, counted from its own.",
)
@plots_option
@quiet_option
def run(
    preset: str,
    data_dir: Path | None,
    device: str,
    precision: str | None,
    graphs: bool,
    out: Path | None,
    only: Sequence[str],
    overrides: Sequence[str],
    seeds: int,
    plots: bool,
    quiet: bool,
) -> None:
    """Train the experiments of PRESET one after the other and compare them.

    PRESET is the name of a preset (digits, mnist, mnist-gait-4l, cifar10, ...; `npgait presets` lists
    them all) or a TOML file. Without it the digits are run: four experiments on data that comes with
    npgait. One that diverges is named and left: the others are trained, and the exit status is 1.

    \b
    npgait run
    npgait run mnist-gait-4l --data ~/data --set epochs=3
    npgait run my.toml --device gpu
    npgait run digits --seeds 5
    """  # noqa: D301 - click wants the control character
    experiments = find_experiments(preset, dict(map(parse_override, overrides)), only)
    experiments = repeated(experiments, seeds)
    chosen = choose_device(device, precision)
    load = loader(data_dir)
    read_experiments(Path(CONFIG), to_toml(experiments))  # as `resume` will: names with seeds in them
    check_all(experiments, load)  # missing data too is reported before a folder is made
    folder = _make_folder(out, preset)
    _write_run(folder, experiments, data_dir, chosen, precision)
    execute(folder, experiments, load, chosen, quiet=quiet, plots=plots, graphs=graphs)


def repeated(experiments: Sequence[Experiment], seeds: int) -> list[Experiment]:
    """Return each experiment with so many seeds, the seed in its name; with one seed, as they are."""
    if seeds == 1:
        return list(experiments)
    return [
        replace(e, name=f"{e.name}-seed{e.seed + number}", seed=e.seed + number)
        for e in experiments
        for number in range(seeds)
    ]


def _make_folder(out: Path | None, preset: str) -> Path:
    """Return a new, empty run folder."""
    if out is None:
        return _new_folder(Path("runs") / f"{Path(preset).stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    if out.is_dir() and any(out.iterdir()):
        raise _not_empty(out)
    _make_folders(out)
    return out


def _not_empty(folder: Path) -> RunFolderError:
    return RunFolderError(f"{folder} is not empty; `npgait resume {folder}` goes on with a run")


def _new_folder(base: Path) -> Path:
    """Make and return the folder `base`, or the first of base-2, base-3, ... that is not there."""
    _make_folders(base.parent)
    number = 1
    while True:
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _make_folders(folder: Path) -> None:
    """Make a folder, and those above it, where there is none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunFolderError(
            f"{error.filename} is no folder; --out takes one, or the name of a new one"
        ) from error


def _write_run(
    folder: Path,
    experiments: Sequence[Experiment],
    data_dir: Path | None,
    device: Device,
    precision: str | None,
) -> None:
    try:
        write_text(folder / CONFIG, to_toml(experiments), new=True)
    except FileExistsError as error:  # another `npgait run` has found the folder empty, too
        raise _not_empty(folder) from error
    info: dict[str, Any] = describe_environment(device, sys.argv)
    info["precision"] = precision
    info["data"] = None if data_dir is None else str(data_dir.resolve())
    info["started"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_text(folder / INFO, json.dumps(info, indent=2) + "\n")
