"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from npgait.backend import PRECISIONS, Device, DeviceError, select_device, set_precision
from npgait.cli.paths import NamedPath
from npgait.config import ConfigError, Experiment, nearest
from npgait.loaders import DATASETS, INCLUDED, DataError, Dataset, StoredDataset, load
from npgait.loaders.synthetic import SHAPES, random_images

data_option = click.option(
    "--data",
    "data_dir",
    type=NamedPath(),
    envvar="NPGAIT_DATA",
    show_envvar=True,
    help="Folder with the data sets (MNIST, CIFAR-10, ...), or an image store. The digits need none.",
)
device_option = click.option(
    "--device",
    metavar="cpu|gpu|gpu:N|auto",
    default="auto",
    show_default=True,
    help="Where to compute; auto takes a GPU if CuPy finds one.",
)


def precision_option(default: str = "float32") -> Callable[..., Any]:
    """Return the option --precision; `default` in words, for it stands in the help only."""
    return click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        help=f"Of float32 products on a GPU; tf32 rounds their factors to 10 bits  [default: {default}]",
    )


graphs_option = click.option(
    "--graphs/--no-graphs",
    default=True,
    help="Whether a GPU may replay steps from CUDA graphs.",
    show_default=True,
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Show the final table only.")
plots_option = click.option(
    "--plots/--no-plots", default=True, show_default=True, help="Draw plots at the end."
)


def choose_device(spec: str, precision: str | None, otherwise: str | None = None) -> Device:
    """Return the device that --device names, a GPU set to --precision, or without it to `otherwise`.

    Raises
    ------
    DeviceError
        If there is no such device, or the CPU is asked for TF32.
    """
    device = select_device(spec)
    if device.is_gpu:
        set_precision(precision or otherwise or "float32")
    elif precision == "tf32":
        raise DeviceError("--precision tf32 needs a GPU; the CPU computes in float32 or float64")
    return device


def loader(data_dir: Path | None) -> Callable[[Experiment], Dataset | StoredDataset]:
    """Return a function that loads the data set of an experiment, each once.

    It raises a ConfigError where there is no data set of that name.
    """
    given = _is_data_given()

    @functools.cache
    def load_once(name: str, image_size: int) -> Dataset | StoredDataset:
        try:
            return load(name, data_dir, image_size=image_size)
        except DataError:
            # NPGAIT_DATA is there for the others, and so is what a run noted down of it.
            if name != INCLUDED or given:
                raise
            return load(name)

    def load_for(experiment: Experiment) -> Dataset | StoredDataset:
        if experiment.data not in DATASETS:
            raise ConfigError(
                f"experiment {experiment.name!r}: key 'data' is {experiment.data!r}; expected one of "
                + ", ".join(DATASETS)
                + nearest(experiment.data, DATASETS, "; nearest: {}")
            )
        return load_once(experiment.data, experiment.image_size)

    return load_for


def loader_or_noise(data_dir: Path | None) -> Callable[[Experiment, int], Dataset | StoredDataset]:
    """Return a function that loads as `loader`'s does, or without --data draws so many images of noise.

    Noise too is drawn once for all experiments of a size: thousands of large images take seconds.
    """
    load, noise = loader(data_dir), functools.cache(random_images)

    def load_for(experiment: Experiment, n: int) -> Dataset | StoredDataset:
        if data_dir is None and experiment.data in SHAPES:
            return noise(experiment.data, n, image_size=experiment.image_size)
        return load(experiment)

    return load_for


def data_of_run(recorded: str | None, data_dir: Path | None) -> Path | None:
    """Return where the data of a run lie: what --data says, or else what run.json has recorded.

    NPGAIT_DATA does not count: by now it may name other data than the run began with.
    """
    if _is_data_given():
        return data_dir
    return Path(recorded) if recorded else None


def _is_data_given() -> bool:
    """Return whether --data stands on the command line; NPGAIT_DATA is no more than a default."""
    context = click.get_current_context(silent=True)  # None where a program calls
    return (
        context is not None and context.get_parameter_source("data_dir") is ParameterSource.COMMANDLINE
    )
