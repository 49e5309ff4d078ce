"""Runs the experiments of a run folder one after the other: what `run` and `resume` share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from npgait.backend import Device
from npgait.cli.epochs import EpochLines
from npgait.cli.interrupt import stop_on_signals
from npgait.cli.table import cell, format_table
from npgait.cli.threads import blas_threads, keep_memory
from npgait.comparison import Trained
from npgait.config import ConfigError, Experiment
from npgait.data import Source
from npgait.figures import draw_run
from npgait.files import locked
from npgait.inverse import ErrorsNotFiniteError, SingularWeightsError
from npgait.loaders import RESIZED, Dataset, StoredDataset
from npgait.loaders.batches import crop_of, sources
from npgait.run_folder import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    PLOTS,
    RunFolderError,
    read_metrics,
    record_data,
    remove_stale,
    write_metrics,
)
from npgait.saving import describe
from npgait.session import Session, build_session, read_progress, restore_session, run_session
from npgait.training import TrainingDivergedError

AnyDataset = Dataset | StoredDataset
DIVERGED = (TrainingDivergedError, SingularWeightsError, ErrorsNotFiniteError)


def execute(
    folder: Path,
    experiments: Sequence[Experiment],
    load: Callable[[Experiment], AnyDataset],
    device: Device,
    *,
    quiet: bool,
    plots: bool,
    graphs: bool,
    moved_to: Path | None = None,
) -> None:
    """Train every experiment that is not finished, then show the table and draw the plots.

    One that cannot go on is named and left; the others are trained, and the status at the end is 1.

    Parameters
    ----------
    folder : Path
        Of the run; an experiment with a checkpoint in it goes on from there.
    experiments : sequence of Experiment
    load : callable
        Returns the data set of an experiment.
    device : Device
    quiet : bool
        Whether progress is not shown.
    plots : bool
        Whether plots are drawn.
    graphs : bool
        Whether a GPU may replay steps from CUDA graphs.
    moved_to : Path, optional
        Where `load` finds the data, if run.json says otherwise so far.

    Raises
    ------
    RunFolderError
        If another process is at work in the folder.
    """
    keep_memory()
    goes_on = f"`npgait resume {folder}` goes on"
    with _alone_in(folder), stop_on_signals(goes_on) as stop:
        remove_stale(folder, [experiment.name for experiment in experiments])
        if moved_to is not None:
            _move_data(folder, experiments, load, moved_to)
        failed = []
        for experiment in experiments:
            try:
                with naming(experiment):
                    _train(folder, experiment, load, device, stop, quiet, graphs)
            except (*DIVERGED, MemoryError) as error:
                click.echo(f"Error: {error}", err=True)
                failed.append(experiment.name)
            if stop():
                break
    trained = [Trained(folder, e, read_metrics(folder / e.name), {}) for e in experiments]
    click.echo(summary(trained))
    if failed:
        click.echo(f"failed: {', '.join(failed)}")
    click.echo(f"run folder: {folder}")
    if stop():
        click.echo(f"interrupted; {goes_on}", err=True)
    if plots and any(t.rows for t in trained) and _outdated(folder, experiments):
        draw_run(folder, folder / PLOTS)  # last, since all else is known where this fails
    if stop():
        sys.exit(128 + (stop.signal or 0))
    if failed:
        sys.exit(1)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that would write there out of a run folder."""
    with locked(folder / CONFIG) as free:
        if not free:
            raise RunFolderError(f"{folder}: another npgait is at work in it; wait for it, or stop it")
        yield


def _move_data(
    folder: Path,
    experiments: Sequence[Experiment],
    load: Callable[[Experiment], AnyDataset],
    moved_to: Path,
) -> None:
    """Note in run.json where the data lie now, once it is known that they are those of the run."""
    for experiment in experiments:
        digest, path = load(experiment).digest(), folder / experiment.name / CHECKPOINT
        if path.exists():
            read_progress(path, experiment, digest)
    record_data(folder, moved_to)


def _is_finished(folder: Path, experiment: Experiment) -> bool:
    """Return whether all epochs of an experiment are done; its metrics are then made good."""
    if not (folder / CHECKPOINT).exists():
        return False
    epochs, rows = read_progress(folder / CHECKPOINT, experiment)
    if epochs < experiment.epochs:
        return False
    write_metrics(folder, rows)  # a process killed after the last checkpoint wrote none
    return True


