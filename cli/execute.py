"""Runs the experiments of a run folder one after the other: what `run` and `resume` share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from tqdm import tqdm

from npgait.backend import Device
from npgait.cli.interrupt import stop_on_signals
from npgait.cli.table import format_table
from npgait.config import Experiment
from npgait.data import ArrayData, array_data, scaling_of
from npgait.loaders import Dataset
from npgait.plots import plot_run
from npgait.run_folder import CHECKPOINT, PLOTS, hidden_angle, read_metrics
from npgait.session import Session, build_session, restore_session, run_session
from npgait.training import EpochDone, StepDone


def execute(
    folder: Path,
    experiments: Sequence[Experiment],
    load: Callable[[str], Dataset],
    device: Device,
    *,
    quiet: bool,
    plots: bool,
) -> None:
    """Train every experiment that is not finished, then show the table and draw the plots.

    Parameters
    ----------
    folder : Path
        Of the run; an experiment with a checkpoint in it goes on from there.
    experiments : sequence of Experiment
    load : callable
        Returns the data set of a name.
    device : Device
    quiet : bool
        Whether progress is not shown.
    plots : bool
        Whether plots are drawn.
    """
    for stale in folder.glob("**/.*.tmp"):  # left by a run that was killed while writing
        stale.unlink(missing_ok=True)
    with stop_on_signals() as stop:
        for experiment in experiments:
            dataset = load(experiment.data)
            session = _open(folder / experiment.name, experiment, dataset, device)
            if not session.finished:
                data = _batches(dataset, experiment, device)
                _train(session, *data, folder, dataset.digest(), stop, quiet)
            if stop():
                break
    if plots:
        plot_run(folder / PLOTS, {e.name: read_metrics(folder / e.name) for e in experiments})
    click.echo(summary(folder, experiments))
    click.echo(f"run folder: {folder}")
    if stop():
        click.echo(f"interrupted; `npgait resume {folder}` goes on", err=True)
        sys.exit(128 + (stop.signal or 0))


def _open(folder: Path, experiment: Experiment, dataset: Dataset, device: Device) -> Session:
    """Return the session of an experiment, from its checkpoint if it has one."""
    n_in = int(dataset.train_x[0].size)
    session = build_session(experiment, n_in, len(dataset.classes), device)
    if (folder / CHECKPOINT).exists():
        restore_session(folder / CHECKPOINT, session, dataset.digest())
    return session


def _batches(dataset: Dataset, experiment: Experiment, device: Device) -> tuple[ArrayData, ArrayData]:
    """Return training and test set as sources of batches, both scaled by the training set's pixels."""
    scaling = scaling_of(dataset.train_x, experiment.normalisation, max_value=dataset.max_value)
    train_data, test_data = (
        array_data(x, labels, scaling=scaling, dtype=experiment.dtype, device=device)
        for x, labels in (
            (dataset.train_x, dataset.train_labels),
            (dataset.test_x, dataset.test_labels),
        )
    )
    return train_data, test_data


def _train(
    session: Session,
    train_data: ArrayData,
    test_data: ArrayData,
    folder: Path,
    digest: str,
    stop: Callable[[], bool],
    quiet: bool,
) -> None:
    """Train one session, with a progress bar on a terminal and a line an epoch elsewhere."""
    e = session.experiment
    batches = -(-len(train_data) // e.batch_size)
    on_terminal = sys.stderr.isatty()
    bar = tqdm(
        total=e.epochs * batches,
        initial=session.progress.step,
        desc=e.name,
        unit="batch",
        disable=quiet or not on_terminal,
    )
    with bar:
        events = run_session(session, train_data, test_data, folder / e.name, digest, stop=stop)
        for event in events:
            if isinstance(event, StepDone):
                bar.update()
            elif isinstance(event, EpochDone):
                row = event.row
                text = f"loss {row['train_loss']:.3f}, test top-1 {row['test_top1']:.1%}"
                bar.set_postfix_str(text)
                if not quiet and not on_terminal:
                    click.echo(f"{e.name}: epoch {row['epoch']}/{e.epochs}, {text}")


def summary(folder: Path, experiments: Sequence[Experiment]) -> str:
    """Return the table of a run: test top-1, loss, final angle to BP, time, one line an experiment."""
    header = ["experiment", "epochs", "test top-1", "test loss", "angle to BP", "time"]
    lines = []
    for experiment in experiments:
        rows = read_metrics(folder / experiment.name)
        epochs = [row for row in rows if row["kind"] == "epoch"]
        if not epochs:
            lines.append([experiment.name, "0", "-", "-", "-", "-"])
            continue
        last, angle = epochs[-1], hidden_angle(rows)
        loss = last["test_loss"]
        lines.append(
            [
                experiment.name,
                str(last["epoch"]),
                f"{last['test_top1']:.2%}",
                "-" if loss is None else f"{loss:.4f}",
                "-" if angle is None else f"{angle:.2f} deg",
                f"{sum(row['seconds'] for row in epochs):.1f} s",
            ]
        )
    return format_table(header, lines)
