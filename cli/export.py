"""`npgait export`: the forward network of a run as ONNX."""

from __future__ import annotations

from pathlib import Path

import click

from npgait.cli.paths import NamedPath
from npgait.config import ConfigError
from npgait.experiments import read_experiments
from npgait.export import export_onnx
from npgait.run_folder import CHECKPOINT, CONFIG, RunFolderError, check_run
from npgait.saving import load_network


@click.command(short_help="Write the network of a run as ONNX.")
@click.argument("run", metavar="RUN", type=NamedPath())
@click.argument("out", metavar="MODEL.onnx", type=NamedPath(dir_okay=False))
@click.option(
    "--experiment", "-e", "name", help="Export this experiment; needed where the run has more than one."
)
def export(run: Path, out: Path, name: str | None) -> None:
    """Write the forward network of RUN, as it was last saved, as ONNX.

    Input "x" is what the network was trained on: images scaled as `normalisation` in the run's
    config.toml says. Output "logits" has one value per class. Needs the extra npgait[onnx].

    \b
    npgait export runs/digits-20261123-101500 gait.onnx -e gait
    """  # noqa: D301 - click wants the control character
    check_run(run)
    names = [e.name for e in read_experiments(run / CONFIG)]
    names = [n for n in names if (run / n / CHECKPOINT).is_file()]
    if not names:
        raise RunFolderError(f"{run}: there is no checkpoint yet; `npgait resume {run}` goes on")
    if name is None and len(names) > 1:
        raise ConfigError(f"{run} holds {', '.join(names)}; choose one by --experiment")
    name = name or names[0]
    if name not in names:
        raise ConfigError(f"--experiment {name!r} is not here; there are {', '.join(names)}")
    read = [run / CONFIG, *(run / n / CHECKPOINT for n in names)]
    if out.exists() and any(map(out.samefile, read)):
        raise click.BadParameter(
            f"{out} is a file of the run itself; give the name of a new one", param_hint="MODEL.onnx"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(load_network(run / name / CHECKPOINT), out)
    click.echo(f"{name}: {out}")
