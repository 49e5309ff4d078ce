"""`npgait check`: shows on this machine that the equations hold, for a preset's network or a run's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click
import numpy as np

from npgait.backend import Array, Device
from npgait.checking import LayerCheck, check_session
from npgait.cli.completion import complete_presets
from npgait.cli.execute import batches_of, shape_in
from npgait.cli.options import (
    choose_device,
    data_of_run,
    data_option,
    device_option,
    loader,
    loader_or_noise,
)
from npgait.cli.table import cell, format_table
from npgait.config import ConfigError, Experiment
from npgait.experiments import find_experiments, read_experiments
from npgait.loaders import Dataset, StoredDataset
from npgait.run_folder import CHECKPOINT, CONFIG, check_run, read_info
from npgait.session import Session, build_session, restore_session


class FailedCheck(click.ClickException):
    """An equation does not hold; what the check printed says which."""

    exit_code = 1


@click.command(short_help="Check that the equations hold, on this machine.")
@click.argument("preset", metavar="[PRESET|RUN]", default="digits", shell_complete=complete_presets)
@click.option(
    "--experiment", "-e", "only", multiple=True, help="Check this experiment only (repeatable)."
)
@data_option
@device_option
def check(preset: str, only: Sequence[str], data_dir: Path | None, device: str) -> None:
    """Check that the equations hold, on this machine, for the networks of a preset or of a run.

    Of a preset the networks are as they begin; of a run folder, as they were trained. For each layer:
    the error of its inverse, the angle of GAIT-prop's update to backpropagation's, the angle between
    absolute and difference targets at the network's own precision, and the distance from orthogonality.
    Below each table stands in words what is fine and what is not. Without --data, presets are checked on
    noise, runs on their own data.

    \b
    npgait check
    npgait check cifar10 -e cifar10-gait
    npgait check runs/digits-20261123-101500
    """  # noqa: D301 - click wants the control character
    chosen = choose_device(device, None)
    run = _run_folder(preset)
    if run is not None:
        experiments = read_experiments(run / CONFIG, only=only)
        data_dir = data_of_run(read_info(run)["data"], data_dir)
    else:
        experiments = find_experiments(preset, only=only)
    load, load_or_noise = loader(data_dir), loader_or_noise(data_dir)
    failed = []
    for experiment in experiments:
        dataset = load_or_noise(experiment, 64) if run is None else load(experiment)
        session, x, labels = _session(experiment, run, dataset, chosen)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # the findings say it
            layers, findings = check_session(session, x, labels)
        click.echo(f"{experiment.name} ({experiment.dtype}, {len(labels)} samples)\n")
        click.echo(_table(layers) + "\n")
        for finding in findings:
            click.echo(f"  {finding.mark:5} {finding.text}")
        click.echo()
        if any(finding.wrong for finding in findings):
            failed.append(experiment.name)
    if failed:
        raise FailedCheck(f"an equation does not hold in {', '.join(failed)}")
    click.echo("every equation holds")


def _run_folder(name: str) -> Path | None:
    """Return the folder of a run, or None where the name is a preset's or no folder's."""
    folder = Path(name)
    if not folder.is_dir():
        return None
    if not (folder / CONFIG).is_file():
        with suppress(ConfigError):
            find_experiments(name)
            return None  # a folder of data is often called as the presets for it
    check_run(folder)
    return folder


def _session(
    e: Experiment, run: Path | None, dataset: Dataset | StoredDataset, device: Device
) -> tuple[Session, Array, Array]:
    """Return a session, fresh or from its checkpoint, and a batch."""
    session = build_session(e, shape_in(dataset, e), len(dataset.classes), device)
    if run is not None and (run / e.name / CHECKPOINT).exists():
        restore_session(run / e.name / CHECKPOINT, session, dataset.digest())
    data, _ = batches_of(dataset, session)
    size = 16 if e.network == "imagenet" else 64
    x, labels = next(data.batches(size))
    return session, x, labels


def _table(layers: Sequence[LayerCheck]) -> str:
    header = ["layer", "inverse error", "GAIT to BP", "absolute to difference", "||I - W W^T||"]
    rows = [
        [
            layer.name,
            cell(layer.inverse_error, "{:.1e}"),
            cell(layer.gait_to_bp, "{:.3f} deg"),
            cell(layer.absolute_to_difference, "{:.3f} deg"),
            cell(layer.distance, "{:.2e}"),
        ]
        for layer in layers
    ]
    return format_table(header, rows)