def _outdated(folder: Path, experiments: Sequence[Experiment]) -> bool:
    """Return whether there are no plots of a run, or metrics later than one of them."""
    metrics = [folder / experiment.name / METRICS for experiment in experiments]
    written = [path.stat().st_mtime_ns for path in metrics if path.exists()]
    drawn = [path.stat().st_mtime_ns for path in (folder / PLOTS).glob("*.png")]
    return not drawn or max(written) > min(drawn)


@contextmanager
def naming(experiment: Experiment) -> Iterator[None]:
    """Name the experiment in the message of an error that ends its training.

    Overflow needs no warning: a loss or weights that are not finite are such an error.
    """
    where = f"experiment {experiment.name!r}"
    try:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            yield
    except DIVERGED as error:
        raise type(error)(f"{where}: {error}") from error
    except MemoryError as error:
        raise MemoryError(
            f"{where}: {error or 'there is too little memory'}; lower batch_size or the network's size"
        ) from error


def check_all(experiments: Sequence[Experiment], load: Callable[[Experiment], AnyDataset]) -> None:
    """Build every network once, so that what cannot be trained is said before anything is.

    Raises
    ------
    ConfigError, DataError
        If an experiment does not fit its data, or has a layer that no checkpoint can hold.
    """
    built = set()
    for experiment in experiments:
        dataset = load(experiment)
        cheap = replace(experiment, initialisation="glorot_normal")  # orthogonal weights take longer
        like = replace(cheap, name="", description="", seed=0)
        if like not in built:
            session = build_session(cheap, shape_in(dataset, experiment), len(dataset.classes))
            if isinstance(dataset, StoredDataset):
                crop_of(dataset, session.network.shape_in)
            try:
                describe(session.network)
            except TypeError as error:  # a layer of one's own that saving.py does not know yet
                raise ConfigError(f"experiment {experiment.name!r} cannot be saved: {error}") from error
            built.add(like)


def _open(
    folder: Path, experiment: Experiment, dataset: AnyDataset, digest: str, device: Device
) -> Session:
    """Return the session of an experiment, from its checkpoint if it has one."""
    session = build_session(experiment, shape_in(dataset, experiment), len(dataset.classes), device)
    if (folder / CHECKPOINT).exists():
        restore_session(folder / CHECKPOINT, session, digest)
        write_metrics(folder, session.rows)  # a process killed after the checkpoint wrote none
    return session


def batches_of(dataset: AnyDataset, session: Session) -> tuple[Source, Source | None]:
    """Return training and test set as sources of batches."""
    e, network = session.experiment, session.network
    return sources(
        dataset,
        shape=network.shape_in,
        dtype=network.dtype,
        device=network.device,
        normalisation=e.normalisation,
        augmentation=e.augmentation,
        block=e.shuffle_block,
    )


def shape_in(dataset: AnyDataset, experiment: Experiment) -> tuple[int, int, int]:
    """Return (H, W, C) that the network sees: of imagenet what `image_size` says, else as stored."""
    height, width, channels = dataset.image_shape
    if isinstance(dataset, StoredDataset) and experiment.data in RESIZED:
        height = width = experiment.image_size
    return height, width, channels


def _train(
    folder: Path,
    e: Experiment,
    load: Callable[[Experiment], AnyDataset],
    device: Device,
    stop: Callable[[], bool],
    quiet: bool,
    graphs: bool,
) -> None:
    """Train one experiment to its end, showing a line an epoch."""
    if _is_finished(folder / e.name, e):
        return
    dataset = load(e)
    digest = dataset.digest()
    session = _open(folder / e.name, e, dataset, digest, device)
    train_data, test_data = batches_of(dataset, session)
    epochs = EpochLines(session, -(-len(train_data) // e.batch_size), quiet=quiet)
    with epochs, blas_threads(session.network, e.batch_size):
        where = folder / e.name
        events = run_session(session, train_data, test_data, where, digest, stop=stop, graphs=graphs)
        for event in events:
            epochs.show(event)


def summary(experiments: Sequence[Trained]) -> str:
    """Return the table of a run: accuracy, loss, final angle to BP, time, one line an experiment."""
    header = ["experiment", "epochs", "train top-1", "test top-1", "test loss", "angle to BP", "time"]
    forms = {
        "train_top1": "{:.2%}",
        "test_top1": "{:.2%}",
        "test_loss": "{:.4f}",
        "angle": "{:.2f} deg",
        "seconds": "{:.1f} s",
    }
    lines = []
    for trained in experiments:
        final = trained.final()
        cells = [cell(final.get(key), form) for key, form in forms.items()]
        lines.append([trained.experiment.name, f"{final.get('epoch', 0):.0f}", *cells])
    return format_table(header, lines)
