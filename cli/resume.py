"""`npgait resume`: go on with a run that was interrupted."""

from __future__ import annotations

from pathlib import Path

import click

from npgait.cli.execute import execute
from npgait.cli.options import (
    choose_device,
    data_of_run,
    graphs_option,
    loader,
    plots_option,
    precision_option,
    quiet_option,
)
from npgait.cli.paths import NamedPath
from npgait.experiments import read_experiments
from npgait.run_folder import CONFIG, check_run, read_info


@click.command(short_help="Go on with a run that was interrupted.")
@click.argument("folder", metavar="RUN", type=NamedPath())
@click.option(
    "--data",
    "data_dir",
    type=NamedPath(),
    help="Where the data of the run lie now; run.json keeps it  [default: where the run began]",
)
@click.option(
    "--device",
    metavar="cpu|gpu|gpu:N|auto",
    help="Where to compute  [default: where the run began]",
)
@precision_option("as the run began")
@graphs_option
@plots_option
@quiet_option
def resume(
    folder: Path,
    data_dir: Path | None,
    device: str | None,
    precision: str | None,
    graphs: bool,
    plots: bool,
    quiet: bool,
) -> None:
    """Go on with the run in folder RUN from its last checkpoints.

    Finished experiments are left as they are, and need no data. On the CPU the weights at the end are
    those of a run that was never interrupted, bit for bit.
    """
    check_run(folder)
    experiments = read_experiments(folder / CONFIG)
    info = read_info(folder)
    chosen = choose_device(device or info["device"] or "auto", precision, info["precision"])
    load = loader(data_of_run(info["data"], data_dir))
    execute(
        folder,
        experiments,
        load,
        chosen,
        quiet=quiet,
        plots=plots,
        graphs=graphs,
        moved_to=data_dir,
    )
